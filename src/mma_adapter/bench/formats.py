"""One table, four notations: Markdown, LaTeX (booktabs), CSV and HTML."""

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .summary import Score

Format = Literal["markdown", "latex", "csv", "html"]

DASH = "–"

_NUMBER = ' class="n"'


@dataclass(frozen=True)
class Cell:
    """One place of a table: a figure, a word, or nothing.

    Args:
        score: The figure, if there is one.
        text: Words to print instead.
        best: Whether to print it in bold.
    """

    score: Score | None = None
    text: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One row: the block it stands in (a data set, say), its label, and its cells."""

    block: str
    label: str
    cells: tuple[Cell, ...]
    published: bool = False


@dataclass(frozen=True)
class Table:
    """A table as data; `render` prints it.

    Args:
        title: Caption.
        block: Heading of the first column, or "" if rows stand in no blocks.
        columns: Headings of the figures.
        rows: The rows, those of a block together.
        notes: Sentences to print below.
    """

    title: str
    block: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def render(table: Table, format: Format = "markdown") -> str:
    """Print a table.

    Raises:
        ConfigError: `format` is unknown.
    """
    if format not in _RENDERERS:
        raise ConfigError(f"format={format!r} is unknown; pass one of {', '.join(_RENDERERS)}")
    return _RENDERERS[format](table)


def cell_text(cell: Cell, plus_minus: str = " ± ") -> str:
    """Return what a cell says: `81.20 ± 0.30`, with a mark if seeds or data sets are missing."""
    score = cell.score
    if score is None:
        return cell.text
    if not score.transfers:
        return DASH
    if score.mean is None:
        return "not run" if score.expected_datasets or score.expected_seeds else ""
    text = f"{score.mean:.2f}"
    if score.std is not None:
        text += f"{plus_minus}{score.std:.2f}"
    marks = []
    if score.seeds < score.expected_seeds:
        marks.append(f"{score.seeds}/{score.expected_seeds} seeds")
    if score.datasets < score.expected_datasets:
        marks.append(f"{score.datasets}/{score.expected_datasets} data sets")
    return text + (f" [{', '.join(marks)}]" if marks else "")


def _heads(table: Table) -> list[str]:
    return [*([table.block] if table.block else []), "Method", *table.columns]


def _blocks(table: Table) -> list[tuple[Row, bool]]:
    """Return the rows, each with whether it opens a block."""
    before = [None, *(row.block for row in table.rows)]
    return [(row, row.block != last) for row, last in zip(table.rows, before, strict=False)]


def _markdown(table: Table) -> str:
    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    heads = _heads(table)
    right = len(heads) - len(table.columns)
    lines = [f"**{table.title}**", "", line(heads)]
    lines.append("|" + "|".join([" --- "] * right + [" ---: "] * len(table.columns)) + "|")
    for row, opens in _blocks(table):
        block = [f"**{row.block}**" if opens else ""] if table.block else []
        label = f"*{row.label}*" if row.published else row.label
        cells = [f"**{cell_text(c)}**" if c.best else cell_text(c) for c in row.cells]
        lines.append(line([*block, label, *cells]))
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "[": "{[}",  # a bracket after \\ would be read as its optional argument
}


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text)

    heads = _heads(table)
    align = "l" * (len(heads) - len(table.columns)) + "r" * len(table.columns)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines += [f"\\caption{{{escape(table.title)}}}", f"\\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines.append(" & ".join(map(escape, heads)) + r" \\")
    for row, opens in _blocks(table):
        if opens:
            lines.append(r"\midrule")
        block = [escape(row.block) if opens else ""] if table.block else []
        label = f"\\textit{{{escape(row.label)}}}" if row.published else escape(row.label)
        texts = [(escape(cell_text(c)), c.best) for c in row.cells]
        cells = [f"\\textbf{{{text}}}" if best else text for text, best in texts]
        lines.append(" & ".join([*block, label, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par\\footnotesize {escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _csv(table: Table) -> str:
    """Numbers in full precision, a column each for mean, deviation, seeds and data sets."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ["block", "method", "published"]
    for column in table.columns:
        heads += [column, *(f"{column} {part}" for part in ("std", "seeds", "datasets"))]
    writer.writerow(heads)
    for row in table.rows:
        values: list[object] = [row.block, row.label, "yes" if row.published else "no"]
        for cell in row.cells:
            score = cell.score
            if score is None:
                values += [cell.text, "", "", ""]
            elif score.mean is None:
                values += ["", "", score.seeds, score.datasets]
            else:
                values += [score.mean, "" if score.std is None else score.std]
                values += ["", ""] if row.published else [score.seeds, score.datasets]
        writer.writerow(values)
    return out.getvalue()


def _html(table: Table) -> str:
    names = _heads(table)
    left = len(names) - len(table.columns)
    heads = "".join(
        f"<th{'' if place < left else _NUMBER}>{html.escape(head)}</th>"
        for place, head in enumerate(names)
    )
    lines = ["<table>", f"<caption>{html.escape(table.title)}</caption>"]
    lines.append(f"<thead><tr>{heads}</tr></thead>\n<tbody>")
    for row, opens in _blocks(table):
        kinds = [name for name, on in (("opens", opens), ("published", row.published)) if on]
        cells = [f"<td>{html.escape(row.block) if opens else ''}</td>"] if table.block else []
        cells.append(f"<td>{html.escape(row.label)}</td>")
        for cell in row.cells:
            text = html.escape(cell_text(cell))
            cells.append(f"<td{_NUMBER}>{f'<b>{text}</b>' if cell.best else text}</td>")
        lines.append(f'<tr class="{" ".join(kinds)}">' + "".join(cells) + "</tr>")
    lines.append("</tbody></table>")
    lines += [f'<p class="note">{html.escape(note)}</p>' for note in table.notes]
    return "\n".join(lines) + "\n"


_RENDERERS: dict[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}
