"""Pictures of records: pure functions that return a matplotlib `Figure`, drawn without a display.

Save one with `figure.savefig("plane.svg")`. Accuracies are in per cent; bands and bars are one
standard deviation over seeds, made as in the tables (`summary`).
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import harmonic_mean
from .class_plots import confusion_matrix, per_class_change
from .drawing import color_of, grid, legend_below, marker_of
from .layer_plots import layer_curves
from .paper import AVERAGE, published, published_host
from .results import Result, ResultsError
from .summary import Line, datasets_of, group
from .tables import ablation_lines, line_label, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_CHOICE = {"bottleneck_dim": "32", "scale": "0.001", "start_layer": "5"}
"""The settings of the authors' base-to-novel recipe on CLIP ViT-B/16."""

__all__ = [
    "ablation_curves",
    "base_novel_plane",
    "confusion_matrix",
    "few_shot_curves",
    "layer_curves",
    "per_class_change",
]

# Where the name of a published point stands, so that neighbours do not cover each other.
_LABEL_SIDES = {
    **dict.fromkeys(("zero_shot", "mma"), (0, 1)),
    **dict.fromkeys(("lasp_v", "rpo", "kgcoop", "cocoop"), (-1, 0)),
    "maple": (-1, -1),
}


def base_novel_plane(results: Iterable[Result], *, paper: bool = False) -> "Figure":
    """Draw each method as a point, novel over base accuracy, averaged over the data sets.

    Grey curves join points of equal harmonic mean.

    Args:
        results: Records; the base-to-novel ones are used.
        paper: Add the published averages as hollow points.

    Raises:
        ResultsError: There is no base-to-novel record of a method that transfers.
    """
    chosen = select(results, "base-to-novel")
    names = datasets_of(chosen)
    figure, (axes,) = grid(1, width=6.4, height=5.4)
    drawn: list[tuple[float, float]] = []
    lines = group(chosen, lambda result: result.role)
    for index, line in enumerate(lines):
        base, novel = line.score(names, "base"), line.score(names, "novel")
        if base.mean is None or novel.mean is None:
            continue
        style = {"color": color_of(index), "marker": marker_of(index)}
        label = line_label(line) + ("" if base.complete and novel.complete else " (incomplete)")
        axes.errorbar(
            base.mean,
            novel.mean,
            xerr=base.std,
            yerr=novel.std,
            markersize=9,
            linestyle="none",
            capsize=3,
            label=label,
            zorder=3,
            **style,
        )
        drawn.append((base.mean, novel.mean))
    if not drawn:
        raise ResultsError("no method has both base and novel accuracy; run one that transfers")
    if paper:
        drawn += _draw_published(axes, {line.method: i for i, line in enumerate(lines)})
    _equal_hm_curves(axes, drawn)
    many = f"mean of {len(names)} data sets" if len(names) > 1 else names[0]
    axes.set_xlabel(f"Base accuracy (%), {many}")
    axes.set_ylabel(f"Novel accuracy (%), {many}")
    legend_below(figure, axes)
    return figure


def _draw_published(axes: "Axes", known: dict[str, int]) -> list[tuple[float, float]]:
    points = []
    first = True
    for row in published("base-to-novel", AVERAGE):
        if row.base is None or row.novel is None:
            continue
        color = color_of(known[row.method]) if row.method in known else "#777777"
        axes.plot(
            row.base,
            row.novel,
            marker="o",
            markersize=6,
            markerfacecolor="none",
            markeredgecolor=color,
            linestyle="none",
            label=f"published ({published_host()}, 11 data sets)" if first else None,
            zorder=2,
        )
        dx, dy = _LABEL_SIDES.get(row.method, (1, 0))
        axes.annotate(
            row.name,
            (row.base, row.novel),
            xytext=(5 * dx, 5 * dy),
            textcoords="offset points",
            ha={-1: "right", 0: "center", 1: "left"}[dx],
            va={-1: "top", 0: "center", 1: "bottom"}[dy],
            fontsize=7.5,
            color=color,
        )
        points.append((row.base, row.novel))
        first = False
    return points


