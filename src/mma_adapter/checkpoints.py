"""What a checkpoint of a training run holds, and whether a run may go on from it.

A checkpoint folder holds `trainable.safetensors` (the trainable weights, never the frozen host's),
`run.json` (what the run was asked to do), `optimizer.pt`, `scheduler.pt`, `rng_state.pth`, and last
`trainer_state.json`, which makes it complete.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data.samples import Sample
from .errors import ConfigError
from .train_config import TrainConfig

WEIGHTS_FILE, RUN_FILE, STATE_FILE = "trainable.safetensors", "run.json", "trainer_state.json"
OPTIMIZER_FILE, SCHEDULER_FILE, RNG_FILE = "optimizer.pt", "scheduler.pt", "rng_state.pth"

# Settings that change how fast a run goes, not where it goes.
_FREE = ("num_workers", "cache_bytes", "check_progress", "compile")


def describe_run(samples: Sequence[Sample], config: TrainConfig) -> dict[str, Any]:
    """Return all that decides where a run ends up."""
    pictures = hashlib.sha256()
    for sample in samples:
        pictures.update(f"{sample.path.name}\0{sample.label}\n".encode())
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE}
    return {**settings, "num_pictures": len(samples), "pictures_sha256": pictures.hexdigest()}


def save_weights(module: nn.Module, folder: Path, run: Mapping[str, Any]) -> None:
    """Write the trainable weights and the description of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trainable_weights(module), folder / WEIGHTS_FILE)
    (folder / RUN_FILE).write_text(json.dumps(run, indent=2))


def load_weights(module: nn.Module, folder: Path) -> None:
    """Read the trainable weights back, in place.

    Raises:
        ConfigError: The module trains other weights than the checkpoint holds.
    """
    saved = load_file(folder / WEIGHTS_FILE)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if different := sorted(saved.keys() ^ own.keys()):
        raise ConfigError(
            f"the checkpoint {folder} holds other weights than the model trains: "
            f"{', '.join(different[:3])}; resume with the model as it was injected, or start in "
            "another folder"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def trainable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require gradients, by name."""
    return {
        name: parameter.detach().contiguous()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint below `folder`; one that a kill cut short is not."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError):
            json.loads((path / STATE_FILE).read_text())
            if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
                found.append((int(match[1]), path))
    return max(found)[1] if found else None


def check_same_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Refuse to resume a run that was asked to do something else.

    Raises:
        ConfigError: Names the first difference.
    """
    saved = json.loads((checkpoint / RUN_FILE).read_text())
    for name, value in json.loads(json.dumps(run)).items():
        if saved.get(name) != value:
            raise ConfigError(
                f"the run in {checkpoint.parent} has {name}={saved.get(name)!r}, this one has "
                f"{name}={value!r}; resume with the same settings and data, or use another folder"
            )


def find_checkpoint(folder: Path, resume: bool, run: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, and refuse to mix two runs.

    Raises:
        ConfigError: `folder` holds another run, or one that should not be resumed.
    """
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        remove_checkpoints(folder)  # what a kill during the first checkpoint left
        return None
    if not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run; pass resume=True to go on with it, another "
            "output_dir, or remove that folder"
        )
    check_same_run(checkpoint, run)
    return checkpoint


def remove_checkpoints(folder: Path | None) -> None:
    """Remove the checkpoints of a finished run."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
