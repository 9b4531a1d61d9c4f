"""A folder with one `index.html` that shows all tables, pictures and records, and opens offline.

Beside the page lie the pictures (SVG), the tables for papers and spreadsheets, and the records, so
that everything on the page can be made again from the folder alone.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis import LayerAnalysis
from .comparison import build_differences
from .formats import Format, Table, render
from .paper import averaged_datasets, method_name
from .plots import (
    ablation_curves,
    base_novel_plane,
    confusion_matrix,
    few_shot_curves,
    layer_curves,
    per_class_change,
)
from .results import PROTOCOLS, Protocol, Result, ResultsError
from .summary import datasets_of
from .tables import TITLES, build_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "zero_shot"

_SUFFIXES: dict[Format, str] = {"markdown": "md", "latex": "tex", "csv": "csv"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; }
h1, h2, h3 { line-height: 1.25; } h2 { border-bottom: 1px solid #ccc; margin-top: 2em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; margin: 1em 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .3em; }
th, td { padding: .15em .7em; text-align: left; white-space: nowrap; }
thead th { border-bottom: 2px solid #444; } td.n, th.n { text-align: right; }
tr.opens td { border-top: 1px solid #bbb; } tr.published { color: #666; font-style: italic; }
.note { color: #555; font-size: 14px; margin: .1em 0; } figure { margin: 1.5em 0; }
figure img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: 14px; }
pre { background: #f5f5f5; padding: .6em; overflow-x: auto; font-size: 13px; }
"""


