"""Adapters on disk and on the Hub: save, push, and strict, bounded reading.

`adapter_config.json` holds the shape, `adapter_model.safetensors` the adapter's state dict as it
is, `README.md` the model card. Names and keys are PEFT's, so that its tools find the files.

The pair is replaced as one. The new config waits as `adapter_config.json.new`; its hash stands in
the metadata of the new weights; renaming the weights is the commit. Whoever finds a waiting config
with the hash that the weights name was interrupted after the commit and takes it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .adapter import MultiModalAdapter
from .card import CardFields, write_card
from .config import MMAConfig
from .errors import StorageError
from .hub import fetch, hub_errors, hub_id

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"

_MAX_CONFIG_BYTES = 16 * 2**20  # class names make it long, nothing makes it longer than this
_DTYPES = ("F64", "F32", "F16", "BF16")
_PEFT_PREFIX = "base_model.model.mma."
# What PEFT's own classes write beside the method's settings.
_PEFT_KEYS = ("peft_type", "task_type", "inference_mode", "auto_mapping", "peft_version")


def save_adapter(
    adapter: MultiModalAdapter,
    directory: str | Path,
    *,
    base_model: str | None = None,
    **card_fields: Any,
) -> None:
    """Write config, weights and card; behind `MultiModalAdapter.save_pretrained`.

    Config and weights are replaced together: killed at any moment, the folder still holds the old
    adapter or the new one. With sharded weights (FSDP) every process must call it; one writes.

    Args:
        adapter: What to save.
        directory: Folder to write to, made if missing.
        base_model: Name of the base model to record instead of the one the adapter knows.
        card_fields: See `card.CardFields`: `license`, `datasets`, `language`, `results`.

    Raises:
        StorageError: The folder holds a complete model or cannot be written to, or the weights
            are not finite.
    """
    fields, tensors = CardFields(**card_fields), _gather(adapter)
    if tensors is not None:
        base = base_model or adapter.config.base_model_name_or_path
        _save(Path(directory), _with_base(adapter.config, base), tensors, fields)


def push_adapter(
    adapter: MultiModalAdapter,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a Multi-Modal Adapter",
    base_model: str | None = None,
    **card_fields: Any,
) -> CommitInfo | None:
    """Upload config, weights and card; behind `MultiModalAdapter.push_to_hub`.

    A base model that is a local path is left out of the uploaded config; pass `base_model` to name
    it as others can find it. What people wrote into the card on the Hub stays.

    Args:
        adapter: What to upload.
        repo_id: Where to: `"you/pets-mma"`; the repository is made if missing.
        private: Make a new repository private; None is the account's default.
        token: Access token; None takes the one stored by `hf auth login`.
        revision: Branch to commit to, made if missing.
        create_pr: Open a pull request instead of committing.
        commit_message: First line of the commit's message.
        base_model: Name of the base model to record.
        card_fields: As for `save_adapter`.

    Returns:
        What huggingface_hub knows of the commit; None on processes that do not write.

    Raises:
        StorageError: The Hub refused, cannot be reached, or the weights are not finite.
    """
    fields, tensors = CardFields(**card_fields), _gather(adapter)
    if tensors is None:
        return None
    config = _with_base(
        adapter.config, base_model or hub_id(adapter.config.base_model_name_or_path)
    )
    api = HfApi(token=token)
    with hub_errors(repo_id, revision), tempfile.TemporaryDirectory() as folder:
        visibility: dict[str, Any] = {} if private is None else {"private": private}
        repo_id = api.create_repo(repo_id, exist_ok=True, **visibility).repo_id
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with contextlib.suppress(EntryNotFoundError):
            card = Path(api.hf_hub_download(repo_id, CARD, revision=revision))
            Path(folder, CARD).write_bytes(card.read_bytes())
        _save(Path(folder), config, tensors, fields, repo_id)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )


def read_adapter(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> MultiModalAdapter:
    """Read an adapter; behind `MultiModalAdapter.from_pretrained`.

    Nothing is unpickled, and nothing is allocated before the file's header has been found to hold
    exactly the weights the config describes. Half-precision weights become float32.

    Args:
        path_or_repo: A folder, or a repository on the Hub.
        revision: Branch, tag or commit on the Hub.
        token: Access token for private repositories.
        local_files_only: Take the copy in the cache and ask nobody.

    Raises:
        StorageError: Files are missing, damaged, or contradict each other; the Hub refused.
        ConfigError: The config holds unknown or impossible values, or a newer format.
    """
    folder = Path(path_or_repo).expanduser()
    config_path, weights_path = (
        _locate(folder)
        if folder.exists()
        else fetch(
            str(path_or_repo),
            (CONFIG, WEIGHTS),
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
    )
    config = _read_config(config_path)
    adapter = MultiModalAdapter(config, device="meta")  # draws no random numbers
    adapter.load_state_dict(_read_weights(weights_path, config), assign=True)
    return adapter


def _gather(adapter: MultiModalAdapter) -> dict[str, Tensor] | None:
    """Return the weights on the CPU; None on processes that are not to write sharded ones."""
    state = adapter.state_dict()
    if any(hasattr(tensor, "full_tensor") for tensor in state.values()):  # every process takes part
        state = {key: tensor.full_tensor() for key, tensor in state.items()}
        if torch.distributed.get_rank() != 0:
            return None
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    _check_finite(tensors, "the adapter")
    return tensors


def _with_base(config: MMAConfig, base: str | None) -> MMAConfig:
    if base == config.base_model_name_or_path:
        return config
    return dataclasses.replace(config, base_model_name_or_path=base, revision=None)


def _save(
    folder: Path,
    config: MMAConfig,
    tensors: dict[str, Tensor],
    fields: CardFields,
    repo_id: str | None = None,
) -> None:
    if (folder / "config.json").exists():
        raise StorageError(
            f"{folder} holds a complete model (config.json), and transformers would take the "
            "adapter for a part of it; save into a folder of its own"
        )
    data = json.dumps(_to_json(config), indent=2, sort_keys=True).encode() + b"\n"
    metadata = {"format": "pt", "config_sha256": hashlib.sha256(data).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _commit(folder, data, _to_bytes(tensors, metadata))
        write_card(folder / CARD, config, fields, repo_id=repo_id)
    except OSError as error:
        raise StorageError(f"cannot save to {folder}: {error}; pass a writable folder") from error


def _to_json(config: MMAConfig) -> dict[str, Any]:
    from . import __version__  # the package's front page imports this module

    known = (config.base_fingerprint or {}).get("model_class")
    mapping = {"base_model_class": known, "parent_library": "transformers"} if known else None
    return {
        "peft_type": "MMA",
        "task_type": None,
        "inference_mode": True,
        "auto_mapping": mapping,
        "mma_version": __version__,
        **config.to_dict(),
    }


def _to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialise with the metadata sorted, so that equal adapters are equal files."""
    data = safetensors.torch.save(tensors, metadata)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def _commit(folder: Path, config: bytes, weights: bytes) -> None:
    """Replace config and weights so that a kill at any point leaves the old or the new pair."""
    new_config, new_weights = folder / f"{CONFIG}.new", folder / f"{WEIGHTS}.new"
    if _config_of(folder) == new_config:  # finish an interrupted save before its config is lost
        os.replace(new_config, folder / CONFIG)
    try:
        _write(new_config, config)
        _write(new_weights, weights)
    except BaseException:
        new_config.unlink(missing_ok=True)
        new_weights.unlink(missing_ok=True)
        raise
    os.replace(new_weights, folder / WEIGHTS)
    _sync(folder)
    os.replace(new_config, folder / CONFIG)
    _sync(folder)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _config_of(folder: Path) -> Path:
    """Return the config that belongs to the weights in `folder`; see the module's docstring."""
    waiting = folder / f"{CONFIG}.new"
    with contextlib.suppress(OSError, SafetensorError), safe_open(folder / WEIGHTS, "pt") as file:
        named = (file.metadata() or {}).get("config_sha256")
        if named and hashlib.sha256(_read_bounded(waiting)).hexdigest() == named:
            return waiting
    return folder / CONFIG


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise StorageError(
            f"{path} is larger than {_MAX_CONFIG_BYTES:,} bytes, no adapter's config"
        )
    return data


