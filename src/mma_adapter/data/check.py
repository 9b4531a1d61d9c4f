"""What is in a data root and what is missing, and the import of published split files.

The functions return findings; printing them is up to the caller.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, DataError
from .catalog import DATASETS, DatasetSpec, Sizes
from .fewshot import base_classes
from .folders import is_divided
from .load import read_parts
from .readers import Parts, read_split_file
from .samples import classnames_of, is_picture

Status = Literal["complete", "differs", "incomplete", "absent"]
Layout = Literal["parquet", "class folders", "parts"]


@dataclass(frozen=True)
class DatasetFinding:
    """What was found of one data set.

    Args:
        name: Its name in `DATASETS`.
        folder: Where it belongs.
        status: `"complete"`: readable, with the published sizes; `"differs"`: readable, with
            other sizes; `"incomplete"`: something is missing or wrong; `"absent"`: no folder.
        published: The published sizes.
        found: The sizes that were found, if it can be read.
        problems: What is missing or wrong, and where it belongs.
        advice: What to do about it.
    """

    name: str
    folder: Path
    status: Status
    published: Sizes
    found: Sizes | None = None
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitImport:
    """What became of one split file.

    Args:
        name: The data set's name in `DATASETS`.
        source: The file that was found.
        target: Where it belongs.
        status: `"copied"`, `"present"` (the same file lies there already) or `"refused"`.
        remark: Why it was refused, or how its sizes differ from the published ones.
    """

    name: str
    source: Path
    target: Path
    status: Literal["copied", "present", "refused"]
    remark: str = ""


def check_root(root: Path | str, names: Iterable[str] | None = None) -> list[DatasetFinding]:
    """Look for published data sets below `root`; all of them by default.

    Raises:
        ConfigError: A name is unknown.
        DataError: There is no folder `root`.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; pass the folder that holds the data sets")
    chosen = list(DATASETS if names is None else names)
    if unknown := [name for name in chosen if name not in DATASETS]:
        raise ConfigError(f"there is no data set {unknown[0]!r}; pass one of {', '.join(DATASETS)}")
    return [check_dataset(DATASETS[name], root) for name in chosen]


def check_dataset(spec: DatasetSpec, root: Path) -> DatasetFinding:
    """Look for one data set below `root`."""
    folder = root / spec.folder
    if not folder.is_dir():
        advice = [f"rename {path} to {folder.name}" for path in _namesakes(spec, root)]
        problem = f"there is no folder {folder}"
        return DatasetFinding(
            spec.name, folder, "absent", spec.sizes, None, (problem,), tuple(advice)
        )
    needed = [spec.image_dir, *([spec.split_file] if spec.split_file else []), *spec.files]
    missing = [part for part in needed if not (folder / part).exists()]
    problems = [f"{folder / part} is missing" for part in missing]
    found = None
    if not problems:
        try:
            found = sizes_of(read_parts(spec, root)[0], halves=not spec.test_only)
        except DataError as error:
            problems.append(str(error))
    advice = tuple(_advise(spec, folder, missing)) if problems else ()
    if found is None:
        return DatasetFinding(
            spec.name, folder, "incomplete", spec.sizes, None, tuple(problems), advice
        )
    differences = tuple(differences_of(found, spec.sizes))
    status: Status = "differs" if differences else "complete"
    return DatasetFinding(spec.name, folder, status, spec.sizes, found, differences)


def sizes_of(parts: Parts, *, halves: bool = True) -> Sizes:
    """Count classes and pictures; `halves=False` is for the variants of ImageNet, test only."""
    classes = len(classnames_of(parts.train))
    if not halves:
        return Sizes(classes, None, None, len(parts.test))
    base = set(base_classes(sample.label for sample in parts.train))
    base_test = sum(sample.label in base for sample in parts.test)
    num_test = len(parts.test)
    return Sizes(
        classes, len(parts.train), len(parts.val), num_test, base_test, num_test - base_test
    )


def differences_of(found: Sizes, published: Sizes) -> list[str]:
    """Each size that differs, as a sentence."""
    return [
        f"{name.replace('_', ' ')}: found {getattr(found, name):,}, published {expected:,}"
        for name, expected in vars(published).items()
        if expected is not None and getattr(found, name) != expected
    ]


