"""Records survive kills, torn lines and several writers, and nothing else is read as a record."""

import json
import multiprocessing
from pathlib import Path

import pytest

from mma_adapter.bench import results
from mma_adapter.bench.results import (
    RecordedKeys,
    Result,
    ResultsError,
    append_result,
    read_results,
)


def make(**changes: object) -> Result:
    values: dict = {
        "run_id": "abc",
        "method": "mma",
        "protocol": "base-to-novel",
        "role": "base",
        "dataset": "dtd",
        "seed": 1,
        "shots": 16,
        "correct": 3,
        "total": 4,
        "accuracy_pct": 75.0,
        "losses": (1.5, 0.25),
        "template": ("a {}.", "the {}."),
        "confusion": ((2, 1), (0, 1)),
        "per_class_accuracy": {"geöffnet": 100.0},
    }
    return Result(**{**values, **changes})


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    assert append_result(path, make())
    assert read_results(path) == [make()]
    assert read_results(tmp_path) == [make()]
    assert json.loads(path.read_text("utf-8"))["format"] == results.FORMAT


def test_a_run_role_and_dataset_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert append_result(path, make())
    assert not append_result(path, make(correct=4, accuracy_pct=100.0))
    assert append_result(path, make(role="novel"))
    assert append_result(path, make(dataset="eurosat"))
    assert append_result(path, make(run_id="abd"))
    assert [r.correct for r in read_results(path)] == [3, 3, 3, 3]


def test_a_torn_line_is_cut_off_wherever_it_tears(tmp_path: Path) -> None:
    line = (json.dumps(make(role="novel").to_dict()) + "\n").encode()
    path = tmp_path / "runs.jsonl"
    append_result(path, make())
    whole = path.read_bytes()
    for length in range(1, len(line) - 1, 7):
        path.write_bytes(whole + line[:length])
        assert read_results(path) == [make()]
        assert append_result(path, make(role="novel"))
        assert read_results(path) == [make(), make(role="novel")]


def test_a_record_that_lacks_only_its_line_end_is_completed_and_not_doubled(
    tmp_path: Path,
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(make().to_dict()))
    assert read_results(path) == [make()]
    assert not append_result(path, make())
    assert path.read_bytes().count(b"\n") == 1
    assert append_result(path, make(role="novel"))
    assert len(read_results(path)) == 2


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_result(path, make())
    with path.open("ab") as file:
        file.write(b'{"format": 1, "method": "' + b"x" * 200_000)
    append_result(path, make(role="novel"))
    assert [r.role for r in read_results(path)] == ["base", "novel"]


def test_recorded_keys_follow_a_growing_file_and_wait_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    recorded = RecordedKeys(path)
    assert recorded.update() == set()
    append_result(path, make())
    assert recorded.update() == {make().key}
    line = (json.dumps(make(role="novel").to_dict()) + "\n").encode()
    with path.open("ab") as file:
        file.write(line[:100])
        file.flush()
        assert recorded.update() == {make().key}
        file.write(line[100:])
    assert recorded.update() == {make().key, make(role="novel").key}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"not json\n", "line 2"),
        (b"[1]\n", "not a JSON object"),
        (b'{"format": 99}\n', "format 99"),
        (b'{"format": 1, "method": "mma"}\n', "lacks the keys"),
        (b'{"format": 1, "colour": 1}\n', "colour"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, what: str) -> None:
    path = tmp_path / "runs.jsonl"
    append_result(path, make())
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ResultsError, match=what):
        read_results(path)


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not there"):
        read_results(tmp_path / "no.jsonl")
    with pytest.raises(ResultsError, match=r"no \.jsonl"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "base2new"},
        {"role": "new"},
        {"correct": None},
        {"accuracy_pct": 101.0},
        {"run_id": ""},
        {"seed": "1"},
    ],
)
def test_impossible_records_are_refused(changes: dict) -> None:
    with pytest.raises(ResultsError, match=next(iter(changes))):
        make(**changes)


def test_a_loss_that_is_no_number_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be written"):
        append_result(tmp_path / "runs.jsonl", make(losses=(float("nan"),)))
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_method_that_cannot_score_is_recorded_without_accuracy(tmp_path: Path) -> None:
    dash = make(correct=None, accuracy_pct=None)
    append_result(tmp_path / "runs.jsonl", dash)
    assert read_results(tmp_path)[0].accuracy_pct is None


def test_peak_memory_is_the_higher_of_training_and_test() -> None:
    assert make().peak_bytes is None
    assert make(train_peak_bytes=5, test_peak_bytes=7).peak_bytes == 7


def test_copies_of_a_file_count_once(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        append_result(tmp_path / name, make())
    append_result(tmp_path / "b.jsonl", make(role="novel"))
    assert len(read_results(tmp_path)) == 2


def _append_many(path: Path, worker: int, use_fcntl: bool) -> None:
    if not use_fcntl:
        results.fcntl = None
    for index in range(15):
        # Half of the records are everybody's, half are the worker's own.
        append_result(path, make(run_id=f"common-{index}", losses=(0.5,) * 500))
        append_result(path, make(run_id=f"own-{worker}-{index}"))


@pytest.mark.parametrize("use_fcntl", [True, False], ids=["fcntl", "lock file"])
def test_four_processes_append_without_loss_or_doubles(tmp_path: Path, use_fcntl: bool) -> None:
    path = tmp_path / "runs.jsonl"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_append_many, args=(path, i, use_fcntl)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    lines = path.read_bytes().splitlines()
    keys = [Result.from_dict(json.loads(line)).key for line in lines]
    assert len(keys) == len(set(keys)) == 15 + 4 * 15
