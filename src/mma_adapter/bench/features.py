"""Image features that do not change are computed once, in memory and, on request, on disk.

The key of a set of features is a hash over everything they depend on: the host's weights, the
transform, the data set and the list of pictures with sizes and times of their files. The file holds
nothing else, so that any process may write it and the last one wins.

Shapes: B pictures, E size of the joint space.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MEMORY_BYTES = 2**30
"""Features above this total are kept on disk only."""


class FeatureStore:
    """Keeps features (B, E) by key.

    Args:
        folder: Where to keep them across processes; None keeps them in memory only.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._kept: dict[str, Tensor] = {}

    def get(self, key: Sequence[str], compute: Callable[[], Tensor]) -> Tensor:
        """Return the features of `key`, computed only where they are not kept.

        Args:
            key: Everything the features depend on, as texts.
            compute: Computes them.
        """
        name = hashlib.sha256("\0".join([torch.__version__, *key]).encode()).hexdigest()
        if name in self._kept:
            return self._kept[name]
        features = self._read(name)
        if features is None:
            features = compute()
            self._write(name, features)
        size = sum(t.nbytes for t in self._kept.values()) + features.nbytes
        if size <= MEMORY_BYTES:
            self._kept[name] = features
        return features

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def _read(self, name: str) -> Tensor | None:
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError, OSError):  # damaged: it is only a cache
            return None

    def _write(self, name: str, features: Tensor) -> None:
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        try:
            save_file({"features": features.contiguous()}, temporary)
            os.replace(temporary, path)  # whole or not at all
        finally:
            Path(temporary).unlink(missing_ok=True)
