"""All protocols on a fake data root with the layouts of all 15 published data sets."""

import importlib.util
from pathlib import Path

import pytest

from mma_adapter.bench import protocols
from mma_adapter.bench.execution import root_loader
from mma_adapter.bench.protocols import Plan, Run
from mma_adapter.bench.results import Result, read_results
from mma_adapter.bench.sweep import run_sweep

from .tiny import tiny_encoder

pytestmark = pytest.mark.slow

METHODS = ("zero_shot", "zero_shot_ensemble", "linear_probe", "last_layers", "mma")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = Path(__file__).parents[1] / "golden" / "data" / "make_tree.py"
    spec = importlib.util.spec_from_file_location("make_tree", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("root")
    module.build(str(folder), 0)
    return folder


def sweep(runs: list[Run], root: Path, tmp_path: Path) -> list[Result]:
    path = tmp_path / "results.jsonl"
    report = run_sweep(runs, tiny_encoder(), root_loader(root), path)
    assert report.failed == []
    assert report.executed == len(runs)
    results = read_results(path)
    assert len(results) == sum(len(run.targets) for run in runs)
    assert {r.split_origin for r in results} == {"published"}
    return results


def plan(methods: tuple[str, ...] = METHODS) -> Plan:
    # The tiny host has six layers, so the transfers' start at layer 9 does not fit it.
    quick = {"epochs": "1", "start_layer": "5"} if "mma" in methods else {}
    return Plan(methods=methods, seeds=(1,), overrides=quick)


def test_base_to_novel(root: Path, tmp_path: Path) -> None:
    results = sweep(protocols.base_to_novel(plan(), shots=1), root, tmp_path)
    assert {r.dataset for r in results} == set(protocols.BASE_TO_NOVEL)
    for r in results:
        dash = r.method == "linear_probe" and r.role == "novel"
        assert (r.accuracy_pct is None) == dash
    pets = next(r for r in results if r.dataset == "oxford_pets" and r.method == "zero_shot")
    assert pets.template == "a photo of a {}, a type of pet."


def test_cross_dataset(root: Path, tmp_path: Path) -> None:
    results = sweep(protocols.cross_dataset(plan(), shots=1), root, tmp_path)
    assert {r.source for r in results} == {"imagenet"}
    targets = {r.dataset for r in results if r.role == "target"}
    assert targets == set(protocols.CROSS_DATASET)


def test_domain_generalization(root: Path, tmp_path: Path) -> None:
    results = sweep(protocols.domain_generalization(plan(), shots=1), root, tmp_path)
    assert {r.dataset for r in results if r.role == "target"} == set(protocols.DOMAINS)


def test_few_shot(root: Path, tmp_path: Path) -> None:
    runs = protocols.few_shot(plan(), ["imagenet", "oxford_pets", "fgvc_aircraft"], shots=(1, 2))
    results = sweep(runs, root, tmp_path)
    assert {(r.shots, r.role) for r in results} == {(1, "all"), (2, "all")}


def test_ablation(root: Path, tmp_path: Path) -> None:
    values = {"towers": ("text",), "shared": ("none", "untied"), "start_layer": ("2", "6")}
    runs = protocols.ablation(plan(("mma",)), ["dtd"], values=values, shots=1)
    results = sweep(runs, root, tmp_path)
    assert {r.variant for r in results} == {
        *("", "towers=text", "shared=none", "shared=untied", "start_layer=2", "start_layer=6"),
    }
    sizes = {r.variant: r.num_trainable for r in results}
    assert sizes["shared=none"] < sizes[""] < sizes["shared=untied"] < sizes["start_layer=2"]
