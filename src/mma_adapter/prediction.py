"""Name what pictures show: the work of `mma-adapter predict`."""

import csv
import glob
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapter import MultiModalAdapter
from .data import Sample, find_unreadable, from_processor
from .data.samples import is_picture
from .errors import ConfigError, DataError
from .evaluation import predict_logits
from .jobs import Counter, load_adapted, uncounted


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, with probabilities, best first."""

    picture: Path
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        top = [{"classname": name, "probability": probability} for name, probability in self.top]
        return {"picture": str(self.picture), "predictions": top}


def predict_pictures(
    adapter: str,
    pictures: Iterable[str],
    *,
    model: str | None = None,
    classnames: Sequence[str] | None = None,
    template: str | None = None,
    top: int = 5,
    counter: Counter = uncounted,
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Classify pictures.

    Args:
        adapter: Folder or repository.
        pictures: Files, folders and patterns.
        model: Base model instead of the one the adapter names.
        classnames: Classes to tell apart; by default those the adapter was trained on.
        template: Prompt template instead of the adapter's.
        top: Number of classes per picture.
        counter: Shows how many pictures are done.

    Returns:
        Predictions, and the pictures that cannot be read with the reason.

    Raises:
        ConfigError: The adapter names no classes and none are given.
        DataError: There is no picture.
    """
    paths = find_pictures(pictures)
    config = MultiModalAdapter.from_pretrained(adapter).config
    names = list(classnames or config.classnames or ())
    if not names:
        raise ConfigError(
            f"{adapter} does not say which classes it was trained on; pass --classnames FILE with "
            "one name per line"
        )
    samples = [Sample(path, 0, "") for path in paths]
    bad = [(sample.path, reason) for sample, reason in find_unreadable(samples)]
    broken = {path for path, _ in bad}
    samples = [sample for sample in samples if sample.path not in broken]
    if not samples:
        return [], bad
    host = load_adapted(adapter, model)
    classifier = host.classifier(names, template or config.template or "a photo of a {}.")
    _, transform = from_processor(host.processor)
    with counter("pictures", len(samples)) as done:
        logits = predict_logits(classifier, samples, transform, on_batch=done)
    best = logits.double().softmax(-1).topk(min(top, len(names)))
    return [
        Prediction(sample.path, tuple((names[i], p) for i, p in zip(labels, values, strict=True)))
        for sample, labels, values in zip(
            samples, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ], bad


def find_pictures(given: Iterable[str]) -> list[Path]:
    """Return the picture files of files, folders (searched through) and patterns, each once.

    Raises:
        DataError: Something given is not there, or holds no picture.
    """
    found: dict[Path, None] = {}
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            here = sorted(p for p in path.rglob("*") if p.is_file() and is_picture(p))
        elif path.is_file():
            here = [path]  # whatever its name, somebody asked for it
        else:
            here = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            here = [p for p in here if p.is_file() and is_picture(p)]
        if not here:
            what = "holds no pictures" if path.is_dir() else "is no file, folder or fitting pattern"
            raise DataError(f"{text} {what}; pass pictures, folders of pictures, or a pattern")
        found.update(dict.fromkeys(here))
    return list(found)


def predictions_csv(predictions: Iterable[Prediction]) -> str:
    """Return predictions as CSV: picture, rank, classname, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("picture", "rank", "classname", "probability"))
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.top, 1):
            writer.writerow((prediction.picture, rank, name, f"{probability:.6f}"))
    return text.getvalue()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}") from error
    return [line.strip() for line in lines if line.strip()]
