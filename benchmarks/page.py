"""Write `docs/speed.md` and its plot from the committed results files.

python benchmarks/page.py
"""

import json
from collections import Counter
from pathlib import Path

from machine import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
LABELS = {
    "conventional": "conventional",
    "ours": "ours",
    "lora": "LoRA",
    "floor": "image tower alone",
}
INTRO = """\
# Speed

The image tower sets the price of a training step; everything else should vanish beside it, without
changing a result. What is skipped is work whose result nobody reads:

1. prompts are cut after their end token: the text tower is causal, so nothing behind it counts;
2. all that comes before the first branch in the text tower is computed once, because it is frozen: the
   layers below, and the first adapted layer itself;
3. the tokens all prompts begin with run once, and every class attends to that one prefix;
4. in the last layer only the pooled token (CLS, end token) passes through query, MLP and adapter;
5. a class's tokens are packed, so short names do not pay for long ones;
6. long class lists run in chunks within a memory budget; all but the last are computed again in the
   backward pass;
7. few-shot pictures are decoded once; at inference text features are computed once per weight set;
8. frozen layers of the host take fewer passes over memory: CLIP's activation keeps one wide tensor for
   the backward pass instead of three, residual sums are made in place;
9. on AMD processors with AVX-512 the host's products run on oneDNN, which comes with torch, because
   the library torch takes by default does not use AVX-512 there. How much that brings depends on the
   processor: the rates of both libraries are below.

Paths 1 to 6 have a switch each in `FastPaths`, `torch.backends.mkldnn.flags(enabled=False)` is the one
of the last, and tests hold each path to the plain one's logits and gradients within 1e-5
(`tests/test_encoding.py`, `tests/test_classifier.py`, `tests/test_operators.py`). SigLIP's text tower
is not causal: there the shared prefix and the cut prompts do not apply.

Left out, because they did not pay when tried: `torch.compile` on a CPU (compiling takes longer than a few-shot
run wins by it; it works, and is for long runs on a GPU), and transparent huge pages for tensors. Not tried: `channels_last` (the image tower's one convolution is less than 1 % of its operations)
and, without a GPU at hand, a fused kernel for the branch. Keeping all of a long class list for the backward pass
pays, and is off on CPUs for its memory; `FastPaths(text_memory_bytes=...)` decides.

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
    rows = sorted(payload["rows"], key=lambda r: (r["dtype"] != "fp32", r["batch"], r["classes"]))
    equality = payload["equality"]
    lines = [
        f"## {title}",
        where(payload) + ". CLIP of ViT-B/16 sizes with random weights; prompts `a photo of a {}.` "
        "around names of 1 to 4 tokens; seconds are medians (smallest–largest) of alternating runs.",
        "Before timing, loss and gradients of ours are compared with the conventional path's: "
        f"largest relative deviation of a gradient {equality['largest_gradient_deviation']:.0e}.",
        commands(rows),
        time_table(rows),
    ]
    lines += [ratio_table(rows), distance(rows)]
    memory = [row for row in rows if row.get("peak_bytes")]
    if memory:
        lines += ["### Peak memory", memory_table(memory)]
    return lines


def setting_cells(row: dict) -> str:
    return f"| {row['dtype']} | {row['batch']} | {row['classes']} | "


def time_table(rows: list[dict]) -> str:
    lines = [
        "| precision | batch | classes | products | conventional | ours | LoRA | image tower alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for products, names in series(row).items():
            if products != AS_IT_COMES:
                cells = [spread((row["paths"] or {}).get(name)) for name in names]
                lines.append(setting_cells(row) + " | ".join([products, *cells]) + " |")
    return "\n".join(lines)


def ratio_table(rows: list[dict]) -> str:
    lines = [
        "How many times faster than the conventional path, and seconds as a share of LoRA's and of "
        f"the image tower's alone. *{AS_IT_COMES.capitalize()}* is what a user of each sees: ours on "
        "the faster library, the others on torch's choice; the other rows compare on one library.\n",
        "| precision | batch | classes | products | conventional ÷ ours | ours ÷ LoRA | "
        "ours ÷ image tower |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for products, names in series(row).items():
            conventional, mine, lora, tower = ((row["paths"] or {}).get(n) for n in names)
            cells = [ratio(conventional, mine), ratio(mine, lora), ratio(mine, tower)]
            lines.append(setting_cells(row) + " | ".join([products, *cells]) + " |")
    return "\n".join(lines)


AS_IT_COMES = "as each comes"


def series(row: dict) -> dict[str, tuple[str, ...]]:
    """Return the paths to compare, by the library of their products.

    In the order conventional, ours, LoRA, image tower. Where torch takes oneDNN by itself, there is
    but one.
    """
    plain = ("conventional", "ours", "lora", "floor")
    if "ours_torch" not in (row["paths"] or {}):
        return {"torch": plain}
    return {
        AS_IT_COMES: plain,
        "torch": ("conventional", "ours_torch", "lora", "floor"),
        "oneDNN": ("conventional_onednn", "ours", "lora_onednn", "floor_onednn"),
    }


def distance(rows: list[dict]) -> str:
    """Say how far a step is from what the machine's measured rate would allow."""
    row = min((r for r in rows if (r["paths"] or {}).get("ours")), key=lambda r: r["classes"])
    lines = [
        "The image tower's matrix products, forward and backward through the adapted layers, are "
        f"{row['tower_flops'] / 1e12:.2f} T operations at batch {row['batch']}. With {row['classes']} "
        f"classes, {row['dtype']}:\n",
        "| products by | rate of one large product | least time for the tower | our step | rate reached |",
        "|---|---|---|---|---|",
    ]
    for library, path in (("oneDNN", "ours"), ("torch", "ours_torch")):
        if path not in row["paths"]:
            continue
        if "ours_torch" not in row["paths"]:
            library = "torch"  # oneDNN is for CPUs
        rate = row["flops_per_second"]["ours" if path == "ours" else "torch"]
        seconds = row["paths"][path]["seconds"]
        lines.append(
            f"| {library} | {rate / 1e9:.0f} G/s | {row['tower_flops'] / rate:.2f} s | "
            f"{seconds:.2f} s | {row['tower_flops'] / seconds / 1e9:.0f} G/s |"
        )
    return "\n".join(
        [
            *lines,
            "\nThe rest is what is not a product: norms, softmax, the activation of the wide MLP, "
            "residual sums, fresh memory, and the smaller sizes of the real products.",
        ]
    )


