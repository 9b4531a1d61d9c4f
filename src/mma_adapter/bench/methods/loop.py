"""How methods that learn by gradient descent are trained: `train_module`, set up in one place."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...data import Sample, TrainTransform
from ...errors import ConfigError
from ...pictures import keep_decoded
from ...runs import use_bf16
from ...train_config import OptimizerName, Precision, TrainConfig
from ...training import train_module

DECODED_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How weights are trained; the defaults are MMA's base-to-novel recipe.

    A cosine over the epochs, shuffled batches, random crops and flips; see `TrainConfig`.

    Args:
        optimizer: `"sgd"` or `"adamw"`.
        lr: Learning rate of the first epoch.
        momentum: Of SGD.
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW.
        epochs: Passes over the shots.
        batch_size: Pictures per step, over all devices.
        crop_scale: Smallest and largest area of the random crops, as a share of the picture's.
        precision: Of the training: `"fp32"`, `"bf16"` (autocast), or `"auto"`: bf16 on GPUs that
            have it. Tests always run in fp32.

    Raises:
        ConfigError: A value is out of range.
    """

    optimizer: OptimizerName = "sgd"
    lr: float = 0.0015
    momentum: float = 0.9
    weight_decay: float = 5e-4
    epochs: int = 5
    batch_size: int = 16
    crop_scale: tuple[float, float] = (0.08, 1.0)
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if len(self.crop_scale) != 2:
            raise ConfigError(f"crop_scale={self.crop_scale}; pass two shares, such as 0.08,1")
        self.train_config(0)  # it checks the values

    def train_config(self, seed: int) -> TrainConfig:
        """Return these settings for one process of a run."""
        return TrainConfig(
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            # Under `accelerate launch` every process makes a part of each batch.
            batch_size=max(1, self.batch_size // int(os.environ.get("WORLD_SIZE", "1")))
            if self.batch_size > 0
            else self.batch_size,
            crop_scale=self.crop_scale,
            precision=self.precision,
            seed=seed,
            check_progress=False,  # a poor variant is a result here, not an accident
        )

    def resolved_precision(self, device: torch.device) -> Literal["fp32", "bf16"]:
        """The number format of a training on `device`, for records."""
        return "bf16" if use_bf16(self.precision, device) else "fp32"


def train(
    module: nn.Module,
    samples: Sequence[Sample],
    config: LoopConfig,
    transform: TrainTransform,
    *,
    seed: int,
) -> tuple[float, ...]:
    """Train the weights of `module` that require a gradient, in place, and return the losses.

    Args:
        module: Called with `pixel_values` (B, 3, S, S) and `labels` (B,); returns an output with
            `loss`.
        samples: Labelled pictures.
        config: How to train.
        transform: Crops of training pictures.
        seed: Seed of the order, the crops and the flips.

    Raises:
        ConfigError: No weight requires a gradient.
        TrainingError: The loss became infinite or no number.
    """
    decoded = keep_decoded(samples, DECODED_BYTES)
    module.eval()  # hosts of this kind have no dropout in use; nothing may change between modes
    history, _ = train_module(module, decoded, config.train_config(seed), transform, callbacks=())
    return tuple(record.loss for record in history)
