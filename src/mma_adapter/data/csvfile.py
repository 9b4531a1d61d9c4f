"""Read a CSV file that lists pictures: columns path, label and, if wanted, split and classname."""

import csv
from pathlib import Path

from ..errors import DataError
from .assemble import PART_NAMES, ClassNames, assemble, class_table
from .dataset import DEFAULT_TEMPLATE, Dataset
from .samples import Sample

_KNOWN = ("path", "label", "split", "classname")


def read_csv(
    path: Path | str,
    *,
    classnames: ClassNames | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> Dataset:
    """Read a CSV file with a header line; other columns are passed over.

    - `path`: the picture, relative to the CSV file or absolute.
    - `label`: class name, or class number.
    - `split` (optional): train, val or test. Without it the pictures are divided as `assemble`
      says, whatever the order of the lines.
    - `classname` (optional): the name of a class that `label` gives as a number.

    Raises:
        DataError: The file cannot be read, a column is missing, or a line is wrong; the message
            gives the line number.

    Warns:
        UserWarning: The labels are numbers and there are no class names.
    """
    path = Path(path).expanduser().absolute()
    rows = _read_rows(path)
    if classnames is None:
        classnames = _names_in(rows, path)
    table = class_table({row["label"] for _, row in rows}, classnames, source=str(path))
    parts: dict[str, list[Sample]] = {}
    seen: dict[Path, int] = {}
    for line, row in rows:
        picture = path.parent / row["path"]
        if not picture.is_file():
            raise DataError(
                f"{path}, line {line}: there is no file {picture}; "
                "paths are relative to the folder of the CSV file"
            )
        if (first := seen.setdefault(picture, line)) != line:
            raise DataError(
                f"{path}, line {line}: {row['path']} was listed in line {first} already"
            )
        parts.setdefault(row["split"], []).append(Sample(picture, *table[row["label"]]))
    return assemble(path.stem, parts, template=template, root=path.parent)


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Checked rows with the keys of `_KNOWN`, and the number of the line each ends on."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            if missing := [name for name in ("path", "label") if name not in columns]:
                raise DataError(
                    f"{path}, line 1: there is no column {missing[0]!r} among "
                    f"{', '.join(columns) or 'none'}; the header must name path and label"
                )
            reader.fieldnames = columns
            rows = [(reader.line_num, _check_row(row, path, reader.line_num)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as a CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} lists no pictures; add a line per picture below the header")
    return rows


def _check_row(row: dict, path: Path, line: int) -> dict[str, str]:
    cells = {name: (row.get(name) or "").strip() for name in _KNOWN}
    if None in row or None in row.values():
        raise DataError(f"{path}, line {line}: the line has not as many cells as the header")
    for name in ("path", "label"):
        if not cells[name]:
            raise DataError(f"{path}, line {line}: the cell {name!r} is empty")
    if "split" not in row:
        cells["split"] = "train"
    elif (part := PART_NAMES.get(cells["split"].lower())) is None:
        raise DataError(
            f"{path}, line {line}: split is {cells['split']!r}; write train, val or test"
        )
    else:
        cells["split"] = part
    return cells


def _names_in(rows: list[tuple[int, dict[str, str]]], path: Path) -> dict[str, str] | None:
    names: dict[str, str] = {}
    for line, row in rows:
        name = row["classname"] or row["label"]
        if (known := names.setdefault(row["label"], name)) != name:
            raise DataError(
                f"{path}, line {line}: label {row['label']!r} carries two names, "
                f"{known!r} and {name!r}"
            )
    return names if any(row["classname"] for _, row in rows) else None
