"""The report of a training run: figures, two pictures, and a page that shows them."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .evaluation import Evaluation

METRICS, CONFUSION, CHANGES, PAGE = "metrics.json", "confusion.png", "per_class.png", "index.html"

_MOST_LABELS = 40  # more class names than this cannot be read beside a matrix
_MOST_BARS = 40
_GAIN, _LOSS, _SAME = "#1a7f4b", "#b3402f", "#9aa1a9"


@dataclass(frozen=True)
class ClassChange:
    """Accuracy of one class before and after, per cent."""

    classname: str
    pictures: int
    zero_shot_pct: float
    adapted_pct: float

    @property
    def change(self) -> float:
        """Percentage points won; below 0 where the class got worse."""
        return self.adapted_pct - self.zero_shot_pct


def class_changes(zero_shot: Evaluation, adapted: Evaluation) -> list[ClassChange]:
    """Return the change of every class that has a test picture, in label order."""
    before, after = zero_shot.per_class_accuracy_pct, adapted.per_class_accuracy_pct
    counts = np.bincount(adapted.labels, minlength=len(adapted.classnames))
    return [
        ClassChange(adapted.classnames[label], int(counts[label]), before[label], after[label])
        for label in after
    ]


def write_report(
    directory: Path,
    zero_shot: Evaluation,
    adapted: Evaluation,
    *,
    title: str,
    facts: dict[str, Any],
    losses: Sequence[float] = (),
) -> list[Path]:
    """Write `metrics.json`, two pictures and `index.html`.

    Without matplotlib the pictures are left out, and the page says so.

    Args:
        directory: Where to write; made if missing.
        zero_shot: Test pictures scored without the adapter.
        adapted: The same pictures scored with it.
        title: What was trained on, for people.
        facts: What else to record: settings, counts, times.
        losses: Loss of every training step.

    Returns:
        The files, the page first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    changes = class_changes(zero_shot, adapted)
    metrics = {
        "title": title,
        **facts,
        "zero_shot": figures(zero_shot),
        "adapted": figures(adapted),
        "classes": [{**asdict(c), "change": c.change} for c in changes],
        "confusion": adapted.confusion.tolist(),
        "losses": list(losses),
    }
    (directory / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    pictures = _draw(directory, zero_shot, adapted, changes)
    page = _page(title, facts, zero_shot, adapted, changes, [p.name for p in pictures])
    (directory / PAGE).write_text(page, encoding="utf-8")
    return [directory / PAGE, directory / METRICS, *pictures]


def figures(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures of a score for JSON."""
    return {
        "accuracy_pct": evaluation.accuracy_pct,
        "correct": evaluation.correct,
        "total": evaluation.total,
        "mean_class_accuracy_pct": evaluation.mean_class_accuracy_pct,
        "macro_f1_pct": evaluation.macro_f1_pct,
    }


def _draw(
    directory: Path, zero_shot: Evaluation, adapted: Evaluation, changes: list[ClassChange]
) -> list[Path]:
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    draw_confusion(directory / CONFUSION, zero_shot, adapted)
    draw_changes(directory / CHANGES, changes)
    return [directory / CHANGES, directory / CONFUSION]


def draw_confusion(path: Path, zero_shot: Evaluation, adapted: Evaluation) -> None:
    """Draw the confusion matrices before and after, each row as shares of its class."""
    import matplotlib.pyplot as plt

    names = adapted.classnames
    labelled = len(names) <= _MOST_LABELS
    side = max(4.5, 0.2 * len(names)) if labelled else 7.0
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 2.5, side + 1.2), layout="constrained")
    image: Any = None
    for axis, evaluation, when in zip(
        axes, (zero_shot, adapted), ("zero-shot", "adapted"), strict=True
    ):
        counts = evaluation.confusion
        shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        image = axis.imshow(shares, cmap="magma_r", vmin=0, vmax=100, interpolation="nearest")
        axis.set_title(f"{when}: {evaluation.accuracy_pct:.1f} % right", fontsize=12)
        axis.set_xlabel("predicted")
        ticks = range(len(names)) if labelled else ()
        axis.set_xticks(ticks, names if labelled else (), rotation=90, fontsize=7)
        axis.set_yticks(ticks, names if labelled else (), fontsize=7)
    axes[0].set_ylabel("true class")
    figure.colorbar(image, ax=axes, shrink=0.7, label="% of the class")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_changes(path: Path, changes: Sequence[ClassChange]) -> None:
    """Draw every class's accuracy before (ring) and after (dot); the most changed of many."""
    import matplotlib.pyplot as plt

    shown = sorted(changes, key=lambda c: -abs(c.change))[:_MOST_BARS]
    shown = sorted(shown, key=lambda c: (c.change, c.adapted_pct))
    figure, axis = plt.subplots(figsize=(8.5, 1.2 + 0.24 * len(shown)), layout="constrained")
    for row, change in enumerate(shown):
        colour = _GAIN if change.change > 0 else _LOSS if change.change < 0 else _SAME
        axis.plot(
            [change.zero_shot_pct, change.adapted_pct], [row, row], color=colour, lw=2.5, zorder=1
        )
        axis.scatter(
            change.zero_shot_pct, row, s=34, facecolor="white", edgecolor=colour, lw=1.5, zorder=2
        )
        axis.scatter(change.adapted_pct, row, s=36, color=colour, zorder=3)
    axis.set_yticks(range(len(shown)), [c.classname for c in shown], fontsize=8)
    axis.set_xlim(-3, 103)
    axis.set_ylim(-0.8, len(shown) - 0.2)
    axis.set_xlabel("accuracy on test pictures, %   (ring: zero-shot, dot: adapted)")
    axis.grid(axis="x", color="#e6e8eb")
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    if len(shown) < len(changes):
        axis.set_title(f"the {len(shown)} of {len(changes)} classes that changed most", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem;
       color: #22262b; background: #fff; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.big { font-size: 2.2rem; font-weight: 600 }
table { border-collapse: collapse; font-size: .92rem }
td, th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e6e8eb; text-align: right }
td:first-child, th:first-child { text-align: left }
.gain { color: #1a7f4b } .loss { color: #b3402f } img { max-width: 100%; height: auto }
"""


def _page(
    title: str,
    facts: dict[str, Any],
    zero_shot: Evaluation,
    adapted: Evaluation,
    changes: Sequence[ClassChange],
    pictures: Sequence[str],
) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(c.classname)}</td><td>{c.pictures}</td>"
        f"<td>{c.zero_shot_pct:.1f}</td><td>{c.adapted_pct:.1f}</td>"
        f'<td class="{"gain" if c.change > 0 else "loss" if c.change < 0 else ""}">'
        f"{c.change:+.1f}</td></tr>\n"
        for c in sorted(changes, key=lambda c: -c.change)
    )
    known = "".join(
        f"<tr><td>{html.escape(key.replace('_', ' '))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
    )
    captions = {CHANGES: "Accuracy of each class", CONFUSION: "What is taken for what"}
    shown = "".join(
        f'<h2>{captions[name]}</h2>\n<img src="{name}" alt="{captions[name]}">\n'
        for name in pictures
    ) or (
        "<p>The pictures are left out because matplotlib is not installed: "
        "<code>pip install 'mma-adapter[report]'</code></p>\n"
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
<p class="big">{zero_shot.accuracy_pct:.1f} % → {adapted.accuracy_pct:.1f} %</p>
<p>Zero-shot and adapted accuracy among {len(adapted.classnames)} classes, on {adapted.total} test
pictures that training never saw.</p>
{shown}<h2>Classes</h2>
<table>
<tr><th>class</th><th>pictures</th><th>zero-shot, %</th><th>adapted, %</th><th>change</th></tr>
{rows}</table>
<h2>Settings</h2>
<table>{known}</table>
</html>
"""
