"""Read the few-shot subsets that other groups publish as pickles, without running them.

Such a file (`split_fewshot/shot_16-seed_1.pkl`) holds `{"train": [...], "val": [...]}`, ImageNet's
only "train"; the items are objects of one class of Dassl. This is the only place that unpickles.
The unpickler knows that single class, maps it to a plain record, and refuses any other name.
"""

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from .catalog import DATASETS
from .samples import Sample

RECORD = ("dassl.data.datasets.base_dataset", "Datum")
MAX_BYTES = 1 << 30


class _Record:
    """What stands in for Dassl's class: a bag of four values, checked later."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a record whose state is no dict")
        self.state = state


class _RecordUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) != RECORD:
            raise pickle.UnpicklingError(f"the name {module_name}.{global_name}")
        return _Record


def read_published_shots(
    path: Path | str, *, name: str | None = None, root: Path | str | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Read a published few-shot subset.

    Args:
        path: The pickle file.
        name: A name in `DATASETS`. The file holds absolute paths of another machine; with `name`
            and `root`, what follows the data set's folder is looked up below `root` instead.
        root: Data root.

    Returns:
        (train, val); val is empty where the file has none.

    Raises:
        DataError: The file holds anything but such records; nothing in it was run.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES:,} bytes; no few-shot file is")
        content = _RecordUnpickler(io.BytesIO(path.read_bytes())).load()
    except DataError:
        raise
    # A damaged pickle can make the machine raise almost anything; none of it is worth telling.
    except Exception as error:
        raise DataError(
            f"{path} was refused: {error}. Only few-shot files with lists of "
            f"{'.'.join(RECORD)} are read, and nothing else in a pickle is run"
        ) from error
    if not isinstance(content, dict) or "train" not in content:
        raise DataError(f"{path} is no few-shot file: it must hold a dict with the key train")
    parts = [content["train"], content.get("val", [])]
    if not all(isinstance(part, list) for part in parts):
        raise DataError(f"{path} is no few-shot file: train and val must be lists")
    train, val = ([_to_sample(item, path, name, root) for item in part] for part in parts)
    return train, val


def _to_sample(item: Any, path: Path, name: str | None, root: Path | str | None) -> Sample:
    state = getattr(item, "state", {}) if isinstance(item, _Record) else {}
    picture, label, classname = (state.get(key) for key in ("_impath", "_label", "_classname"))
    if not (isinstance(picture, str) and isinstance(label, int) and isinstance(classname, str)):
        raise DataError(f"{path} is no few-shot file: item {picture!r}, {label!r}, {classname!r}")
    if name is None or root is None:
        return Sample(Path(picture), label, classname)
    folder = DATASETS[name].folder
    parts = PurePosixPath(picture.replace("\\", "/")).parts
    if folder not in parts or ".." in parts:
        raise DataError(f"{path} lists {picture}, which is not below a folder {folder}")
    inside = parts[parts.index(folder) + 1 :]
    return Sample(Path(root).expanduser().absolute().joinpath(folder, *inside), label, classname)
