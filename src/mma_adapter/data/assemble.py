"""From what a reader found (pictures by part, one key per class) to a `Dataset`."""

import random
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from .dataset import Dataset, SplitOrigin
from .fewshot import hold_out_val, sorted_groups, split_samples
from .samples import Sample

# What people call the parts of a data set.
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

# Seed of every division made here. It never follows the seed of a run, so that all runs are
# scored on the same pictures.
SPLIT_SEED = 1

ClassNames = Sequence[str] | Mapping[str, str]

_NO_NAME = re.compile(r"n?\d+")  # 7, 0012, and ImageNet's n01440764


def class_table(
    keys: Iterable[str], classnames: ClassNames | None, *, source: str
) -> dict[str, tuple[int, str]]:
    """Number and name the classes.

    Args:
        keys: Folder names or label texts. They are numbered in sorted order, as numbers where
            all of them are numbers.
        classnames: A name per key, or a list of names in the order of the numbers; the keys
            themselves by default.
        source: What to call the data in messages.

    Returns:
        (label, class name) by key.

    Raises:
        DataError: `classnames` does not fit the keys.

    Warns:
        UserWarning: The keys are numbers and no class names are given; CLIP reads the names.
    """
    keys = set(keys)
    ordered = sorted(keys)
    if all(key.isdecimal() for key in keys):
        ordered = sorted(ordered, key=int)
    if classnames is None:
        if bare := [key for key in ordered if _NO_NAME.fullmatch(key)]:
            warnings.warn(
                f"{source}: classes are called {', '.join(bare[:3])}..., which means nothing to a "
                "text tower; put a classnames.txt with one 'KEY NAME' line per class beside the "
                "data, or pass classnames=",
                stacklevel=3,
            )
        return {key: (label, key) for label, key in enumerate(ordered)}
    if isinstance(classnames, Mapping):
        if missing := [key for key in ordered if key not in classnames]:
            raise DataError(
                f"{source}: there is no class name for {missing[0]!r} ({len(missing)} of "
                f"{len(ordered)} classes have none); add a line for each"
            )
        return {key: (label, classnames[key]) for label, key in enumerate(ordered)}
    if len(classnames) != len(ordered):
        raise DataError(
            f"{source}: {len(classnames)} class names for {len(ordered)} classes "
            f"({', '.join(ordered[:5])}...); give one name per class, in this order"
        )
    return {key: (label, classnames[label]) for label, key in enumerate(ordered)}


def read_classnames(path: Path, keys: Iterable[str]) -> ClassNames:
    """Read a classnames.txt: lines of "KEY NAME" (ImageNet's form), or one name per line in order.

    Raises:
        DataError: The file cannot be read as text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}") from error
    lines = [line for line in lines if line]
    named = {key: name for key, _, name in (line.partition(" ") for line in lines)}
    return named if set(keys) <= named.keys() and all(named.values()) else lines


def assemble(
    name: str,
    parts: Mapping[str, Sequence[Sample]],
    *,
    template: str,
    root: Path | None = None,
) -> Dataset:
    """Make a `Dataset` of the parts a source has; what is missing is divided off here.

    - train, val, test: taken as they are.
    - train, test: 20 % of each class of train become val.
    - train, val: val becomes test, as everybody does with ImageNet; then as above.
    - train alone: 50 % train, 20 % val, 30 % test of each class.

    Raises:
        DataError: There is no train part, or the parts contradict each other.
    """
    parts = {part: list(samples) for part, samples in parts.items() if samples}
    if "train" not in parts:
        found = ", ".join(sorted(parts)) or "nothing"
        raise DataError(f"{name}: found {found}, but no train part to learn from")
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    origin: SplitOrigin = "given"
    if "test" not in parts:
        origin = "own"
        parts["train"], parts["val"], parts["test"] = split_samples(parts["train"], SPLIT_SEED)
    elif "val" not in parts:
        groups = sorted_groups(parts["train"])
        parts["train"], parts["val"] = hold_out_val(groups, random.Random(SPLIT_SEED))
    if not parts["test"]:
        raise DataError(f"{name}: no class has two pictures, so none is left to test on")
    return Dataset(
        name,
        parts["train"],
        parts["val"],
        parts["test"],
        template=template,
        split_origin=origin,
        root=root,
    )
