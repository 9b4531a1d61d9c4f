"""The demo's classification tasks, made of the embedded icons.

Which icons are train, val and test is fixed for good; shots are drawn from the train part
(`mma_adapter.data.few_shot`), so test pictures never depend on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from ..data import Dataset, Sample, select_classes
from ..data.fewshot import Classes
from ..errors import DataError
from .icons import TEMPLATE, Icon, load_icons
from .photograph import Strength, photograph

MAX_SHOTS = 16
"""Pictures per class in the train part."""

VAL_SHOTS = 4
"""Pictures per class in the val part; everything else is test."""

SPLIT_SEED = 1


def topics() -> list[str]:
    """The topics that group the 218 classes, sorted."""
    return sorted({icon.topic for icon in load_icons()})


def icon_dataset(
    topic: str | None = None, *, classes: Classes = "all", name: str = "icons"
) -> Dataset:
    """The plain icons as a data set.

    Args:
        topic: One of `topics()`; all 218 classes by default.
        classes: `"all"`, or the `"base"` or `"novel"` half of the classes in alphabetical order.
        name: Name of the data set.

    Raises:
        DataError: There is no such topic.
    """
    return _dataset(name, topic, classes, _png)


def photographed_objects(
    strength: Strength = "strong", *, classes: Classes = "all", seed: int = 0
) -> Dataset:
    """The 60 classes of everyday objects, photographed in coloured light.

    Per class 16 train pictures, 4 val pictures, and 2 to 20 test pictures (770 in all). `"base"`
    and `"novel"` are 30 classes each.

    Args:
        strength: How far the photographs are from flat icons, `"strong"` or `"mild"`.
        classes: `"all"`, or the `"base"` or `"novel"` half of the classes in alphabetical order.
        seed: Seed of the photographs. The division into parts does not depend on it.
    """
    draw = partial(_photographed, strength=strength, seed=seed)
    return _dataset(f"objects-{strength}", "objects", classes, draw)


def export_folder(
    directory: Path | str, strength: Strength | None = "strong", *, seed: int = 0
) -> int:
    """Write the objects as PNG files, one folder per class, train, val and test together.

    Args:
        directory: Where to write; made if missing, and it must be empty.
        strength: Photographed as given, or plain icons for None.
        seed: Seed of the photographs.

    Returns:
        The number of pictures written.

    Raises:
        DataError: `directory` holds something already.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"{directory} is not an empty folder; pass a new folder to export to")
    draw = _png if strength is None else partial(_photographed, strength=strength, seed=seed)
    icons = [icon for icon in load_icons() if icon.topic == "objects"]
    for icon in icons:
        path = directory / _path(icon)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = draw(icon)
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            picture.save(path)
    return len(icons)


def _dataset(
    name: str, topic: str | None, classes: Classes, draw: Callable[[Icon], Image.Image | bytes]
) -> Dataset:
    icons = [icon for icon in load_icons() if topic in (None, icon.topic)]
    if not icons:
        raise DataError(f"topic {topic!r} is unknown; pass one of {', '.join(topics())}")
    groups: dict[str, list[Icon]] = {}
    for icon in sorted(icons, key=lambda icon: (icon.classname, icon.key)):
        groups.setdefault(icon.classname, []).append(icon)
    parts: tuple[list[Sample], ...] = ([], [], [])
    for label, (classname, group) in enumerate(groups.items()):
        # A stream of its own per class: no class's division depends on the other classes.
        random.Random(f"{SPLIT_SEED} {classname}").shuffle(group)
        cuts = (0, MAX_SHOTS, MAX_SHOTS + VAL_SHOTS, len(group))
        for part, start, stop in zip(parts, cuts, cuts[1:], strict=False):
            # Drawn when asked for, so that a data set is made at once and can be pickled.
            part += [
                Sample(_path(i), label, classname, partial(draw, i)) for i in group[start:stop]
            ]
    train, val, test = select_classes(classes, *parts)
    name = name if classes == "all" else f"{name}-{classes}"
    return Dataset(name, train, val, test, template=TEMPLATE, split_origin="own")


def _path(icon: Icon) -> Path:
    """Name of the icon's picture, `alarm_clock/bx--alarm-fill.png`."""
    folder = icon.classname.replace(" ", "_")
    return Path(PurePosixPath(folder, f"{icon.family}--{icon.icon}.png"))


def _png(icon: Icon) -> bytes:
    return icon.png


def _photographed(icon: Icon, *, strength: Strength, seed: int) -> Image.Image:
    return photograph(icon.open(), seed=seed, strength=strength)
