"""The paper's tables as pure functions of records.

Layouts follow the tables of the MMA paper: the average first, then each data set; base, novel and
harmonic mean (HM). `summary` says how the figures are made.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

from .formats import Cell, Format, Row, Table, render
from .paper import AVERAGE, Published, averaged_datasets, method_name, published, published_host
from .results import PROTOCOLS, Protocol, Result, ResultsError
from .summary import Line, Score, datasets_of, group

# A column of a table: its heading, the record columns it is made of, and the published number.
Column = tuple[str, tuple[Hashable, ...], Callable[[Published], float | None]]

_BASE_TO_NOVEL: tuple[Column, ...] = (
    ("Base", ("base",), lambda row: row.base),
    ("Novel", ("novel",), lambda row: row.novel),
    ("HM", ("base", "novel"), lambda row: row.hm),
)
_ALL: tuple[Column, ...] = (("Accuracy", ("all",), lambda row: row.accuracy),)

TITLES = {
    "base-to-novel": "Base-to-novel generalisation",
    "cross-dataset": "Cross-dataset transfer",
    "domain-generalization": "Domain generalisation",
    "few-shot": "Few-shot classification",
    "ablation": "Ablation",
}


def results_table(
    results: Iterable[Result],
    protocol: Protocol,
    *,
    paper: bool = False,
    format: Format = "markdown",
) -> str:
    """Print the paper's table of a protocol; accuracies in per cent.

    Figures made of fewer seeds or data sets than other methods have say so, and are never bold.

    Args:
        results: Records; those of other protocols are left out.
        protocol: One of `PROTOCOLS`.
        paper: Put the published rows beside the measured ones.
        format: `"markdown"`, `"latex"`, `"csv"` or `"html"`.

    Raises:
        ResultsError: There is no record of this protocol, or two records claim one place.
        ConfigError: `format` is unknown.
    """
    return render(build_table(results, protocol, paper=paper), format)


def build_table(results: Iterable[Result], protocol: Protocol, *, paper: bool = False) -> Table:
    """Return the paper's table of a protocol as data; see `results_table`."""
    chosen = select(results, protocol)
    if protocol in ("cross-dataset", "domain-generalization"):
        return _transfer(chosen, protocol, paper)
    if protocol == "few-shot":
        return _few_shot(chosen)
    if protocol == "ablation":
        return _ablation(chosen)
    lines = group(chosen, lambda result: result.role)
    blocks = _blocks(lines, datasets_of(chosen), _BASE_TO_NOVEL, protocol if paper else None)
    notes = _notes(blocks, paper, datasets_of(chosen), protocol)
    return Table(TITLES[protocol], "Data set", _headings(_BASE_TO_NOVEL), tuple(blocks), notes)


def select(results: Iterable[Result], protocol: str) -> list[Result]:
    """Return the records of one protocol.

    Raises:
        ResultsError: The protocol is unknown, or there is no such record.
    """
    if protocol not in PROTOCOLS:
        raise ResultsError(f"protocol={protocol!r}; pass one of {', '.join(PROTOCOLS)}")
    results = list(results)
    chosen = [result for result in results if result.protocol == protocol]
    if not chosen:
        there = ", ".join(sorted({result.protocol for result in results})) or "none at all"
        raise ResultsError(f"no record of protocol {protocol!r}; there are records of: {there}")
    return chosen


def line_label(line: Line) -> str:
    """Return how a line of a table is named: the method, and what sets it apart."""
    extra = [line.variant] if line.variant else []
    for field, value in line.details:
        shown = value or "defaults"
        extra.append(f"{shown} shots" if field == "shots" else shown)
    return method_name(line.method) + (f" ({'; '.join(extra)})" if extra else "")


def _headings(columns: Sequence[Column]) -> tuple[str, ...]:
    return tuple(heading for heading, _, _ in columns)


def _blocks(
    lines: Sequence[Line],
    datasets: Sequence[str],
    columns: Sequence[Column],
    paper_protocol: str | None = None,
    label: Callable[[Line], str] = line_label,
    prefix: str = "",
) -> list[Row]:
    """Return a block of rows for the average, and one for each data set."""
    parts: list[tuple[str, str, Sequence[str]]] = [(name, name, [name]) for name in datasets]
    if len(datasets) > 1:
        parts.insert(0, (f"Average of {len(datasets)}", AVERAGE, datasets))
    rows: list[Row] = []
    for title, name, members in parts:
        block = [
            Row(
                prefix + title,
                label(line),
                tuple(Cell(line.score(members, *used)) for _, used, _ in columns),
            )
            for line in lines
        ]
        known = published(paper_protocol, name) if paper_protocol else []
        numbers = [tuple(get(row) for _, _, get in columns) for row in known]
        rows += _with_published(_mark_best(block), lines, known, numbers)
    return rows


def _with_published(
    rows: Sequence[Row],
    lines: Sequence[Line],
    known: Sequence[Published],
    numbers: Sequence[Sequence[float | None]],
) -> list[Row]:
    """Put each published row below the last measured row of its method, the others at the end."""
    last = {line.method: place for place, line in enumerate(lines)}
    block = rows[0].block
    made = {
        row.method: Row(
            block,
            f"{row.name}, published",
            tuple(Cell(text="") if n is None else Cell(Score(n)) for n in values),
            published=True,
        )
        for row, values in zip(known, numbers, strict=True)
    }
    merged: list[Row] = []
    for place, (row, line) in enumerate(zip(rows, lines, strict=True)):
        merged.append(row)
        if last[line.method] == place and line.method in made:
            merged.append(made.pop(line.method))
    return merged + list(made.values())


