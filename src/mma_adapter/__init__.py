"""The Multi-Modal Adapter (MMA, CVPR 2024) for Hugging Face CLIP-like models."""

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

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "MMAConfig",
    "MMAError",
    "MultiModalAdapter",
    "StorageError",
    "TrainingError",
    "UnsupportedHostError",
    "delete_adapter",
    "disable_mma",
    "inject_mma",
    "merge_and_unload",
    "print_trainable_parameters",
    "remove_mma",
    "rescale",
    "set_adapter",
]
