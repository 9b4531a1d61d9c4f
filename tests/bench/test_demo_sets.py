"""The demo's data sets carry all four protocols as the published data sets do."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mma_adapter.bench.demo_sets import (
    ABLATION_VALUES,
    DOMAIN_STYLES,
    GENERAL,
    METHODS,
    demo_encoder,
    demo_loader,
    demo_runs,
    domain_sets,
    run_demo_bench,
    topical_sets,
)
from mma_adapter.bench.results import PROTOCOLS, read_results
from mma_adapter.data import open_image
from mma_adapter.errors import ConfigError

SETS = [GENERAL, *topical_sets(), *domain_sets()]


def load(name: str, shots: int = 16, seed: int = 1, classes: str = "all"):
    return demo_loader()(name, shots=shots, seed=seed, classes=classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SETS)
def test_every_class_has_pictures_to_learn_from_and_to_test(name: str) -> None:
    data = load(name)
    assert set(Counter(s.label for s in data.test)) == set(range(data.num_classes))
    if name not in domain_sets():
        assert not {s.path for s in data.train} & {s.path for s in data.test}
        assert min(Counter(s.label for s in data.train).values()) >= 4
        assert max(Counter(s.label for s in data.train).values()) <= 16


def test_targets_share_no_class_with_the_source_and_domains_have_no_other() -> None:
    source = set(load(GENERAL).classnames)
    for name in topical_sets():
        assert not source & set(load(name).classnames)
    for name in domain_sets():
        assert set(load(name).classnames) <= source
    for one, other in combinations([load(name) for name in topical_sets()], 2):
        assert not set(one.classnames) & set(other.classnames)
    assert len(source) + sum(load(n).num_classes for n in topical_sets()) == 218


def test_domains_hold_one_style_each_that_the_source_does_not_have() -> None:
    source = {s.path for s in load(GENERAL).test} | {s.path for s in load(GENERAL).train}
    assert len(DOMAIN_STYLES) == 4
    for name in domain_sets():
        assert not source & {s.path for s in load(name).test}


def test_shots_follow_the_seed_and_test_pictures_do_not() -> None:
    one, two = load("icons-nature", 4, 1), load("icons-nature", 4, 2)
    assert one.train != two.train
    assert one.train == load("icons-nature", 4, 1).train
    assert one.test == two.test == load("icons-nature", 16, 3).test
    assert set(Counter(s.label for s in one.train).values()) == {4}


def test_pictures_are_photographed_and_drawn_once() -> None:
    sample = load("icons-nature").test[0]
    picture = open_image(sample)
    assert picture.size == (48, 48)
    corners = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < 250  # tinted paper, not white
    again = load("icons-nature").test[0]
    assert sample.image() is again.image()  # type: ignore[operator]


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ConfigError, match="no data set 'icons-cars'"):
        load("icons-cars")


def test_the_bench_covers_all_protocols_methods_and_ablations() -> None:
    runs = demo_runs((1, 2, 3))
    assert {run.protocol for run in runs} == set(PROTOCOLS)
    for protocol in PROTOCOLS:
        methods = {run.method for run in runs if run.protocol == protocol}
        assert methods == ({"mma"} if protocol == "ablation" else set(METHODS))
    axes = {run.variant.partition("=")[0] for run in runs if run.protocol == "ablation"}
    assert axes == {"", *ABLATION_VALUES}
    encoder = demo_encoder()
    assert len({run.id(encoder) for run in runs}) == len(runs)


@pytest.mark.slow
def test_transfers_of_the_bench_end_to_end(tmp_path: Path) -> None:
    told: list = []
    report = run_demo_bench(
        tmp_path,
        (1,),
        told.append,
        protocols=("cross-dataset", "domain-generalization"),
        methods=("zero_shot", "linear_probe"),
    )
    assert (report.executed, report.failed) == (4, [])
    results = read_results(tmp_path)
    assert len(told) == 8
    assert {r.dataset for r in results} == set(SETS)
    zero_shot = {r.dataset: r.accuracy_pct for r in results if r.method == "zero_shot"}
    for name in topical_sets():
        assert zero_shot[name] > 150 / load(name).num_classes  # type: ignore[operator]
    dashes = {r.dataset for r in results if r.accuracy_pct is None}
    assert set(topical_sets()) <= dashes
    source = next(r for r in results if r.method == "linear_probe" and r.role == "source")
    assert source.accuracy_pct > zero_shot[GENERAL]  # type: ignore[operator]
