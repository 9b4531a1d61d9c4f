"""Opening pictures from files and memory, naming those that fail, and class lists."""

import io
from pathlib import Path

import pytest
from PIL import Image

from mma_adapter.data import (
    Dataset,
    Sample,
    classnames_of,
    find_unreadable,
    open_image,
)
from mma_adapter.errors import DataError

RED = Image.new("RGB", (6, 4), (200, 30, 30))


def encoded(image: Image.Image = RED) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "source",
    [RED, encoded(), lambda: RED, encoded],
    ids=["image", "bytes", "returns image", "returns bytes"],
)
def test_pictures_in_memory_open_without_a_file(source: object) -> None:
    image = open_image(Sample("icons/red", 0, "red", image=source))  # type: ignore[arg-type]
    assert (image.mode, image.tobytes()) == ("RGB", RED.tobytes())


def test_a_file_opens_as_rgb_and_its_exif_rotation_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("L", (6, 4), 128).save(path, exif=exif)
    assert open_image(path).size == (6, 4)
    assert open_image(Sample(path, 0, "x")).mode == "RGB"


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.jpg.*--skip-bad"):
        open_image(path)


def test_unreadable_pictures_are_listed_with_reasons_in_order(tmp_path: Path) -> None:
    good, empty, cut, gone = (tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png"))
    good.write_bytes(encoded())
    empty.write_bytes(b"")
    cut.write_bytes(encoded(Image.effect_noise((64, 64), 90))[:-300])
    samples = [Sample(path, 0, "x") for path in (gone, good, cut, empty)]
    bad = find_unreadable(samples)
    assert [sample.path for sample, _ in bad] == [gone, cut, empty]
    assert "No such file" in bad[0][1]
    assert "truncated" in bad[1][1]


def test_a_path_given_as_text_becomes_a_path_and_samples_compare_by_value() -> None:
    assert Sample("a/b.png", 1, "cat").path == Path("a/b.png")  # type: ignore[arg-type]
    assert Sample(Path("a"), 1, "cat", image=RED) == Sample(Path("a"), 1, "cat")
    assert len({Sample(Path("a"), 1, "cat"), Sample(Path("a"), 1, "cat")}) == 1


def test_class_names_stand_in_label_order_and_may_repeat() -> None:
    samples = [Sample(Path("x"), 1, "missile"), Sample(Path("y"), 0, "missile")]
    assert classnames_of(samples) == ["missile", "missile"]


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        ([(0, "cat"), (0, "dog")], "label 0 carries two names, 'cat' and 'dog'"),
        ([(0, "cat"), (2, "dog")], "no picture with label 1"),
        ([(-1, "cat"), (0, "dog")], "label -1 is negative"),
    ],
)
def test_contradictory_labels_are_refused(labelled: list[tuple[int, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classnames_of([Sample(Path("x"), *pair) for pair in labelled])


class TestDataset:
    cat, dog = Sample(Path("/r/c.png"), 0, "cat"), Sample(Path("/r/d.png"), 1, "dog")

    def test_classes_come_from_the_training_pictures(self) -> None:
        dataset = Dataset("pets", [self.dog, self.cat], [], [self.dog])
        assert (dataset.classnames, dataset.num_classes) == (["cat", "dog"], 2)

    def test_a_test_class_that_training_lacks_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"d\.png of the test part has label 1.*absent"):
            Dataset("pets", [self.cat], [], [self.dog])

    def test_a_label_with_another_name_in_test_is_refused(self) -> None:
        with pytest.raises(DataError, match="'lion', but in the train part that label is 'cat'"):
            Dataset("pets", [self.cat], [], [Sample(Path("l"), 0, "lion")])

    def test_a_data_set_without_training_pictures_is_refused(self) -> None:
        with pytest.raises(DataError, match="no training pictures"):
            Dataset("pets", [], [], [self.cat])

    def test_the_split_hash_follows_content_and_order_but_not_the_root(self) -> None:
        def hashed(root: str, names: list[str], test: list[str]) -> str:
            pictures = [Sample(Path(root, name), 0, "cat") for name in names]
            tests = [Sample(Path(root, name), 0, "cat") for name in test]
            return Dataset("pets", pictures, [], tests, root=Path(root)).split_hash()

        first = hashed("/a", ["1", "2"], ["3"])
        assert first == hashed("/somewhere/else", ["1", "2"], ["3"])
        assert len({first, hashed("/a", ["2", "1"], ["3"]), hashed("/a", ["1"], ["2", "3"])}) == 3

    def test_the_class_list_hash_follows_names_and_order(self) -> None:
        both = Dataset("pets", [self.cat, self.dog], [], [])
        swapped = Dataset(
            "pets", [Sample(Path("c"), 1, "cat"), Sample(Path("d"), 0, "dog")], [], []
        )
        assert both.classnames_hash() != swapped.classnames_hash()
        assert len(both.classnames_hash()) == 64