def _locate(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        raise StorageError(
            f"{folder} is a file; pass the folder with {CONFIG} and {WEIGHTS}, or use "
            "read_official for a checkpoint of the authors' code"
        )
    config, weights = _config_of(folder), folder / WEIGHTS
    if missing := [path.name for path in (config, weights) if not path.is_file()]:
        raise StorageError(
            f"{folder} has no {' and no '.join(missing)}; pass a folder written by "
            "model.mma.save_pretrained"
        )
    return config, weights


def _read_config(path: Path) -> MMAConfig:
    try:
        data = json.loads(_read_bounded(path))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path} is not readable JSON: {error}; save the adapter again"
        ) from error
    if not isinstance(data, dict) or data.get("peft_type", "MMA") != "MMA":
        kind = data.get("peft_type") if isinstance(data, dict) else type(data).__name__
        raise StorageError(f'{path} has peft_type {kind!r}, expected "MMA"; load it with PEFT')
    mapping = data.get("auto_mapping")
    settings = {k: v for k, v in data.items() if k not in (*_PEFT_KEYS, "mma_version")}
    config = MMAConfig.from_dict(settings)
    known = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(known, str):
        marked = {**(config.base_fingerprint or {}), "model_class": known}
        config = dataclasses.replace(config, base_fingerprint=marked)
    return config


def _read_weights(path: Path, config: MMAConfig) -> dict[str, Tensor]:
    expected = config.shapes()
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            foreign = bool(names) and all(name.startswith(_PEFT_PREFIX) for name in names)
            stored = {n.removeprefix(_PEFT_PREFIX) if foreign else n: n for n in names}
            _check_names(path, set(expected), set(stored))
            for name, shape in expected.items():
                entry = file.get_slice(stored[name])
                found, dtype = tuple(entry.get_shape()), entry.get_dtype()
                if found != shape or dtype not in _DTYPES:
                    raise StorageError(
                        f"{path}: {name} is {dtype} {found}, {CONFIG} says {shape} in one of "
                        f"{', '.join(_DTYPES)}; the two files belong to different adapters"
                    )
            tensors = {name: file.get_tensor(stored[name]) for name in expected}
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} is damaged or cut off: {error}; save or download the adapter again"
        ) from error
    # At the paper's learning rates half precision would swallow further training.
    tensors = {name: t.float() if t.itemsize < 4 else t for name, t in tensors.items()}
    _check_finite(tensors, str(path))
    return tensors


def _check_names(path: Path, expected: set[str], found: set[str]) -> None:
    parts = [
        f"{what}: {', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (("missing", expected - found), ("unexpected", found - expected))
        if names
    ]
    if parts:
        raise StorageError(
            f"{path} does not hold the weights {CONFIG} describes; {'; '.join(parts)}"
        )


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            bad = tensor[~tensor.isfinite()][0].item()
            raise StorageError(
                f"{where}: {name} holds {bad}, expected finite numbers; train again, with a lower "
                "learning rate or without fp16"
            )
