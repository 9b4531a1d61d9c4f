"""A fake data root with the layouts of all 15 published data sets, made once per session."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """The lists that the reference implementation gives for the fake root."""
    return json.loads(gzip.decompress((GOLDEN / "golden_a.json.gz").read_bytes()))


@pytest.fixture(scope="session")
def make_tree() -> Any:
    """The script that builds fake data roots, as a module."""
    spec = importlib.util.spec_from_file_location("make_tree", GOLDEN / "make_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data_root(
    make_tree: Any, golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The fake root of seed 0. Tests must not write into it."""
    root = tmp_path_factory.mktemp("root")
    assert make_tree.build(str(root), golden["tree"]["seed"]) == golden["tree"]["digest"]
    return root
