"""The 15 data sets of the few-shot CLIP literature. A new one is one entry in `DATASETS`.

Layouts and templates are CoOp's; sizes are those of the CoOp appendix and of published logs.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import readers
from .dataset import DEFAULT_TEMPLATE
from .readers import Parts

Reader = Callable[[Path, Path], Parts]
RawReader = Callable[[Path, Path, random.Random], Parts]


@dataclass(frozen=True)
class Sizes:
    """Numbers of classes and pictures; None where a part does not exist."""

    classes: int
    train: int | None
    val: int | None
    test: int
    base_test: int | None = None
    novel_test: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where a data set lies below the data root, and how it is read.

    Args:
        name: Name to pass to `load_dataset`.
        title: Name in the papers' code.
        folder: Its folder below the root.
        image_dir: The pictures' folder below `folder`.
        split_file: The published split below `folder`, if there is one.
        files: Everything else that must be there, below `folder`.
        read: Reader of the official lists, for data sets without a split file.
        read_raw: Reader of the raw annotations, for an own split.
        template: CoOp's prompt pattern for this data set.
        sizes: The published sizes.
        aliases: Other names under which people keep the folder, lower case without punctuation.
        val_is_test: The val part is the test part (ImageNet); no shots are drawn from it.
        test_only: A variant of ImageNet: train is the test part, shots and halves do not apply.
    """

    name: str
    title: str
    folder: str
    image_dir: str
    split_file: str | None = None
    files: tuple[str, ...] = ()
    read: Reader | None = None
    read_raw: RawReader | None = None
    template: str = DEFAULT_TEMPLATE
    sizes: Sizes
    aliases: tuple[str, ...] = ()
    val_is_test: bool = False
    test_only: bool = False


_CALTECH_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
_EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}

