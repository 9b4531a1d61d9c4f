"""Sweeps resume, share one file, survive kill -9, and report what fails."""

import json
import multiprocessing
import os
import platform
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from mma_adapter.bench import sweep
from mma_adapter.bench.protocols import Plan, Run, base_to_novel
from mma_adapter.bench.results import Result, read_results
from mma_adapter.bench.sweep import Leases, Progress, run_sweep
from mma_adapter.data import Dataset
from mma_adapter.errors import DataError

from .tiny import colour_loader, tiny_encoder

FORK = multiprocessing.get_context("fork")


def make_runs(num_seeds: int = 3, datasets: tuple[str, ...] = ("colours",)) -> list[Run]:
    plan = Plan(
        methods=("zero_shot", "mma"),
        seeds=tuple(range(1, num_seeds + 1)),
        overrides={"epochs": "1", "batch_size": "2"},
    )
    return base_to_novel(plan, datasets, shots=2)


def scores(path: Path) -> dict[tuple, tuple]:
    """What must not depend on how a sweep went, by key."""
    return {r.key: (r.correct, r.losses, r.confusion, r.source) for r in read_results(path)}


def lines(path: Path) -> list[tuple]:
    """Keys line by line, so that a doubled record shows."""
    return [Result.from_dict(json.loads(line)).key for line in path.read_bytes().splitlines()]


def test_a_sweep_records_all_runs_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    path, runs, told = tmp_path / "deep" / "results.jsonl", make_runs(2), list[Progress]()
    report = run_sweep(runs, tiny_encoder(), colour_loader, path, progress=told.append)
    assert (report.total, report.executed, report.skipped, report.failed) == (4, 4, 0, [])
    assert len(lines(path)) == 8
    assert [t.event for t in told] == ["start", "done"] * 4
    assert [t.left for t in told] == [4, 3, 3, 2, 2, 1, 1, 0]
    assert told[0].seconds_left is None
    assert told[1].seconds_left is not None
    assert told[-1].seconds_left == 0
    before = path.read_bytes()
    again = run_sweep(runs, tiny_encoder(), colour_loader, path)
    assert (again.executed, again.skipped) == (0, 4)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["results.jsonl"]  # no lease is left


def test_a_run_that_lacks_a_record_is_made_again_and_only_that_record_is_added(
    tmp_path: Path,
) -> None:
    path, runs = tmp_path / "results.jsonl", make_runs(2)
    run_sweep(runs, tiny_encoder(), colour_loader, path)
    whole, kept = scores(path), path.read_bytes().splitlines(keepends=True)
    del kept[3]
    path.write_bytes(b"".join(kept)[:-20])  # and the last line is torn
    report = run_sweep(runs, tiny_encoder(), colour_loader, path)
    assert (report.executed, report.skipped) == (2, 2)
    assert scores(path) == whole
    assert len(lines(path)) == 8


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(tmp_path: Path) -> None:
    def load(name: str, **how: object) -> Dataset:
        if name == "broken":
            raise DataError("the picture broken/1.png cannot be read")
        return colour_loader(name, **how)  # type: ignore[arg-type]

    told: list[Progress] = []
    runs = make_runs(1, ("broken", "colours"))
    path = tmp_path / "results.jsonl"
    report = run_sweep(runs, tiny_encoder(), load, path, progress=told.append)  # type: ignore[arg-type]
    assert report.executed == 2
    assert [(run.dataset, why) for run, why in report.failed] == [
        ("broken", "the picture broken/1.png cannot be read")
    ] * 2
    assert [t.event for t in told] == ["start", "failed"] * 2 + ["start", "done"] * 2
    assert {r.dataset for r in read_results(path)} == {"colours"}


def _sweep_in_child(path: Path, runs: list[Run], log: Path, report: Connection | None) -> None:
    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:

        def tell(progress: Progress) -> None:
            file.write(f"{progress.event} {progress.run.seed} {progress.run.method}\n".encode())

        done = run_sweep(runs, tiny_encoder(), colour_loader, path, progress=tell)
    if report is not None:
        report.send(done.executed)


def test_two_processes_share_a_results_file_and_no_run_is_made_twice(tmp_path: Path) -> None:
    path, runs = tmp_path / "results.jsonl", make_runs(6)
    children, ends = [], []
    for number in range(2):
        ours, theirs = FORK.Pipe()
        args = (path, runs, tmp_path / f"log{number}", theirs)
        children.append(FORK.Process(target=_sweep_in_child, args=args))
        ends.append(ours)
    for child in children:
        child.start()
    executed = [end.recv() for end in ends]
    for child in children:
        child.join()
    assert sum(executed) == len(runs)
    assert min(executed) > 0
    assert len(lines(path)) == len(set(lines(path))) == 2 * len(runs)
    alone = tmp_path / "alone.jsonl"
    run_sweep(runs, tiny_encoder(), colour_loader, alone)
    assert scores(path) == scores(alone)


