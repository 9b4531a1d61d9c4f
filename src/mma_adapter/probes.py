"""Linear probes on kept features: for classes, for data sets, and across data sets.

Probes are scikit-learn's logistic regression (L2, C = 0.1) on features standardised by their
training part.

Shapes: N items, D width, K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Labelled = tuple[np.ndarray, np.ndarray]
"""States (N, D) and labels (N,)."""


def class_probe(states: np.ndarray, labels: np.ndarray) -> "Pipeline":
    """Fit a linear probe, every label weighing the same."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")
    return make_pipeline(StandardScaler(), regression).fit(states, labels)


def dataset_accuracy_pct(layer: Sequence[tuple[Labelled, Labelled]]) -> float | None:
    """Tell data sets apart by classes the probe has not seen.

    It learns from training items of the even classes of each set and is scored on test items of
    the odd ones; then the other way round.

    Returns:
        Mean accuracy over data sets and both ways, in per cent; None for one data set.
    """
    if len(layer) < 2:
        return None
    right = []
    for half in (0, 1):
        train = [states[labels % 2 == half] for (states, labels), _ in layer]
        test = [states[labels % 2 != half] for _, (states, labels) in layer]
        origin = np.repeat(np.arange(len(train)), [len(states) for states in train])
        probe = class_probe(np.concatenate(train), origin)
        right += [float(np.mean(probe.predict(states) == i)) for i, states in enumerate(test)]
    return 100 * float(np.mean(right))


def transfer_accuracy_pct(
    probes: Sequence["Pipeline"], layer: Sequence[tuple[Labelled, Labelled]]
) -> float | None:
    """Classify each data set by the class scores of every other data set's probe.

    Returns:
        Mean accuracy over ordered pairs of data sets, in per cent; None for one data set.
    """
    accuracies = []
    for i, probe in enumerate(probes):
        for j, ((train, train_labels), (test, test_labels)) in enumerate(layer):
            if i != j:
                scores, asked = _scores(probe, train), _scores(probe, test)
                labels = np.unique(train_labels)
                means = np.stack([scores[train_labels == k].mean(0) for k in labels])  # (K, M)
                means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
                found = labels[np.argmax(asked @ means.T, axis=1)]
                accuracies.append(float(np.mean(found == test_labels)))
    return 100 * float(np.mean(accuracies)) if accuracies else None


def _scores(probe: "Pipeline", states: np.ndarray) -> np.ndarray:
    """Return a probe's class scores less their mean, (N, M); only differences mean anything."""
    scores = probe.decision_function(states)
    if scores.ndim == 1:  # two classes have one score between them
        scores = np.stack([-scores, scores], 1)
    return scores - scores.mean(1, keepdims=True)