def memory_table(rows: list[dict]) -> str:
    lines = [
        "Peak of a fresh process (GiB), two steps.\n",
        "| precision | batch | classes | conventional | ours | LoRA | image tower alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        m = row["peak_bytes"]
        cells = [gib(m[k]) if k in m else "–" for k in LABELS]
        lines.append(setting_cells(row) + " | ".join(cells) + " |")
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
        f"Importing from the library takes {payload['import_ratio']:.2f} times `import torch`.",
    ]


def demo_training_section(payload: dict) -> list[str]:
    on, off = payload["paths"]["paths on"], payload["paths"]["paths off"]
    return [
        "## Training the demo's adapter",
        f"{where(payload)}. {payload['steps']} steps of the demo's training on the embedded small CLIP, "
        "pictures in memory either way; losses differ by at most "
        f"{payload['largest_loss_difference']:.0e}.",
        f"```console\n$ {payload['command']}\n```",
        f"| | seconds |\n|---|---|\n| paths on | {spread(on)} |\n| paths off | {spread(off)} |",
        f"With the paths on, training is {ratio(off, on)} times as fast.",
    ]


def growth_plot(payload: dict, path: Path) -> None:
    """Draw step time and memory over the number of classes, and over the batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in payload["rows"] if r["dtype"] == "fp32" and r["paths"]]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for (left, right), key, other in zip(
        axes, ("classes", "batch"), ("batch", "classes"), strict=True
    ):
        fixed = Counter(r[other] for r in rows).most_common(1)[0][0]
        line = sorted((r for r in rows if r[other] == fixed), key=lambda r: r[key])
        for name, label in LABELS.items():
            seconds = [(r["paths"].get(name) or {}).get("seconds") for r in line]
            peaks = [(r.get("peak_bytes") or {}).get(name) for r in line]
            for axis, values in ((left, seconds), (right, [p and p / 2**30 for p in peaks])):
                points = [(r[key], y) for r, y in zip(line, values, strict=True) if y]
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", label=label)
        where = f"{key} ({other} {fixed})" if key == "classes" else f"{key} ({fixed} {other})"
        for axis, label in ((left, "seconds per step"), (right, "peak memory, GiB")):
            axis.set(xlabel=where, ylabel=label, xscale="log", yscale="log")
            ticks = [r[key] for r in line]
            axis.set_xticks(ticks, ticks, minor=False)
            low, high = axis.get_ylim()
            ticks = [y for y in (1, 2, 3, 5, 10, 20, 50, 100, 200) if low < y < high]
            axis.set_yticks(ticks, ticks, minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3, which="both")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "growth"  # the same figures give the same file
    figure.savefig(path, metadata={"Date": None})
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
    if demo := load("demo_training"):
        lines += demo_training_section(demo)
    if startup := load("startup"):
        lines += startup_section(startup)
    (DOCS / "speed.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
