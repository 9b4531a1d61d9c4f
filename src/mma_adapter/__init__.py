"""The Multi-Modal Adapter (MMA, CVPR 2024) for Hugging Face CLIP-like models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .adapter import MultiModalAdapter, rescale
from .config import MMAConfig
from .errors import (
    ConfigError,
    DataError,
    MMAError,
    StorageError,
    TrainingError,
    UnsupportedHostError,
)
from .injection import (
    delete_adapter,
    disable_mma,
    inject_mma,
    merge_and_unload,
    print_trainable_parameters,
    remove_mma,
    set_adapter,
)
from .peft_hook import register_with_peft

if TYPE_CHECKING:
    from .baking import bake
    from .classifier import FewShotClassifier
    from .encoding import FastPaths
    from .loading import load_mma
    from .official import read_official, write_official
    from .peft_bridge import MMAPeftConfig
    from .training import TrainConfig, fit

__version__ = "0.1.0"

# Imported on first use: these need transformers or an extra, and imports take seconds.
_LAZY = {
    "bake": "baking",
    "FastPaths": "encoding",
    "FewShotClassifier": "classifier",
    "MMAPeftConfig": "peft_bridge",
    "TrainConfig": "training",
    "fit": "training",
    "load_mma": "loading",
    "read_official": "official",
    "write_official": "official",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_peft()

__all__ = [
    "ConfigError",
    "DataError",
    "FastPaths",
    "FewShotClassifier",
    "MMAConfig",
    "MMAError",
    "MMAPeftConfig",
    "MultiModalAdapter",
    "StorageError",
    "TrainConfig",
    "TrainingError",
    "UnsupportedHostError",
    "bake",
    "delete_adapter",
    "disable_mma",
    "fit",
    "inject_mma",
    "load_mma",
    "merge_and_unload",
    "print_trainable_parameters",
    "read_official",
    "remove_mma",
    "rescale",
    "set_adapter",
    "write_official",
]
