"""Checkpoints of the authors' code, in and out.

Source: github.com/ZjjConan/VLM-MultiModalAdapter, trainers/mmadapter.py. A checkpoint
(`adapter_learner/model.pth.tar-5`) is a dictionary with the weights under `state_dict`, named
`text_adapter.I.down.0.weight` and so on; I is the layer, counted from 1, in both towers alike. The
buffers `token_embedding` and `tokenized_prompts` belong to the classes of the training run and are
left out. The factor `scale` is not in the file; it stands in the run's YAML.
"""

import contextlib
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import MultiModalAdapter
from .config import MMAConfig
from .errors import ConfigError, StorageError

_BUFFERS = ("token_embedding", "tokenized_prompts")
_GROUPS = ("text_adapter", "visual_adapter", "shared_adapter")
# Ours: theirs. The order is that of the authors' modules.
_NAMES = {
    "text_down": ("text_adapter", "down.0"),
    "text_up": ("text_adapter", "up"),
    "vision_down": ("visual_adapter", "down.0"),
    "vision_up": ("visual_adapter", "up"),
    "shared": ("shared_adapter", "0"),
}


def read_official(path: str | Path, scale: float) -> MultiModalAdapter:
    """Read a checkpoint written by the authors' code.

    Args:
        path: The file, such as `output/adapter_learner/model.pth.tar-5`.
        scale: Factor on the branches' output, `TRAINER.MMADAPTER.ADAPTER_SCALE` of the run: 0.001
            in the authors' base-to-novel runs. The file does not hold it.

    Returns:
        The adapter in float32. Its config knows no base model: pass one to `load_mma` after
        saving, or attach it where it belongs.

    Raises:
        StorageError: The file is no such checkpoint, holds anything but plain tensors (nothing is
            executed), or its weights are incomplete, inconsistent or not finite.
        ConfigError: `scale` is out of range.
    """
    state = _read_state(Path(path))
    layers = _layers(state)
    down = "text_adapter", "visual_adapter"
    widths = [_size(state, f"{group}.{layers[0]}.down.0.weight", 1) for group in down]
    config = MMAConfig(
        text_width=widths[0],
        vision_width=widths[1],
        start_layer=layers[0],
        end_layer=layers[-1],
        bottleneck_dim=_size(state, f"text_adapter.{layers[0]}.down.0.weight", 0),
        scale=scale,
        pairing="index",  # the authors' numbering; equal to "top" for towers of equal depth
        model_type="clip",
    )
    adapter = MultiModalAdapter(config, device="meta")
    adapter.load_state_dict(_translate(state, config), assign=True)
    return adapter


def write_official(adapter: MultiModalAdapter, path: str | Path) -> None:
    """Write a checkpoint that the authors' code loads; note `adapter.scale` beside it.

    Args:
        adapter: An adapter on both towers with a tied shared projection, as in the paper.
        path: The file to write; the authors' code looks for `adapter_learner/model.pth.tar-N`.

    Raises:
        ConfigError: The authors' format cannot express the adapter.
        StorageError: The file cannot be written.
    """
    config, path = adapter.config, Path(path)
    if len(config.towers) != 2 or config.shared != "tied":
        raise ConfigError(
            f"towers={config.towers!r}, shared={config.shared!r}; the authors' checkpoints hold "
            'towers=("text", "vision") with shared="tied" only; use save_pretrained'
        )
    first = {tower: config.layer_of(tower, config.start_layer) for tower in config.towers}
    if first["text"] != first["vision"]:
        raise ConfigError(
            f"the adapter pairs text layer {first['text']} with vision layer {first['vision']}; "
            'the authors\' checkpoints pair equal numbers: train with pairing="index", or use '
            "save_pretrained"
        )
    own = adapter.state_dict()
    state = OrderedDict((theirs, own[ours].detach().cpu()) for ours, theirs in _keys(config))
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The authors' loader reads `epoch` too, and newer versions of it `val_result`.
        torch.save({"state_dict": state, "epoch": 0, "val_result": None}, fresh)
        os.replace(fresh, path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise StorageError(f"cannot write {path}: {error}; pass a writable path") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}; pass the path of model.pth.tar-N") from error
    except pickle.UnpicklingError as error:
        raise StorageError(
            f"{path} holds more than tensors, or is no checkpoint; nothing of it was executed. "
            f"Pass a file written by the authors' MMA code ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a damaged zip or pickle can fail in any way
        raise StorageError(f"{path} is no readable checkpoint: {error}") from error
    state: Any = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise StorageError(f'{path} holds a {type(state).__name__}; expected a "state_dict"')
    state = {key.removeprefix("module."): value for key, value in state.items()}
    for key in _BUFFERS:
        state.pop(key, None)
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise StorageError(f"{path}: {key} is no tensor of floating-point numbers")
        if not value.isfinite().all():
            raise StorageError(f"{path}: {key} holds numbers that are not finite; train it again")
    return {key: value.float() for key, value in state.items()}


def _layers(state: dict[str, Tensor]) -> range:
    """Return the adapted layers, counted from 1, after checking that all three groups agree."""
    found: dict[str, set[int]] = {group: set() for group in _GROUPS}
    for key in state:
        match = re.match(rf"({'|'.join(_GROUPS)})\.(\d{{1,4}})\.", key)
        if not match:
            raise StorageError(f"unknown key {key!r}; MMA checkpoints hold {', '.join(_GROUPS)}")
        found[match[1]].add(int(match[2]))
    numbers = sorted(found["text_adapter"])
    if not numbers or any(layers != set(numbers) for layers in found.values()):
        listed = "; ".join(f"{group}: {sorted(layers)}" for group, layers in found.items())
        raise StorageError(f"the groups adapt different layers, or none at all: {listed}")
    if numbers[0] == 0:
        raise StorageError(
            "the checkpoint has an adapter at index 0, before the first layer, which this library "
            "does not have; train with ADAPTER_START of 1 or more"
        )
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise StorageError(f"the adapted layers {numbers} have gaps; expected a range")
    return range(numbers[0], numbers[-1] + 1)


def _size(state: dict[str, Tensor], key: str, dim: int) -> int:
    if key not in state or state[key].dim() != 2:
        raise StorageError(f"{key} is missing or no matrix; the checkpoint is incomplete")
    return state[key].shape[dim]


def _keys(config: MMAConfig) -> Iterator[tuple[str, str]]:
    """Yield each weight's name here and in the authors' code, in the order of their modules."""
    for group in _GROUPS:
        for pair in config.pairs:
            for ours, (theirs, part) in _NAMES.items():
                if theirs == group:
                    for kind in ("weight", "bias"):
                        yield f"{ours}.{pair}.{kind}", f"{group}.{pair}.{part}.{kind}"


def _translate(state: dict[str, Tensor], config: MMAConfig) -> dict[str, Tensor]:
    names, shapes = dict(_keys(config)), config.shapes()
    missing = sorted(set(names.values()) - state.keys())
    unknown = sorted(state.keys() - set(names.values()))
    if missing or unknown:
        raise StorageError(
            f"not a complete MMA checkpoint; missing: {missing[:8]}, unknown: {unknown[:8]}"
        )
    for ours, theirs in names.items():
        if tuple(state[theirs].shape) != shapes[ours]:
            raise StorageError(
                f"{theirs} has the shape {tuple(state[theirs].shape)}, the first adapted layer "
                f"asks for {shapes[ours]}"
            )
    return {ours: state[theirs] for ours, theirs in names.items()}
