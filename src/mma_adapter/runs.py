"""One training run of any classifier: set up, interrupt, resume, finish."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from .checkpoints import describe_run, find_checkpoint, latest_checkpoint, remove_checkpoints
from .data.samples import Sample
from .data.transforms import TrainTransform
from .errors import ConfigError, TrainingError
from .evaluation import modes_kept
from .pictures import Pictures
from .train_config import Precision, TrainConfig
from .trainer import EpochTrainer, ProgressBar, global_random_state_kept, interrupts_between_steps

CHECKPOINTS = "checkpoints"  # folder below `output_dir`


@dataclass(frozen=True)
class StepRecord:
    """One step of training.

    Args:
        step: Number of the step, from 1.
        epoch: Epochs done after it; 1.5 is in the middle of the second.
        loss: Mean cross-entropy of its batch.
        learning_rate: Rate it was made with.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float


class TrainingInterrupted(KeyboardInterrupt):
    """Training was interrupted; `checkpoint` is where it can go on, if anywhere."""

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


def train_module(
    module: nn.Module,
    samples: Sequence[Sample],
    config: TrainConfig,
    transform: TrainTransform,
    *,
    output_dir: Path | str | None = None,
    resume: bool = False,
    callbacks: Sequence[transformers.TrainerCallback] | None = None,
    run: dict[str, Any] | None = None,
    keep_checkpoints: bool = False,
) -> tuple[tuple[StepRecord, ...], float]:
    """Train the trainable parameters of any classifier, in place.

    Args:
        module: Its forward takes `pixel_values` and `labels` and returns an output with `loss`.
        samples: Training pictures.
        config: How to train; `template`, `skip_bad` and `check_progress` do not act here.
        transform: Training transform; the crop's scale and the flip are taken from `config`.
        output_dir: Where to keep checkpoints, in a folder `checkpoints` that goes at the end.
        resume: Go on from the last checkpoint in `output_dir`, if there is one.
        callbacks: Callbacks of the Trainer; None shows a bar on a terminal, () nothing.
        run: What else makes this run this run; compared when it is resumed.
        keep_checkpoints: Leave the folder `checkpoints`, so that `resume` returns at once.

    Returns:
        One record per step, and the seconds spent.

    Raises:
        ConfigError: Nothing is trainable, or `output_dir` holds another run.
        TrainingError: The loss is not finite.
        TrainingInterrupted: Ctrl-C; the message says how to go on.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(
            f"no parameter of this {type(module).__name__} requires gradients, so there is nothing "
            "to train; call requires_grad_() on those that should be trained"
        )
    run = {**describe_run(samples, config), **(run or {})}
    transform = dataclasses.replace(
        transform, scale=config.crop_scale, flip_probability=0.5 if config.flip else 0.0
    )
    folder = None if output_dir is None else Path(output_dir) / CHECKPOINTS
    if resume and folder is None:
        raise ConfigError("resume=True needs output_dir=..., where the checkpoints are")
    checkpoint = None if folder is None else find_checkpoint(folder, resume, run)
    with contextlib.ExitStack() as stack:
        stack.enter_context(global_random_state_kept())
        stack.enter_context(modes_kept(module))
        scratch = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        args = _trainer_arguments(config, scratch, save=folder is not None)
        trainer = EpochTrainer(
            module,
            args,
            Pictures(samples, transform, config.seed),
            _make_optimizer(parameters, config),
            config.schedule,
            bf16=use_bf16(config.precision, args.device),
            compile_module=config.compile,
            run=run,
            callbacks=[ProgressBar()] if callbacks is None else list(callbacks),
        )
        started = time.perf_counter()
        try:
            with interrupts_between_steps(trainer):
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except KeyboardInterrupt as error:
            raise _interrupted(trainer, folder) from error
        except TrainingError:
            remove_checkpoints(folder)  # it would end the same way again
            raise
        seconds = time.perf_counter() - started
    if not keep_checkpoints:
        remove_checkpoints(folder)
    records: list[Any] = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    return tuple(
        StepRecord(e["step"], e["epoch"], e["loss"], e["learning_rate"]) for e in records
    ), seconds


def _trainer_arguments(
    config: TrainConfig, folder: Path, *, save: bool
) -> transformers.TrainingArguments:
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        max_grad_norm=0.0,
        seed=config.seed,
        save_strategy="epoch" if save else "no",
        save_total_limit=2,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    # DataParallel would copy the layers but not the adapter; one process is one device here.
    args._n_gpu = min(1, args.n_gpu)
    workers = config.num_workers
    if workers is None:
        workers = 0 if args.device.type == "cpu" else min(8, torch.get_num_threads())
    args.dataloader_num_workers = workers
    return args


def _make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether a training on `device` runs under bfloat16 autocast."""
    if precision != "auto":
        return precision == "bf16"
    # Older devices emulate it, which is slower than float32.
    return device.type == "cuda" and (
        torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _interrupted(trainer: EpochTrainer, folder: Path | None) -> TrainingInterrupted:
    done = f"training was interrupted after step {trainer.state.global_step}"
    if trainer.state.max_steps:
        done += f" of {trainer.state.max_steps}"
    if folder is None:
        hint = "pass output_dir=... to be able to resume next time"
        return TrainingInterrupted(f"{done} and is lost; {hint}", None)
    checkpoint = trainer.save_now() or latest_checkpoint(folder)
    if checkpoint is None:
        return TrainingInterrupted(f"{done}, before the first checkpoint", None)
    return TrainingInterrupted(
        f"{done}; it is saved in {checkpoint}, go on with the same call and resume=True",
        checkpoint,
    )
