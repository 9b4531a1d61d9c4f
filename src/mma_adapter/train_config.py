"""`TrainConfig`: how to train; the paper's recipe where nothing else is said.

Source: the authors' `vit_b16_ep5.yaml` and Dassl 0.6.3: SGD with momentum, a cosine that changes
once per epoch, five epochs, batches of 16, random resized crops and flips.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from .classifier import TEMPLATE
from .errors import ConfigError
from .schedules import Schedule

OptimizerName = Literal["sgd", "adamw"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. The defaults are the paper's recipe.

    Args:
        lr: Full learning rate.
        epochs: Passes over the pictures.
        batch_size: Pictures per step; a last batch that is not full is dropped unless it is the
            only one.
        optimizer: `"sgd"` or `"adamw"`.
        momentum: Of SGD.
        weight_decay: Of either optimiser.
        schedule: Shape of the learning rate over the epochs.
        template: Prompt template or templates with `{}` for the class name.
        crop_scale: Smallest and largest area of the random crop, as a share of the picture's.
        flip: Mirror half of the pictures.
        seed: Seed of data order, crops and flips.
        precision: `"bf16"` runs forward and loss in bfloat16, `"auto"` does so where a CUDA device
            has it in hardware; weights stay as they are.
        num_workers: Processes that prepare pictures; None is up to 8 beside a GPU, 0 on the CPU.
        cache_bytes: Memory for decoded pictures.
        compile: Compile the model with `torch.compile`.
        skip_bad: Leave unreadable pictures out instead of stopping.
        check_progress: Evaluate the training pictures before and after, and raise if training has
            made them worse.

    Raises:
        ConfigError: A value is out of range.
    """

    lr: float = 0.0015
    epochs: int = 5
    batch_size: int = 16
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    template: str | tuple[str, ...] = TEMPLATE
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    seed: int = 1
    precision: Precision = "auto"
    num_workers: int | None = None
    cache_bytes: int = 2 * 2**30
    compile: bool = False
    skip_bad: bool = False
    check_progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", get_args(OptimizerName)),
            ("precision", get_args(Precision)),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(map(repr, choices))
                raise ConfigError(f"{name}={getattr(self, name)!r}; pass one of {known}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("cache_bytes", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r}; pass a whole number, {least} or more")
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(f"num_workers={self.num_workers!r}; pass 0 or more, or None")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value!r}; pass a finite number, 0 or more")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"crop_scale={self.crop_scale}; pass two shares, 0 < low <= high <= 1"
            )
