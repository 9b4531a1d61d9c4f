"""Readers of the published layouts: split files, official lists, and raw annotations.

Source: the dataset classes of CoOp (`datasets/*.py`, the same files in the authors' MMA code).
At equal folder listings the lists equal theirs in content and order. Listings are sorted here by
code point; the reference leaves their order to the file system, which shows for ImageNet, its
variants, and own splits of data sets that come as class folders.

A reader takes the data set's folder and its image folder and returns `Parts`; a raw reader takes
a random stream as well, because it has to divide the pictures itself.
"""

import json
import os
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from .fewshot import group_by_label, hold_out_val, split_groups
from .samples import Sample


class Parts(NamedTuple):
    """The lists of a data set as read, before any sampling."""

    train: list[Sample]
    val: list[Sample]
    test: list[Sample]


def read_split_file(path: Path, images: Path) -> Parts:
    """Read a `split_zhou_*.json`: train, val and test lists of [path, label, class name].

    Raises:
        DataError: The file is missing, not JSON, or of another form.
    """
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}; fetch the split file anew") from error
    try:
        parts = [
            [Sample(images / str(name), int(label), str(text)) for name, label, text in rows]
            for rows in (content[part] for part in Parts._fields)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no split file ({error!r}); it must hold the keys train, val and test, "
            "each a list of [path, label, class name]"
        ) from error
    for part in parts:
        for sample in part:
            if not sample.path.is_relative_to(images) or ".." in sample.path.parts:
                raise DataError(f"{path} points outside {images}: {sample.path}")
    return Parts(*parts)


def missing_files(samples: Iterable[Sample]) -> list[Path]:
    """Paths that are not there; each folder is listed once, which is fast on network disks."""
    listed: dict[Path, set[str]] = {}
    missing = []
    for sample in samples:
        folder = sample.path.parent
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if sample.path.name not in listed[folder]:
            missing.append(sample.path)
    return missing


def read_aircraft(folder: Path, images: Path) -> Parts:
    """FGVC Aircraft: official lists of "IMAGE VARIANT"; a label is the variant's line number."""
    variants = _lines(folder / "variants.txt")
    label_of = {variant: label for label, variant in enumerate(variants)}

    def part(name: str) -> list[Sample]:
        path = folder / f"images_variant_{name}.txt"
        rows = (line.partition(" ") for line in _lines(path))
        return [
            Sample(images / f"{number}.jpg", _look_up(label_of, variant, path), variant)
            for number, _, variant in rows
        ]

    return Parts(part("train"), part("val"), part("test"))


def read_imagenet(folder: Path, images: Path) -> Parts:
    """ImageNet: class folders in images/train and images/val; its val is the test set."""
    names = _wnid_names(folder / "classnames.txt")
    test = _wnid_folders(images / "val", names)
    return Parts(_wnid_folders(images / "train", names), test, test)


def read_imagenet_variant(folder: Path, images: Path) -> Parts:
    """ImageNet-Sketch, -A, -R: class folders by wnid, all of them test pictures."""
    test = _wnid_folders(images, _wnid_names(folder / "classnames.txt"))
    return Parts(test, [], test)


def read_imagenet_v2(folder: Path, images: Path) -> Parts:
    """ImageNetV2: folders 0 to 999; folder n is the n-th line of classnames.txt."""
    names = list(_wnid_names(folder / "classnames.txt").values())
    test = [
        Sample(picture, label, name)
        for label, name in enumerate(names)
        for picture in _visible(images / str(label))
    ]
    return Parts(test, [], test)


def split_class_folders(
    folder: Path,
    images: Path,
    rng: random.Random,
    *,
    rename: Mapping[str, str] | None = None,
    ignore: Iterable[str] = (),
) -> Parts:
    """Own 50/20/30 split of class folders; names are changed after labels are numbered."""
    rename, ignore = rename or {}, set(ignore)
    classes = [path for path in _visible(images) if path.is_dir() and path.name not in ignore]
    groups = [
        [Sample(picture, label, rename.get(path.name, path.name)) for picture in _visible(path)]
        for label, path in enumerate(classes)
    ]
    return Parts(*split_groups(groups, rng))


def split_flowers(folder: Path, images: Path, rng: random.Random) -> Parts:
    """Own 50/20/30 split of Oxford Flowers: picture n has the n-th label of imagelabels.mat."""
    labels = _matlab(folder / "imagelabels.mat")["labels"][0]
    names = json.loads(_text(folder / "cat_to_name.json"))
    samples = [
        Sample(images / f"image_{number:05d}.jpg", int(label) - 1, names[str(label)])
        for number, label in enumerate(labels, start=1)
    ]
    return Parts(*split_groups(group_by_label(samples).values(), rng))


