"""The public surface: what is exported, documented, and what an import costs."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mma_adapter

ROOT = Path(mma_adapter.__file__).parent
# Exported, but not with `import *`: it needs the extra `peft`.
EXTRA = {"MMAPeftConfig"}


def public():
    return [getattr(mma_adapter, name) for name in mma_adapter.__all__]


def imported_after(statement: str) -> set[str]:
    """Return the top-level modules in memory after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    run = [sys.executable, "-c", code]
    output = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout
    return {name.split(".")[0] for name in output.split()}


def test_all_is_exactly_what_is_there():
    assert mma_adapter.__all__ == sorted(set(mma_adapter.__all__), key=mma_adapter.__all__.index)
    eager = {
        name
        for name, value in vars(mma_adapter).items()
        if inspect.isclass(value) and value.__module__.startswith("mma_adapter.")
    }
    assert set(mma_adapter.__all__) | EXTRA == eager | set(mma_adapter._LAZY)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == mma_adapter._LAZY


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'inject'"):
        mma_adapter.inject  # noqa: B018


@pytest.mark.parametrize("name", mma_adapter.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(mma_adapter, name)
    assert value.__name__ == name
    first, _, rest = inspect.getdoc(value).partition("\n")
    assert first.endswith("."), first
    assert not rest or rest.startswith("\n"), "the first line stands alone"


@pytest.mark.parametrize("name", mma_adapter.__all__)
def test_documented_arguments_are_the_real_ones(name):
    value = getattr(mma_adapter, name)
    doc = inspect.getdoc(value)
    section = re.search(r"Args:\n((?:    .*\n?|\n)+)", doc)
    if section is None:
        return
    documented = [
        name
        for line in re.findall(r"^    (\w[\w, ]*):", section[1], re.MULTILINE)
        for name in line.split(", ")
    ]
    real = [name for name in inspect.signature(value).parameters if name != "self"]
    assert documented == real


@pytest.mark.parametrize("name", mma_adapter.__all__)
def test_public_functions_with_choices_document_them_all(name):
    value = getattr(mma_adapter, name)
    if inspect.isfunction(value) and len(inspect.signature(value).parameters) > 2:
        assert "Args:" in value.__doc__
        assert "Raises:" in value.__doc__


def test_errors_share_one_base_and_say_when_they_occur():
    errors = [v for v in public() if inspect.isclass(v) and issubclass(v, Exception)]
    assert len(errors) == 6
    assert all(issubclass(error, mma_adapter.MMAError) for error in errors)


def test_names_that_messages_and_docstrings_point_to_exist():
    for path in ROOT.rglob("*.py"):
        for dotted in re.findall(r"\bmma_adapter((?:\.[A-Za-z_]\w*)+)", path.read_text()):
            value = mma_adapter
            for part in dotted.strip(".").split("."):
                if not hasattr(value, part):
                    importlib.import_module(f"{value.__name__}.{part}")
                value = getattr(value, part)


def test_importing_the_package_loads_no_heavy_library():
    heavy = {"torch", "transformers", "peft", "datasets", "typer", "rich", "matplotlib", "numpy"}
    assert imported_after("import mma_adapter") & heavy == set()


def test_the_core_needs_no_extra_and_no_transformers():
    statement = "from mma_adapter import inject_mma, MMAConfig, MultiModalAdapter, read_official"
    loaded = imported_after(statement)
    heavy = {"transformers", "peft", "datasets", "typer", "rich", "matplotlib", "PIL", "sklearn"}
    assert "torch" in loaded
    assert loaded & heavy == set()


def test_the_version_is_the_installed_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", mma_adapter.__version__)
    text = (ROOT / "py.typed").read_text()
    assert text == ""
