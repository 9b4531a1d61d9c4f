"""`load_dataset`: any data set by name, as a few-shot task."""

import random
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, DataError
from .assemble import SPLIT_SEED, ClassNames
from .catalog import DATASETS, DatasetSpec
from .dataset import Dataset, SplitOrigin
from .fewshot import Classes, few_shot, select_classes
from .readers import Parts, missing_files, read_split_file
from .sources import READERS, load_samples


def load_dataset(
    name: str,
    root: Path | str | None = None,
    *,
    shots: int = 16,
    seed: int = 1,
    classes: Classes = "all",
    own_split: bool = False,
    classnames: ClassNames | None = None,
    template: str | None = None,
) -> Dataset:
    """Load a data set as a few-shot task; the lists are those of the reference implementation.

    Shots are drawn before the classes are halved, so `"all"`, `"base"` and `"novel"` share their
    pictures. The val part gets min(shots, 4) per class; ImageNet's val is its whole test part.
    ImageNet's variants (imagenetv2, imagenet_sketch, imagenet_a, imagenet_r) have no val (an
    empty list), their train is their test, and `shots` and `classes` do not apply to them.

    Args:
        name: A name in `DATASETS`, or `folder:PATH`, `csv:PATH`, `hf:REPO`.
        root: Data root that holds one folder per published data set; without use for the others.
        shots: Training pictures per class; -1 for all.
        seed: Seed of the draw.
        classes: All classes, or the first (`"base"`) or second (`"novel"`) half of them.
        own_split: Where the published split file is missing, divide the raw annotations here.
            It is what the reference writes on a first run with seed 1, except for the order of
            folder listings, and it is the same for every `seed`.
        classnames: Class names for `folder:`, `csv:` and `hf:`; the published are fixed.
        template: Prompt pattern instead of the data set's own.

    Raises:
        ConfigError: The name is unknown, or an argument is out of range.
        DataError: Files are missing or contradict each other; the message says which.
    """
    if name.partition(":")[0] in READERS:
        full = load_samples(name, classnames=classnames)
        train, val = few_shot(full.train, full.val, shots, seed)
        train, val, test = select_classes(classes, train, val, full.test)
        template = template or full.template
        # The source is part of the name, so that records of different folders stay apart.
        return replace(full, name=name, train=train, val=val, test=test, template=template)
    if name not in DATASETS:
        raise ConfigError(
            f"there is no data set {name!r}; pass one of {', '.join(DATASETS)}, "
            "or folder:PATH, csv:PATH or hf:REPO for your own pictures"
        )
    spec = DATASETS[name]
    if root is None:
        raise ConfigError(f"{name} needs root, the folder that holds {spec.folder}/")
    if classnames is not None:
        raise ConfigError(f"the class names of {name} are published; leave classnames out")
    root = Path(root).expanduser().absolute()
    parts, origin = read_parts(spec, root, own_split=own_split)
    return Dataset(
        name,
        *(parts if spec.test_only else draw(spec, parts, shots, seed, classes)),
        template=template or spec.template,
        split_origin=origin,
        root=root,
    )


def draw(
    spec: DatasetSpec, parts: Parts, shots: int, seed: int | random.Random, classes: Classes
) -> Parts:
    """Draw shots and select classes as the reference does for this data set."""
    train, val = few_shot(parts.train, [] if spec.val_is_test else parts.val, shots, seed)
    train, val, test = select_classes(classes, train, val, parts.test)
    return Parts(train, test if spec.val_is_test else val, test)


def read_parts(
    spec: DatasetSpec, root: Path, *, own_split: bool = False
) -> tuple[Parts, SplitOrigin]:
    """Read all pictures of a published data set, and say who divided them.

    Raises:
        DataError: A file is missing or wrong.
    """
    folder = root / spec.folder
    images = folder / spec.image_dir
    if not folder.is_dir():
        raise DataError(
            f"{spec.name}: there is no folder {folder}; "
            "`mma-adapter data check` shows what belongs where"
        )
    origin: SplitOrigin = "published"
    if spec.read is not None:
        parts = spec.read(folder, images)
    elif (split_file := folder / (spec.split_file or "")).is_file():
        parts = read_split_file(split_file, images)
    elif own_split and spec.read_raw is not None:
        parts = spec.read_raw(folder, images, random.Random(SPLIT_SEED))
        origin = "own"
    else:
        raise DataError(
            f"{spec.name}: the split file {split_file} is missing; the page 'Datasets' of the "
            "docs says where to get it and what lies beside it. To divide the pictures yourself, "
            "pass own_split=True (--own-split): records will say so, and accuracies are not "
            "comparable with published ones"
        )
    listed = [*parts.train, *parts.val, *parts.test]
    if missing := missing_files(listed):
        raise DataError(
            f"{spec.name}: {len(missing):,} of {len(listed):,} listed pictures are not there, "
            f"first {missing[0]}; unpack the pictures into {images}"
        )
    return parts, origin
