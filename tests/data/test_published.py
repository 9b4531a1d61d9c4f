"""Published few-shot pickles are read; anything else in a pickle is refused and never run."""

import os
import pickle
import pickletools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mma_adapter.data import read_published_shots
from mma_adapter.errors import DataError

MODULE = "dassl.data.datasets.base_dataset"


class Datum:
    """Stands for the published class while files are written; reading never sees it."""

    def __init__(self, impath: Any, label: Any, classname: Any) -> None:
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


Datum.__module__, Datum.__qualname__ = MODULE, "Datum"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a value as a pickle in which `Datum` is Dassl's class."""

    def write_pickle(value: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
        path = tmp_path / "shot_16-seed_1.pkl"
        module = ModuleType(MODULE)
        module.Datum = Datum  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            for depth in range(1, 5):
                package = ".".join(MODULE.split(".")[:depth])
                patch.setitem(sys.modules, package, module if depth == 4 else ModuleType(package))
            path.write_bytes(pickle.dumps(value, protocol))
        return path

    return write_pickle


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_records_are_read_without_dassl(write, protocol: int) -> None:
    content = {"train": [Datum("/a/dtd/images/x/1.jpg", 3, "lined")], "val": []}
    train, val = read_published_shots(write(content, protocol))
    assert "dassl" not in sys.modules
    assert [(s.path, s.label, s.classname) for s in train] == [
        (Path("/a/dtd/images/x/1.jpg"), 3, "lined")
    ]
    assert val == []


def test_paths_of_another_machine_are_looked_up_below_the_root(write, tmp_path: Path) -> None:
    path = write({"train": [Datum("/home/kai/DATA/dtd/images/x/1.jpg", 0, "lined")]})
    train, val = read_published_shots(path, name="dtd", root=tmp_path)
    assert train[0].path == tmp_path / "dtd" / "images" / "x" / "1.jpg"
    assert val == []


@pytest.mark.parametrize("picture", ["/a/other/1.jpg", "/a/dtd/../../etc/x.jpg"])
def test_paths_outside_the_data_set_are_refused(write, tmp_path: Path, picture: str) -> None:
    path = write({"train": [Datum(picture, 0, "lined")]})
    with pytest.raises(DataError, match="not below a folder dtd"):
        read_published_shots(path, name="dtd", root=tmp_path)


class Payload:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("inside", [False, True], ids=["whole file", "inside a record"])
@pytest.mark.parametrize("function", [os.system, eval, __import__, getattr])
def test_a_payload_is_refused_by_name_and_never_runs(write, tmp_path, function, inside) -> None:
    mark = tmp_path / "ran"
    payload = Payload(function, f"touch {mark}")
    path = write({"train": [Datum(payload, 0, "x")]} if inside else payload)
    with pytest.raises(DataError, match=rf"refused: the name \S+\.{function.__name__}\. Only"):
        read_published_shots(path)
    assert not mark.exists()


def test_the_payload_would_have_run_in_a_plain_unpickler(write, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(write(Payload(os.system, f"touch {mark}")).read_bytes())
    assert mark.exists()


def test_a_dotted_name_below_the_record_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04\x8c\x20" + MODULE.encode() + b"\x8c\x0eDatum.__init__\x93.")
    assert [op.name for op, *_ in pickletools.genops(path.read_bytes())][3] == "STACK_GLOBAL"
    with pytest.raises(DataError, match=r"Datum\.__init__"):
        read_published_shots(path)


@pytest.mark.parametrize(
    "content",
    [[], {"val": []}, {"train": 3}, {"train": ["x"]}, {"train": [Datum("a.jpg", "0", "x")]}],
)
def test_other_contents_are_refused(write, content: Any) -> None:
    with pytest.raises(DataError, match="is no few-shot file"):
        read_published_shots(write(content))


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pkl"):
        read_published_shots(tmp_path / "gone.pkl")


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_damaged_files_give_our_error_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.pkl"
    path.write_bytes(b"\x80\x04" + junk)
    with pytest.raises(DataError):
        read_published_shots(path)
