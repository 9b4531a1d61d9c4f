"""Read Hugging Face image-classification data sets, from the Hub or from disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .assemble import PART_NAMES, ClassNames, assemble, class_table
from .dataset import DEFAULT_TEMPLATE, Dataset
from .samples import Sample

UNLABELLED = -1  # how the Hub marks a test part without answers


@dataclass(frozen=True)
class RowPicture:
    """The encoded picture of one row, fetched when it is called: rows stay on disk until then."""

    rows: Any
    index: int
    column: str

    def __call__(self) -> bytes:
        cell = self.rows[self.index][self.column]
        return Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]


def read_hf_dataset(
    source: Any,
    *,
    name: str | None = None,
    classnames: ClassNames | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> Dataset:
    """Read a Hugging Face data set with one picture and one label per row.

    Args:
        source: A `datasets.Dataset` or `DatasetDict`, the name of a repository on the Hub, a
            folder written by `save_to_disk`, or a folder that `datasets.load_dataset` reads
            (for example of parquet files).
        name: Name in records; by default that of the source.
        classnames: Name per label; by default the names that the data set carries.
        template: Prompt pattern with `{}`.

    Raises:
        DataError: `datasets` is not installed, the source cannot be loaded, or its columns and
            parts cannot be told apart.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            'Hugging Face data sets need the package datasets: pip install "mma-adapter[train]"'
        ) from error
    if isinstance(source, (str, Path)):
        name = name or f"hf:{source}"
        source = _load(str(source))
    name = name or "hf:dataset"
    if isinstance(source, datasets.Dataset):
        source = {"train": source}
    tables = _parts(source, name)
    image_column, label_column = _columns(tables["train"].features, name)
    feature = tables["train"].features[label_column]
    labels = {part: list(rows[label_column]) for part, rows in tables.items()}
    if isinstance(feature, datasets.ClassLabel):
        labels = {part: values for part, values in labels.items() if set(values) != {UNLABELLED}}
        if classnames is None:
            classnames = {str(number): text for number, text in enumerate(feature.names)}
    for part, values in labels.items():
        if None in values or UNLABELLED in values:
            raise DataError(f"{name}: some rows of the part {part} have no label; drop them first")
    table = class_table(
        (str(value) for values in labels.values() for value in values), classnames, source=name
    )
    parts: dict[str, list[Sample]] = {}
    for part, values in labels.items():
        rows = tables[part].cast_column(image_column, datasets.Image(decode=False))
        rows = rows.select_columns([image_column])
        parts[part] = [
            Sample(
                Path(name, part, f"{index:08d}"),
                *table[str(value)],
                image=RowPicture(rows, index, image_column),
            )
            for index, value in enumerate(values)
        ]
    return assemble(name, parts, template=template)


def _load(source: str) -> Any:
    import datasets

    folder = Path(source).expanduser()
    saved = any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder) if folder.is_dir() else source)
    # `datasets` has no common base error: network, file and format errors all differ.
    except Exception as error:
        raise DataError(
            f"cannot load the Hugging Face data set {source!r}: {error}; pass the name of a "
            "repository on the Hub, or a folder of parquet files or of save_to_disk"
        ) from error


def _parts(source: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tables by part; a single table of any name is the train part."""
    if len(source) == 1:
        return {"train": next(iter(source.values()))}
    tables = {PART_NAMES[part]: rows for part, rows in source.items() if part in PART_NAMES}
    if "train" not in tables:
        raise DataError(f"{name} has the parts {', '.join(source)}; one of them must be train")
    return tables


def _columns(features: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The picture and the label column, told by their types, or by name among several."""
    import datasets

    pictures = [c for c, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not labels:  # class names or numbers in a plain column
        labels = [c for c in features if c in ("label", "labels", "class", "category")]
    pictures = [c for c in pictures if c == "image"] or pictures
    labels = [c for c in labels if c in ("label", "labels")] or labels
    if len(pictures) != 1 or len(labels) != 1:
        described = ", ".join(f"{c}: {type(kind).__name__}" for c, kind in features.items())
        raise DataError(
            f"{name} needs one picture and one label column, found ({described}); "
            "rename them to image and label"
        )
    return pictures[0], labels[0]
