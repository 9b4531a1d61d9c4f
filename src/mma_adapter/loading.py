"""Put a saved adapter onto its base model, after checking that it is the right one."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from .backbones import fingerprint
from .config import MMAConfig
from .errors import StorageError
from .injection import attach
from .storage import read_adapter

# An adapter cannot work on a model that differs here, and works badly on one that differs there.
_MUST_AGREE = (
    *("model_type", "text_width", "vision_width", "text_depth", "vision_depth"),
    *("projection_dim", "patch_size"),
)
_SHOULD_AGREE = ("text_hidden_act", "vision_hidden_act", "image_size", "sha256")


def load_mma(
    path_or_repo: str | Path,
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    name: str = "default",
    is_trainable: bool = False,
    strict_base: bool = False,
) -> nn.Module:
    """Load an adapter onto `model`, or onto the base model it names, and make it the active one.

    If anything fails the model stays as it was.

    Args:
        path_or_repo: A folder, or a repository on the Hub.
        model: The model to adapt, in place; None loads the one named in the config.
        revision: Branch, tag or commit of the adapter on the Hub.
        token: Access token for private repositories.
        local_files_only: Take the copies in the cache and ask nobody.
        name: Name of this adapter among several on one model.
        is_trainable: Go on training; otherwise the model is put into evaluation mode and the
            adapter's weights get no gradients.
        strict_base: Refuse a base model of other weights or another name; otherwise warn.

    Returns:
        The model, with the adapter as `model.mma`.

    Raises:
        StorageError: The files cannot be read, or belong to another base model.
        ConfigError: The adapter does not fit the model, or `name` is taken.
        UnsupportedHostError: The model belongs to no supported family.
    """
    adapter = read_adapter(
        path_or_repo, revision=revision, token=token, local_files_only=local_files_only
    )
    if model is None:
        model = _load_base(adapter.config, token, local_files_only)
    check_base(adapter.config, model, strict_base)
    adapter.to(next(model.parameters()).device)
    attach(model, adapter, name=name, freeze=True, train=is_trainable)
    return model if is_trainable else model.eval()


def _load_base(config: MMAConfig, token: str | bool | None, local_only: bool) -> nn.Module:
    import transformers  # needed only where a host is loaded by name

    name = config.base_model_name_or_path
    if name is None:
        raise StorageError("the adapter does not name its base model; pass it as model=")
    try:
        name_of_class = str((config.base_fingerprint or {}).get("model_class"))
        known = getattr(transformers, name_of_class, None)
        is_model = isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)
        loader: Any = known if is_model else transformers.AutoModel
        options: dict[str, Any] = {"token": token, "local_files_only": local_only}
        return loader.from_pretrained(name, revision=config.revision or "main", **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise StorageError(
            f"cannot load the adapter's base model {name!r}: {error}; pass it as model="
        ) from error


def check_base(config: MMAConfig, model: nn.Module, strict: bool) -> None:
    """Compare the model with the one the adapter was trained on, as far as both are known.

    Raises:
        StorageError: They differ in kind or size; with `strict`, in weights or name too, which is
            a warning otherwise.
    """
    saved = {"model_type": config.model_type, **(config.base_fingerprint or {})}
    saved["name"] = config.base_model_name_or_path
    found = {**fingerprint(model), "name": getattr(model, "name_or_path", None) or None}
    if any(
        (saved.get(w) is None) != (found.get(w) is None) for w in ("text_width", "vision_width")
    ):
        saved["sha256"] = None  # of other towers
    differing = [
        (key, f"{key} {saved[key]!r}, the model has {found[key]!r}")
        for key in (*_MUST_AGREE, *_SHOULD_AGREE, "name")
        if None not in (saved.get(key), found.get(key)) and saved[key] != found[key]
    ]
    if not differing:
        return
    fatal = strict or any(key in _MUST_AGREE for key, _ in differing)
    text = (
        f"the adapter was trained on a base model with {'; '.join(text for _, text in differing)}"
    )
    if fatal:
        raise StorageError(f"{text}; load it onto {saved['name'] or 'the model it was trained on'}")
    warnings.warn(f"{text}; results may differ", UserWarning, stacklevel=3)
