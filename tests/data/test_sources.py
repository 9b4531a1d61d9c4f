"""Folders, CSV files and Hugging Face data sets become the same kind of `Dataset`."""

import csv
import io
import warnings
from collections import Counter
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mma_adapter.data import (
    Sample,
    load_samples,
    open_image,
    read_csv,
    read_hf_dataset,
    read_image_folder,
)
from mma_adapter.errors import DataError


def put(path: Path, colour: int = 0) -> Path:
    """Write a tiny picture that is told from others by its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (colour % 256, 10, 20)).save(path)
    return path


def fill(folder: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        for i in range(count):
            put(folder / name / f"{i}.png", i)


def counts(samples: list[Sample]) -> dict[str, int]:
    return Counter(s.classname for s in samples)


class TestFolders:
    def test_one_folder_per_class_is_divided_in_every_class(self, tmp_path: Path) -> None:
        fill(tmp_path, {"dog": 10, "cat": 20})
        dataset = read_image_folder(tmp_path)
        assert dataset.classnames == ["cat", "dog"]
        assert counts(dataset.train) == {"cat": 10, "dog": 5}
        assert counts(dataset.val) == {"cat": 4, "dog": 2}
        assert counts(dataset.test) == {"cat": 6, "dog": 3}
        assert (dataset.split_origin, dataset.template) == ("own", "a photo of a {}.")
        assert read_image_folder(tmp_path) == dataset

    @pytest.mark.parametrize("val", ["val", "validation", "valid", "Val"])
    def test_given_parts_are_taken_as_they_are(self, tmp_path: Path, val: str) -> None:
        for part, count in (("train", 3), (val, 1), ("test", 2)):
            fill(tmp_path / part, {"cat": count, "dog": count})
        dataset = read_image_folder(tmp_path)
        assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [6, 2, 4]
        assert dataset.split_origin == "given"
        assert all(s.path.parts[-3] == "test" for s in dataset.test)

    def test_without_a_test_part_val_is_the_test_and_train_gives_the_val(
        self, tmp_path: Path
    ) -> None:
        fill(tmp_path / "train", {"cat": 10})
        fill(tmp_path / "val", {"cat": 3})
        dataset = read_image_folder(tmp_path)
        assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [8, 2, 3]
        assert all(s.path.parts[-3] == "val" for s in dataset.test)

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        fill(tmp_path, {"train": 4, "plane": 4})
        assert read_image_folder(tmp_path).classnames == ["plane", "train"]
        fill(tmp_path / "more", {"train": 4, "test": 4})
        assert read_image_folder(tmp_path / "more").classnames == ["test", "train"]

    def test_strays_are_passed_over_and_deeper_pictures_found(self, tmp_path: Path) -> None:
        fill(tmp_path, {"cat": 2})
        put(tmp_path / "cat" / "old" / "3.PNG")
        put(tmp_path / "cat" / ".thumbs" / "4.png")
        (tmp_path / "cat" / "notes.txt").write_text("x")
        (tmp_path / "readme.md").write_text("x")
        (tmp_path / ".git").mkdir()
        dataset = read_image_folder(tmp_path)
        names = [s.path.name for s in dataset.train + dataset.val + dataset.test]
        assert sorted(names) == ["0.png", "1.png", "3.PNG"]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda root: None, "no class folders"),
            (lambda root: put(root / "1.png"), r"1 pictures lie directly in it"),
            (
                lambda root: (put(root / "a" / "1.png"), (root / "b").mkdir()),
                r"b holds no pictures",
            ),
            (lambda root: put(root / "a" / "1.png"), "no class has two pictures"),
        ],
        ids=["empty", "loose", "empty class", "one picture"],
    )
    def test_unusable_folders_are_explained(self, tmp_path: Path, make, message: str) -> None:
        make(tmp_path)
        with pytest.raises(DataError, match=message):
            read_image_folder(tmp_path)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no folder"):
            read_image_folder(tmp_path / "gone")

    def test_a_class_that_only_the_test_part_has_is_refused(self, tmp_path: Path) -> None:
        fill(tmp_path / "train", {"cat": 4})
        fill(tmp_path / "test", {"cat": 1, "dog": 1})
        with pytest.raises(DataError, match="'dog', but in the train part"):
            read_image_folder(tmp_path)

    def test_numbered_folders_are_sorted_as_numbers_with_a_warning(self, tmp_path: Path) -> None:
        fill(tmp_path, {"10": 2, "9": 2})
        with pytest.warns(UserWarning, match=r"classes are called 9, 10.*classnames\.txt"):
            dataset = read_image_folder(tmp_path)
        assert dataset.classnames == ["9", "10"]

    @pytest.mark.parametrize("text", ["9 cat\n10 big dog\n", "10 big dog\n9 cat", "cat\nbig dog\n"])
    def test_class_names_are_read_from_classnames_txt(self, tmp_path: Path, text: str) -> None:
        fill(tmp_path, {"10": 2, "9": 2})
        (tmp_path / "classnames.txt").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image_folder(tmp_path).classnames == ["cat", "big dog"]

    @pytest.mark.parametrize(
        ("names", "message"),
        [(["cat"], "1 class names for 2 classes"), ({"a": "cat"}, "no class name for 'b'")],
    )
    def test_class_names_that_do_not_fit_are_refused(
        self, tmp_path: Path, names, message: str
    ) -> None:
        fill(tmp_path, {"a": 2, "b": 2})
        with pytest.raises(DataError, match=message):
            read_image_folder(tmp_path, classnames=names)

    @given(
        st.dictionaries(
            st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True),
            st.integers(2, 8),
            min_size=2,
            max_size=5,
        )
    )
    @settings(max_examples=15, deadline=None)
    def test_every_picture_lands_in_one_part_under_its_folder_name(
        self, tmp_path_factory: pytest.TempPathFactory, classes: dict[str, int]
    ) -> None:
        root = tmp_path_factory.mktemp("photos")
        fill(root, classes)
        dataset = read_image_folder(root)
        samples = dataset.train + dataset.val + dataset.test
        assert counts(samples) == classes
        assert len({s.path for s in samples}) == len(samples)
        assert all(s.path.parent.name == s.classname for s in samples)
        assert dataset.classnames == sorted(classes)
        assert counts(dataset.test).keys() == classes.keys()


def write_rows(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


class TestCsv:
    def test_a_split_column_is_followed(self, tmp_path: Path) -> None:
        rows = [["path", "label", "split", "comment"]]
        for part in ("train", "val", "test"):
            rows.append([str(put(tmp_path / "p" / f"{part}.png")), "tabby cat", part, "x"])
        dataset = read_csv(write_rows(tmp_path / "list.csv", rows))
        parts = (dataset.train, dataset.val, dataset.test)
        assert [[s.path.stem for s in x] for x in parts] == [["train"], ["val"], ["test"]]
        assert dataset.classnames == ["tabby cat"]

    def test_the_order_of_lines_does_not_change_an_own_split(self, tmp_path: Path) -> None:
        fill(tmp_path, {"b": 7, "a": 9})
        lines = [[f"{p.parent.name}/{p.name}", p.parent.name] for p in tmp_path.glob("*/*.png")]
        header = [["path", "label"]]
        one = read_csv(write_rows(tmp_path / "x.csv", header + sorted(lines)))
        two = read_csv(write_rows(tmp_path / "x.csv", header + sorted(lines, reverse=True)))
        assert one == two
        assert one.split_origin == "own"

    def test_numbered_labels_take_their_names_from_a_column(self, tmp_path: Path) -> None:
        fill(tmp_path, {"p": 4})
        rows = [["path", "label", "classname"]]
        rows += [[f"p/{i}.png", str(9 + i % 2), ["dog", "cat"][i % 2]] for i in range(4)]
        assert read_csv(write_rows(tmp_path / "x.csv", rows)).classnames == ["dog", "cat"]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "line 1: there is no column 'path'"),
            ([["path", "class"]], "line 1: there is no column 'label' among path, class"),
            ([["path", "label"]], "lists no pictures"),
            ([["path", "label"], ["a.png", "x"], ["gone.png", "x"]], "line 3: there is no file"),
            ([["path", "label"], ["a.png", ""]], "line 2: the cell 'label' is empty"),
            ([["path", "label"], ["a.png"]], "line 2: the line has not as many cells"),
            ([["path", "label"], ["a.png", "x", "y"]], "line 2: the line has not as many cells"),
            ([["path", "label"], ["a.png", "x"], ["a.png", "y"]], "line 3.*line 2"),
            ([["path", "label", "split"], ["a.png", "x", "tset"]], "line 2: split is 'tset'"),
            (
                [["path", "label", "classname"], ["a.png", "1", "cat"], ["b.png", "1", "dog"]],
                "line 3: label '1' carries two names, 'cat' and 'dog'",
            ),
        ],
    )
    def test_mistakes_are_reported_with_their_line(
        self, tmp_path: Path, rows: list[list[str]], message: str
    ) -> None:
        put(tmp_path / "a.png")
        put(tmp_path / "b.png")
        with pytest.raises(DataError, match=message):
            read_csv(write_rows(tmp_path / "list.csv", rows))

    def test_a_list_without_training_pictures_is_refused(self, tmp_path: Path) -> None:
        rows = [["path", "label", "split"], [put(tmp_path / "a.png").name, "x", "test"]]
        with pytest.raises(DataError, match="found test, but no train part"):
            read_csv(write_rows(tmp_path / "list.csv", rows))

    def test_a_file_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "list.csv"
        path.write_bytes(b"path,label\n\xff\xfe\n")
        with pytest.raises(DataError, match=r"cannot read .*list\.csv"):
            read_csv(path)

    @given(
        st.lists(
            st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @pytest.mark.filterwarnings("ignore:.*means nothing to a text tower")
    def test_any_class_name_survives_quoting(self, tmp_path: Path, names: list[str]) -> None:
        rows = [["path", "label"]]
        for index, name in enumerate(names):
            for copy in range(2):
                path = tmp_path / f"{index}-{copy}.png"
                if not path.exists():
                    put(path)
                rows.append([path.name, name])
        dataset = read_csv(write_rows(tmp_path / "list.csv", rows))
        assert set(dataset.classnames) == set(names)
        for sample in dataset.train + dataset.test:
            assert sample.classname == names[int(sample.path.stem.partition("-")[0])]


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (colour, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def hf_rows(labels: list[int], names: list[str], image: str = "image", label: str = "label"):
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=names)})
    pictures = [{"bytes": png(i), "path": None} for i in range(len(labels))]
    return datasets.Dataset.from_dict({image: pictures, label: labels}, features=features)


class TestHuggingFace:
    names = ("zebra", "ant")

    def test_pictures_and_names_are_found_by_their_types(self) -> None:
        rows = hf_rows([0, 1] * 5, list(self.names), image="photo", label="species")
        dataset = read_hf_dataset(rows, name="hf:zoo")
        assert dataset.classnames == ["zebra", "ant"]  # the order of the data set, not sorted
        assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [4, 2, 4]
        for sample in dataset.train + dataset.test:
            index = int(sample.path.name)
            assert sample.label == index % 2
            assert open_image(sample).getpixel((0, 0)) == (index, 0, 0)

    def test_parts_are_kept_and_an_unlabelled_test_is_left_out(self) -> None:
        parts = datasets.DatasetDict(
            {
                "train": hf_rows([0, 1, 0, 1], list(self.names)),
                "validation": hf_rows([1, 0], list(self.names)),
                "test": hf_rows([-1, -1], list(self.names)),
            }
        )
        dataset = read_hf_dataset(parts, name="zoo")
        assert [s.path.parts[1] for s in dataset.test] == ["val", "val"]
        assert dataset.split_origin == "given"

    def test_a_saved_folder_and_parquet_files_are_read_from_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        rows = hf_rows([0, 1] * 4, list(self.names))
        rows.save_to_disk(str(tmp_path / "saved"))
        (tmp_path / "parquet").mkdir()
        rows.to_parquet(str(tmp_path / "parquet" / "train-00000.parquet"))
        for folder in ("saved", "parquet"):
            dataset = load_samples(f"hf:{tmp_path / folder}")
            assert dataset.classnames == ["zebra", "ant"]
            assert open_image(dataset.test[0]).size == (5, 4)

    def test_plain_text_labels_are_sorted_into_classes(self) -> None:
        rows = datasets.Dataset.from_dict(
            {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": list("baab")},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.Value("string")}
            ),
        )
        assert read_hf_dataset(rows).classnames == ["a", "b"]

    def test_columns_that_cannot_be_told_apart_are_listed(self) -> None:
        rows = hf_rows([0, 1], list(self.names)).remove_columns("label")
        with pytest.raises(DataError, match=r"one label column, found \(image: Image\)"):
            read_hf_dataset(rows, name="zoo")

    def test_rows_without_a_label_are_refused(self) -> None:
        with pytest.raises(DataError, match="some rows of the part train have no label"):
            read_hf_dataset(hf_rows([0, -1, 1], list(self.names)))

    def test_parts_of_which_none_is_train_are_listed(self) -> None:
        rows = hf_rows([0, 1], list(self.names))
        with pytest.raises(DataError, match="has the parts easy, hard; one of them must be train"):
            read_hf_dataset(datasets.DatasetDict({"easy": rows, "hard": rows}))

    def test_what_cannot_be_loaded_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "nothing").mkdir()
        with pytest.raises(DataError, match="cannot load the Hugging Face data set"):
            read_hf_dataset(tmp_path / "nothing")


class TestOneEntry:
    def test_folders_and_csv_files_are_told_apart_with_and_without_prefix(
        self, tmp_path: Path
    ) -> None:
        fill(tmp_path / "photos", {"cat": 4, "dog": 4})
        rows = [["path", "label"]] + [[f"photos/cat/{i}.png", "cat"] for i in range(4)]
        listed = write_rows(tmp_path / "list.csv", rows)
        template = "a drawing of a {}."
        for source in (tmp_path / "photos", f"folder:{tmp_path / 'photos'}"):
            assert load_samples(source, template=template).num_classes == 2
        for source in (listed, f"csv:{listed}"):
            assert load_samples(source, template=template).template == template

    def test_anything_else_is_refused_with_the_choices(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"neither a folder nor a \.csv file.*hf:REPO"):
            load_samples(tmp_path / "gone")
