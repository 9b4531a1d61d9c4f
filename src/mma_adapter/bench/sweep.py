"""Executes a list of runs against one results file, which several processes may share.

What is recorded is not run again. A run that is under way is leased: a small file beside the
results names the process, and a thread of that process touches it. When the process dies, the lease
goes stale and another process takes the run over. Leases only save work: even two processes that
make the same run leave each record once, because `append_result` sees to that.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import MMAError
from .encoder import DualEncoder
from .execution import Loader, execute
from .protocols import Run
from .results import RecordedKeys, append_result, locked_file

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lease untouched for this long belongs to a dead process, or to a machine that is gone."""

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Args:
        event: What just happened to `run`.
        run: The run.
        done: Runs that are recorded, whoever made them.
        total: Runs of the sweep.
        seconds_left: Estimate of the time left, None before the first run is done.
        error: Why the run failed.
    """

    event: Literal["start", "done", "failed"]
    run: Run
    done: int
    total: int
    seconds_left: float | None
    error: str | None = None

    @property
    def left(self) -> int:
        """Runs left, the one under way included."""
        return self.total - self.done


@dataclass
class SweepReport:
    """What a sweep did.

    Args:
        total: Runs of the sweep.
        executed: Runs this process made.
        skipped: Runs that were recorded before, or by other processes.
        failed: Runs that raised an error, with its message.
        seconds: Time of the sweep.
    """

    total: int
    executed: int = 0
    skipped: int = 0
    failed: list[tuple[Run, str]] = field(default_factory=list)
    seconds: float = 0.0


def run_sweep(
    runs: Sequence[Run],
    encoder: DualEncoder,
    load: Loader,
    results_path: Path | str,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> SweepReport:
    """Execute every run that is not recorded in `results_path`, and record it.

    A run that fails (a loss that explodes, a damaged picture) is reported and does not stop the
    others. Under `accelerate launch` all processes work on each run together.

    Args:
        runs: What to do, in this order.
        encoder: The host.
        load: Where data sets come from.
        results_path: The results file; made if missing.
        progress: Told when a run starts, is done, or fails.

    Returns:
        What was done.
    """
    path = Path(results_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _Sweep(list(runs), encoder, load, path, progress or (lambda _: None)).go()


class _Sweep:
    def __init__(
        self,
        runs: list[Run],
        encoder: DualEncoder,
        load: Loader,
        path: Path,
        progress: Callable[[Progress], None],
    ) -> None:
        self.runs, self.encoder, self.load, self.path = runs, encoder, load, path
        self.progress = progress
        self.keys = {id(run): run.keys(encoder) for run in runs}
        self.ids = {id(run): run.id(encoder) for run in runs}
        self.leases = Leases(path.with_name(path.name + ".leases"), path)
        self.recorded = RecordedKeys(path)
        self.report = SweepReport(total=len(runs))
        self.begin = time.perf_counter()

    def go(self) -> SweepReport:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1:
            self._go_together()
        else:
            self._go_alone()
        self.report.skipped = self.report.total - self.report.executed - len(self.report.failed)
        self.report.seconds = time.perf_counter() - self.begin
        return self.report

    def _go_alone(self) -> None:
        pending = self._missing(self.runs)
        while pending:
            waiting: list[Run] = []
            for run in pending:
                with self.leases.hold(self.ids[id(run)]) as mine:
                    if not mine:
                        waiting.append(run)
                    elif self._missing([run]):  # another process may have been faster
                        self._execute(run)
            pending = self._missing(waiting)
            if pending and len(pending) == len(waiting):
                time.sleep(POLL_SECONDS)

    def _go_together(self) -> None:
        """All processes of one launch make every run together; the first one decides and writes."""
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        state = PartialState()
        pending = [[i for i, run in enumerate(self.runs) if self._missing([run])]]
        for index in broadcast_object_list(pending)[0]:
            self._execute(self.runs[index], write=state.is_main_process)

    def _missing(self, runs: Sequence[Run]) -> list[Run]:
        recorded = self.recorded.update() if runs else set()
        return [run for run in runs if not self.keys[id(run)] <= recorded]

    def _execute(self, run: Run, *, write: bool = True) -> None:
        self._tell("start", run)
        try:
            results = execute(run, self.encoder, self.load)
        except MMAError as error:
            self.report.failed.append((run, str(error)))
            self._tell("failed", run, str(error))
            return
        for result in results:
            if write:
                append_result(self.path, result)
        self.report.executed += 1
        self._tell("done", run)

    def _tell(
        self, event: Literal["start", "done", "failed"], run: Run, error: str | None = None
    ) -> None:
        recorded = self.recorded.update()
        done = sum(self.keys[id(r)] <= recorded for r in self.runs)
        finished = self.report.executed + len(self.report.failed)
        left = None
        if finished:
            mean = (time.perf_counter() - self.begin) / finished
            left = mean * (len(self.runs) - done) / max(1, self.leases.count())
        self.progress(Progress(event, run, done, len(self.runs), left, error))


class Leases:
    """Claims of processes on runs: one small file each in a folder.

    Args:
        folder: Made when the first lease is taken, and removed with the last.
        lock: File to lock while a lease is taken.
    """

    def __init__(self, folder: Path, lock: Path) -> None:
        self.folder, self.lock = folder, lock

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Claim `name` for the length of the context; False if a live process has it."""
        path, token = self.folder / f"{name}.json", uuid.uuid4().hex
        if not self._take(path, token):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            if self._owner(path).get("token") == token:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others still hold leases
                self.folder.rmdir()

    def count(self) -> int:
        """How many live leases there are."""
        return sum(not self._is_stale(path) for path in self.folder.glob("*.json"))

    def _take(self, path: Path, token: str) -> bool:
        with locked_file(self.lock):
            if path.exists() and not self._is_stale(path):
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            owner = {"pid": os.getpid(), "host": platform.node(), "token": token}
            path.write_text(json.dumps(owner))
            return True

    @staticmethod
    def _beat(path: Path, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    @staticmethod
    def _owner(path: Path) -> dict:
        try:
            owner = json.loads(path.read_text())
        except (OSError, ValueError):  # gone, or its writer died over it
            return {}
        return owner if isinstance(owner, dict) else {}

    def _is_stale(self, path: Path) -> bool:
        try:
            age = time.time() - path.stat().st_mtime
        except OSError:
            return True
        owner = self._owner(path)
        if owner.get("host") == platform.node() and not _is_alive(owner.get("pid")):
            return True
        return age > STALE_SECONDS


def _is_alive(pid: int | None) -> bool:
    """Whether a process of this machine lives; where it cannot be told, whether it might."""
    if not isinstance(pid, int) or os.name == "nt":  # on Windows signal 0 would end it
        return isinstance(pid, int)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
