"""Fill the generated blocks of the pages: tables made from the code and from results files.

python docs/build_pages.py

A block stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; `BLOCKS` says who makes it.
A test compares the committed pages with what this script would write.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mma_adapter.bench.comparison import paired_difference
from mma_adapter.bench.paper import method_name
from mma_adapter.bench.recipes import RECIPES
from mma_adapter.bench.results import PROTOCOLS, Result, read_results
from mma_adapter.bench.summary import Score, datasets_of, group
from mma_adapter.bench.tables import TITLES, ablation_lines
from mma_adapter.data import DATASETS, DEFAULT_TEMPLATE, DatasetSpec

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
BENCH = DOCS / "results" / "records.jsonl"
PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]

# What the raw readers need beside the pictures (`mma_adapter/data/readers.py`).
RAW_FILES = {
    "oxford_pets": ("annotations/trainval.txt", "annotations/test.txt"),
    "stanford_cars": (
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
    ),
    "oxford_flowers": ("imagelabels.mat", "cat_to_name.json"),
    "sun397": ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
    "ucf101": tuple(
        f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")
    ),
}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(*names: str) -> str:
    """Return names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def datasets_table() -> str:
    """Where each published dataset lies and what must be there."""

    def row(spec: DatasetSpec) -> list[str]:
        inside = [name if "." in Path(name).name else f"{name}/" for name in spec.files]
        # Where parts of the pictures' folder are asked for, they say more than the folder.
        if spec.image_dir and not any(name.startswith(f"{spec.image_dir}/") for name in inside):
            inside.insert(0, f"{spec.image_dir}/")
        if spec.split_file:
            inside.append(spec.split_file)
        return [code(spec.name), code(f"{spec.folder}/"), code(*inside)]

    return table(("name", "folder", "in it"), map(row, DATASETS.values()))


def raw_table() -> str:
    """Return the annotations an own split is made from, where class folders do not tell."""
    rows = ([code(name), code(*files)] for name, files in RAW_FILES.items())
    return table(("name", "needed for an own split"), rows)


def templates_table() -> str:
    """Return the prompt templates that differ from the default."""
    own = [spec for spec in DATASETS.values() if spec.template != DEFAULT_TEMPLATE]
    rows = [[code(spec.name), code(spec.template)] for spec in own]
    return table(("name", "template"), [*rows, ["all others", code(DEFAULT_TEMPLATE)]])


def sizes_table() -> str:
    """Return the published sizes."""

    def number(value: int | None) -> str:
        return "–" if value is None else f"{value:,}"

    heads = ("name", "classes", "train", "val", "test", "base test", "novel test")
    sizes = {spec.name: vars(spec.sizes).values() for spec in DATASETS.values()}
    return table(heads, ([code(name), *map(number, row)] for name, row in sizes.items()))


def recipes_table() -> str:
    """Return the benchmark's recipes and how far each can be trusted."""

    def source(note: str) -> str:  # a path as long as the authors' would not fit
        return re.sub(r"\S*/(\S+\.yaml)", r"`\1`", note)

    rows = ([code(r.name), code(r.method), r.origin, source(r.note)] for r in RECIPES.values())
    return table(("recipe", "method", "settings", "source"), rows)


