"""From records to figures: means, and their spread over seeds.

Source of the rules: the tables of the MMA paper and the log parser of CoOp. A figure of one data
set comes from the means over its seeds; the harmonic mean (HM) is taken of such means, and the HM
of an average is that of the mean base and the mean novel accuracy. The spread beside it is the
standard deviation (dividing by n, as the field's parser does) of the same figure computed for each
seed alone. A figure made of fewer seeds or data sets than there should be says so.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.catalog import DATASETS
from ..metrics import harmonic_mean
from .results import Result, ResultsError

Values = Mapping[int, float | None]
"""Accuracy in per cent by seed; None where the method cannot score the classes."""

# What makes two runs of one method different rows of a table. Recipe and template may differ from
# data set to data set within one row, so they tell rows apart only where nothing else does.
_ROW_FIELDS = ("method", "variant", "overrides", "host", "precision", "transform")
_LAST_RESORT = ("shots", "recipe", "template")


@dataclass(frozen=True)
class Score:
    """One figure of a table, in per cent.

    Args:
        mean: The figure; None if there is none.
        std: Standard deviation over seeds; None with fewer than two.
        seeds: Seeds that every part of the figure has.
        expected_seeds: Seeds it should have.
        datasets: Data sets it is the average of.
        expected_datasets: Data sets it should be the average of.
        transfers: False if the method cannot score these classes at all.
    """

    mean: float | None
    std: float | None = None
    seeds: int = 0
    expected_seeds: int = 0
    datasets: int = 1
    expected_datasets: int = 1
    transfers: bool = True

    @property
    def complete(self) -> bool:
        """Whether every expected seed and data set is in."""
        return (
            self.mean is not None
            and self.seeds >= self.expected_seeds
            and self.datasets == self.expected_datasets
        )


@dataclass(frozen=True)
class Line:
    """One line of a table: a method in one set-up.

    Args:
        method: Name of the method.
        variant: What an ablation changed.
        details: What sets it apart from other lines of the method, as (field, value).
        cells: Accuracy by seed, by data set and column (role or shots).
        seeds: Seeds the line should have.
        config: Settings of the line's first record.
    """

    method: str
    variant: str
    details: tuple[tuple[str, str], ...]
    cells: Mapping[tuple[str, Hashable], Values]
    seeds: tuple[int, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    def value_of(self, setting: str) -> str:
        """Return the value an ablation's setting has in this line, "" if it is not known."""
        name, _, value = self.variant.partition("=")
        own = self.config.get(setting, "")
        return value if name == setting else ",".join(own) if isinstance(own, list) else str(own)

    def score(self, datasets: Sequence[str], *columns: Hashable) -> Score:
        """Return the mean over `datasets` of one column, or the HM of the means of two."""
        cells = [[self.cells.get((d, column), {}) for column in columns] for d in datasets]
        present = [parts for parts in cells if all(parts)]
        numbers = [[numbers_of(values) for values in parts] for parts in present]
        if present and any(not values for parts in numbers for values in parts):
            return Score(None, transfers=False)
        if not present:
            return Score(None, datasets=0, expected_datasets=len(datasets))
        combine = harmonic_mean if len(columns) == 2 else float
        common = [
            s for s in self.seeds if all(s in values for parts in numbers for values in parts)
        ]
        per_seed = [
            combine(*_column_means([[v[s] for v in parts] for parts in numbers])) for s in common
        ]
        means = [[float(np.mean(list(v.values()))) for v in parts] for parts in numbers]
        return Score(
            mean=combine(*_column_means(means)),
            std=float(np.std(per_seed)) if len(per_seed) > 1 else None,
            seeds=len(common),
            expected_seeds=len(self.seeds),
            datasets=len(present),
            expected_datasets=len(datasets),
        )


def numbers_of(values: Values) -> dict[int, float]:
    """Return the accuracies that there are, by seed."""
    return {seed: value for seed, value in values.items() if value is not None}


def _column_means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(column)) for column in zip(*rows, strict=True)]


def datasets_of(results: Iterable[Result]) -> list[str]:
    """Return the names of the data sets: published ones in their usual order, then the others."""
    seen = list(dict.fromkeys(result.dataset for result in results))
    usual = {name: place for place, name in enumerate(DATASETS)}
    return sorted(seen, key=lambda name: usual.get(name, len(usual)))


def group(
    results: Iterable[Result], column: Callable[[Result], Hashable], *, shots: bool = True
) -> list[Line]:
    """Sort records into the lines of a table, in order of first appearance.

    Args:
        results: Records of one protocol.
        column: Column a record belongs to, such as its role.
        shots: Whether different numbers of shots are different lines.

    Raises:
        ResultsError: Two records claim the same place in the table.
    """
    results = list(results)
    fields: list[str] = list(_ROW_FIELDS)
    resorts = [field for field in _LAST_RESORT if shots or field != "shots"]
    while (clash := _clash(results, fields, column)) and resorts:
        fields.append(resorts.pop(0))
    if clash:
        raise ResultsError(
            f"two records of {clash[0].method} on {clash[0].dataset} ({clash[0].role}, seed "
            f"{clash[0].seed}) differ only in {_differences(*clash)}; a table cannot tell them "
            "apart: keep one of them, or give each its own file"
        )
    trained = sorted({r.seed for r in results if not _is_deterministic(r)})
    lines: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        lines.setdefault(_key(result, fields), []).append(result)
    return [_line(members, fields, list(lines), column, trained) for members in lines.values()]


def _key(result: Result, fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(_text(getattr(result, field)) for field in fields)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={value[key]}" for key in sorted(value))
    return str(value)


def _clash(
    results: Sequence[Result], fields: Sequence[str], column: Callable[[Result], Hashable]
) -> tuple[Result, Result] | None:
    seen: dict[Hashable, Result] = {}
    for result in results:
        place = (_key(result, fields), result.dataset, column(result), result.seed)
        if (other := seen.setdefault(place, result)) is not result:
            return other, result
    return None


def _differences(a: Result, b: Result) -> str:
    ignored = ("accuracy_pct", "correct", "macro_f1_pct", "per_class_accuracy", "confusion")
    one, two = a.to_dict(), b.to_dict()
    names = [k for k in one if one[k] != two[k] and k not in ignored and "seconds" not in k]
    return ", ".join(names) or "their scores"


def _is_deterministic(result: Result) -> bool:
    # Zero-shot learns from no picture, so one seed says everything.
    return result.shots == 0 or result.method.startswith("zero_shot")


def _line(
    members: Sequence[Result],
    fields: Sequence[str],
    keys: Sequence[tuple[str, ...]],
    column: Callable[[Result], Hashable],
    trained: Sequence[int],
) -> Line:
    first = members[0]
    own = _key(first, fields)
    rivals = [key for key in keys if key[0] == own[0]]
    details = tuple(
        (field, own[i])
        for i, field in enumerate(fields)
        if i > 1 and any(key[i] != own[i] for key in rivals)
    )
    cells: dict[tuple[str, Hashable], dict[int, float | None]] = {}
    for result in members:
        cell = cells.setdefault((result.dataset, column(result)), {})
        cell[result.seed] = result.accuracy_pct
    fixed = all(_is_deterministic(result) for result in members)
    seeds = sorted({result.seed for result in members}) if fixed else trained
    return Line(first.method, first.variant, details, cells, tuple(seeds), first.config)
