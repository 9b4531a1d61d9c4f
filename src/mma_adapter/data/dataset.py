"""`Dataset`: train, val and test lists of one classification task, with its class names."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import DataError
from .samples import Sample, classnames_of

SplitOrigin = Literal["published", "given", "own"]

DEFAULT_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Dataset:
    """One classification task.

    Args:
        name: Name in records and tables.
        train: Pictures to learn from.
        val: Pictures to choose settings on; an empty list where the data set has none.
        test: Pictures to score.
        template: Prompt pattern with `{}` for the class name.
        split_origin: Who divided the pictures: `"published"` (the split files or official lists
            of the field), `"given"` (the source itself has parts), or `"own"` (made here).
        root: Folder that all paths lie in, if they are files; hashes do not depend on it.

    Raises:
        DataError: There is no training picture, a label carries two names, the labels of `train`
            are not 0 to n - 1, or another part has a class that `train` does not have.
    """

    name: str
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    template: str = DEFAULT_TEMPLATE
    split_origin: SplitOrigin = "given"
    root: Path | None = None
    classnames: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError(f"the data set {self.name} has no training pictures")
        names = classnames_of(self.train)
        for part, samples in (("val", self.val), ("test", self.test)):
            for sample in samples:
                known = names[sample.label] if 0 <= sample.label < len(names) else None
                if known != sample.classname:
                    raise DataError(
                        f"{sample.path} of the {part} part has label {sample.label} and class name "
                        f"{sample.classname!r}, but in the train part that label is "
                        f"{'absent' if known is None else repr(known)}; all parts must share "
                        "the classes of the train part"
                    )
        object.__setattr__(self, "classnames", names)

    @property
    def num_classes(self) -> int:
        return len(self.classnames)

    def split_hash(self) -> str:
        """SHA-256 of the three lists in order (paths relative to `root`), for records."""
        return _sha256(
            [part, _relative(sample.path, self.root), sample.label]
            for part in ("train", "val", "test")
            for sample in getattr(self, part)
        )

    def classnames_hash(self) -> str:
        """SHA-256 of the class names in label order, for records."""
        return _sha256(self.classnames)


def _relative(path: Path, root: Path | None) -> str:
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
    return path.as_posix()


def _sha256(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()
