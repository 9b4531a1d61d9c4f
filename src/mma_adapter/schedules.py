"""Learning-rate schedules: constant within an epoch, changed between epochs.

Source: Dassl 0.6.3, `dassl/optim/lr_scheduler.py`, as the few-shot methods configure it. MMA uses
the cosine without warm-up; CoOp, MaPLe and others put constant warm-up epochs before it.

Epochs count from 0. `learning_rate` is a pure function, so a schedule has no state to go wrong
when a run is resumed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import ConfigError

Decay = Literal["cosine", "step"]
Warmup = Literal["constant", "linear"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The shape of a schedule; the rate it starts from and its length are given when it is used.

    Args:
        decay: `"cosine"` to 0 over all epochs, or `"step"`: times `gamma` at each milestone.
        warmup_epochs: Epochs of warm-up before the decay.
        warmup: `"constant"`: `warmup_lr` throughout; `"linear"`: `warmup_lr` in the first epoch,
            then in proportion to the epoch's number.
        warmup_lr: Rate of the warm-up, per step of the optimiser.
        recount: The decay counts its epochs from the end of the warm-up. A cosine then stops short
            of 0, because it is still as long as the whole run. Otherwise the cosine goes on as if
            it had run from the start, scaled so that it begins at the full rate.
        milestones: Epochs of the decay at which `"step"` acts.
        gamma: Factor of `"step"`.

    Raises:
        ConfigError: A value is out of range.
    """

    decay: Decay = "cosine"
    warmup_epochs: int = 0
    warmup: Warmup = "constant"
    warmup_lr: float = 1e-5
    recount: bool = True
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("decay", self.decay, get_args(Decay)),
            ("warmup", self.warmup, get_args(Warmup)),
        ):
            if value not in choices:
                raise ConfigError(f"{name}={value!r}; pass one of {', '.join(map(repr, choices))}")
        if not isinstance(self.warmup_epochs, int) or self.warmup_epochs < 0:
            raise ConfigError(f"warmup_epochs={self.warmup_epochs!r}; pass a whole number from 0")
        if not 0 <= self.warmup_lr < math.inf:
            raise ConfigError(f"warmup_lr={self.warmup_lr!r}; pass a finite number, 0 or more")


def learning_rate(epoch: int, lr: float, epochs: int, schedule: Schedule | None = None) -> float:
    """Return the learning rate in force during one epoch.

    Args:
        epoch: Number of the epoch, from 0; `epochs` gives the rate after the last one.
        lr: Full rate.
        epochs: Number of epochs of the run.
        schedule: Shape; the paper's cosine by default.
    """
    schedule = schedule or Schedule()
    warm = schedule.warmup_epochs
    if epoch < warm:
        if schedule.warmup == "constant" or epoch == 0:
            return schedule.warmup_lr
        return lr * epoch / warm
    start = 0 if schedule.recount else warm
    done = epoch - warm + start
    if schedule.decay == "step":
        return lr * schedule.gamma ** sum(done >= milestone for milestone in schedule.milestones)
    # At the start of a decay that was not counted anew the cosine is below 1 already.
    return lr * _cosine(done, epochs) / (_cosine(start, epochs) or 1.0)


def _cosine(epoch: int, epochs: int) -> float:
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def make_scheduler(
    optimizer: Optimizer, epochs: int, steps_per_epoch: int = 1, schedule: Schedule | None = None
) -> LambdaLR:
    """Return a scheduler that sets the rate of every parameter group from the group's own `lr`.

    Args:
        optimizer: Its groups hold the full rates.
        epochs: Number of epochs of the run.
        steps_per_epoch: How often `step()` is called in an epoch; the rate changes with the last.
        schedule: Shape; the paper's cosine by default.
    """

    def factor_of(full: float) -> Callable[[int], float]:
        def factor(step: int) -> float:
            rate = learning_rate(step // steps_per_epoch, full, epochs, schedule)
            return rate / full if full else 0.0

        return factor

    return LambdaLR(optimizer, [factor_of(group["lr"]) for group in optimizer.param_groups])
