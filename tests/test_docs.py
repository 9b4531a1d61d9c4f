"""The pages, the README and the notebooks say what the code does."""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NOTEBOOKS = sorted((ROOT / "examples").glob("[0-9]*.py"))


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language ("" for none)."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


PYTHON = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in TEXTS
    for number, block in enumerate(blocks(path, "python"), 1)
]


def commands(path: Path) -> list[list[str]]:
    """Return the words of every `mma-adapter` command line a text names."""
    text = re.sub(r"\\\n#?", " ", path.read_text(encoding="utf-8"))
    lines = re.findall(r"(?:^|`|^# |^\$ )mma-adapter ([^`\n>|]*)", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(DOCS))
    try:
        spec = importlib.util.spec_from_file_location("build_pages", DOCS / "build_pages.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module


@pytest.fixture(scope="module")
def cli():
    typer = pytest.importorskip("typer")
    from mma_adapter.cli import app

    return typer.main.get_command(app)


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in PAGES:
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            listed |= {x for x in block.split("\n") if x and not x.startswith(":")}
    there = {page.stem for page in PAGES} - {"index"}
    there |= {f"notebooks/{notebook.stem}" for notebook in NOTEBOOKS}
    assert there <= listed
    assert {name for name in listed if "/" not in name} <= there


def test_there_are_blocks_to_check():
    assert len(PYTHON) > 10


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_compile(block):
    ast.parse(block)


@pytest.mark.parametrize("block", PYTHON)
def test_what_python_blocks_import_from_the_package_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mma_adapter"):
            if any(alias.name == "MMAPeftConfig" for alias in node.names):
                pytest.importorskip("peft", minversion="0.21")
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", [*TEXTS, *NOTEBOOKS], ids=lambda path: path.name)
def test_commands_and_options_that_texts_name_exist(path, cli):
    for words in commands(path):
        command = cli
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not cli or words[:1] in ([], ["--help"], ["COMMAND"]), words
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert asked <= known, f"mma-adapter {command.name} {words}"


def test_generated_blocks_are_what_the_script_makes(pages):
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        assert pages.fill(text) == text, f"{page.name}: run python docs/build_pages.py"


def test_every_block_maker_is_used_on_a_page(pages):
    used = set(re.findall(r"<!-- begin: (\w+) -->", "".join(p.read_text() for p in PAGES)))
    assert used == set(pages.BLOCKS)


def test_the_datasets_page_has_folder_and_needed_files_of_every_dataset():
    from mma_adapter.data import DATASETS

    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)/` \| (.*) \|$", (DOCS / "datasets.md").read_text(), re.M
    )
    table = {name: (folder, re.findall("`([^`]+)`", inside)) for name, folder, inside in rows}
    assert list(table) == list(DATASETS)
    for name, spec in DATASETS.items():
        folder, inside = table[name]
        assert folder == spec.folder
        assert {spec.split_file, *spec.files} - {None} == {i.rstrip("/") for i in inside} - {
            spec.image_dir
        }


def test_error_messages_point_to_a_page_that_is_there():
    source = (ROOT / "src/mma_adapter/data/readers.py").read_text()
    assert "the page 'Datasets' of the docs" in source
    assert (DOCS / "datasets.md").read_text().startswith("# Datasets\n")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_open_with_what_how_long_and_what_to_expect(path):
    opening = path.read_text().split("# %%")[1]
    for promise in ("**What it shows.**", "**How long it takes.**", "**What to expect.**"):
        assert promise in opening


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_carry_no_outputs_and_are_valid_python(path):
    source = "\n".join(
        line for line in path.read_text().split("\n") if not line.startswith(("# ", "!", "%"))
    )
    ast.parse(source)
