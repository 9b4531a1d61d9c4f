"""Kill a sweep again and again, and see what is left: how many records are lost, doubled or wrong.

    python benchmarks/kill_sweep.py --kills 50

A sweep over the embedded icons is started in a process of its own and killed (SIGKILL) at a random
moment, until it has been killed so often; then it is let finish. Its records are compared with
those of a sweep nobody disturbed. Needs a system with `fork`.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from mma_adapter.bench.demo_sets import demo_encoder, demo_loader
from mma_adapter.bench.protocols import Plan, Run, few_shot
from mma_adapter.bench.results import Result, read_results
from mma_adapter.bench.sweep import Progress, run_sweep


def make_runs(count: int) -> list[Run]:
    """Short runs: two shots of a topic's classes, one epoch."""
    plan = Plan(
        methods=("mma",),
        seeds=tuple(range(1, count + 1)),
        overrides={"epochs": "1"},
        family="icons",
    )
    return few_shot(plan, ["icons-nature"], shots=[2])


def sweep(path: Path, runs: list[Run], log: Path) -> None:
    """The process that is killed; it logs each run it believes to be recorded."""
    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:

        def tell(progress: Progress) -> None:
            file.write(f"{progress.event} {progress.run.seed}\n".encode())

        run_sweep(runs, demo_encoder(), demo_loader(), path, progress=tell)


def whole_lines(path: Path) -> list[Result]:
    """The records of a file whose last line may be torn."""
    data = path.read_bytes() if path.exists() else b""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [Result.from_dict(json.loads(line)) for line in lines]


def main() -> None:
    """Run the test and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # More runs than can end before the last kill, at most two for each.
    runs, rng = make_runs(2 * args.kills), random.Random(args.seed)
    fork = multiprocessing.get_context("fork")
    figures = {"kills": 0, "torn_lines": 0, "lost": 0, "doubled": 0}
    with tempfile.TemporaryDirectory() as folder:
        alone, path, log = (Path(folder) / name for name in ("alone.jsonl", "runs.jsonl", "log"))
        begin = time.perf_counter()
        run_sweep(runs, demo_encoder(), demo_loader(), alone)
        mean = (time.perf_counter() - begin) / len(runs)
        while figures["kills"] < args.kills:
            child = fork.Process(target=sweep, args=(path, runs, log))
            child.start()
            child.join(rng.uniform(0.2, 2.5) * mean)
            if child.exitcode is not None:
                break
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            figures["kills"] += 1
            data = path.read_bytes() if path.exists() else b""
            figures["torn_lines"] += bool(data) and not data.endswith(b"\n")
            found = [result.seed for result in whole_lines(path)]
            told = {int(s.split()[1]) for s in log.read_text().splitlines() if s.startswith("done")}
            figures["lost"] = max(figures["lost"], len(told - set(found)))
            figures["doubled"] = max(figures["doubled"], len(found) - len(set(found)))
        before = len(whole_lines(path))
        run_sweep(runs, demo_encoder(), demo_loader(), path)
        starts = sum(s.startswith("start") for s in log.read_text().splitlines())
        same = {(r.key, r.correct, r.losses) for r in read_results(path)} == {
            (r.key, r.correct, r.losses) for r in read_results(alone)
        }
        figures |= {
            "runs": len(runs),
            "recorded_while_killed": before,
            "started_and_lost": starts - before,
            "lines": len(whole_lines(path)),
            "equal_to_undisturbed": same,
        }
    print(json.dumps(figures, indent=2))
    bad = figures["lost"] or figures["doubled"] or figures["lines"] != len(runs) or not same
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
