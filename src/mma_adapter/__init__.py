"""The Multi-Modal Adapter (MMA, CVPR 2024) for Hugging Face CLIP-like models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import MMAConfig
from .errors import (
    ConfigError,
    DataError,
    MMAError,
    StorageError,
    TrainingError,
    UnsupportedHostError,
)
from .peft_hook import register_with_peft

if TYPE_CHECKING:
    from .adapter import MultiModalAdapter, rescale
    from .baking import bake
    from .classifier import FewShotClassifier
    from .encoding import FastPaths
    from .injection import (
        delete_adapter,
        disable_mma,
        inject_mma,
        merge_and_unload,
        print_trainable_parameters,
        remove_mma,
        set_adapter,
    )
    from .loading import load_mma
    from .official import read_official, write_official
    from .peft_bridge import MMAPeftConfig as MMAPeftConfig
    from .training import TrainConfig, fit

__version__ = "0.1.0"

# Imported on first use: torch, transformers and the extras take seconds, and the command line's
# help needs none of them.
_LAZY = {
    "bake": "baking",
    "delete_adapter": "injection",
    "disable_mma": "injection",
    "FastPaths": "encoding",
    "FewShotClassifier": "classifier",
    "inject_mma": "injection",
    "merge_and_unload": "injection",
    "MMAPeftConfig": "peft_bridge",
    "MultiModalAdapter": "adapter",
    "print_trainable_parameters": "injection",
    "TrainConfig": "training",
    "fit": "training",
    "load_mma": "loading",
    "read_official": "official",
    "remove_mma": "injection",
    "rescale": "adapter",
    "set_adapter": "injection",
    "write_official": "official",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_peft()

# Without MMAPeftConfig, which needs an extra that `import *` may not ask for.
__all__ = [
    "ConfigError",
    "DataError",
    "FastPaths",
    "FewShotClassifier",
    "MMAConfig",
    "MMAError",
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