@dataclass
class _Page:
    """The page under construction and the folder it goes to."""

    folder: Path
    parts: list[str]
    headings: list[str]

    def heading(self, text: str) -> None:
        anchor = f"s{len(self.headings)}"
        self.headings.append(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>')
        self.parts.append(f'<h2 id="{anchor}">{html.escape(text)}</h2>')

    def paragraph(self, text: str) -> None:
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, table: Table, name: str) -> None:
        links = []
        for format, suffix in _SUFFIXES.items():
            path = self.folder / "tables" / f"{name}.{suffix}"
            path.write_text(render(table, format), "utf-8")
            links.append(f'<a href="tables/{path.name}">{suffix}</a>')
        self.parts.append(f'<div class="wide">{render(table, "html")}</div>')
        self.parts.append(f'<p class="note">This table as {", ".join(links)}.</p>')

    def figure(self, figure: "Figure", name: str, caption: str) -> None:
        from matplotlib import rc_context

        # No date and no random ids: the same records give the same file.
        with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
            figure.savefig(self.folder / "figures" / f"{name}.svg", metadata={"Date": None})
        text = html.escape(caption)
        self.parts.append(
            f'<figure><img src="figures/{name}.svg" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def rows(self, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
        cells = ("".join(f"<td>{html.escape(str(v))}</td>" for v in row) for row in rows)
        body = "\n".join(f"<tr>{line}</tr>" for line in cells)
        self.parts.append(
            f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>'
            "</table></div>"
        )


def write_report(
    results: Iterable[Result],
    folder: Path | str,
    *,
    title: str = "Results",
    method: str = "mma",
    analysis: LayerAnalysis | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write the report and return the path of its page.

    Args:
        results: Records of any protocols.
        folder: Where to write; files of an earlier report there are replaced.
        title: Heading of the page.
        method: Method whose classes are looked at one by one.
        analysis: A layer analysis to show, too.
        remarks: Sentences to print above everything, such as runs that are missing.

    Raises:
        ResultsError: There is no record, or two records claim one place in a table.
    """
    results = list(results)
    if not results:
        raise ResultsError("there is no record to report; run a protocol first")
    page = _Page(Path(folder), [], [])
    for name in ("figures", "tables"):
        (page.folder / name).mkdir(parents=True, exist_ok=True)
    for remark in remarks:
        page.paragraph(remark)
    for protocol in PROTOCOLS:
        if chosen := [result for result in results if result.protocol == protocol]:
            page.heading(TITLES[protocol])
            _protocol(page, protocol, chosen, method)
    if analysis is not None:
        page.heading("Layers")
        page.paragraph(f"Suggested start_layer: {analysis.start_layer}. {analysis.reason}")
        page.figure(layer_curves(analysis), "layers", f"Layers of {analysis.host}")
        analysis.save(page.folder / "layers.json")
    _setting(page, results)
    _records(page, results)
    index = page.folder / "index.html"
    index.write_text(_document(title, page), "utf-8")
    return index


def _protocol(page: _Page, protocol: Protocol, results: Sequence[Result], method: str) -> None:
    # Published rows help only where some of the data sets are those of the papers.
    paper = bool(set(datasets_of(results)) & set(averaged_datasets(protocol)))
    page.table(build_table(results, protocol, paper=paper), protocol)
    if _has_baseline(results):
        page.table(build_differences(results, protocol), f"{protocol}-differences")
    if protocol == "base-to-novel" and any(_is_scored_novel(r) for r in results):
        caption = "Novel against base accuracy" + ("; hollow: published averages" if paper else "")
        page.figure(base_novel_plane(results, paper=paper), "base-novel-plane", caption)
    if protocol == "few-shot":
        caption = "Accuracy over shots; bands are one standard deviation over seeds"
        page.figure(few_shot_curves(results), "few-shot-curves", caption)
    if protocol == "ablation":
        caption = "Accuracy over the value of one setting; bars are one standard deviation"
        page.figure(ablation_curves(results), "ablation-curves", caption)
    else:
        _classes(page, protocol, results, method)


def _has_baseline(results: Sequence[Result]) -> bool:
    # The comparison by role mixes no numbers of shots, so few-shot curves speak for themselves.
    methods = {result.method for result in results}
    return BASELINE in methods and len(methods) > 1 and results[0].protocol != "few-shot"


def _is_scored_novel(result: Result) -> bool:
    return result.role == "novel" and result.accuracy_pct is not None


def _classes(page: _Page, protocol: str, results: Sequence[Result], method: str) -> None:
    page.parts.append("<details><summary>Class by class</summary>")
    drawn = len(page.parts)
    most = max((r.shots for r in results if r.method == method), default=0)
    for dataset in datasets_of(results):
        name = re.sub(r"[^\w.-]+", "_", f"{protocol}-{dataset}")
        here = [r for r in results if r.dataset == dataset]
        kept = [r for r in here if r.method == BASELINE or (r.method, r.shots) == (method, most)]
        known = {r.method for r in kept if r.per_class_accuracy}
        if {method, BASELINE} <= known:
            caption = f"{dataset}: what each class gains or loses"
            page.figure(per_class_change(kept, method, dataset), f"{name}-classes", caption)
        seeds = sorted((r.seed, r.role) for r in kept if r.method == method and r.confusion)
        for result in kept:
            if result.method == method and (result.seed, result.role) in seeds[:1]:
                caption = f"{dataset}: confusions of {method_name(method)}, {result.role} classes"
                page.figure(confusion_matrix(result), f"{name}-confusion", caption)
    if len(page.parts) > drawn:
        page.parts.append("</details>")
    else:
        page.parts.pop()


def _setting(page: _Page, results: Sequence[Result]) -> None:
    page.heading("Where and with what")
    rows: list[tuple[str, str]] = []
    for label, values in (
        ("Base model", (r.host for r in results)),
        ("Fingerprint", (json.dumps(r.host_fingerprint, sort_keys=True) for r in results)),
        ("Machine", (r.machine for r in results)),
        ("Versions", (_pairs(r.versions) for r in results)),
        ("Precision", (r.precision for r in results)),
        ("Preprocessing", (r.transform for r in results)),
        ("Division of the data", (f"{r.dataset}: {r.split_origin}" for r in results)),
        ("Templates", (_template(r) for r in results)),
        ("Finished", _span([r.finished_at for r in results if r.finished_at])),
    ):
        rows += [(label, value) for value in dict.fromkeys(values) if value and value != "{}"]
    page.rows(("What", "Value"), rows)
    page.heading("Recipes")
    recipes: dict[tuple[str, str, str], str] = {}
    for r in results:
        changes = ", ".join(filter(None, [_pairs(r.overrides), r.variant])) or "as named"
        recipes.setdefault(
            (r.method, r.recipe or "no name", changes), json.dumps(r.config, indent=2)
        )
    for (method, recipe, changes), config in recipes.items():
        summary = html.escape(f"{method_name(method)}: {recipe} ({changes})")
        page.parts.append(
            f"<details><summary>{summary}</summary><pre>{html.escape(config)}</pre></details>"
        )


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{key}={values[key]}" for key in sorted(values))


def _template(result: Result) -> str:
    if isinstance(result.template, str):
        return result.template
    return f"{len(result.template)} templates: " + " / ".join(result.template)


def _span(times: Sequence[str]) -> list[str]:
    return [f"{min(times)} to {max(times)}"] if times else []


def _records(page: _Page, results: Sequence[Result]) -> None:
    page.heading(f"All {len(results)} records")
    lines = (json.dumps(result.to_dict(), ensure_ascii=False) + "\n" for result in results)
    (page.folder / "records.jsonl").write_text("".join(lines), "utf-8")
    page.parts.append('<p>In full: <a href="records.jsonl">records.jsonl</a>.</p>')
    heads = ("Run", "Protocol", "Method", "Recipe", "Variant", "Data set", "Role", "Seed", "Shots")
    heads += ("Right", "Accuracy (%)", "Trained weights", "Training (s)", "Test (s)", "Peak (MiB)")
    page.rows(heads, _record_rows(results))


def _record_rows(results: Sequence[Result]) -> Iterator[tuple[object, ...]]:
    for r in results:
        yield (
            *(r.run_id[:8], r.protocol, r.method, r.recipe, r.variant, r.dataset, r.role),
            *(r.seed, r.shots),
            "–" if r.correct is None else f"{r.correct} of {r.total}",
            "–" if r.accuracy_pct is None else f"{r.accuracy_pct:.2f}",
            *(f"{r.num_trainable:,}", f"{r.train_seconds:.1f}", f"{r.test_seconds:.1f}"),
            "" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:,.0f}",
        )


def _document(title: str, page: _Page) -> str:
    contents = "\n".join(page.headings)
    body = "\n".join(page.parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<ul>\n{contents}\n</ul>\n{body}\n</body>\n</html>\n"
    )