def _equal_hm_curves(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    xs, ys = (np.array(values) for values in zip(*points, strict=True))
    margin = max(3.0, 0.15 * max(np.ptp(xs), np.ptp(ys)))
    axes.set_xlim(max(0, xs.min() - margin), min(100, xs.max() + margin))
    axes.set_ylim(max(0, ys.min() - margin), min(100, ys.max() + margin))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low, high = harmonic_mean(left, bottom), harmonic_mean(right, top)
    step = next(s for s in (1, 2, 5, 10, 20, 50) if (high - low) / s <= 7)
    for hm in np.arange(math.ceil(low / step) * step, high, step):
        x = np.linspace(max(left, hm / 2 + 0.5), right, 200)
        y = hm * x / (2 * x - hm)
        inside = (y >= bottom) & (y <= top)
        if not inside.any():
            continue
        axes.plot(x[inside], y[inside], color="#BBBBBB", linewidth=0.8, zorder=1)
        place = np.flatnonzero(inside)[0]
        axes.annotate(
            f"HM {hm:g}",
            (x[place], y[place]),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="#888888",
        )


def few_shot_curves(results: Iterable[Result]) -> "Figure":
    """Draw accuracy over shots: the average first, then each data set.

    Raises:
        ResultsError: There is no few-shot record.
    """
    chosen = select(results, "few-shot")
    names = datasets_of(chosen)
    lines = group(chosen, lambda result: result.shots, shots=False)
    panels: list[tuple[str, Sequence[str]]] = [(name, [name]) for name in names]
    if len(names) > 1:
        panels.insert(0, (f"Average of {len(names)} data sets", names))
    counts = sorted({r.shots for r in chosen if r.shots > 0})
    figure, axes = grid(len(panels))
    for place, (title, members) in zip(axes, panels, strict=False):
        for index, line in enumerate(lines):
            _curve(place, line, members, counts, index)
        place.set_title(title, fontsize=10)
        place.set_xscale("log", base=2)
        place.set_xticks(counts, [str(k) for k in counts])
        place.minorticks_off()
        place.set_xlabel("Shots (pictures per class)")
        place.set_ylabel("Accuracy (%)")
    legend_below(figure, axes[0])
    return figure


def _curve(
    axes: "Axes", line: Line, members: Sequence[str], counts: Sequence[int], index: int
) -> None:
    if (zero := line.score(members, 0)).mean is not None:  # no shots: the same everywhere
        axes.axhline(zero.mean, color=color_of(index), linestyle="--", label=line_label(line))
        return
    scores = [(k, s) for k in counts if (s := line.score(members, k)).complete]
    xs = [k for k, _ in scores]
    means = np.array([s.mean for _, s in scores], dtype=float)
    spread = np.array([s.std or 0.0 for _, s in scores])
    color, marker = color_of(index), marker_of(index)
    axes.plot(xs, means, label=line_label(line), markersize=5, color=color, marker=marker)
    axes.fill_between(xs, means - spread, means + spread, color=color, alpha=0.18, lw=0)


def ablation_curves(results: Iterable[Result]) -> "Figure":
    """Draw base, novel and HM over the values of each setting, averaged over the data sets.

    The dotted line is the choice of the authors' recipe for CLIP ViT-B/16; their curves are not
    among the published numbers at hand.

    Raises:
        ResultsError: There is no ablation record.
    """
    chosen = select(results, "ablation")
    names = datasets_of(chosen)
    novel = any(result.role == "novel" for result in chosen)
    curves: list[tuple[str, tuple[Hashable, ...]]] = [("Accuracy", ("all",))]
    if novel:
        curves = [("Base", ("base",)), ("Novel", ("novel",)), ("HM", ("base", "novel"))]
    settings = ablation_lines(group(chosen, lambda result: result.role))
    figure, axes = grid(len(settings))
    for place, (setting, lines) in zip(axes, settings.items(), strict=False):
        values = [line.value_of(setting) or "default" for line in lines]
        for index, (label, columns) in enumerate(curves):
            scores = [line.score(names, *columns) for line in lines]
            means = np.array([np.nan if s.mean is None else s.mean for s in scores])
            style = {"color": color_of(index), "marker": marker_of(index), "markersize": 5}
            joined = "-" if all(map(_is_number, values)) else "none"
            spread = [s.std or 0.0 for s in scores]
            at = np.arange(len(values))
            place.errorbar(at, means, spread, capsize=3, linestyle=joined, label=label, **style)
        if (choice := PAPER_CHOICE.get(setting)) in values:
            where = values.index(choice)
            place.axvline(where, color="#888888", linestyle=":", label="the authors' choice")
        place.set_xticks(range(len(values)), [v.replace(",", " +\n") for v in values])
        if sum(map(len, values)) > 24:
            place.tick_params(axis="x", rotation=30)
        place.margins(x=0.12)
        place.set_xlabel(setting)
        place.set_ylabel("Accuracy (%)")
    legend_below(figure, *axes)
    return figure


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
