"""A `Sample` is one labelled picture; this module opens pictures and names those it cannot read.

Pictures are converted to RGB and nothing else: an EXIF rotation is ignored, as in the reference
implementation of the few-shot protocols (Dassl, CoOp).
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..errors import DataError

PictureSource = Image.Image | bytes | Callable[[], Image.Image | bytes]

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".avif", ".webp", ".png", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)


@dataclass(frozen=True)
class Sample:
    """One labelled picture.

    Args:
        path: The picture file. For a picture in memory: a name that tells it from all others.
        label: Class number, from 0.
        classname: Class name as stored; underscores become spaces only in prompts.
        image: The picture itself when there is no file: a PIL image, the bytes of an encoded
            picture, or a function without arguments that returns one of the two (so that a large
            data set is not held in memory). It does not take part in comparisons.
    """

    path: Path
    label: int
    classname: str
    image: PictureSource | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path):
            object.__setattr__(self, "path", Path(self.path))


def is_picture(path: Path) -> bool:
    """Whether the name of `path` is that of a visible picture file."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def open_image(source: Sample | Path | str) -> Image.Image:
    """Return the picture as an RGB image, fully decoded; an EXIF rotation is ignored.

    Raises:
        DataError: The picture is missing, damaged or not a picture; the message names it.
    """
    sample = source if isinstance(source, Sample) else Sample(Path(source), 0, "")
    try:
        picture = sample.image
        if picture is not None and not isinstance(picture, (Image.Image, bytes)):
            picture = picture()
        if isinstance(picture, Image.Image):
            return picture.convert("RGB")
        with Image.open(sample.path if picture is None else io.BytesIO(picture)) as image:
            return image.convert("RGB")
    # Pillow's decoders raise far more than OSError on damaged files (SyntaxError, struct.error...).
    except Exception as error:
        raise DataError(
            f"cannot read the picture {sample.path}: {error}; "
            "repair or remove it, or skip unreadable pictures (--skip-bad)"
        ) from error


def find_unreadable(samples: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Decode every picture once; return those that fail with the reason, in the given order."""

    def reason(sample: Sample) -> str | None:
        try:
            open_image(sample)
        except DataError as error:
            return str(error.__cause__)
        return None

    # Pillow decodes without the interpreter lock, so threads help.
    with ThreadPoolExecutor() as pool:
        reasons = pool.map(reason, samples)
        return [
            (sample, why) for sample, why in zip(samples, reasons, strict=True) if why is not None
        ]


def classnames_of(samples: Sequence[Sample]) -> list[str]:
    """Class names in label order.

    Two labels may share one name (ImageNet has two classes "missile").

    Raises:
        DataError: A label carries two names, or the labels are not 0 to n - 1.
    """
    names: dict[int, str] = {}
    for sample in samples:
        known = names.setdefault(sample.label, sample.classname)
        if known != sample.classname:
            raise DataError(
                f"label {sample.label} carries two names, {known!r} and {sample.classname!r} "
                f"(of {sample.path}); give each class one name"
            )
    if missing := sorted(set(range(max(names, default=-1) + 1)) - names.keys()):
        raise DataError(
            f"labels go up to {max(names)}, but there is no picture with label {missing[0]}; "
            "number the classes from 0 without gaps and give each at least one picture"
        )
    if names and min(names) < 0:
        raise DataError(f"label {min(names)} is negative; number the classes from 0")
    return [names[label] for label in range(len(names))]
