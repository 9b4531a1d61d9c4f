"""The record of one score, and the JSON-lines file that holds them.

A run trains one method once and is scored on one or more data sets; each score is one `Result`,
one line of the file. Tables and plots are made of these records and of nothing else.

Several processes may append to one file at once. A process that is killed while it writes leaves
at most one torn line at the end, which the next writer completes or cuts off.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal, get_args

from ..errors import MMAError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1  # raise when an older version would misread new records

Protocol = Literal[
    "base-to-novel", "cross-dataset", "domain-generalization", "few-shot", "ablation"
]
Role = Literal["base", "novel", "source", "target", "all"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
ROLES: tuple[Role, ...] = get_args(Role)

Key = tuple[str, str, str]

# Without fcntl: how long a lock file may stand before its owner is taken for dead.
_STALE_LOCK_SECONDS = 30.0


class ResultsError(MMAError):
    """A results file that is damaged, of another version, or not there."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One score of one run.

    Args:
        run_id: Hash of all that identifies the run; equal for the scores of one trained method.
        method: Name in `METHODS`.
        recipe: Name of the recipe the settings come from.
        config: All settings of the method.
        overrides: Settings changed by hand, as they were written.
        variant: What an ablation changed, such as `"scale=0.05"`; empty elsewhere.
        protocol: One of `PROTOCOLS`.
        role: Part the data set has in the protocol: base or novel classes, source or target of a
            transfer, or all classes of the data set that was trained on.
        dataset: Data set that was scored.
        source: Data set that was trained on.
        split_hash: Of the lists the score is about (`Dataset.split_hash`).
        split_origin: Who divided the pictures: `"published"`, `"given"` or `"own"`.
        classnames_hash: Of the candidate class names.
        template: Prompt template, or several.
        seed: Seed of the shots and of the training.
        shots: Training pictures per class; -1 is all.
        host: Name of the base model.
        host_fingerprint: `backbones.fingerprint` of the base model.
        versions: Version by package.
        precision: Number format of the training, such as `"fp32"`.
        transform: Who prepared the pictures: `"reference"` or `"processor"`.
        correct: Right predictions; None if the method cannot score these classes.
        total: Test pictures.
        accuracy_pct: 100 correct / total; None if the method cannot score these classes.
        macro_f1_pct: Mean F1 over the classes that occur; None likewise.
        per_class_accuracy: Accuracy in per cent by class name.
        confusion: Counts, true classes by predicted classes.
        num_trainable: Weights that were trained.
        train_seconds: Time of the training; 0 if there is none.
        test_seconds: Time of the scoring.
        train_peak_bytes: Highest memory during training: of the device, or of the process on CPU.
        test_peak_bytes: Highest memory during scoring, likewise.
        losses: Training loss per logged step.
        finished_at: UTC time in ISO format.
        machine: Name and hardware of the machine.

    Raises:
        ResultsError: A value is out of range, or two contradict each other.
    """

    run_id: str
    method: str
    protocol: Protocol
    role: Role
    dataset: str
    seed: int
    shots: int
    total: int
    correct: int | None
    accuracy_pct: float | None
    macro_f1_pct: float | None = None
    recipe: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    source: str = ""
    split_hash: str = ""
    split_origin: str = ""
    classnames_hash: str = ""
    template: str | tuple[str, ...] = ""
    host: str = ""
    host_fingerprint: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    transform: str = "reference"
    per_class_accuracy: dict[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    num_trainable: int = 0
    train_seconds: float = 0.0
    test_seconds: float = 0.0
    train_peak_bytes: int | None = None
    test_peak_bytes: int | None = None
    losses: tuple[float, ...] = ()
    finished_at: str = ""
    machine: str = ""

    def __post_init__(self) -> None:
        for name in ("run_id", "method", "dataset"):
            if not isinstance(value := getattr(self, name), str) or not value:
                raise ResultsError(f"{name}={value!r}; a record needs a text here")
        _one_of("protocol", self.protocol, PROTOCOLS)
        _one_of("role", self.role, ROLES)
        for name in ("seed", "shots", "total", "num_trainable"):
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool):
                raise ResultsError(f"{name}={value!r}; a record needs a whole number here")
        if (self.correct is None) != (self.accuracy_pct is None):
            raise ResultsError(
                f"correct={self.correct!r} and accuracy_pct={self.accuracy_pct!r}; either both "
                "are numbers, or both are None because the method cannot score these classes"
            )
        if self.accuracy_pct is not None and not 0 <= self.accuracy_pct <= 100:
            raise ResultsError(f"accuracy_pct={self.accuracy_pct!r}; pass per cent, 0 to 100")
        for name, inner in (("template", str), ("losses", float)):
            if isinstance(value := getattr(self, name), list | tuple):
                object.__setattr__(self, name, tuple(inner(v) for v in value))
        if self.confusion is not None:
            object.__setattr__(self, "confusion", tuple(tuple(row) for row in self.confusion))

    @property
    def key(self) -> Key:
        """What no two records share: run, role and data set."""
        return self.run_id, self.role, self.dataset

    @property
    def peak_bytes(self) -> int | None:
        """Highest memory of training and scoring together."""
        known = [b for b in (self.train_peak_bytes, self.test_peak_bytes) if b is not None]
        return max(known, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values, with the format number."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Result":
        """Rebuild a record.

        Raises:
            ResultsError: The format is unknown, a key is unknown or missing, or a value is wrong.
        """
        data = dict(data)
        if (found := data.pop("format", None)) != FORMAT:
            raise ResultsError(
                f"the record has format {found!r}, this version reads format {FORMAT}; read it "
                "with the version of mma-adapter that wrote it"
            )
        known = {f.name for f in fields(cls)}
        if unknown := sorted(data.keys() - known):
            raise ResultsError(f"the record has unknown keys: {', '.join(unknown)}")
        required = {
            f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
        }
        if missing := sorted(required - data.keys()):
            raise ResultsError(f"the record lacks the keys {', '.join(missing)}")
        return cls(**data)


def append_result(path: Path | str, result: Result) -> bool:
    """Append one record, unless the file already has one of the same run, role and data set.

    The record is on disk when this returns.

    Returns:
        Whether the record was appended.

    Raises:
        ResultsError: The file holds something that is no record.
    """
    path = Path(path)
    try:
        line = json.dumps(result.to_dict(), allow_nan=False, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ResultsError(f"the record of {result.key} cannot be written: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("ab+") as file, _locked(file, path):
        _repair(file)
        if result.key in _recorded(file, path, result.run_id):
            return False
        # One write, so that a reader sees a whole line or a torn last one, never a mixture.
        os.write(file.fileno(), line)
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)
    return True


def read_results(path: Path | str) -> list[Result]:
    """Read the records of a file, or of all .jsonl files in a folder and its subfolders.

    Records that occur twice (copied files) count once. A torn last line is left out.

    Raises:
        ResultsError: There is no such file, or a line is no record; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.jsonl") if p.is_file())
        if not files:
            raise ResultsError(f"there is no .jsonl file in {path}; pass the folder of the runs")
    elif path.is_file():
        files = [path]
    else:
        raise ResultsError(f"{path} is not there; pass a results file or the folder of the runs")
    found: dict[Key, Result] = {}
    for file in files:
        for result in _parse(file.read_bytes().splitlines(keepends=True), file):
            found.setdefault(result.key, result)
    return list(found.values())


