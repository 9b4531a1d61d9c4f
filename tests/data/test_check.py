"""The data root is described truthfully: what is there, what is missing, what to do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mma_adapter.data import DATASETS, check_root, find_own_sources, import_splits, load_dataset
from mma_adapter.data.check import DatasetFinding, differences_of, recognise_layout
from mma_adapter.errors import ConfigError, DataError


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def only(root: Path, name: str) -> DatasetFinding:
    (finding,) = check_root(root, [name])
    return finding


def test_every_data_set_of_the_fake_root_is_read_and_its_sizes_compared(data_root: Path) -> None:
    findings = check_root(data_root)
    assert [finding.name for finding in findings] == list(DATASETS)
    for finding in findings:
        full = load_dataset(finding.name, data_root, shots=-1)
        assert finding.status == "differs"  # the fake root is small
        assert finding.found is not None
        assert finding.found.test == len(full.test)
        assert finding.found.classes == full.num_classes
        if not DATASETS[finding.name].test_only:
            assert finding.found.train == len(full.train)
            base = load_dataset(finding.name, data_root, classes="base")
            assert finding.found.base_test == len(base.test)
        assert any(problem.startswith("test: found") for problem in finding.problems)


def test_published_sizes_add_up() -> None:
    for spec in DATASETS.values():
        if spec.sizes.base_test is not None and spec.sizes.novel_test is not None:
            assert spec.sizes.base_test + spec.sizes.novel_test == spec.sizes.test


def test_equal_sizes_make_a_complete_data_set(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only(data_root, "dtd").found
    assert found is not None
    assert differences_of(found, found) == []
    monkeypatch.setitem(DATASETS, "dtd", replace(DATASETS["dtd"], sizes=found))
    finding = only(data_root, "dtd")
    assert (finding.status, finding.problems, finding.advice) == ("complete", (), ())


def test_an_empty_root_has_nothing(tmp_path: Path) -> None:
    findings = check_root(tmp_path)
    assert {finding.status for finding in findings} == {"absent"}
    assert str(tmp_path / "caltech-101") in findings[1].problems[0]


@pytest.mark.parametrize(
    ("kept_as", "name"),
    [
        ("Caltech101", "caltech101"),
        ("flowers-102", "oxford_flowers"),
        ("oxford-iiit-pet", "oxford_pets"),
        ("ILSVRC2012", "imagenet"),
        ("imagenet-r", "imagenet_r"),
    ],
)
def test_a_folder_under_another_name_is_recognised(tmp_path: Path, kept_as: str, name: str) -> None:
    (tmp_path / kept_as).mkdir()
    finding = only(tmp_path, name)
    assert finding.status == "absent"
    assert finding.advice == (f"rename {tmp_path / kept_as} to {DATASETS[name].folder}",)


def test_missing_files_are_named_with_their_place(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "fgvc_aircraft", tmp_path / "fgvc_aircraft")
    for name in ("variants.txt", "images_variant_val.txt"):
        (tmp_path / "fgvc_aircraft" / name).unlink()
    finding = only(tmp_path, "fgvc_aircraft")
    assert finding.status == "incomplete"
    assert [p.split("/")[-1] for p in finding.problems] == [
        "variants.txt is missing",
        "images_variant_val.txt is missing",
    ]


def test_without_its_split_file_a_data_set_is_told_both_ways_out(
    data_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_root / "dtd", tmp_path / "dtd")
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    advice = " ".join(only(tmp_path, "dtd").advice)
    assert "mma-adapter data splits" in advice
    assert "--own-split" in advice


def test_a_missing_picture_is_a_problem(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "dtd", tmp_path / "dtd")
    load_dataset("dtd", tmp_path).test[0].path.unlink()
    finding = only(tmp_path, "dtd")
    assert finding.status == "incomplete"
    assert "1 of " in finding.problems[0]


class TestOtherLayouts:
    def test_kaggles_cars_are_usable_as_a_folder(self, tmp_path: Path) -> None:
        inner = tmp_path / "stanford_cars" / "car_data" / "car_data"
        for part in ("train", "test"):
            for car in ("Acura RL Sedan 2012", "Audi R8 Coupe 2012"):
                put(inner / part / car / "00001.jpg")
        finding = only(tmp_path, "stanford_cars")
        assert finding.status == "incomplete"
        assert any(f"folder:{inner}" in text for text in finding.advice)
        assert load_dataset(f"folder:{inner}").num_classes == 2

    def test_doubled_folders_are_to_be_moved_up(self, tmp_path: Path) -> None:
        cars = tmp_path / "stanford_cars"
        put(cars / "cars_train" / "cars_train" / "00001.jpg")
        advice = only(tmp_path, "stanford_cars").advice
        inner = cars / "cars_train" / "cars_train"
        assert f"move what is in {inner} one level up, into {cars / 'cars_train'}" in advice

    def test_an_archive_one_level_too_deep_is_to_be_moved(self, tmp_path: Path) -> None:
        put(tmp_path / "dtd" / "dtd-r1.0.1" / "images" / "banded" / "1.jpg")
        advice = only(tmp_path, "dtd").advice
        dtd = tmp_path / "dtd"
        assert f"move {dtd / 'dtd-r1.0.1' / 'images'} to {dtd / 'images'}" in advice

    def test_class_folders_in_the_wrong_place_are_to_be_moved(self, tmp_path: Path) -> None:
        for name in ("banded", "blotchy"):
            put(tmp_path / "dtd" / name / "1.jpg")
        target = tmp_path / "dtd" / "images"
        assert f"move the class folders into {target}" in only(tmp_path, "dtd").advice

    @pytest.mark.parametrize("inner", ["", "data"])
    def test_parquet_files_are_usable_as_a_hugging_face_data_set(
        self, tmp_path: Path, inner: str
    ) -> None:
        folder = tmp_path / "food-101" / inner
        folder.mkdir(parents=True)
        (folder / "train-00000-of-00001.parquet").write_bytes(b"")
        advice = only(tmp_path, "food101").advice
        assert any(f"hf:{tmp_path / 'food-101'}" in text for text in advice)

    def test_own_folders_beside_the_published_ones_are_found(self, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            put(tmp_path / "photos" / name / "1.jpg")
            put(tmp_path / "parted" / "train" / name / "1.jpg")
            put(tmp_path / "dtd" / name / "1.jpg")
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "x.parquet").write_bytes(b"")
        put(tmp_path / "loose" / "1.jpg")
        assert find_own_sources(tmp_path) == {
            tmp_path / "parted": f"folder:{tmp_path / 'parted'}",
            tmp_path / "photos": f"folder:{tmp_path / 'photos'}",
            tmp_path / "rows": f"hf:{tmp_path / 'rows'}",
        }
        assert recognise_layout(tmp_path / "loose") is None


class TestImport:
    def test_split_files_land_in_their_places_and_are_read_there(
        self, data_root: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(data_root / "dtd", tmp_path / "root" / "dtd")
        split = tmp_path / "root" / "dtd" / "split_zhou_DescribableTextures.json"
        (tmp_path / "downloads" / "deep").mkdir(parents=True)
        shutil.move(split, tmp_path / "downloads" / "deep" / split.name)

        (done,) = import_splits(tmp_path / "downloads", tmp_path / "root")
        assert (done.name, done.target, done.status) == ("dtd", split, "copied")
        assert "published 2,820" in done.remark
        expected = load_dataset("dtd", data_root)
        assert load_dataset("dtd", tmp_path / "root").split_hash() == expected.split_hash()

        (again,) = import_splits(tmp_path / "downloads", tmp_path / "root")
        assert again.status == "present"

    def test_another_file_in_the_place_is_kept(self, data_root: Path, tmp_path: Path) -> None:
        target = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
        target.parent.mkdir()
        target.write_text("mine")
        (refused,) = import_splits(data_root / "dtd", tmp_path)
        assert (refused.status, target.read_text()) == ("refused", "mine")

    def test_a_broken_split_file_is_refused_and_not_copied(self, tmp_path: Path) -> None:
        source = tmp_path / "in" / "split_zhou_EuroSAT.json"
        source.parent.mkdir()
        rows = [["a/1.jpg", 0, "a"], ["b/1.jpg", 0, "b"]]
        source.write_text(json.dumps({"train": rows, "val": [], "test": []}))
        (refused,) = import_splits(source.parent, tmp_path / "root")
        assert refused.status == "refused"
        assert "two names" in refused.remark
        assert not (tmp_path / "root").exists()

    def test_a_folder_without_split_files_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"split_zhou_Caltech101\.json"):
            import_splits(tmp_path, tmp_path)


def test_unknown_names_and_roots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cifar'; pass one of imagenet"):
        check_root(tmp_path, ["cifar"])
    with pytest.raises(DataError, match="there is no folder"):
        check_root(tmp_path / "gone")
