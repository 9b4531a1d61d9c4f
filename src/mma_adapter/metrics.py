"""Classification figures exactly as the field counts them, all in per cent.

Source: the classification evaluator of Dassl 0.6.3, and the tables of the MMA paper.
Accuracy is micro: over pictures, not over classes.

Shapes: N pictures, K classes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError


def predicted_labels(logits: ArrayLike) -> NDArray[np.int64]:
    """The label of the largest logit, (N, K) -> (N,); of equal logits the lowest label wins."""
    return np.argmax(np.asarray(logits), axis=1)


def num_correct(labels: ArrayLike, predictions: ArrayLike) -> int:
    """How many predictions are right; both (N,)."""
    labels, predictions = _checked(labels, predictions)
    return int((labels == predictions).sum())


def accuracy_pct(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of pictures with the right prediction; labels and predictions (N,)."""
    labels, predictions = _checked(labels, predictions)
    return 100.0 * num_correct(labels, predictions) / len(labels)


def error_pct(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of pictures with a wrong prediction."""
    return 100.0 - accuracy_pct(labels, predictions)


def macro_f1_pct(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean F1 over the labels that occur in the truth; a label never predicted counts 0."""
    labels, predictions = _checked(labels, predictions)
    scores = []
    for label in np.unique(labels):
        hits = np.sum((labels == label) & (predictions == label))
        scores.append(2 * hits / (np.sum(labels == label) + np.sum(predictions == label)))
    return 100.0 * float(np.mean(scores))


def per_class_accuracy_pct(labels: ArrayLike, predictions: ArrayLike) -> dict[int, float]:
    """Accuracy of each label that occurs in the truth, in label order."""
    labels, predictions = _checked(labels, predictions)
    return {
        int(label): accuracy_pct(labels[labels == label], predictions[labels == label])
        for label in np.unique(labels)
    }


def mean_class_accuracy_pct(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean of the per-class accuracies: every class counts the same."""
    return float(np.mean(list(per_class_accuracy_pct(labels, predictions).values())))


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> NDArray[np.int64]:
    """Counts, (K, K): row is the true label, column the predicted one.

    Raises:
        ConfigError: A label or prediction is not in 0..num_classes - 1.
    """
    labels, predictions = _checked(labels, predictions)
    low = min(labels.min(), predictions.min())
    high = max(labels.max(), predictions.max())
    if low < 0 or high >= num_classes:
        raise ConfigError(
            f"labels and predictions run from {low} to {high}, "
            f"but num_classes={num_classes} allows 0 to {num_classes - 1}"
        )
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def harmonic_mean(base_pct: float, novel_pct: float) -> float:
    """2 B N / (B + N), the paper's HM of base and novel accuracy; 0 if both are 0."""
    total = base_pct + novel_pct
    return 2 * base_pct * novel_pct / total if total else 0.0


def harmonic_mean_of_means(base_pct: Sequence[float], novel_pct: Sequence[float]) -> float:
    """HM of the mean base and the mean novel accuracy over data sets.

    This is how the published averages are made; the mean of the data sets' own HMs is lower.
    """
    return harmonic_mean(float(np.mean(base_pct)), float(np.mean(novel_pct)))


def _checked(labels: ArrayLike, predictions: ArrayLike) -> tuple[NDArray, NDArray]:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or not labels.size:
        raise ConfigError(
            f"labels have the shape {labels.shape} and predictions {predictions.shape}; "
            "pass two lists of the same length, with one picture or more"
        )
    return labels, predictions
