"""Metrics equal the reference evaluator's numbers exactly, and the published averages."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mma_adapter.errors import ConfigError
from mma_adapter.metrics import (
    accuracy_pct,
    confusion_matrix,
    error_pct,
    harmonic_mean,
    harmonic_mean_of_means,
    macro_f1_pct,
    mean_class_accuracy_pct,
    num_correct,
    per_class_accuracy_pct,
    predicted_labels,
)

GOLDEN = Path(__file__).parent / "golden" / "data" / "metrics.json"
CASES = json.loads(GOLDEN.read_text())["cases"]

answers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_figures_equal_the_reference_exactly(case: dict) -> None:
    labels, predictions, expected = case["labels"], case["predictions"], case["result"]
    assert num_correct(labels, predictions) == case["correct"]
    assert accuracy_pct(labels, predictions) == expected["accuracy"]
    assert error_pct(labels, predictions) == expected["error_rate"]
    assert macro_f1_pct(labels, predictions) == expected["macro_f1"]
    assert mean_class_accuracy_pct(labels, predictions) == expected["perclass_accuracy"]
    per_class = {c["label"]: 100.0 * c["correct"] / c["total"] for c in case["per_class"]}
    assert per_class_accuracy_pct(labels, predictions) == per_class


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["confusion"]], ids=lambda case: case["name"]
)
def test_confusion_rows_equal_the_reference_when_normalised(case: dict) -> None:
    counts = confusion_matrix(case["labels"], case["predictions"], case["num_classes"])
    occurring = case["confusion"]["labels"]
    counts = counts[np.ix_(occurring, occurring)]
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    assert shares.tolist() == case["confusion"]["row_normalised"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.get("logits")], ids=lambda case: case["name"]
)
def test_predictions_from_logits_equal_the_reference(case: dict) -> None:
    assert predicted_labels(case["logits"]).tolist() == case["predictions"]


def test_of_equal_logits_the_lowest_label_wins() -> None:
    assert predicted_labels([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]).tolist() == [1, 0]


@given(answers)
def test_macro_f1_is_scikit_learns_over_the_true_labels(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = map(list, zip(*pairs, strict=True))
    expected = f1_score(
        labels, predictions, average="macro", labels=np.unique(labels), zero_division=0
    )
    assert macro_f1_pct(labels, predictions) == pytest.approx(100 * expected, abs=1e-9)


@given(answers)
def test_the_confusion_matrix_holds_every_picture_once(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = map(list, zip(*pairs, strict=True))
    matrix = confusion_matrix(labels, predictions, 6)
    assert matrix.sum() == len(pairs)
    assert np.trace(matrix) == num_correct(labels, predictions)
    assert matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=6).tolist()


def test_published_averages_are_the_harmonic_mean_of_the_two_means() -> None:
    assert round(harmonic_mean(83.20, 76.80), 2) == 79.87
    assert round(harmonic_mean(69.34, 74.22), 2) == 71.70
    base = [72.43, 96.84, 91.17, 63.37, 72.08, 90.10, 27.19, 69.36, 53.24, 56.48, 70.53]
    novel = [68.14, 94.00, 97.26, 74.89, 77.80, 91.22, 36.29, 75.35, 59.90, 64.05, 77.50]
    assert round(harmonic_mean_of_means(base, novel), 2) == 71.70
    each = [harmonic_mean(b, n) for b, n in zip(base, novel, strict=True)]
    assert round(float(np.mean(each)), 2) == 71.59


def test_the_harmonic_mean_of_nothing_right_is_zero() -> None:
    assert harmonic_mean(0.0, 0.0) == 0.0


@pytest.mark.parametrize(("labels", "predictions"), [([0, 1], [0]), ([], []), ([[0]], [[0]])])
def test_lists_that_do_not_match_are_refused(labels: list, predictions: list) -> None:
    with pytest.raises(ConfigError, match="same length"):
        accuracy_pct(labels, predictions)


def test_labels_beyond_the_number_of_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes=2 allows 0 to 1"):
        confusion_matrix([0, 2], [0, 0], 2)
