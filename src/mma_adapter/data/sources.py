"""One entry for people's own pictures: a folder, a CSV file, or a Hugging Face data set."""

from pathlib import Path

from ..errors import DataError
from .assemble import ClassNames
from .csvfile import read_csv
from .dataset import DEFAULT_TEMPLATE, Dataset
from .folders import read_image_folder
from .hub import read_hf_dataset

READERS = {"folder": read_image_folder, "csv": read_csv, "hf": read_hf_dataset}


def load_samples(
    source: Path | str,
    *,
    classnames: ClassNames | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> Dataset:
    """Read all pictures of a source, divided into train, val and test.

    Args:
        source: `folder:PATH`, `csv:PATH` or `hf:REPO`; without a prefix, a folder or a .csv file.
        classnames: Name per class, or names in class order; by default those of the source.
        template: Prompt pattern with `{}`.

    Raises:
        DataError: The source is neither of these, or cannot be read.
    """
    kind, _, rest = str(source).partition(":")
    if kind in READERS and rest:
        return READERS[kind](rest, classnames=classnames, template=template)
    path = Path(source).expanduser()
    if path.is_dir():
        return read_image_folder(path, classnames=classnames, template=template)
    if path.is_file() and path.suffix.lower() == ".csv":
        return read_csv(path, classnames=classnames, template=template)
    raise DataError(
        f"{source} is neither a folder nor a .csv file; pass a folder with one folder per class, "
        "a CSV file with the columns path and label, or hf:REPO for a Hugging Face data set"
    )