_SPECS = (
    DatasetSpec(
        name="imagenet",
        title="ImageNet",
        folder="imagenet",
        image_dir="images",
        files=("classnames.txt", "images/train", "images/val"),
        read=readers.read_imagenet,
        sizes=Sizes(1000, 1_281_167, 50_000, 50_000, 25_000, 25_000),
        aliases=("imagenet1k", "ilsvrc2012", "ilsvrc"),
        val_is_test=True,
    ),
    DatasetSpec(
        name="caltech101",
        title="Caltech101",
        folder="caltech-101",
        image_dir="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        read_raw=partial(
            readers.split_class_folders,
            rename=_CALTECH_NAMES,
            ignore=("BACKGROUND_Google", "Faces_easy"),
        ),
        sizes=Sizes(100, 4_128, 1_649, 2_465, 1_549, 916),
        aliases=("caltech", "101objectcategories"),
    ),
    DatasetSpec(
        name="oxford_pets",
        title="OxfordPets",
        folder="oxford_pets",
        image_dir="images",
        split_file="split_zhou_OxfordPets.json",
        read_raw=readers.split_pets,
        template="a photo of a {}, a type of pet.",
        sizes=Sizes(37, 2_944, 736, 3_669, 1_881, 1_788),
        aliases=("pets", "oxfordiiitpet", "oxfordiiitpets"),
    ),
    DatasetSpec(
        name="stanford_cars",
        title="StanfordCars",
        folder="stanford_cars",
        image_dir="",  # paths in the split file start with cars_train/ or cars_test/
        split_file="split_zhou_StanfordCars.json",
        files=("cars_train", "cars_test"),
        read_raw=readers.split_cars,
        sizes=Sizes(196, 6_509, 1_635, 8_041, 4_002, 4_039),
        aliases=("cars", "cars196", "stanfordcarsdataset"),
    ),
    DatasetSpec(
        name="oxford_flowers",
        title="OxfordFlowers",
        folder="oxford_flowers",
        image_dir="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        read_raw=readers.split_flowers,
        template="a photo of a {}, a type of flower.",
        sizes=Sizes(102, 4_093, 1_633, 2_463, 1_053, 1_410),
        aliases=("flowers", "flowers102", "102flowers", "oxfordflowers102"),
    ),
    DatasetSpec(
        name="food101",
        title="Food101",
        folder="food-101",
        image_dir="images",
        split_file="split_zhou_Food101.json",
        read_raw=readers.split_class_folders,
        template="a photo of {}, a type of food.",
        sizes=Sizes(101, 50_500, 20_200, 30_300, 15_300, 15_000),
        aliases=("food",),
    ),
    DatasetSpec(
        name="fgvc_aircraft",
        title="FGVCAircraft",
        folder="fgvc_aircraft",
        image_dir="images",
        files=(
            "variants.txt",
            "images_variant_train.txt",
            "images_variant_val.txt",
            "images_variant_test.txt",
        ),
        read=readers.read_aircraft,
        template="a photo of a {}, a type of aircraft.",
        sizes=Sizes(100, 3_334, 3_333, 3_333, 1_666, 1_667),
        aliases=("aircraft", "fgvcaircraft2013b"),
    ),
    DatasetSpec(
        name="sun397",
        title="SUN397",
        folder="sun397",
        image_dir="SUN397",
        split_file="split_zhou_SUN397.json",
        read_raw=readers.split_sun397,
        sizes=Sizes(397, 15_880, 3_970, 19_850, 9_950, 9_900),
        aliases=("sun",),
    ),
    DatasetSpec(
        name="dtd",
        title="DescribableTextures",
        folder="dtd",
        image_dir="images",
        split_file="split_zhou_DescribableTextures.json",
        read_raw=readers.split_class_folders,
        template="{} texture.",
        sizes=Sizes(47, 2_820, 1_128, 1_692, 864, 828),
        aliases=("textures", "dtdr101"),
    ),
    DatasetSpec(
        name="eurosat",
        title="EuroSAT",
        folder="eurosat",
        image_dir="2750",
        split_file="split_zhou_EuroSAT.json",
        read_raw=partial(readers.split_class_folders, rename=_EUROSAT_NAMES),
        template="a centered satellite photo of {}.",
        sizes=Sizes(10, 13_500, 5_400, 8_100, 4_200, 3_900),
        aliases=("eurosatrgb",),
    ),
    DatasetSpec(
        name="ucf101",
        title="UCF101",
        folder="ucf101",
        image_dir="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        read_raw=readers.split_ucf101,
        template="a photo of a person doing {}.",
        sizes=Sizes(101, 7_639, 1_898, 3_783, 1_934, 1_849),
        aliases=("ucf", "ucf101midframes"),
    ),
    DatasetSpec(
        name="imagenetv2",
        title="ImageNetV2",
        folder="imagenetv2",
        image_dir="imagenetv2-matched-frequency-format-val",
        files=("classnames.txt",),
        read=readers.read_imagenet_v2,
        sizes=Sizes(1000, None, None, 10_000),
        aliases=("imagenetv2matchedfrequency", "imagenetv2matchedfrequencyformatval"),
        test_only=True,
    ),
    DatasetSpec(
        name="imagenet_sketch",
        title="ImageNetSketch",
        folder="imagenet-sketch",
        image_dir="images",
        files=("classnames.txt",),
        read=readers.read_imagenet_variant,
        sizes=Sizes(1000, None, None, 50_889),
        aliases=("sketch",),
        test_only=True,
    ),
    DatasetSpec(
        name="imagenet_a",
        title="ImageNetA",
        folder="imagenet-adversarial",
        image_dir="imagenet-a",
        files=("classnames.txt",),
        read=readers.read_imagenet_variant,
        sizes=Sizes(200, None, None, 7_500),
        test_only=True,
    ),
    DatasetSpec(
        name="imagenet_r",
        title="ImageNetR",
        folder="imagenet-rendition",
        image_dir="imagenet-r",
        files=("classnames.txt",),
        read=readers.read_imagenet_variant,
        sizes=Sizes(200, None, None, 30_000),
        test_only=True,
    ),
)

DATASETS = {spec.name: spec for spec in _SPECS}
