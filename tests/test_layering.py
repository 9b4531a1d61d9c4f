"""Who may import whom, read from the sources.

`LAYERS` places every module of the package; a new one must be placed before the tests pass. A
module imports from the rows above its own only, and no third-party library but those in its row.
Modules of one package (`data`, `bench`, `demo`) may import each other.
"""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import mma_adapter

ROOT = Path(mma_adapter.__file__).parent
HUB, TRAIN = {"torch", "safetensors", "huggingface_hub"}, {"torch", "numpy", "PIL", "transformers"}
ANY = None  # extras may be used freely

LAYERS: list[tuple[set[str], set[str] | None]] = [
    ({"errors"}, set()),
    ({"config", "peft_hook"}, set()),
    ({"operators"}, {"torch"}),
    ({"adapter", "backbones", "hub"}, HUB),
    ({"injection", "official", "card"}, HUB),
    ({"storage"}, HUB),
    ({"loading"}, HUB),
    ({"peft_bridge"}, {"torch", "peft"}),
    # Above this line is the core: it works with the plain installation, without any extra.
    ({"prompts"}, {"torch"}),
    ({"encoding"}, {"torch"}),
    ({"classifier"}, {"torch", "transformers"}),
    ({"baking"}, {"torch"}),
    ({"data", "metrics", "probes", "schedules", "processors", "progress"}, ANY),
    ({"train_config", "pictures", "evaluation"}, TRAIN),
    ({"checkpoints"}, TRAIN | {"safetensors"}),
    ({"trainer"}, TRAIN | {"tqdm"}),
    ({"runs"}, TRAIN),
    ({"training"}, TRAIN),
    ({"layer_features", "reporting"}, ANY),
    ({"analysis"}, ANY),
    ({"demo"}, ANY),
    ({"bench"}, ANY),
    ({"jobs"}, ANY),
    ({"prediction"}, ANY),
    ({"console"}, ANY),
    ({"cli_bench"}, ANY),
    ({"cli"}, ANY),
    ({"__main__"}, ANY),
]
RANK = {name: rank for rank, (names, _) in enumerate(LAYERS) for name in names}
CORE = {name for name in RANK if RANK[name] <= RANK["peft_bridge"]}

# Imports from a row below, each with its reason.
DOORS = {
    # `save_pretrained`, `push_to_hub` and `from_pretrained` are methods by convention.
    ("adapter", "storage"),
}
# Third-party libraries that a core module may import inside a function.
LAZY = {"loading": {"transformers"}, "peft_bridge": {"peft", "transformers"}}

# How `transformers` names the parts of its models; see `backbones`.
HOST_NAMES = {
    *("text_model", "vision_model", "text_projection", "visual_projection"),
    *("layer_norm1", "layer_norm2", "final_layer_norm", "post_layernorm", "pre_layrnorm"),
    *("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    *("token_embedding", "position_embedding", "logit_scale", "logit_bias"),
}
EXCEPTIONS = {
    # A buffer of this name stands in the authors' checkpoints; it is not the host's.
    ("official", "token_embedding"),
}


class Import(NamedTuple):
    module: str  # who imports: the first part of the path below the package
    target: str  # what: "injection" for ours, "torch" for others
    ours: bool
    at_top: bool
    where: str


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imports(path: Path) -> list[Import]:
    tree, found = parse(path), []
    top = {id(node) for node in tree.body}
    depth = len(path.relative_to(ROOT).parts)  # dots that lead to the package itself
    for node in ast.walk(tree):
        where, at_top = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", id(node) in top
        if isinstance(node, ast.Import):
            names = [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(node.module or "", False)]
        elif isinstance(node, ast.ImportFrom) and node.level < depth:
            continue  # inside data/, bench/ or demo/
        elif isinstance(node, ast.ImportFrom):
            assert node.level == depth, where
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            names = [(module, True) for module in modules if module != "__version__"]
        else:
            continue
        for name, ours in names:
            ours = ours or name.split(".")[0] == "mma_adapter"
            target = name.removeprefix("mma_adapter.").split(".")[0]
            found.append(Import(unit(path), target, ours, at_top, where))
    return found


ALL = [item for path in SOURCES for item in imports(path) if unit(path) in RANK]


def test_every_module_has_a_place():
    unplaced = {unit(path) for path in SOURCES} - set(RANK)
    assert not unplaced, "place them in LAYERS"
    assert sum(len(names) for names, _ in LAYERS) == len(RANK), "a module stands in two rows"


def test_the_rows_follow_the_order_of_the_design():
    order = ["errors", "config", "adapter", "injection", "storage", "classifier"]
    order += ["training", "bench", "cli"]
    assert [RANK[name] for name in order] == sorted({RANK[name] for name in order})


def test_modules_import_from_the_rows_above_only():
    wrong = [
        item
        for item in ALL
        if item.ours
        and RANK.get(item.target, 0) >= RANK[item.module]
        and ((item.module, item.target) not in DOORS or item.at_top)
    ]
    assert not wrong


def test_every_door_is_used():
    assert {(i.module, i.target) for i in ALL if i.ours and not i.at_top} >= DOORS


def test_the_core_never_imports_what_extras_need():
    assert not [
        item for item in ALL if item.module in CORE and item.ours and item.target not in CORE
    ]


def test_third_party_libraries_are_those_of_the_row():
    wrong = []
    for item in ALL:
        allowed = LAYERS[RANK[item.module]][1]
        if item.ours or allowed is None or item.target in sys.stdlib_module_names:
            continue
        allowed = allowed | (set() if item.at_top else LAZY.get(item.module, set()))
        if item.target not in allowed:
            wrong.append(item)
    assert not wrong


def test_nobody_imports_the_command_line():
    users = {item.module for item in ALL if item.ours and item.target == "cli"}
    assert users <= {"__main__"}


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the string nodes that are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, kinds)]
    return {id(b[0].value) for b in bodies if b and isinstance(b[0], ast.Expr)}


def host_names(path: Path) -> set[str]:
    """Return the host's attribute names that `path` uses as attributes or in strings."""
    tree, found = parse(path), set()
    skip = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set() if id(node) in skip else set(node.value.split("."))
    return found & HOST_NAMES


def test_backbones_alone_knows_how_hosts_name_their_parts():
    used = {(unit(path), name) for path in SOURCES for name in host_names(path)}
    assert {pair for pair in used if pair[0] != "backbones"} == EXCEPTIONS


def test_the_names_looked_for_are_the_ones_in_use():
    unused = HOST_NAMES - host_names(ROOT / "backbones.py")
    assert unused == {"text_model", "vision_model"}  # joined there from the tower's name
