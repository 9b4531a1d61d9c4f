"""What a record says about where it was made: versions, hardware, time, memory."""

import os
import platform
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "pillow": "pillow",
    "mma_adapter": "mma-adapter",
}


def versions() -> dict[str, str]:
    """Version by package, of those that can change a number."""
    found = {}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:  # run from a source tree
            found[name] = "unknown"
    return found


def machine_name(device: torch.device) -> str:
    """Hardware and system, without the machine's name: `"NVIDIA H200, Linux"`."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {platform.system()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()} CPU, {cores} cores, {platform.system()}"


def now_utc() -> str:
    """The time as in `"2030-01-31T12:00:00+00:00"`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def watch_memory(device: torch.device) -> Callable[[], int | None]:
    """Start to watch; the returned function tells the highest memory since, in bytes.

    On a GPU that of torch's allocator; elsewhere the process's resident memory, where the system
    can say so (Linux; other systems tell the highest since the process began, or nothing).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return _highest_since_start
    return _high_water_mark


def _high_water_mark() -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _highest_since_start()


def _highest_since_start() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
