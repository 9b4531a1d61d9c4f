"""Pictures of what happens to single classes: gains and losses, and confusions."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .drawing import color_of, grid
from .paper import method_name
from .results import Result, ResultsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Longer lists of classes are cut to their ends.
_MOST_BARS = 40


def per_class_change(
    results: Iterable[Result], method: str, dataset: str, *, baseline: str = "zero_shot"
) -> "Figure":
    """Draw how much each class of a data set gains or loses against `baseline`.

    Accuracies are means over the records: pass those of one protocol and one number of shots. Of
    more than 40 classes the 20 that lose most and the 20 that gain most are drawn.

    Raises:
        ResultsError: One of the two methods has no accuracy by class on the data set.
    """
    results = list(results)
    ours, theirs = (_by_class(results, name, dataset) for name in (method, baseline))
    change = sorted((ours[c] - theirs[c], c) for c in ours.keys() & theirs.keys())
    shown = change
    if len(change) > _MOST_BARS:
        shown = change[: _MOST_BARS // 2] + change[-_MOST_BARS // 2 :]
    figure, (axes,) = grid(1, width=6.4, height=1.2 + 0.2 * len(shown))
    gains = [gain for gain, _ in shown]
    axes.barh(range(len(shown)), gains, color=[color_of(gain < 0) for gain in gains], height=0.75)
    axes.set_yticks(range(len(shown)), [name for _, name in shown], fontsize=8)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.axvline(0, color="black", linewidth=0.8)
    if len(shown) < len(change):
        axes.axhline(_MOST_BARS // 2 - 0.5, color="#888888", linestyle=":", linewidth=1)
    cut = f", {len(shown)} of {len(change)} classes" if len(shown) < len(change) else ""
    axes.set_title(
        f"{dataset}: {method_name(method)} against {method_name(baseline)}{cut}", fontsize=10
    )
    axes.set_xlabel("Change of accuracy (points of per cent)")
    return figure


def _by_class(results: Sequence[Result], method: str, dataset: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for result in results:
        if result.method == method and result.dataset == dataset and not result.variant:
            for name, accuracy in result.per_class_accuracy.items():
                found.setdefault(name, []).append(accuracy)
    if not found:
        raise ResultsError(f"no record of {method} on {dataset} holds accuracies by class")
    return {name: float(np.mean(values)) for name, values in found.items()}


def confusion_matrix(result: Result) -> "Figure":
    """Draw which class is taken for which, in per cent of the true class.

    Raises:
        ResultsError: The record holds no confusion matrix.
    """
    if result.confusion is None:
        raise ResultsError(
            f"the record of {result.method} on {result.dataset} holds no confusion matrix"
        )
    counts = np.array(result.confusion, dtype=float)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n = len(share)
    side = min(14.0, max(4.5, 2.5 + 0.22 * n))
    figure, (axes,) = grid(1, width=side + 0.8, height=side)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    names = list(result.per_class_accuracy)
    if len(names) == n and n <= 60:
        size = 8 if n <= 30 else 6
        axes.set_xticks(range(n), names, rotation=90, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    axes.grid(visible=False)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    axes.set_title(
        f"{result.dataset}, {method_name(result.method)}, seed {result.seed}", fontsize=10
    )
    figure.colorbar(image, ax=axes, label="Share of the true class (%)", fraction=0.046, pad=0.03)
    return figure
