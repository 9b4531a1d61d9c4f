"""The demo's tasks: fixed parts, halves of the classes, pictures drawn when asked for."""

import pickle
from collections import Counter
from pathlib import Path

import pytest

from mma_adapter.data import few_shot, load_samples, open_image
from mma_adapter.demo import export_folder, icon_dataset, load_icons, photographed_objects
from mma_adapter.errors import DataError


def test_the_objects_have_sixteen_train_and_four_val_pictures_a_class_and_the_rest_is_test() -> (
    None
):
    objects = photographed_objects()
    assert objects.num_classes == 60
    assert objects.classnames == sorted(objects.classnames)
    assert set(Counter(s.label for s in objects.train).values()) == {16}
    assert set(Counter(s.label for s in objects.val).values()) == {4}
    assert len(objects.train) + len(objects.val) + len(objects.test) == 1970
    assert len(objects.test) == 770
    assert set(Counter(s.label for s in objects.test)) == set(range(60))


def test_no_picture_is_in_two_parts() -> None:
    for dataset in (photographed_objects(), icon_dataset()):
        paths = [s.path for part in (dataset.train, dataset.val, dataset.test) for s in part]
        assert len(set(paths)) == len(paths)


def test_base_and_novel_are_the_alphabetical_halves() -> None:
    everything = photographed_objects().classnames
    base, novel = (photographed_objects(classes=half) for half in ("base", "novel"))
    assert base.classnames == everything[:30]
    assert novel.classnames == everything[30:]
    assert {s.label for s in novel.test} == set(range(30))


def test_the_parts_do_not_depend_on_seed_strength_shots_or_the_other_classes() -> None:
    first, second = photographed_objects("strong", seed=1), photographed_objects("mild", seed=2)
    assert [s.path for s in first.test] == [s.path for s in second.test]
    four, _ = few_shot(first.train, first.val, 4, seed=1)
    assert not {s.path for s in four} & {s.path for s in first.test}
    everywhere = {s.path for s in icon_dataset().test}
    assert {s.path for s in first.test} <= everywhere


def test_another_seed_photographs_the_same_icons_anew() -> None:
    one, two = (photographed_objects(seed=seed).test[7] for seed in (1, 2))
    again = photographed_objects(seed=1).test[7]
    assert one.path == two.path
    assert open_image(one).tobytes() == open_image(again).tobytes()
    assert open_image(one).tobytes() != open_image(two).tobytes()


def test_a_sample_survives_pickling_for_a_data_loader_in_another_process() -> None:
    sample = photographed_objects("mild").train[0]
    copy = pickle.loads(pickle.dumps(sample))
    assert open_image(copy).tobytes() == open_image(sample).tobytes()


def test_all_plain_icons_make_a_data_set_of_218_classes() -> None:
    icons = icon_dataset()
    assert icons.num_classes == 218
    assert len(icons.train) + len(icons.val) + len(icons.test) == 6812
    assert open_image(icons.test[0]).size == (48, 48)


def test_an_unknown_topic_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'weapons'.*body and health, devices"):
        icon_dataset("weapons")


def test_the_exported_folder_reads_back_as_the_same_classes_and_pictures(tmp_path: Path) -> None:
    assert export_folder(tmp_path / "objects", "mild") == 1970
    dataset = load_samples(tmp_path / "objects")
    assert [name.replace("_", " ") for name in dataset.classnames] == (
        photographed_objects().classnames
    )
    sample = photographed_objects("mild").test[0]
    written = open_image(tmp_path / "objects" / sample.path)
    assert written.tobytes() == open_image(sample).tobytes()


def test_plain_icons_are_exported_byte_for_byte(tmp_path: Path) -> None:
    export_folder(tmp_path, None)
    icon = next(icon for icon in load_icons() if icon.topic == "objects")
    name = f"{icon.family}--{icon.icon}.png"
    assert (tmp_path / icon.classname.replace(" ", "_") / name).read_bytes() == icon.png


def test_an_export_never_mixes_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        export_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
