"""What commands print: data to stdout, messages to stderr, tables that fit both."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .config import MMAConfig
    from .data.check import DatasetFinding
    from .demo.run import DemoResult
    from .evaluation import Evaluation
    from .jobs import TrainedOn
    from .prediction import Prediction
    from .reporting import ClassChange

_PLAIN_WIDTH = 160  # of files and pipes, which have none of their own


def stdout() -> Console:
    """Return the console for data."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def stderr() -> Console:
    """Return the console for messages and progress."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        return console
    return Console(stderr=True, highlight=False, width=_PLAIN_WIDTH)


def quiet_libraries() -> None:
    """Keep what other libraries tell their developers off the screen; their errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|huggingface_hub)\b")
    warnings.showwarning = _show_warning  # ours: one line, without the place in the code


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    stderr().print(f"note: {message}", style="yellow", markup=False)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are figures, to the right."""
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))  # class names may hold brackets
    return table


def signed(points: float) -> str:
    """Return a difference of percentages with its sign."""
    return f"{points:+.1f}"


def comparison_table(title: str, before: Evaluation, after: Evaluation) -> Table:
    """Return zero-shot beside adapted accuracy."""
    figures = (
        ("accuracy", "accuracy_pct"),
        ("mean of the classes", "mean_class_accuracy_pct"),
        ("macro F1", "macro_f1_pct"),
    )
    rows = [
        (name, f"{was:.1f} %", f"{now:.1f} %", signed(now - was))
        for name, was, now in (
            (name, getattr(before, key), getattr(after, key)) for name, key in figures
        )
    ]
    return make_table(title, ("", "zero-shot", "adapted", "change"), rows)


def changes_table(changes: Sequence[ClassChange], most: int = 8) -> Table:
    """Return the classes whose accuracy changed most, gains first."""
    moved = sorted(changes, key=lambda c: -abs(c.change))[:most]
    rows = [
        (
            c.classname,
            str(c.pictures),
            f"{c.zero_shot_pct:.0f} %",
            f"{c.adapted_pct:.0f} %",
            signed(c.change),
        )
        for c in sorted(moved, key=lambda c: -c.change)
    ]
    columns = ("class", "pictures", "zero-shot", "adapted", "change")
    return make_table("Classes that changed most", columns, rows)


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """Return a row per picture, the likeliest classes with their probabilities."""
    width = max(len(p.top) for p in predictions)
    rows = [
        (str(p.picture), *(f"{name} {100 * probability:.0f} %" for name, probability in p.top))
        for p in predictions
    ]
    return make_table("", ("picture", *(f"{rank}." for rank in range(1, width + 1))), rows)


def describe_adapter(config: MMAConfig, file_bytes: Mapping[str, int]) -> Table:
    """Return what there is to know of an adapter without its base model."""
    names = config.classnames or ()
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    templates = (config.template,) if isinstance(config.template, str) else config.template or ()
    facts = {
        "base model": config.base_model_name_or_path or "not named",
        "family": config.model_type or "unknown",
        "layers": f"{config.start_layer} to {config.end_layer}, counted from 1 ({config.pairing})",
        "towers": ", ".join(config.towers),
        "shared projection": config.shared,
        "bottleneck": str(config.bottleneck_dim),
        "scale": f"{config.scale:g}",
        "weights": f"{config.num_weights:,}",
        "templates": "; ".join(templates) or "not named",
        "classes": f"{len(names)}: {', '.join(names[:12])}{more}" if names else "not named",
        "files": ", ".join(f"{name} {size:,} B" for name, size in file_bytes.items())
        or "on the Hub",
    }
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def print_training(done: TrainedOn, output: Path, files: Sequence[Path], *, as_json: bool) -> None:
    """Print what training changed to stdout, and files and next commands to stderr."""
    from .reporting import class_changes

    if not as_json:
        title = f"{done.adapted.total} test pictures of {done.data.num_classes} classes"
        stdout().print(comparison_table(title, done.zero_shot, done.adapted))
        stdout().print(changes_table(class_changes(done.zero_shot, done.adapted)))
    console = stderr()
    if done.skipped:
        console.print(f"{len(done.skipped)} unreadable pictures were left out")
    lines = [
        f"adapter: {output}",
        f"report:  {files[0]}",
        "",
        "Next:",
        f"  mma-adapter predict {output} PICTURES...",
        f"  mma-adapter push {output} YOU/NAME",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def print_findings(findings: Sequence[DatasetFinding], own: Mapping[Path, str]) -> None:
    """Print what was found of published data sets, and other sources, to stdout."""
    rows = []
    for f in findings:
        sizes = f.found or f.published
        counts = [sizes.classes, sizes.train, sizes.val, sizes.test]
        rows.append((f.name, f.status, *("" if n is None else f"{n:,}" for n in counts)))
    columns = ("data set", "status", "classes", "train", "val", "test")
    console = stdout()
    console.print(make_table("", columns, rows))
    for f in findings:
        if f.status != "absent" or f.advice:
            for line in (*f.problems, *(f"do: {advice}" for advice in f.advice)):
                console.print(f"{f.name}: {line}", markup=False, soft_wrap=True)
    for path, source in own.items():
        console.print(f"{path.name}: your own pictures, use them as {source}", markup=False)


def print_demo(result: DemoResult) -> None:
    """Print the demo's table to stdout, and files and next commands to stderr."""
    from .demo import TEMPLATE
    from .demo.run import RECIPE

    figures = result.to_dict()
    rows = [("zero-shot", *(f"{v:.1f}" for v in figures["zero_shot"].values()))]
    for run in figures["runs"]:
        keys = figures["zero_shot"]
        rows.append((f"MMA, seed {run['seed']}", *(f"{run[key]:.1f}" for key in keys)))
    if len(figures["runs"]) > 1:
        pairs = zip(figures["mean"].values(), figures["std"].values(), strict=True)
        rows.append(("MMA, mean ± std", *(f"{mean:.1f} ± {std:.1f}" for mean, std in pairs)))
    columns = ("accuracy on test pictures, %", "base", "novel", "harmonic mean")
    stdout().print(make_table("", columns, rows))
    folder = result.adapter.parent
    console = stderr()
    console.print(f"{figures['weights']:,} weights trained; {figures['seconds']:.0f} s in all.")
    console.print(f"picture: {result.picture}\nadapter: {result.adapter}\n\nNext:")
    icons, out = folder / "icons", folder / "out"
    for command in (
        f"mma-adapter info {result.adapter}",
        f"mma-adapter demo --export {icons}",
        f"mma-adapter predict {result.adapter} {icons / 'anchor'}",
        f"mma-adapter train {icons} --model demo --template '{TEMPLATE}' "
        f"--scale {RECIPE.scale:g} --lr {RECIPE.lr:g} --epochs 10 -o {out}",
        f"mma-adapter evaluate {out} {icons}",
    ):
        console.print(f"  {command}", markup=False, soft_wrap=True)