def recognise_layout(folder: Path) -> Layout | None:
    """Tell parquet files, class folders and train/val/test folders apart; None for others."""
    if next(folder.glob("*.parquet"), None) or next(folder.glob("data/*.parquet"), None):
        return "parquet"
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"]
    if is_divided(inside):
        return "parts" if any(recognise_layout(part) for part in inside) else None
    if len(inside) > 1 and all(_holds_pictures(path) for path in inside):
        return "class folders"
    return None


def find_own_sources(root: Path | str) -> dict[Path, str]:
    """Folders below `root` that take part in every protocol as `folder:PATH` or `hf:PATH`.

    Folders of published data sets are left out.
    """
    root = Path(root).expanduser().absolute()
    published = {spec.folder for spec in DATASETS.values()}
    sources = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in published and (layout := recognise_layout(path)):
            sources[path] = _as_source(path, layout)
    return sources


def import_splits(folder: Path | str, root: Path | str) -> list[SplitImport]:
    """Copy the published split files that lie anywhere below `folder` to their places in `root`.

    A file is checked before it is copied, and never replaces another one.

    Raises:
        DataError: There is no folder `folder`, or no split file in it.
    """
    folder, root = (Path(path).expanduser().absolute() for path in (folder, root))
    specs = {spec.split_file: spec for spec in DATASETS.values() if spec.split_file}
    found = sorted(path for path in folder.rglob("split_zhou_*.json") if path.name in specs)
    if not found:
        raise DataError(
            f"there is no split file below {folder}; they are called {', '.join(sorted(specs))}"
        )
    return [_import_split(path, specs[path.name], root) for path in found]


def _import_split(source: Path, spec: DatasetSpec, root: Path) -> SplitImport:
    target = root / spec.folder / source.name
    try:
        parts = read_split_file(source, root / spec.folder / spec.image_dir)
        remark = "; ".join(differences_of(sizes_of(parts), spec.sizes))
    except DataError as error:
        return SplitImport(spec.name, source, target, "refused", str(error))
    content = source.read_bytes()
    if target.exists():
        if target.read_bytes() == content:
            return SplitImport(spec.name, source, target, "present", remark)
        return SplitImport(
            spec.name, source, target, "refused", f"{target} is another file; remove it first"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")  # a copy that is cut short must not look like a split
    part.write_bytes(content)
    os.replace(part, target)
    return SplitImport(spec.name, source, target, "copied", remark)


def _advise(spec: DatasetSpec, folder: Path, missing: list[str]) -> Iterable[str]:
    """What to do about a folder that is there but cannot be read."""
    for part in missing:
        # Archives unpacked into a folder of their own name: Kaggle's cars_train/cars_train.
        for twin in islice(folder.glob(f"*/{Path(part).name}"), 1):
            yield f"move {twin} to {folder / part}"
    doubled = [path for path in (folder / part for part in ("", *spec.files)) if path.is_dir()]
    for path in doubled:
        if (path / path.name).is_dir():
            yield f"move what is in {path / path.name} one level up, into {path}"
    # Kaggle's cars: car_data/car_data/train/CLASS.
    for path in (folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/*/"))):
        layout = recognise_layout(path) if path != folder / spec.image_dir else None
        if layout == "class folders" and path == folder and spec.image_dir in missing:
            yield f"move the class folders into {folder / spec.image_dir}"
        elif layout in ("parquet", "parts"):
            yield (
                f"{path} is in another common layout ({layout}), without the published split: "
                f"use it as {_as_source(path, layout)}"
            )
            break
    if spec.split_file in missing:
        yield "fetch the published split file, then: mma-adapter data splits FOLDER ROOT"
        if missing == [spec.split_file]:
            yield "or divide the pictures yourself: --own-split (not comparable with papers)"


def _as_source(path: Path, layout: Layout) -> str:
    return f"hf:{path}" if layout == "parquet" else f"folder:{path}"


def _namesakes(spec: DatasetSpec, root: Path) -> list[Path]:
    """Folders below `root` that are this data set under another name."""
    taken = {other.folder for other in DATASETS.values()}
    known = {_bare(spec.name), _bare(spec.title), _bare(spec.folder), *spec.aliases}
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and path.name not in taken and _bare(path.name) in known
    ]


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _holds_pictures(folder: Path) -> bool:
    return any(is_picture(path) for path in islice(folder.iterdir(), 20))
