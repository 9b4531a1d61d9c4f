"""Progress of training and scoring on stderr: bars on a terminal, a line per epoch elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress(transformers.TrainerCallback):
    """Shows epoch, loss (mean over the last epoch's steps), learning rate and time left.

    Args:
        console: Where to write; a bar if it is a terminal, otherwise one line per epoch.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step
        if state.global_step:
            self.console.print(f"going on after step {state.global_step} of {state.max_steps}")
        if self.console.is_terminal:
            bar = self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
            )
            bar.add_task("", total=state.max_steps, completed=state.global_step)
            bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            text = self._describe(args, state)
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, description=text)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is None and state.log_history:
            seconds = time.monotonic() - self._started
            steps_left = state.max_steps - state.global_step
            left = seconds / max(1, state.global_step - self._first_step) * steps_left
            self.console.print(f"{self._describe(args, state)}, {left:.0f} s left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off; also after an interrupted run, which ends without an event."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, args: Any, state: Any) -> str:
        epochs, steps = int(args.num_train_epochs), max(1, state.max_steps)
        per_epoch = max(1, steps // epochs)
        epoch = min(epochs, (state.global_step - 1) // per_epoch + 1)
        last = [entry for entry in state.log_history[-per_epoch:] if "loss" in entry]
        loss = sum(entry["loss"] for entry in last) / len(last)
        rate = last[-1]["learning_rate"]
        return f"epoch {epoch} of {epochs}, loss {loss:.3f}, learning rate {rate:.2g}"


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of pictures done; a bar on terminals only."""
    if not console.is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