def _mark_best(rows: Sequence[Row]) -> list[Row]:
    """Mark the highest complete figure of each column, if there are several to choose from."""
    marked = [list(row.cells) for row in rows]
    for column in range(len(rows[0].cells)):
        found = [(c.score.mean, c) for cells in marked if (c := cells[column]).score]
        whole = [round(m, 2) for m, c in found if m is not None and c.score and c.score.complete]
        if len(whole) < 2:
            continue
        for cells in marked:
            score = cells[column].score
            if score and score.complete and round(score.mean or 0.0, 2) == max(whole):
                cells[column] = replace(cells[column], best=True)
    return [replace(row, cells=tuple(cells)) for row, cells in zip(rows, marked, strict=True)]


def _notes(
    rows: Sequence[Row], paper: bool, datasets: Sequence[str], protocol: str
) -> tuple[str, ...]:
    scores = [c.score for row in rows if not row.published for c in row.cells if c.score]
    notes = ["Accuracy in per cent; ± is the standard deviation over seeds."]
    if any(cell.best for row in rows for cell in row.cells):
        notes.append("Bold: the best of the measured rows.")
    if any(not score.transfers for score in scores):
        notes.append("–: the method cannot score classes it was not trained on.")
    if any(score.transfers and not score.complete for score in scores):
        notes.append("Figures in brackets are incomplete, and not comparable with complete ones.")
    if paper and any(row.published for row in rows):
        notes.append(f"Published rows: {published_host()}, 16 shots, means over 3 seeds.")
        theirs = averaged_datasets(protocol)
        if set(theirs) != set(datasets):
            notes.append(
                f"The published averages are over {len(theirs)} data sets ({', '.join(theirs)}): "
                "not to be compared with averages over others."
            )
    return tuple(notes)


def _transfer(results: Sequence[Result], protocol: str, paper: bool) -> Table:
    lines = group(results, lambda result: result.role)
    sources = datasets_of(r for r in results if r.role == "source")
    targets = datasets_of(r for r in results if r.role == "target")
    columns: list[tuple[str, str, Sequence[str], str]] = [
        (f"Average of {len(targets)} targets", AVERAGE, targets, "target"),
        *((f"Source: {name}", name, [name], "source") for name in sources),
        *((name, name, [name], "target") for name in targets),
    ]
    rows = [
        Row("", line_label(line), tuple(Cell(line.score(m, role)) for _, _, m, role in columns))
        for line in lines
    ]
    rows = _mark_best(rows)
    if paper:
        found = {(row.method, row.dataset): row for row in published(protocol)}
        known = published(protocol, AVERAGE)
        numbers = [
            [
                found[key].accuracy if (key := (row.method, name)) in found else None
                for _, name, _, _ in columns
            ]
            for row in known
        ]
        rows = _with_published(rows, lines, known, numbers)
    notes = _notes(rows, paper, targets, protocol)
    return Table(TITLES[protocol], "", tuple(c[0] for c in columns), tuple(rows), notes)


def _few_shot(results: Sequence[Result]) -> Table:
    shots = sorted({result.shots for result in results}, key=lambda k: (k < 0, k))
    columns: list[Column] = [
        ("all shots" if k < 0 else f"{k} shot{'s' * (k != 1)}", (k,), lambda row: None)
        for k in shots
    ]
    lines = group(results, lambda result: result.shots, shots=False)
    rows = _blocks(lines, datasets_of(results), columns)
    # A method need not have every number of shots: zero-shot has 0 and nothing else.
    rows = [replace(row, cells=tuple(map(_blank_if_missing, row.cells))) for row in rows]
    notes = _notes(rows, False, [], "few-shot")
    return Table(TITLES["few-shot"], "Data set", _headings(columns), tuple(rows), notes)


def _blank_if_missing(cell: Cell) -> Cell:
    return Cell() if cell.score and cell.score.transfers and cell.score.mean is None else cell


def _ablation(results: Sequence[Result]) -> Table:
    columns = _BASE_TO_NOVEL if any(r.role == "novel" for r in results) else _ALL
    lines = group(results, lambda result: result.role)
    rows: list[Row] = []
    for setting, members in ablation_lines(lines).items():
        labels = {
            line.variant: (line.value_of(setting) or "unchanged")
            + ("" if line.variant else " (default)")
            for line in members
        }
        rows += _blocks(
            members,
            datasets_of(results),
            columns,
            label=lambda line, labels=labels: labels[line.variant],
            prefix=f"{setting}: ",
        )
    notes = _notes(rows, False, [], "ablation")
    return Table(TITLES["ablation"], "Setting", _headings(columns), tuple(rows), notes)


def ablation_lines(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Return the lines of an ablation by the setting they change, in order of its values.

    The unchanged method, with an empty variant, belongs to every setting.
    """
    lines = list(lines)
    named = [line.variant.partition("=")[0] for line in lines if line.variant]
    return {
        setting: sorted(
            (line for line in lines if line.variant.partition("=")[0] in ("", setting)),
            key=lambda line: _value_order(line.value_of(setting)),
        )
        for setting in dict.fromkeys(named)
    } or {"default": lines}


def _value_order(value: str) -> tuple[float, str]:
    """Numbers by size, then words by the alphabet."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
