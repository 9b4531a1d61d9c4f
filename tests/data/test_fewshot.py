"""Sampling, halves and own splits: published values, and properties on arbitrary lists."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mma_adapter.data import (
    Sample,
    base_classes,
    few_shot,
    novel_classes,
    sample_shots,
    select_classes,
    split_samples,
)
from mma_adapter.data.fewshot import group_by_label
from mma_adapter.errors import ConfigError


def pictures(labels: list[int]) -> list[Sample]:
    """One sample per label; the path is the position within the class."""
    count: Counter[int] = Counter()
    samples = []
    for label in labels:
        samples.append(Sample(Path(f"{label}/{count[label]}"), label, f"class {label}"))
        count[label] += 1
    return samples


def of_sizes(sizes: list[int]) -> list[Sample]:
    return pictures([label for label, size in enumerate(sizes) for _ in range(size)])


def positions(samples: list[Sample], label: int) -> list[int]:
    return [int(s.path.name) for s in samples if s.label == label]


label_lists = st.lists(st.integers(0, 6), max_size=80)

EUROSAT_TRAIN = [1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500]
EUROSAT_VAL = [600, 600, 600, 500, 500, 400, 500, 600, 500, 600]


@pytest.mark.parametrize(
    ("seed", "first", "last", "val"),
    [
        (
            1,
            [275, 1165, 129, 522, 241, 1014, 920, 967, 1334, 777, 429, 192, 999, 58, 798, 886],
            [1228, 57, 470, 1301],
            [463, 14, 287, 255],
        ),
        (
            2,
            [115, 187, 173, 739, 346, 1371, 631, 515, 1240, 434, 1242, 73, 1190, 1395, 324, 882],
            [74, 8, 704, 1260],
            [411, 157, 484, 230],
        ),
        (
            3,
            [487, 1213, 1114, 267, 757, 1236, 970, 1281, 1189, 134, 1240, 26, 960, 531, 1128, 479],
            [616, 895, 528, 1067],
            [136, 61, 340, 477],
        ),
    ],
)
def test_sixteen_shots_of_eurosat_sized_data_are_the_published_ones(
    seed: int, first: list[int], last: list[int], val: list[int]
) -> None:
    few_train, few_val = few_shot(of_sizes(EUROSAT_TRAIN), of_sizes(EUROSAT_VAL), 16, seed)
    assert positions(few_train, 0) == first
    assert positions(few_train, 9)[:4] == last
    assert positions(few_val, 0) == val


@pytest.mark.parametrize(
    ("seed", "train", "val"),
    [
        (
            1,
            [[1, 0, 4, 3], [0, 1, 2], [15, 14, 19, 12], [6, 1, 7, 0], [49, 55, 77, 97]],
            [[0, 1], [0], [0, 5, 3, 2], [1, 2, 0, 3], [1, 34, 0, 24]],
        ),
        (
            2,
            [[0, 4, 3, 1], [0, 1, 2], [5, 9, 8, 6], [1, 9, 10, 2], [55, 81, 50, 92]],
            [[0, 1], [0], [5, 4, 3, 6], [2, 0, 3, 1], [29, 20, 24, 27]],
        ),
        (
            3,
            [[1, 4, 3, 2], [0, 1, 2], [18, 2, 0, 15], [8, 15, 3, 13], [91, 60, 69, 70]],
            [[0, 1], [0], [7, 3, 5, 1], [1, 2, 0, 3], [0, 4, 10, 37]],
        ),
    ],
)
def test_small_classes_give_all_they_have_and_draw_nothing(
    seed: int, train: list[list[int]], val: list[list[int]]
) -> None:
    train_sizes, val_sizes = [5, 3, 20, 16, 100], [2, 1, 8, 4, 40]
    few_train, few_val = few_shot(of_sizes(train_sizes), of_sizes(val_sizes), 4, seed)
    assert [positions(few_train, label) for label in range(5)] == train
    assert [positions(few_val, label) for label in range(5)] == val


def test_classes_are_drawn_in_order_of_first_occurrence() -> None:
    rng = random.Random(5)
    drawn = sample_shots(pictures([2] * 9 + [0] * 9 + [1] * 9), 2, 5)
    assert [s.label for s in drawn] == [2, 2, 0, 0, 1, 1]
    assert [int(s.path.name) for s in drawn[:2]] == rng.sample(range(9), 2)


@given(label_lists, st.integers(1, 20), st.integers(0, 2**32))
def test_a_draw_has_the_right_sizes_and_only_pictures_of_the_list(
    labels: list[int], shots: int, seed: int
) -> None:
    samples = pictures(labels)
    drawn = sample_shots(samples, shots, seed)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(samples)
    assert Counter(s.label for s in drawn) == {
        label: min(shots, count) for label, count in Counter(labels).items()
    }
    assert sample_shots(samples, shots, seed) == drawn


@given(label_lists)
def test_minus_one_means_all_in_their_order(labels: list[int]) -> None:
    samples = pictures(labels)
    assert few_shot(samples, samples, -1, 1) == (samples, samples)


@pytest.mark.parametrize("shots", [0, -2])
def test_other_shots_are_refused(shots: int) -> None:
    with pytest.raises(ConfigError, match="-1 for all"):
        sample_shots(of_sizes([3]), shots, 1)


def test_a_negative_seed_is_refused_because_python_would_drop_its_sign() -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        sample_shots(of_sizes([3]), 1, -1)


def test_no_global_generator_is_touched() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    samples = of_sizes([30, 2, 9])
    few_shot(samples, samples, 4, 1)
    split_samples(samples, 1)
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize(("count", "base"), [(37, 19), (47, 24), (101, 51), (397, 199), (1, 1)])
def test_an_odd_class_goes_to_base(count: int, base: int) -> None:
    labels = list(range(count))
    assert base_classes(reversed(labels)) == labels[:base]
    assert novel_classes(reversed(labels)) == labels[base:]


@given(label_lists.filter(lambda labels: len(set(labels)) > 1), label_lists)
def test_halves_are_disjoint_complete_and_renumbered(labels: list[int], others: list[int]) -> None:
    train, test = pictures(labels), pictures(others)
    base, base_test = select_classes("base", train, test)
    novel, novel_test = select_classes("novel", train, test)
    kept = {s.path for s in base} | {s.path for s in novel}
    assert kept == {s.path for s in train}
    assert {s.classname for s in base}.isdisjoint(s.classname for s in novel)
    for half, half_test in ((base, base_test), (novel, novel_test)):
        assert sorted({s.label for s in half}) == list(range(len({s.label for s in half})))
        assert dict({(s.label, s.classname) for s in half}).keys() >= {s.label for s in half_test}
    assert len(base_test) + len(novel_test) == sum(label in set(labels) for label in others)


def test_all_keeps_labels_as_they_are() -> None:
    train = pictures([3, 1, 3])
    assert select_classes("all", train, train[:1]) == [train, train[:1]]


def test_unknown_halves_are_refused() -> None:
    with pytest.raises(ConfigError, match="all, base, novel"):
        select_classes("new", of_sizes([1, 1]))  # type: ignore[arg-type]


def test_novel_classes_of_a_single_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="two classes"):
        select_classes("novel", of_sizes([4]))


@given(label_lists, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_an_own_split_is_a_partition_that_forgets_the_order(
    labels: list[int], seed: int, shuffler: random.Random
) -> None:
    samples = pictures(labels)
    parts = split_samples(samples, seed)
    assert sorted(s.path for part in parts for s in part) == sorted(s.path for s in samples)
    for label, group in group_by_label(samples).items():
        train, val, test = (len(positions(part, label)) for part in parts)
        assert train >= 1
        assert test >= 1 or len(group) == 1
        assert abs(train - 0.5 * len(group)) <= 0.5
        assert val <= 0.2 * len(group) + 0.5
    shuffler.shuffle(samples)
    assert split_samples(samples, seed) == parts


def test_an_own_split_of_ten_pictures_is_five_two_three() -> None:
    assert [len(part) for part in split_samples(of_sizes([10]))] == [5, 2, 3]
