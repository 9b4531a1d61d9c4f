"""Paired differences between methods, with bootstrap intervals."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import harmonic_mean
from .formats import DASH, Cell, Format, Row, Table, render
from .results import Protocol, Result, ResultsError
from .summary import Line, datasets_of, group, numbers_of
from .tables import TITLES, line_label, select

RESAMPLES = 10_000


def differences_table(
    results: Iterable[Result],
    protocol: Protocol,
    *,
    baseline: str = "zero_shot",
    format: Format = "markdown",
) -> str:
    """Print how far each method is ahead of `baseline`, with 95 % bootstrap intervals.

    Raises:
        ResultsError: There is no record of this protocol or of the baseline.
        ConfigError: `format` is unknown.
    """
    return render(build_differences(results, protocol, baseline=baseline), format)


@dataclass(frozen=True)
class Difference:
    """How far one method is ahead of another on the same data sets and seeds.

    Args:
        line: The method.
        baseline: The method it is compared with.
        mean: Mean difference in points of per cent; positive if `line` is ahead.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        pairs: Number of (data set, seed) pairs.
        datasets: Number of data sets among them.
    """

    line: Line
    baseline: Line
    mean: float
    low: float
    high: float
    pairs: int
    datasets: int


def paired_difference(
    line: Line, baseline: Line, datasets: Sequence[str], *columns: Hashable
) -> Difference | None:
    """Compare two methods pair by pair, a pair being one data set with one seed (the same shots).

    What is resampled: data sets with replacement, and within each drawn data set its seeds with
    replacement, 10,000 times, by a private generator of seed 0; the interval runs from the 2.5th
    to the 97.5th percentile. With one data set it speaks about seeds only. Two columns are compared
    by their HM in each pair, whose mean is not the HM of the means that tables print.

    Returns:
        The difference, or None if there is no common pair.
    """
    gaps: list[np.ndarray] = []
    for dataset in datasets:
        ours, theirs = (_per_seed(one, dataset, columns) for one in (line, baseline))
        if len(theirs) == 1 and len(baseline.seeds) == 1:  # zero-shot: the same for every seed
            theirs = dict.fromkeys(ours, next(iter(theirs.values())))
        if common := sorted(ours.keys() & theirs.keys()):
            gaps.append(np.array([ours[seed] - theirs[seed] for seed in common]))
    if not gaps:
        return None
    generator = np.random.default_rng(0)
    # Resampled means of each data set, (data sets, resamples); then data sets are drawn, each draw
    # with a resample of its own, so that a data set drawn twice brings two samples of its seeds.
    means = np.stack(
        [g[generator.integers(len(g), size=(RESAMPLES, len(g)))].mean(1) for g in gaps]
    )
    drawn = generator.integers(len(gaps), size=(len(gaps), RESAMPLES))
    sample = generator.integers(RESAMPLES, size=(len(gaps), RESAMPLES))
    low, high = np.percentile(means[drawn, sample].mean(0), [2.5, 97.5])
    mean = float(np.mean([g.mean() for g in gaps]))
    return Difference(line, baseline, mean, float(low), float(high), sum(map(len, gaps)), len(gaps))


def _per_seed(line: Line, dataset: str, columns: Sequence[Hashable]) -> dict[int, float]:
    parts = [numbers_of(line.cells.get((dataset, column), {})) for column in columns]
    common = set.intersection(*(set(values) for values in parts))
    combine = harmonic_mean if len(columns) == 2 else float
    return {seed: combine(*(values[seed] for values in parts)) for seed in common}


def build_differences(
    results: Iterable[Result], protocol: Protocol, *, baseline: str = "zero_shot"
) -> Table:
    """Return the differences between every method and `baseline` as data."""
    chosen = [result for result in select(results, protocol) if result.role != "source"]
    lines = group(chosen, lambda result: result.role)
    ground = [line for line in lines if line.method == baseline and not line.variant]
    if len(ground) != 1:
        methods = ", ".join(dict.fromkeys(line.method for line in lines))
        raise ResultsError(
            f"there are {len(ground)} lines of baseline={baseline!r}; pass one of {methods} that "
            "was run in one set-up"
        )
    roles = list(dict.fromkeys(result.role for result in chosen))
    columns: list[tuple[str, tuple[str, ...]]] = [(role.capitalize(), (role,)) for role in roles]
    if {"base", "novel"} <= set(roles):
        columns.append(("HM", ("base", "novel")))
    names, rows = datasets_of(chosen), []
    for line in lines:
        if line is ground[0]:
            continue
        gaps = [paired_difference(line, ground[0], names, *used) for _, used in columns]
        rows.append(Row("", line_label(line), tuple(Cell(text=_interval(gap)) for gap in gaps)))
    notes = (
        "Mean difference in points of per cent over pairs of one data set and one seed, with the "
        "95 % bootstrap interval: data sets are resampled, and within each its seeds.",
        "–: there is no common pair, or the method cannot score these classes.",
    )
    title = f"{TITLES[protocol]}: difference to {line_label(ground[0])}"
    return Table(title, "", tuple(name for name, _ in columns), tuple(rows), notes)


def _interval(gap: Difference | None) -> str:
    return DASH if gap is None else f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
