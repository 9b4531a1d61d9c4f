"""The tokenizer and the image processor that belong to a model in hand."""

from typing import Any

import transformers
from torch import nn

from .errors import ConfigError


def load_tokenizer(model: nn.Module) -> Any:
    """Return the tokenizer of the repository or folder `model` was loaded from.

    Raises:
        ConfigError: The model does not say where it comes from, or there is no tokenizer there.
    """
    return _load(model, transformers.AutoTokenizer, "tokenizer")


def load_image_processor(model: nn.Module) -> Any:
    """Return the image processor of the repository or folder `model` was loaded from.

    Raises:
        ConfigError: The model does not say where it comes from, or there is no processor there.
    """
    return _load(model, transformers.AutoImageProcessor, "image_processor")


def _load(model: nn.Module, auto: Any, what: str) -> Any:
    path = getattr(model, "name_or_path", None)
    if not path:
        raise ConfigError(
            f"the {type(model).__name__} was not loaded with from_pretrained, so its {what} is "
            f"unknown; pass {what}=..."
        )
    revision = getattr(getattr(model, "config", None), "_commit_hash", None)
    try:
        return auto.from_pretrained(path, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"no {what} in {path}: {error}; pass {what}=...") from error
