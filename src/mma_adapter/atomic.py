"""Two files that belong together, replaced as one.

The new config waits as `adapter_config.json.new`; its hash stands in the metadata of the new
weights; renaming the weights is the commit. Whoever finds a waiting config with the hash that the
weights name was interrupted after the commit and takes it.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import StorageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_MAX_CONFIG_BYTES = 16 * 2**20  # class names make it long, nothing makes it longer than this


def digest(config: bytes) -> str:
    """Return the hash by which weights name their config."""
    return hashlib.sha256(config).hexdigest()


def replace_pair(folder: Path, config: bytes, weights: bytes) -> None:
    """Replace both files so that a kill at any point leaves the old or the new pair.

    Args:
        folder: Where they stand.
        config: The bytes of the new config.
        weights: The new weights, with `digest(config)` as `config_sha256` in their metadata.

    Raises:
        OSError: A file cannot be written; the old pair stands.
    """
    new_config, new_weights = folder / f"{CONFIG}.new", folder / f"{WEIGHTS}.new"
    if config_of(folder) == new_config:  # finish an interrupted save before its config is lost
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


def config_of(folder: Path) -> Path:
    """Return the config that belongs to the weights in `folder`; see the module's docstring."""
    waiting = folder / f"{CONFIG}.new"
    with contextlib.suppress(OSError, SafetensorError), safe_open(folder / WEIGHTS, "pt") as file:
        named = (file.metadata() or {}).get("config_sha256")
        if named and digest(read_bounded(waiting)) == named:
            return waiting
    return folder / CONFIG


def read_bounded(path: Path) -> bytes:
    """Return the content of a config, unless it is too large to be one."""
    with path.open("rb") as file:
        data = file.read(_MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise StorageError(
            f"{path} is larger than {_MAX_CONFIG_BYTES:,} bytes, no adapter's config"
        )
    return data