def split_pets(folder: Path, images: Path, rng: random.Random) -> Parts:
    """Oxford Pets: lines of "NAME CLASS SPECIES BREED"; the breed is NAME without its number."""

    def part(path: Path) -> list[Sample]:
        rows = [line.split(" ") for line in _lines(path)]
        return [
            Sample(images / f"{name}.jpg", int(label) - 1, name.rpartition("_")[0].lower())
            for name, label, *_ in rows
        ]

    lists = folder / "annotations"
    return _official_test(part(lists / "trainval.txt"), part(lists / "test.txt"), rng)


def split_cars(folder: Path, images: Path, rng: random.Random) -> Parts:
    """Stanford Cars: MATLAB lists; the year moves from the end of a class name to its front."""
    meta = _matlab(folder / "devkit" / "cars_meta.mat")["class_names"][0]
    words = [str(cell[0]).split(" ") for cell in meta]
    names = [" ".join([*name[-1:], *name[:-1]]) for name in words]

    def part(directory: str, path: Path) -> list[Sample]:
        rows = _matlab(path)["annotations"][0]
        labels = [int(row["class"][0, 0]) - 1 for row in rows]
        return [
            Sample(images / directory / str(row["fname"][0]), label, names[label])
            for row, label in zip(rows, labels, strict=True)
        ]

    train = part("cars_train", folder / "devkit" / "cars_train_annos.mat")
    test = part("cars_test", folder / "cars_test_annos_withlabels.mat")
    return _official_test(train, test, rng)


def split_sun397(folder: Path, images: Path, rng: random.Random) -> Parts:
    """SUN397: "/a/apartment/outdoor" is the class "outdoor apartment"."""
    classes = [line.strip("/") for line in _lines(folder / "ClassName.txt")]
    label_of = {name: label for label, name in enumerate(classes)}

    def part(path: Path) -> list[Sample]:
        samples = []
        for line in _lines(path):
            key = line.strip("/").rpartition("/")[0]
            name = " ".join(reversed(key.split("/")[1:]))
            picture = images / line.strip("/")
            samples.append(Sample(picture, _look_up(label_of, key, path), name))
        return samples

    return _official_test(part(folder / "Training_01.txt"), part(folder / "Testing_01.txt"), rng)


def split_ucf101(folder: Path, images: Path, rng: random.Random) -> Parts:
    """UCF101: the clip "YoYo/v_x.avi" is the picture "Yo_Yo/v_x.jpg" of the class "Yo_Yo"."""
    lists = folder / "ucfTrainTestlist"
    rows = (line.split(" ") for line in _lines(lists / "classInd.txt"))
    label_of = {action: int(number) - 1 for number, action in rows}

    def part(path: Path) -> list[Sample]:
        samples = []
        for line in _lines(path):
            action, _, clip = line.split(" ")[0].partition("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            picture = images / name / clip.replace(".avi", ".jpg")
            samples.append(Sample(picture, _look_up(label_of, action, path), name))
        return samples

    return _official_test(part(lists / "trainlist01.txt"), part(lists / "testlist01.txt"), rng)


def _official_test(train: list[Sample], test: list[Sample], rng: random.Random) -> Parts:
    train, val = hold_out_val(group_by_label(train).values(), rng)
    return Parts(train, val, test)


def _wnid_names(path: Path) -> dict[str, str]:
    rows = (line.partition(" ") for line in _lines(path))
    return {wnid: name for wnid, _, name in rows}


def _wnid_folders(images: Path, names: Mapping[str, str]) -> list[Sample]:
    folders = [path for path in _visible(images) if path.is_dir()]
    named = [_look_up(names, folder.name, images) for folder in folders]
    return [
        Sample(picture, label, named[label])
        for label, folder in enumerate(folders)
        for picture in _visible(folder)
    ]


def _look_up(table: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in table:
        raise DataError(f"{path} has the class {key!r}, which is not in the list of class names")
    return table[key]


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; see the page 'Datasets' of the docs")
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {error}; the page 'Datasets' of the docs says what belongs there"
        ) from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _matlab(path: Path) -> Mapping[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f'reading {path.name} needs scipy: pip install "mma-adapter[report]"'
        ) from error
    try:
        return loadmat(str(path))
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"cannot read {path} as a MATLAB file: {error}") from error
