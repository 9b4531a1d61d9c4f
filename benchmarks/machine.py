"""What every results file records about where and when it was measured."""

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mma_adapter.operators import linear

RESULTS = Path(__file__).parent / "results"


def describe_machine(device: str) -> dict[str, Any]:
    """Return processor, versions and date."""
    import transformers

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        found = {key.strip(): value.strip() for key, _, value in lines}
        # Virtual machines often hide the name; family and model still tell the generation.
        name = found.get("model name", name)
        if "cpu family" in found:
            name += f" (family {found['cpu family']}, model {found['model']})"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(device: str, dtype: torch.dtype, *, ours: bool, size: int = 2048) -> float:
    """Return floating-point operations per second of a large square product.

    With `ours`, of the product that the classifier takes for a frozen layer of the host.
    """
    layer = torch.nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    layer.requires_grad_(False)
    x, seconds = torch.randn(size, size, device=device, dtype=dtype), []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        linear(layer, x) if ours else layer(x)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def alternate(
    runs: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Time the runs in turn, A B C A B C ..., so that a slow minute hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm-up: allocator, kept hidden states, thread pools
        synchronize(device)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
    }


def write(name: str, payload: dict[str, Any]) -> Path:
    """Write a results file and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(payload, indent=1) + "\n")
    return path
