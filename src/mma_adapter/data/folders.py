"""Read a folder of pictures: one folder per class, with or without train / val / test above."""

from pathlib import Path

from ..errors import DataError
from .assemble import PART_NAMES, ClassNames, assemble, class_table, read_classnames
from .dataset import DEFAULT_TEMPLATE, Dataset
from .samples import Sample, is_picture


def read_image_folder(
    root: Path | str,
    *,
    classnames: ClassNames | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> Dataset:
    """Read `root/CLASS/picture` or `root/PART/CLASS/picture`.

    A folder's name is its class name. PART is train, val (valid, validation, dev) or test; parts
    that are missing are divided off as `assemble` says, always in the same way. Pictures may lie
    deeper inside a class folder. Hidden names and files that are not pictures are passed over.
    An EXIF rotation of a picture is ignored, as in the reference implementation.

    Args:
        root: The folder.
        classnames: Name per folder, or names in the sorted order of the folders; by default those
            of `root/classnames.txt` if it is there, else the folder names. Folders named by
            numbers are sorted as numbers.
        template: Prompt pattern with `{}`.

    Raises:
        DataError: There is no such folder, a class folder is empty, or class names do not fit.

    Warns:
        UserWarning: Folders are named by numbers and no class names are given.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; pass a folder with one folder per class")
    tops = _visible_folders(root)
    if is_divided(tops):
        folders = {PART_NAMES[top.name.lower()]: _visible_folders(top) for top in tops}
    else:
        folders = {"train": tops}
    keys = {folder.name for part in folders.values() for folder in part}
    if not keys:
        loose = sum(is_picture(path) for path in root.iterdir())
        raise DataError(
            f"{root} has no class folders ({loose} pictures lie directly in it); "
            "put the pictures of each class into a folder named after the class"
        )
    listed = root / "classnames.txt"
    if classnames is None and listed.is_file():
        classnames = read_classnames(listed, keys)
    table = class_table(keys, classnames, source=str(root))
    parts = {
        part: [
            Sample(path, *table[folder.name])
            for folder in sorted(of_part, key=lambda folder: table[folder.name])
            for path in _pictures(folder)
        ]
        for part, of_part in folders.items()
    }
    return assemble(root.name, parts, template=template, root=root)


def is_divided(folders: list[Path]) -> bool:
    """Whether these are the parts of a data set (train, ...) rather than its classes.

    A class may be called "train": so all names must be those of different parts.
    """
    parts = [PART_NAMES.get(folder.name.lower()) for folder in folders]
    return (
        "train" in parts
        and None not in parts
        and len(set(parts)) == len(parts)
        and all(_visible_folders(folder) for folder in folders)
    )


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _pictures(folder: Path) -> list[Path]:
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if is_picture(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not pictures:
        raise DataError(
            f"the class folder {folder} holds no pictures; add some or remove the folder"
        )
    return pictures