def test_random_kills_lose_at_most_the_run_under_way(tmp_path: Path) -> None:
    path, log, runs = tmp_path / "results.jsonl", tmp_path / "log", make_runs(6)
    alone = tmp_path / "alone.jsonl"
    begin = time.perf_counter()
    run_sweep(runs, tiny_encoder(), colour_loader, alone)
    seconds, rng, kills = time.perf_counter() - begin, random.Random(1), 0
    while kills < 6:
        child = FORK.Process(target=_sweep_in_child, args=(path, runs, log, None))
        child.start()
        child.join(rng.uniform(0.02, 0.4) * seconds)
        if child.exitcode == 0:
            break
        os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
        child.join()
        kills += 1
        told = {line for line in log.read_text().splitlines() if line.startswith("done")}
        found = [Result.from_dict(json.loads(s)) for s in _whole_lines(path)]
        assert len({r.key for r in found}) == len(found)
        recorded = {f"done {r.seed} {r.method}" for r in found if r.role == "novel"}
        assert told <= recorded
    assert kills > 0
    run_sweep(runs, tiny_encoder(), colour_loader, path)
    assert scores(path) == scores(alone)
    assert sorted(lines(path)) == sorted(lines(alone))


def _whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path / "leases", tmp_path / "results.jsonl")


def write_lease(leases: Leases, *, pid: int, host: str, age: float = 0.0) -> None:
    leases.folder.mkdir(exist_ok=True)
    path = leases.folder / "run.json"
    path.write_text(json.dumps({"pid": pid, "host": host, "token": "theirs"}))
    os.utime(path, (time.time() - age, time.time() - age))


def dead_pid() -> int:
    child = FORK.Process(target=os.getpid)
    child.start()
    child.join()
    return child.pid  # type: ignore[return-value]


def test_a_lease_is_held_by_one_and_given_back(leases: Leases) -> None:
    with leases.hold("run") as mine, leases.hold("run") as also, leases.hold("other") as other:
        assert (mine, also, other) == (True, False, True)
        assert leases.count() == 2
    assert not leases.folder.exists()
    with leases.hold("run") as mine:
        assert mine


@pytest.mark.parametrize(
    ("pid", "host", "age", "taken"),
    [
        (dead_pid, platform.node(), 0.0, True),
        (os.getpid, platform.node(), 0.0, False),
        (os.getpid, platform.node(), 10 * sweep.STALE_SECONDS, True),
        (dead_pid, "another machine", 0.0, False),
        (dead_pid, "another machine", 10 * sweep.STALE_SECONDS, True),
    ],
    ids=["dead", "alive", "stuck", "elsewhere", "elsewhere and silent"],
)
def test_a_lease_is_taken_over_from_the_dead_only(
    leases: Leases, pid: Callable[[], int], host: str, age: float, taken: bool
) -> None:
    write_lease(leases, pid=pid(), host=host, age=age)
    with leases.hold("run") as mine:
        assert mine == taken


def test_an_unreadable_lease_goes_stale_by_its_age(leases: Leases) -> None:
    write_lease(leases, pid=1, host="x")
    path = leases.folder / "run.json"
    path.write_text("")
    with leases.hold("run") as mine:
        assert not mine
    os.utime(path, (1, 1))
    with leases.hold("run") as mine:
        assert mine


def test_a_held_lease_is_kept_fresh(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "HEARTBEAT_SECONDS", 0.01)
    with leases.hold("run"):
        path = leases.folder / "run.json"
        os.utime(path, (1, 1))
        deadline = time.time() + 5
        while path.stat().st_mtime < 2 and time.time() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2


def test_a_lease_taken_over_is_not_removed_by_its_former_holder(leases: Leases) -> None:
    with leases.hold("run"):
        write_lease(leases, pid=os.getpid(), host=platform.node())
    assert (leases.folder / "run.json").exists()


def test_a_recorded_run_of_other_settings_does_not_count(tmp_path: Path) -> None:
    path, runs = tmp_path / "results.jsonl", make_runs(1)
    run_sweep(runs, tiny_encoder(), colour_loader, path)
    changed = [replace(run, shots=1) for run in runs]
    assert run_sweep(changed, tiny_encoder(), colour_loader, path).executed == 2
    assert run_sweep(runs, tiny_encoder(1), colour_loader, path).executed == 2