def commands_table() -> str:
    """Return every command with the first sentence of its help."""
    import typer

    from mma_adapter.cli import app

    def rows(group: Any, prefix: str) -> Iterable[list[str]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from rows(command, f"{prefix} {name}")
            else:
                yield [code(f"{prefix} {name}"), re.split(r"(?<=\.)\s", command.help)[0]]

    return table(("command", "what it does"), rows(typer.main.get_command(app), "mma-adapter"))


def demo_table() -> str:
    """Return the demo's figures, or say that there are none yet."""
    path = RESULTS / "demo.json"
    if not path.exists():
        return (
            "There are no committed figures yet: run the command above, it prints them and writes "
            "`demo.json`."
        )
    data = json.loads(path.read_text())
    columns = ("base_pct", "novel_pct", "harmonic_mean_pct")

    def cells(values: dict) -> list[str]:
        return [f"{values[column]:.1f}" for column in columns]

    rows = [["CLIP alone", *cells(data["zero_shot"])]]
    rows += [[f"MMA, seed {run['seed']}", *cells(run)] for run in data["runs"]]
    if len(data["runs"]) > 1:
        both = zip(cells(data["mean"]), cells(data["std"]), strict=True)
        rows.append(["**MMA, mean ± std**", *(f"**{mean} ± {std}**" for mean, std in both)])
    pictures = data["pictures"]
    seeds = ",".join(str(run["seed"]) for run in data["runs"])
    command = data.get("command", f"mma-adapter demo --seeds {seeds}")
    return (
        table(("accuracy, %", "base", "novel", "harmonic mean"), rows)
        + f"\n\n{pictures['base_test']} base and {pictures['novel_test']} novel test pictures; "
        f"{data['weights']:,} trained weights. Written by `{command}` to "
        "`benchmarks/results/demo.json`."
    )


def speed_table() -> str:
    """Seconds and memory of a training step against the conventional path, by classes."""
    data = json.loads((RESULTS / "step_cpu.json").read_text())
    chosen = [r for r in data["rows"] if (r["dtype"], r["batch"]) == ("fp32", 16)]
    rows = []
    for row in sorted(chosen, key=lambda r: r["classes"]):
        slow, fast, same = (
            row["paths"][name]["seconds"] for name in ("conventional", "ours", "ours_torch")
        )
        large, small = (row["peak_bytes"][name] for name in ("conventional", "ours"))
        rows.append(
            [
                str(row["classes"]),
                f"{slow:.1f} s",
                f"{fast:.1f} s",
                f"{slow / fast:.1f} ({slow / same:.1f})",
                f"{large / 2**30:.1f} GiB",
                f"{small / 2**30:.1f} GiB",
            ]
        )
    heads = ("classes", "conventional step", "ours", "times faster", "its memory", "ours")
    return (
        table(heads, rows) + f"\n\nViT-B/16 sizes, batch 16, float32, {data['threads']} threads of "
        f"{data['device']}; the same loss and gradients. In brackets: on torch's own products "
        "alone, where ours by itself takes faster ones. From `benchmarks/results/step_cpu.json`."
    )


@cache
def bench_records() -> list[Result]:
    """Read the records of the embedded bench."""
    return read_results(BENCH)


def bench_table() -> str:
    """Each method's averages in the protocols that compare methods."""
    columns = (
        ("base", "base-to-novel", ("base",)),
        ("novel", "base-to-novel", ("novel",)),
        ("harmonic mean", "base-to-novel", ("base", "novel")),
        ("cross-dataset", "cross-dataset", ("target",)),
        ("domains", "domain-generalization", ("target",)),
    )
    cells: dict[str, list[str]] = {}
    for _, protocol, roles in columns:
        chosen = [r for r in bench_records() if r.protocol == protocol]
        names = datasets_of(r for r in chosen if r.role in roles)
        for line in group(chosen, lambda r: r.role):
            score: Score = line.score(names, *roles)
            spread = "" if score.std is None else f" ± {score.std:.2f}"
            text = "–" if score.mean is None else f"{score.mean:.2f}{spread}"
            cells.setdefault(line.method, []).append(text)
    heads = ("accuracy, %", *(head for head, _, _ in columns))
    return table(heads, ([method_name(method), *row] for method, row in cells.items()))


def ablation_table() -> str:
    """For each ablated setting, the best value and how far it is ahead of the default."""
    chosen = [r for r in bench_records() if r.protocol == "ablation"]
    names, rows = datasets_of(chosen), []
    for setting, lines in ablation_lines(group(chosen, lambda r: r.role)).items():
        default = next(line for line in lines if not line.variant)
        best = max(lines, key=lambda line: line.score(names, "base", "novel").mean or 0.0)
        gap = paired_difference(best, default, names, "base", "novel")
        if best is default or gap is None:
            ahead, verdict = "–", "the default is best"
        else:
            ahead = f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
            verdict = "not told apart" if gap.low <= 0 <= gap.high else "better than the default"
        values = (default.value_of(setting), best.value_of(setting))
        rows.append([code(setting), *(v.replace(",", " and ") for v in values), ahead, verdict])
    return table(("setting", "default", "best", "ahead by, points", "verdict"), rows)


def bench_setting() -> str:
    """Where the embedded bench ran, and how long each protocol took."""
    records = bench_records()
    rows = []
    for protocol in PROTOCOLS:
        own = [r for r in records if r.protocol == protocol]
        training = {r.run_id: r.train_seconds for r in own}
        seconds = sum(training.values()) + sum(r.test_seconds for r in own)
        rows.append([TITLES[protocol], str(len(training)), str(len(own)), f"{seconds:.0f}"])
    first, last = (pick(r.finished_at for r in records) for pick in (min, max))
    versions = ", ".join(f"{name} {version}" for name, version in records[0].versions.items())
    return f"{records[0].machine}; {versions}; {first} to {last}.\n\n" + table(
        ("protocol", "runs", "scores", "seconds of training and test"), rows
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "datasets": datasets_table,
    "raw": raw_table,
    "templates": templates_table,
    "sizes": sizes_table,
    "recipes": recipes_table,
    "commands": commands_table,
    "demo": demo_table,
    "speed": speed_table,
    "bench": bench_table,
    "bench_setting": bench_setting,
    "ablation": ablation_table,
}


def fill(text: str) -> str:
    """Return a page with all its blocks made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if begin in text:
            block = f"{begin}\n\n{make()}\n\n{end}"
            text = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")
            print(f"filled {page.name}")


if __name__ == "__main__":
    main()
