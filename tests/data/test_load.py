"""Every list of every published data set equals the reference implementation's, in order."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mma_adapter.data import DATASETS, Sample, load_dataset
from mma_adapter.data.load import draw
from mma_adapter.data.readers import missing_files
from mma_adapter.errors import ConfigError, DataError

WITH_SPLIT_FILE = [name for name, spec in DATASETS.items() if spec.split_file]
TEST_ONLY = [name for name, spec in DATASETS.items() if spec.test_only]


def listed(samples: list[Sample], root: Path) -> list[list[Any]]:
    return [[s.path.relative_to(root).as_posix(), s.label, s.classname] for s in samples]


def settings_of(key: str) -> dict[str, Any]:
    values = dict(item.split("=") for item in key.split(","))
    classes = {"new": "novel"}.get(values["classes"], values["classes"])
    return {"shots": int(values["shots"]), "seed": int(values["seed"]), "classes": classes}


def test_the_catalogue_has_the_fifteen_data_sets_of_the_reference(golden: dict[str, Any]) -> None:
    assert {name: spec.title for name, spec in DATASETS.items()} == golden["names"]


@pytest.mark.parametrize("name", DATASETS)
def test_all_settings_give_the_reference_lists(
    name: str, data_root: Path, golden: dict[str, Any]
) -> None:
    runs = golden["runs"][name]
    assert len(runs) == 54
    for key, run in runs.items():
        dataset = load_dataset(name, data_root, **settings_of(key))
        for part in ("train", "val", "test"):
            expected = golden["lists"][run[part]] if run[part] else []
            assert listed(getattr(dataset, part), data_root) == expected, (key, part)
        assert dataset.classnames == run["classnames"], key
        assert dataset.num_classes == run["num_classes"], key
        assert dataset.split_origin == "published"
        assert dataset.template == DATASETS[name].template


def copy_without_split(name: str, data_root: Path, to: Path) -> Path:
    """A root with one data set, its split file removed (pictures are hard links)."""
    spec = DATASETS[name]
    shutil.copytree(data_root / spec.folder, to / spec.folder, copy_function=os.link)
    (to / spec.folder / str(spec.split_file)).unlink()
    return to


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_raw_annotations_divided_by_a_running_stream_equal_the_reference(
    name: str, data_root: Path, tmp_path: Path, golden: dict[str, Any]
) -> None:
    root = copy_without_split(name, data_root, tmp_path)
    spec = DATASETS[name]
    folder = root / spec.folder
    for key, run in golden["without_split_file"][name].items():
        chosen = settings_of(key)
        rng = random.Random(chosen["seed"])
        assert spec.read_raw is not None
        parts = spec.read_raw(folder, folder / spec.image_dir, rng)
        drawn = draw(spec, parts, chosen["shots"], rng, chosen["classes"])
        for part in ("train", "val", "test"):
            expected = golden["lists"][run[part]]
            assert listed(getattr(drawn, part), root) == expected, (key, part)


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_an_own_split_is_asked_for_marked_and_the_same_for_every_seed(
    name: str, data_root: Path, tmp_path: Path, golden: dict[str, Any]
) -> None:
    root = copy_without_split(name, data_root, tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset(name, root)
    for hint in (str(DATASETS[name].split_file), "'Datasets'", "own_split=True", "--own-split"):
        assert hint in str(caught.value)

    own = [load_dataset(name, root, shots=16, seed=seed, own_split=True) for seed in (1, 2)]
    assert [dataset.split_origin for dataset in own] == ["own", "own"]
    assert own[0].test == own[1].test
    assert own[0].train != own[1].train
    run = golden["without_split_file"][name]["shots=-1,seed=1,classes=all"]
    assert listed(own[0].test, root) == golden["lists"][run["test"]]


def test_a_split_file_that_is_there_is_used_even_if_an_own_split_is_allowed(
    data_root: Path,
) -> None:
    assert load_dataset("dtd", data_root, own_split=True) == load_dataset("dtd", data_root)


@pytest.mark.parametrize("name", TEST_ONLY)
def test_variants_of_imagenet_have_no_val_and_ignore_shots_and_halves(
    name: str, data_root: Path
) -> None:
    dataset = load_dataset(name, data_root, shots=1, classes="base")
    assert dataset.val == []
    assert dataset.train == dataset.test
    assert dataset == load_dataset(name, data_root, shots=-1)


def test_a_root_of_another_seed_is_read_too(make_tree: Any, tmp_path: Path) -> None:
    make_tree.build(str(tmp_path), 7)
    for name in DATASETS:
        base, novel = (load_dataset(name, tmp_path, shots=2, classes=c) for c in ("base", "novel"))
        everything = load_dataset(name, tmp_path, shots=2)
        assert missing_files(everything.train + everything.test) == []
        if not DATASETS[name].test_only:
            assert base.classnames + novel.classnames == everything.classnames
            assert len(base.test) + len(novel.test) == len(everything.test)


class TestOwnPictures:
    @pytest.fixture
    def source(self, data_root: Path) -> str:
        return f"folder:{data_root / 'eurosat' / '2750'}"

    def test_a_folder_takes_part_in_every_setting(self, source: str) -> None:
        everything = load_dataset(source, shots=4, seed=2)
        base, novel = (
            load_dataset(source, shots=4, seed=2, classes=half) for half in ("base", "novel")
        )
        assert everything.num_classes == 10
        assert [s.path for s in base.train + novel.train] == [s.path for s in everything.train]
        assert {s.classname for s in base.test}.isdisjoint(s.classname for s in novel.test)
        assert everything.name == source
        assert everything.split_origin == "own"

    def test_class_names_and_template_may_be_given(self, source: str) -> None:
        names = [f"land {i}" for i in range(10)]
        dataset = load_dataset(source, classnames=names, template="a map of {}.")
        assert (dataset.classnames, dataset.template) == (names, "a map of {}.")


class TestRefusals:
    def test_an_unknown_name_lists_the_known_ones(self, data_root: Path) -> None:
        with pytest.raises(ConfigError, match=r"'cifar10'; pass one of imagenet.*folder:PATH"):
            load_dataset("cifar10", data_root)

    def test_a_published_data_set_needs_a_root_that_holds_it(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"needs root, the folder that holds dtd/"):
            load_dataset("dtd")
        with pytest.raises(DataError, match=r"there is no folder .*caltech-101"):
            load_dataset("caltech101", tmp_path)

    def test_published_class_names_are_fixed(self, data_root: Path) -> None:
        with pytest.raises(ConfigError, match="leave classnames out"):
            load_dataset("dtd", data_root, classnames=["x"])

    @pytest.fixture
    def textures(self, data_root: Path, tmp_path: Path) -> Path:
        shutil.copytree(data_root / "dtd", tmp_path / "dtd")
        return tmp_path / "dtd"

    def test_missing_pictures_are_counted_and_named(self, textures: Path) -> None:
        first = load_dataset("dtd", textures.parent, shots=-1).train[0].path
        first.unlink()
        with pytest.raises(DataError, match=f"dtd: 1 of .* not there, first {first}"):
            load_dataset("dtd", textures.parent)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            ("[]", "is no split file"),
            ('{"train": [], "val": []}', "is no split file"),
            ('{"train": [["a.jpg", "x"]], "val": [], "test": []}', "is no split file"),
            ('{"train": [["../../a.jpg", 0, "x"]], "val": [], "test": []}', "points outside"),
            ('{"train": [["/etc/a.jpg", 0, "x"]], "val": [], "test": []}', "points outside"),
        ],
    )
    def test_a_wrong_split_file_is_refused(self, textures: Path, text: str, message: str) -> None:
        (textures / "split_zhou_DescribableTextures.json").write_text(text)
        with pytest.raises(DataError, match=message):
            load_dataset("dtd", textures.parent)

    def test_a_label_with_two_names_is_refused(self, textures: Path) -> None:
        path = textures / "split_zhou_DescribableTextures.json"
        name = load_dataset("dtd", textures.parent).classnames[0]
        path.write_text(path.read_text().replace(f'"{name}"', '"another"', 1))
        with pytest.raises(DataError, match="label 0"):
            load_dataset("dtd", textures.parent, shots=-1)

    def test_a_folder_without_a_class_name_is_refused(
        self, data_root: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(data_root / "imagenet-sketch", tmp_path / "imagenet-sketch")
        (tmp_path / "imagenet-sketch" / "images" / "n99999999").mkdir()
        with pytest.raises(DataError, match="'n99999999', which is not in the list"):
            load_dataset("imagenet_sketch", tmp_path)

    def test_a_broken_matlab_file_is_named(self, data_root: Path, tmp_path: Path) -> None:
        shutil.copytree(data_root / "oxford_flowers", tmp_path / "oxford_flowers")
        (tmp_path / "oxford_flowers" / "split_zhou_OxfordFlowers.json").unlink()
        (tmp_path / "oxford_flowers" / "imagelabels.mat").write_bytes(b"x" * 200)
        with pytest.raises(DataError, match=r"imagelabels\.mat as a MATLAB file"):
            load_dataset("oxford_flowers", tmp_path, own_split=True)

    @pytest.mark.parametrize("gone", ["variants.txt", "images_variant_val.txt"])
    def test_a_missing_official_list_is_named(
        self, data_root: Path, tmp_path: Path, gone: str
    ) -> None:
        shutil.copytree(data_root / "fgvc_aircraft", tmp_path / "fgvc_aircraft")
        (tmp_path / "fgvc_aircraft" / gone).unlink()
        with pytest.raises(DataError, match=gone):
            load_dataset("fgvc_aircraft", tmp_path)