class RecordedKeys:
    """The keys of all records of a file that grows; every line is read once.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._keys: set[Key] = set()
        self._end = 0

    def update(self) -> set[Key]:
        """Read what has been appended, and return all keys.

        Raises:
            ResultsError: A line is no record.
        """
        if not self.path.is_file():
            return self._keys
        with self.path.open("rb") as file:
            file.seek(self._end)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a torn last line is read when it is whole
        self._keys |= {r.key for r in _parse(whole.splitlines(keepends=True), self.path)}
        self._end += len(whole)
        return self._keys


def _parse(lines: Iterable[bytes], path: Path) -> Iterator[Result]:
    for number, line in enumerate(lines, 1):
        torn = not line.endswith(b"\n")
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ResultsError("it is not a JSON object")
            yield Result.from_dict(data)
        except (ValueError, TypeError, ResultsError) as error:
            if torn:
                return
            raise ResultsError(
                f"{path}, line {number} is no record: {error}; move the line out of the file"
            ) from error


def _recorded(file: IO[bytes], path: Path, run_id: str) -> set[Key]:
    """Keys of the records of one run; other lines are not parsed, since files grow long."""
    file.seek(0)
    needle = run_id.encode()
    return {r.key for r in _parse((line for line in file if needle in line), path)}


def _repair(file: IO[bytes]) -> None:
    """Complete a torn last line that is a whole record, and cut off one that is not."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    start = _last_line_start(file, end)
    file.seek(start)
    try:
        Result.from_dict(json.loads(file.read()))
    except (ValueError, TypeError, AttributeError, ResultsError):
        os.ftruncate(file.fileno(), start)
    else:
        os.write(file.fileno(), b"\n")


def _last_line_start(file: IO[bytes], end: int) -> int:
    position, block = end, 1 << 16
    while position > 0:
        begin = max(0, position - block)
        file.seek(begin)
        newline = file.read(position - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        position = begin
    return 0


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold `path`, made if missing, alone among all processes that ask for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file, _locked(file, path):
        yield


@contextlib.contextmanager
def _locked(file: IO[bytes], path: Path) -> Iterator[None]:
    """Hold the file alone, among all processes that append to it."""
    if fcntl is None:
        with _lock_file(path.with_name(path.name + ".lock")):
            yield
        return
    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


@contextlib.contextmanager
def _lock_file(lock: Path) -> Iterator[None]:
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except (FileExistsError, PermissionError):
            with contextlib.suppress(OSError):
                if time.time() - lock.stat().st_mtime > _STALE_LOCK_SECONDS:
                    lock.unlink()
            time.sleep(0.002)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ResultsError(f"{name}={value!r}; pass one of {', '.join(choices)}")
