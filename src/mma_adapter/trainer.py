"""A thin `transformers.Trainer`: per-epoch schedule, exact resume, small checkpoints, loud failure.

The Trainer brings the loop, devices, and distribution. Changed here: the data order and the
schedule are pure functions of seed and step; a checkpoint holds the trainable weights, never the
host's; reading one never unpickles; nothing is printed.
"""

import contextlib
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .checkpoints import OPTIMIZER_FILE, RNG_FILE, SCHEDULER_FILE, load_weights, save_weights
from .errors import TrainingError
from .pictures import EpochBatches, Pictures, collate
from .schedules import Schedule, make_scheduler


class EpochTrainer(transformers.Trainer):
    """Train a classifier whose forward takes `pixel_values` and `labels` and returns a `loss`.

    Args:
        module: The classifier; its parameters that require gradients are trained.
        args: Arguments of the Trainer.
        pictures: Training pictures.
        optimizer: Made from the trainable parameters, with the full learning rate.
        schedule: Learning rates by epoch.
        bf16: Run forward and loss under bfloat16 autocast.
        compile_module: Run the module through `torch.compile`.
        run: What makes this run this run; saved with checkpoints and compared on resume.
        callbacks: Callbacks of the Trainer.
    """

    def __init__(
        self,
        module: nn.Module,
        args: transformers.TrainingArguments,
        pictures: Pictures,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        bf16: bool,
        compile_module: bool,
        run: Mapping[str, Any],
        callbacks: list[transformers.TrainerCallback],
    ) -> None:
        self.schedule, self.bf16, self.run = schedule, bf16, dict(run)
        self.interrupted, self.last_loss = False, float("nan")
        self._trained = [p for p in module.parameters() if p.requires_grad]
        # False while an optimiser step is under way: the weights are then of no step at all.
        self.is_consistent = True
        self._compiled = torch.compile(module) if compile_module else None
        super().__init__(
            model=module,
            args=args,
            train_dataset=pictures,
            data_collator=collate,
            optimizers=(optimizer, None),  # pyright: ignore
            callbacks=[_StepRecorder(self), *callbacks],
        )
        self._last_good = [p.detach().clone() for p in self._trained]  # on their device now
        # The one prints dictionaries to stdout, the other does so through its progress bar.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def get_train_dataloader(self) -> DataLoader:
        pictures: Any = self.train_dataset
        loader: Any = None

        def current_epoch() -> int:
            return self.state.global_step // len(loader)

        batches = EpochBatches(len(pictures), self._train_batch_size, pictures.seed, current_epoch)
        workers = self.args.dataloader_num_workers
        loader = self.accelerator.prepare(
            DataLoader(
                pictures,
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=self.args.device.type == "cuda",
            )
        )
        return loader

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        epochs = int(self.args.num_train_epochs)
        self.lr_scheduler = make_scheduler(
            optimizer or self.optimizer,  # pyright: ignore
            epochs,
            num_training_steps // epochs,
            self.schedule,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        kind = self.args.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bf16):
            outputs = (model if self._compiled is None else self._compiled)(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        # Finite losses can have gradients that are not. An infinite limit clips nothing.
        norm = nn.utils.clip_grad_norm_(self._trained, float("inf"))
        self.last_loss, norm = torch.stack([loss.float(), norm.float()]).tolist()
        if not np.isfinite([self.last_loss, norm]).all():
            self._copy(self._last_good, self._trained)
            self.model.zero_grad()  # pyright: ignore
            raise TrainingError(self._explain(norm))
        self._copy(self._trained, self._last_good)
        return loss

    @torch.no_grad()
    def _copy(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
        for old, new in zip(source, target, strict=True):
            new.copy_(old)

    def _explain(self, norm: float) -> str:
        rate = self.learning_rate
        adapter = getattr(getattr(self.model, "model", None), "mma", None)
        scale = "" if adapter is None else f", scale {adapter.scale:g}"
        smaller = "" if adapter is None else ", a smaller scale (model.mma.scale)"
        return (
            f"the loss is {self.last_loss} and the gradient's norm {norm} at step "
            f"{self.state.global_step + 1} of {self.state.max_steps} (learning rate {rate:g}"
            f"{scale}); the model has the last weights with a finite loss; try a lower learning "
            f'rate, such as lr={rate / 10:g}{smaller} or precision="fp32"'
        )

    @property
    def learning_rate(self) -> float:
        """Rate of the step under way, or of the next one."""
        return self.optimizer.param_groups[-1]["lr"]  # pyright: ignore

    # Checkpoints: what the Trainer would write and read, without the host and without pickle.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_weights(self.model, Path(output_dir or self.args.output_dir), self.run)  # pyright: ignore

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, Path(resume_from_checkpoint))  # pyright: ignore

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            for name, owner in (
                (OPTIMIZER_FILE, self.optimizer),
                (SCHEDULER_FILE, self.lr_scheduler),
            ):
                state = torch.load(Path(checkpoint) / name, weights_only=True, map_location="cpu")
                owner.load_state_dict(state)  # pyright: ignore

    def _save_rng_state(self, output_dir: str) -> None:
        # The loop itself draws nothing; a host with dropout does, from torch alone.
        state = {"cpu": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.args.device)
        torch.save(state, Path(output_dir) / self._rng_file)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / self._rng_file, weights_only=True)
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and self.args.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.args.device)

    @property
    def _rng_file(self) -> str:
        return f"{self.args.process_index}_{RNG_FILE}" if self.args.world_size > 1 else RNG_FILE

    def save_now(self) -> Path | None:
        """Write a checkpoint of the last finished step; None if there is no such state."""
        if not self.is_consistent or self.lr_scheduler is None:
            return None
        self._save_checkpoint(self.model, None)  # pyright: ignore
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"  # pyright: ignore


class _StepRecorder(transformers.TrainerCallback):
    """Keeps the history, and stops at the end of a step when the run was interrupted."""

    def __init__(self, trainer: EpochTrainer) -> None:
        self.trainer = trainer
        self.rate = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.rate, self.trainer.is_consistent = self.trainer.learning_rate, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The state's history is saved in checkpoints, so it is whole after a resume.
        state.log_history.append(
            {
                "step": state.global_step,
                "epoch": state.epoch,
                "loss": self.trainer.last_loss,
                "learning_rate": self.rate,
            }
        )
        self.trainer.is_consistent = True
        if self.trainer.interrupted:
            raise KeyboardInterrupt


class ProgressBar(transformers.TrainerCallback):
    """A bar on stderr with loss and learning rate, where stderr is a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            disable=None,
            unit="step",
            desc="train",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.log_history[-1]
        self.bar.set_postfix(
            loss=f"{last['loss']:.3f}", lr=f"{last['learning_rate']:.2e}", refresh=False
        )
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


@contextlib.contextmanager
def interrupts_between_steps(trainer: EpochTrainer) -> Iterator[None]:
    """Let Ctrl-C finish the step under way; a second Ctrl-C acts at once."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def remember(*_: Any) -> None:
        trainer.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def global_random_state_kept() -> Iterator[None]:
    """Put the global random states back afterwards; the Trainer seeds them all."""
    python, numpy, devices = random.getstate(), np.random.get_state(), range(0)
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
