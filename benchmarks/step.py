"""Seconds and memory of one training step: ours, the conventional path, LoRA, and the floor.

    python benchmarks/step.py --classes 10 50 100 500 --batches 16 --dtypes fp32

All paths of a setting are timed in one process, in turn; memory is the peak of a fresh one each.
Before any timing, the loss and every gradient of ours are compared with the conventional path's.
Writes `results/step_<device>.json`; settings already in the file are replaced.
"""

import argparse
import json
import resource
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import torch
from machine import RESULTS, alternate, describe_machine, product_rate, summary, write
from paths import CASES, WITHOUT, ours, random_clip, twin

PLAIN = ("conventional", "ours", "lora", "floor")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_for(device: str, dtype: str):
    if dtype == "fp32":
        return nullcontext
    return partial(torch.autocast, device, dtype=DTYPES[dtype])


def data(batch: int, classes: int, device: str):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, 224, 224, generator=generator).to(device)
    return pixels, (torch.arange(batch) % classes).to(device)


def tower_flops(batch: int) -> float:
    """Operations of the image tower's products: forward, and backward through layers 6 to 12.

    Layer 5 is the first adapted one: its input has no gradient, so only its branch is run backward.
    """
    tokens, width = 197, 768
    layer = batch * (tokens * 24 * width**2 + 4 * tokens**2 * width)
    patches = batch * 2 * 196 * width * (3 * 16 * 16)
    return patches + 12 * layer + 7 * layer


def check_equal(device: str) -> dict[str, float]:
    """Compare ours with the conventional path: loss and gradients, largest relative deviation."""
    model, (pixels, labels) = random_clip().to(device), data(4, 10, device)
    found = {}
    for name in ("ours", "conventional"):
        case = CASES[name](twin(model), pixels, labels, 10)
        loss = case.loss()
        loss.backward()
        found[name] = (loss.item(), [p.grad for p in case.weights])
    (loss_a, grads_a), (loss_b, grads_b) = found["ours"], found["conventional"]
    deviation = max(
        ((a - b).norm() / b.norm()).item() for a, b in zip(grads_a, grads_b, strict=True)
    )
    assert abs(loss_a - loss_b) < 1e-4, (loss_a, loss_b)
    assert deviation < 1e-3, deviation
    return {"loss_difference": abs(loss_a - loss_b), "largest_gradient_deviation": deviation}


def default_paths(device: str, dtype: str) -> list[str]:
    """Return the paths worth timing: for half precision and on GPUs there is one library only."""
    return list(CASES) if (device, dtype) == ("cpu", "fp32") else list(PLAIN)


def measure_time(args) -> dict:
    """Time every path of one setting in this process."""
    device, dtype, ours_dtype = args.device, args.dtypes[0], args.ours_dtype or args.dtypes[0]
    pixels, labels = data(args.batches[0], args.classes[0], device)
    cases, base = {}, random_clip().to(device)
    for name in args.paths:
        cases[name] = CASES[name](twin(base), pixels, labels, args.classes[0])
    for name, paths in WITHOUT.items() if args.without else ():
        cases[f"without {name}"] = ours(twin(base), pixels, labels, args.classes[0], paths)
    steps = {
        n: partial(c.step, autocast_for(device, ours_dtype if n == "ours" else dtype))
        for n, c in cases.items()
    }
    seconds = alternate(steps, args.repeats, device)
    return {name: summary(values) for name, values in seconds.items()}


def measure_memory(args) -> int:
    """Return the peak bytes of two steps of one path in this, fresh, process."""
    device = args.device
    pixels, labels = data(args.batches[0], args.classes[0], device)
    case = CASES[args.paths[0]](random_clip().to(device), pixels, labels, args.classes[0])
    for _ in range(2):
        case.step(autocast_for(device, args.dtypes[0]))
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(args, **settings) -> dict | None:
    """Run one measurement in a fresh process; None if it ran out of memory."""
    command = [sys.executable, __file__, "--device", args.device, "--repeats", str(args.repeats)]
    for key, value in settings.items():
        command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    if args.without:
        command.append("--without")
    if args.ours_dtype:
        command += ["--ours-dtype", args.ours_dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"failed with {done.returncode}: {settings}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 50, 100, 500])
    parser.add_argument("--batches", type=int, nargs="+", default=[16])
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=DTYPES)
    parser.add_argument("--ours-dtype", choices=DTYPES, help="another precision for ours only")
    parser.add_argument("--paths", nargs="+", choices=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--without", action="store_true", help="also time each path switched off")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--only", choices=["time", "memory"], help="one measurement, to stdout")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure_time(args) if args.only == "time" else measure_memory(args)))
        return

    path = RESULTS / f"{'without' if args.without else 'step'}_{args.device}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    command = "python benchmarks/step.py " + " ".join(sys.argv[1:])
    equality = check_equal(args.device)
    rates = {
        d: {
            name: product_rate(args.device, DTYPES[d], ours=name == "ours")
            for name in ("torch", "ours")
        }
        for d in args.dtypes
    }
    for dtype in args.dtypes:
        for batch in args.batches:
            for classes in args.classes:
                setting = {"classes": [classes], "batches": [batch], "dtypes": [dtype]}
                key = {"classes": classes, "batch": batch, "dtype": dtype}
                row = {**key, "command": command, "flops_per_second": rates[dtype]}
                row["tower_flops"] = tower_flops(batch)
                paths = args.paths or default_paths(args.device, dtype)
                row["paths"] = child(args, only="time", paths=paths, **setting)
                if args.memory:
                    row["peak_bytes"] = {
                        p: child(args, only="memory", paths=[p], **setting)
                        for p in paths
                        if p in PLAIN
                    }
                rows = [r for r in rows if {k: r[k] for k in key} != key] + [row]
                write(
                    path.stem, {**describe_machine(args.device), "equality": equality, "rows": rows}
                )
                print(json.dumps(row), file=sys.stderr)


if __name__ == "__main__":
    main()
