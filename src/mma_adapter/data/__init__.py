"""Pictures, labels and splits: the published few-shot data sets and everybody's own folders."""

from .catalog import DATASETS, DatasetSpec, Sizes
from .check import check_root, find_own_sources, import_splits
from .csvfile import read_csv
from .dataset import DEFAULT_TEMPLATE, Dataset
from .fewshot import (
    base_classes,
    few_shot,
    novel_classes,
    sample_shots,
    select_classes,
    split_samples,
)
from .folders import read_image_folder
from .hub import read_hf_dataset
from .load import load_dataset
from .published import read_published_shots
from .samples import Sample, classnames_of, find_unreadable, open_image
from .sources import load_samples
from .transforms import (
    CLIP_MEAN,
    CLIP_STD,
    ProcessorTransform,
    TestTransform,
    TrainTransform,
    from_processor,
    normalise,
    to_uint8,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "DATASETS",
    "DEFAULT_TEMPLATE",
    "Dataset",
    "DatasetSpec",
    "ProcessorTransform",
    "Sample",
    "Sizes",
    "TestTransform",
    "TrainTransform",
    "base_classes",
    "check_root",
    "classnames_of",
    "few_shot",
    "find_own_sources",
    "find_unreadable",
    "from_processor",
    "import_splits",
    "load_dataset",
    "load_samples",
    "normalise",
    "novel_classes",
    "open_image",
    "read_csv",
    "read_hf_dataset",
    "read_image_folder",
    "read_published_shots",
    "sample_shots",
    "select_classes",
    "split_samples",
    "to_uint8",
]
