"""A picture of test icons with what the model called them before and after training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ..data.samples import Sample, open_image

if TYPE_CHECKING:
    from ..evaluation import Evaluation
    from .run import Halves

COLUMNS, ROWS = 8, 2  # per half of the classes
RIGHT, WRONG, INK = "#1a7f4b", "#b3402f", "#22262b"
# (right before, right after), in the order they are shown.
_OUTCOMES = ((False, True), (True, True), (True, False), (False, False))


def draw_predictions(
    path: Path,
    before: Halves,
    after: Halves,
    base: Sequence[Sample],
    novel: Sequence[Sample],
) -> None:
    """Draw 16 test pictures of each half with their two predictions.

    Which pictures is drawn by lot, but so that those won, kept, lost and never right have the
    shares they have among all test pictures.

    Args:
        path: PNG file to write.
        before: Scores without the adapter.
        after: Scores with it.
        base: Test pictures of the base classes.
        novel: Test pictures of the novel classes.
    """
    figure = plt.figure(figsize=(13, 10.4), dpi=110, facecolor="white")
    bands: Any = figure.subfigures(2, 1, hspace=0.0)
    halves = (
        ("Base classes, trained on", before.base, after.base, base),
        ("Novel classes, never seen in training", before.novel, after.novel, novel),
    )
    for band, (title, was, now, samples) in zip(bands, halves, strict=True):
        band.suptitle(
            f"{title}:  {was.accuracy_pct:.1f} % → {now.accuracy_pct:.1f} % right",
            x=0.02,
            y=0.985,
            ha="left",
            fontsize=15,
            weight="bold",
            color=INK,
        )
        axes = band.subplots(ROWS, COLUMNS)
        band.subplots_adjust(left=0.02, right=0.98, top=0.87, bottom=0.115, wspace=0.12, hspace=0.6)
        chosen = representative(was, now, ROWS * COLUMNS)
        for axis, index in zip(axes.flat, chosen, strict=False):
            _draw_tile(axis, samples[index], was, now, index)
        for axis in axes.flat[len(chosen) :]:
            axis.axis("off")
    figure.text(
        0.98,
        0.976,
        "bold: what it is      grey: without the adapter      below: with it",
        ha="right",
        fontsize=10,
        color="#666d75",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def representative(before: Evaluation, after: Evaluation, count: int) -> list[int]:
    """Choose pictures so that every outcome has its share (largest remainders), seeded."""
    was, now = before.labels == before.predictions, after.labels == after.predictions
    groups = [np.flatnonzero((was == a) & (now == b)).tolist() for a, b in _OUTCOMES]
    total = sum(map(len, groups))
    exact = [count * len(group) / total for group in groups]
    shares = [int(share) for share in exact]
    rest = sorted(range(len(groups)), key=lambda i: shares[i] - exact[i])
    for i in rest[: min(count, total) - sum(shares)]:
        shares[i] += 1
    rng = random.Random(1)
    return [
        index
        for group, share in zip(groups, shares, strict=True)
        for index in sorted(rng.sample(group, min(share, len(group))))
    ]


def _draw_tile(
    axis: Any, sample: Sample, before: Evaluation, after: Evaluation, index: int
) -> None:
    label, was, now = (
        int(before.labels[index]),
        int(before.predictions[index]),
        int(after.predictions[index]),
    )
    names = before.classnames
    axis.imshow(open_image(sample), interpolation="bicubic")
    axis.set_xticks([])
    axis.set_yticks([])
    colour = RIGHT if now == label else WRONG
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.5)
    axis.set_title(names[label], fontsize=10.5, weight="bold", color=INK, pad=4)
    marks = {True: "✓", False: "✗"}
    axis.text(
        0.5,
        -0.07,
        f"{names[was]} {marks[was == label]}",
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=9,
        color="#8a9199",
    )
    axis.text(
        0.5,
        -0.25,
        f"{names[now]} {marks[now == label]}",
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=10,
        color=colour,
        weight="bold",
    )
