"""Write `docs/speed.md` and its plot from the committed results files.

python benchmarks/page.py
"""

import json
from pathlib import Path

from machine import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
INTRO = """\
# Speed

The image tower sets the price of a training step; everything else should vanish beside it, without
changing a result. What is skipped is work whose result nobody reads:

1. prompts are cut after their end token: the text tower is causal, so nothing behind it counts;
2. the states that enter the first adapted text layer are computed once, because all below is frozen;
3. the tokens all prompts begin with run once, and every class attends to that one prefix;
4. in the last layer only the pooled token (CLS, end token) passes through query, MLP and adapter;
5. a class's tokens are packed, so short names do not pay for long ones;
6. long class lists run in chunks that are computed again in the backward pass, within a memory budget;
7. few-shot pictures are decoded once; at inference text features are computed once per weight set.

Each path has a switch in `FastPaths` and a test that it equals the plain path to 1e-5 in logits and
every gradient (`tests/test_encoding.py`, `tests/test_classifier.py`). SigLIP's text tower is not causal:
there only the kept lower layers and the pooled last layer apply.

This page is written by `python benchmarks/page.py` from the files in `benchmarks/results/`.
"""


def load(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def where(payload: dict) -> str:
    return (
        f"{payload['device']}, {payload['threads']} threads, torch {payload['torch']}, transformers "
        f"{payload['transformers']}, Python {payload['python']}, {payload['date']}"
    )


def ratio(a: dict | None, b: dict | None) -> str:
    return f"{a['seconds'] / b['seconds']:.2f}" if a and b else "–"


def gib(value: int | None) -> str:
    return f"{value / 2**30:.2f}" if value else "out of memory"


def spread(path: dict | None) -> str:
    if not path:
        return "–"
    return f"{path['seconds']:.2f} ({path['seconds_min']:.2f}–{path['seconds_max']:.2f})"


def commands(rows: list[dict]) -> str:
    found = dict.fromkeys(row["command"] for row in rows)
    return "\n".join(["```console", *(f"$ {command}" for command in found), "```"])


def step_section(payload: dict, title: str) -> list[str]:
    rows = sorted(payload["rows"], key=lambda r: (r["dtype"], r["batch"], r["classes"]))
    equality = payload["equality"]
    lines = [
        f"## {title}",
        where(payload) + ". CLIP of ViT-B/16 sizes with random weights; prompts `a photo of a {}.` "
        "around names of 1 to 4 tokens; seconds are medians (smallest–largest) of alternating runs.",
        "Before timing, loss and gradients of ours are compared with the conventional path's: "
        f"largest relative deviation of a gradient {equality['largest_gradient_deviation']:.0e}.",
        commands(rows),
        "| precision | batch | classes | conventional | ours | LoRA | image tower alone | conventional ÷ "
        "ours | ours ÷ LoRA | ours ÷ image tower |\n|---|---|---|---|---|---|---|---|---|---|",
    ]
    table = []
    for row in rows:
        p = row["paths"] or {}
        conventional, ours, lora, floor = (
            p.get(k) for k in ("conventional", "ours", "lora", "floor")
        )
        table.append(
            f"| {row['dtype']} | {row['batch']} | {row['classes']} | {spread(conventional)} | "
            f"{spread(ours)} | {spread(lora)} | {spread(floor)} | **{ratio(conventional, ours)}** | "
            f"{ratio(ours, lora)} | **{ratio(ours, floor)}** |"
        )
    lines[-1] += "\n" + "\n".join(table)
    lines.append(distance(rows))
    memory = [row for row in rows if row.get("peak_bytes")]
    if memory:
        lines += ["### Peak memory", memory_table(memory)]
    return lines


def distance(rows: list[dict]) -> str:
    """Say how far a step is from what the machine's measured rate would allow."""
    row = max((r for r in rows if r["paths"] and "ours" in r["paths"]), key=lambda r: -r["classes"])
    least = row["tower_flops"] / row["matmul_flops_per_second"]
    ours = row["paths"]["ours"]["seconds"]
    rate = row["tower_flops"] / ours
    return (
        f"The image tower's matrix products, forward and backward through the adapted layers, are "
        f"{row['tower_flops'] / 1e12:.2f} T operations at batch {row['batch']}. At the rate of a large "
        f"product here ({row['matmul_flops_per_second'] / 1e9:.0f} G operations/s, {row['dtype']}) they "
        f"would take {least:.2f} s. With {row['classes']} classes our step takes {ours:.2f} s, "
        f"{rate / 1e9:.0f} G operations/s. The rest is what is not a product: norms, softmax, the "
        "activation of the wide MLP, residual sums, and the smaller sizes of the real products."
    )


def memory_table(rows: list[dict]) -> str:
    lines = [
        "Peak of a fresh process (GiB), two steps.\n",
        "| precision | batch | classes | conventional | ours | LoRA | image tower alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        m = row["peak_bytes"]
        cells = [
            gib(m.get(k)) if k in m else "–" for k in ("conventional", "ours", "lora", "floor")
        ]
        lines.append(
            f"| {row['dtype']} | {row['batch']} | {row['classes']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def without_section(payload: dict) -> list[str]:
    row = payload["rows"][-1]
    ours = row["paths"]["ours"]
    table = ["| path switched off | seconds | ÷ all on |", "|---|---|---|"]
    table += [
        f"| {name.removeprefix('without ')} | {spread(path)} | {ratio(path, ours)} |"
        for name, path in row["paths"].items()
        if name.startswith("without")
    ]
    return [
        "## What each path is worth",
        f"{row['classes']} classes, batch {row['batch']}, {row['dtype']}; all on: {spread(ours)} s. "
        + where(payload),
        commands([row]),
        "\n".join(table),
    ]


def inference_section(payload: dict) -> list[str]:
    table = [
        "| model | batch | way | images/s | seconds | ÷ no adapter |",
        "|---|---|---|---|---|---|",
    ]
    for row in payload["rows"]:
        for name, path in row["paths"].items():
            table.append(
                f"| {row['size']} | {row['batch']} | {name} | {path['images_per_second']:.1f} | "
                f"{spread(path)} | {ratio(path, row['paths']['no adapter'])} |"
            )
    return ["## Inference", where(payload), commands(payload["rows"]), "\n".join(table)]


def startup_section(payload: dict) -> list[str]:
    table = ["| command | seconds |", "|---|---|"]
    table += [f"| `{name}` | {spread(path)} |" for name, path in payload["commands"].items()]
    return [
        "## Start-up",
        where(payload),
        f"```console\n$ {payload['command']}\n```",
        "\n".join(table),
        f"Importing the library takes {payload['import_ratio']:.2f} times `import torch`.",
    ]


def growth_plot(payload: dict, path: Path) -> None:
    """Draw step time and memory against the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batch = min(row["batch"] for row in payload["rows"])
    rows = [
        r for r in payload["rows"] if r["batch"] == batch and r["dtype"] == "fp32" and r["paths"]
    ]
    rows.sort(key=lambda r: r["classes"])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in ("conventional", "lora", "ours", "floor"):
        points = [(r["classes"], r["paths"][name]["seconds"]) for r in rows if name in r["paths"]]
        axes[0].plot(*zip(*points, strict=True), marker="o", label=name)
        peaks = [
            (r["classes"], r["peak_bytes"][name] / 2**30)
            for r in rows
            if (r.get("peak_bytes") or {}).get(name)
        ]
        if peaks:
            axes[1].plot(*zip(*peaks, strict=True), marker="o", label=name)
    for axis, label in zip(axes, ("seconds per step", "peak memory, GiB"), strict=True):
        axis.set(xlabel="classes", ylabel=label, xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    lines = [INTRO]
    if cpu := load("step_cpu"):
        growth_plot(cpu, DOCS / "_static" / "growth.svg")
        lines += step_section(cpu, "A training step on the CPU")
        lines.append("```{image} _static/growth.svg\n:alt: Time and memory against classes\n```")
    else:
        lines += ["## A training step on the CPU", "Not measured yet on a machine that was idle."]
    if gpu := load("step_cuda"):
        lines += step_section(gpu, "A training step on a GPU")
    else:
        lines += ["## A training step on a GPU", "Not measured yet: no GPU was at hand."]
    if parts := load("without_cpu"):
        lines += without_section(parts)
    if inference := load("inference_cpu"):
        lines += inference_section(inference)
    if startup := load("startup"):
        lines += startup_section(startup)
    (DOCS / "speed.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
