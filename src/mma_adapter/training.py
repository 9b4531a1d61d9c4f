"""`fit`: train an injected adapter on a few labelled pictures, by default as the paper does."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from .checkpoints import (
    remove_checkpoints,
)
from .classifier import FewShotClassifier
from .data.samples import Sample, find_unreadable
from .data.transforms import from_processor
from .errors import ConfigError, DataError, TrainingError
from .evaluation import Evaluation, evaluate
from .injection import disable_mma, is_enabled
from .pictures import keep_decoded
from .processors import load_image_processor, load_tokenizer
from .runs import CHECKPOINTS, StepRecord, TrainingInterrupted, train_module
from .train_config import TrainConfig

__all__ = [
    "FitResult",
    "StepRecord",
    "TrainConfig",
    "TrainingInterrupted",
    "check_progress",
    "fit",
    "to_training_device",
    "train_module",
]


@dataclass(frozen=True)
class FitResult:
    """What came out of `fit`.

    Args:
        classifier: The trained classifier, ready to predict.
        history: One record per step, also of the steps before a resume.
        seconds: Time in the training loop since the start or the resume.
        zero_shot_train: Training pictures scored without the adapter; None without
            `check_progress`.
        train: Training pictures scored with the adapter; None likewise.
        zero_shot_eval: `eval_samples` scored without the adapter, if there are any.
        eval: `eval_samples` scored with the adapter.
        skipped: Unreadable pictures that were left out, with the reason.
    """

    classifier: FewShotClassifier
    history: tuple[StepRecord, ...]
    seconds: float
    zero_shot_train: Evaluation | None
    train: Evaluation | None
    zero_shot_eval: Evaluation | None
    eval: Evaluation | None
    skipped: tuple[tuple[Sample, str], ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return len(self.history)


def fit(
    model: nn.Module,
    train_samples: Sequence[Sample],
    classnames: Sequence[str],
    config: TrainConfig | None = None,
    eval_samples: Sequence[Sample] | None = None,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    output_dir: Path | str | None = None,
    resume: bool = False,
    callbacks: Sequence[transformers.TrainerCallback] | None = None,
) -> FitResult:
    """Train the adapter on `model`, in place.

    Afterwards `model.mma.config` holds the template and the class names.

    Args:
        model: A dual encoder with an adapter (see `inject_mma`).
        train_samples: Labelled pictures, labels 0 to K - 1.
        classnames: Names of the K classes in label order.
        config: How to train; the paper's recipe by default.
        eval_samples: Pictures to score before and after; training never sees them.
        tokenizer: Tokenizer of the model; by default from where the model was loaded.
        image_processor: Image processor of the model, for input size, mean and standard deviation;
            by default likewise.
        output_dir: Where to keep checkpoints, one per epoch, in a folder `checkpoints` that goes
            when training ends. Without it an interrupted run is lost.
        resume: Go on from the last checkpoint in `output_dir`, if there is one.
        callbacks: Callbacks of the Trainer; None shows a bar on a terminal, () nothing.

    Raises:
        ConfigError: The model has no adapter to train, or `output_dir` holds another run.
        DataError: Pictures, labels or class names cannot be used.
        TrainingError: The loss is not finite, or the training pictures came out worse than without
            the adapter. The adapter keeps its weights.
        TrainingInterrupted: Ctrl-C; the message says how to go on.
    """
    config = config or TrainConfig()
    _check_adapter(model)
    train_samples, skipped = _readable(train_samples, config.skip_bad)
    eval_samples, skipped_eval = _readable(eval_samples or (), config.skip_bad)
    classifier = FewShotClassifier(
        model,
        tokenizer if tokenizer is not None else load_tokenizer(model),
        classnames,
        config.template,
    )
    _check_labels([*train_samples, *eval_samples], classifier.num_classes)
    if image_processor is None:
        image_processor = load_image_processor(model)
    train_transform, test_transform = from_processor(image_processor)
    train_samples = keep_decoded(train_samples, config.cache_bytes)
    to_training_device(classifier)

    def score(samples: Sequence[Sample], wanted: bool, *, adapted: bool) -> Evaluation | None:
        if not wanted or not samples:
            return None
        with contextlib.nullcontext() if adapted else disable_mma(model):
            return evaluate(classifier, samples, test_transform)

    zero_shot_train = score(train_samples, config.check_progress, adapted=False)
    zero_shot_eval = score(eval_samples, True, adapted=False)
    adapter: Any = model.mma
    history, seconds = train_module(
        classifier,
        train_samples,
        config,
        train_transform,
        output_dir=output_dir,
        resume=resume,
        callbacks=callbacks,
        run={
            "classnames": list(classifier.classnames),
            "adapter": adapter.config.to_dict() | {"template": None, "classnames": None},
        },
        keep_checkpoints=True,  # an interrupt during the evaluation must not lose the run
    )
    adapter.config = dataclasses.replace(
        adapter.config, template=classifier.template, classnames=classifier.classnames
    )
    train = score(train_samples, config.check_progress, adapted=True)
    evaluation = score(eval_samples, True, adapted=True)
    remove_checkpoints(None if output_dir is None else Path(output_dir) / CHECKPOINTS)
    if zero_shot_train is not None and train is not None:
        check_progress(zero_shot_train, train, config)
    return FitResult(
        classifier,
        history,
        seconds,
        zero_shot_train,
        train,
        zero_shot_eval,
        evaluation,
        (*skipped, *skipped_eval),
    )


def check_progress(before: Evaluation, after: Evaluation, config: TrainConfig) -> None:
    """Refuse an adapter that has made its own training pictures worse.

    Pictures whose answer changed are counted both ways. If training did nothing, each would be won
    or lost by the toss of a coin, so a net loss within two standard deviations of that passes (a
    sign test at about 3 %); four answers or fewer prove nothing.

    Raises:
        TrainingError: Names both accuracies.
    """
    was, now = before.labels == before.predictions, after.labels == after.predictions
    lost, won = int((was & ~now).sum()), int((now & ~was).sum())
    if lost - won > 2 * math.sqrt(lost + won):
        raise TrainingError(
            f"after training {after.accuracy_pct:.1f} % of the training pictures are right, "
            f"without the adapter {before.accuracy_pct:.1f} % are ({lost} lost, {won} won of "
            f"{after.total}); the model keeps the trained weights, but they should not be used: "
            f"try a lower learning rate, such as lr={config.lr / 10:g}, check the labels, or pass "
            "check_progress=False to go on"
        )


def to_training_device(module: nn.Module) -> None:
    """Move `module` to the device the Trainer is going to use."""
    with tempfile.TemporaryDirectory() as folder:
        module.to(transformers.TrainingArguments(output_dir=folder, report_to="none").device)


def _check_adapter(model: nn.Module) -> None:
    adapter: Any = getattr(model, "mma", None)
    if adapter is None:
        raise ConfigError(
            f"this {type(model).__name__} has no adapter to train; call inject_mma(model) first"
        )
    if not any(p.requires_grad for p in adapter.parameters()):
        raise ConfigError(
            "the adapter's weights are frozen; load it with load_mma(..., is_trainable=True), or "
            "call set_adapter(model, name, train=True)"
        )
    if not is_enabled(model) or adapter.scale == 0:
        raise ConfigError(
            "the adapter takes no part in the model's output: it is disabled or its scale is 0; "
            "leave disable_mma and set model.mma.scale to the paper's 0.001"
        )


def _readable(
    samples: Sequence[Sample], skip_bad: bool
) -> tuple[Sequence[Sample], list[tuple[Sample, str]]]:
    bad = find_unreadable(samples) if skip_bad else []
    unreadable = {id(sample) for sample, _ in bad}
    return [sample for sample in samples if id(sample) not in unreadable], bad


def _check_labels(samples: Sequence[Sample], num_classes: int) -> None:
    if not samples:
        raise DataError("no training pictures; pass one or more")
    for sample in samples:
        if not 0 <= sample.label < num_classes:
            raise DataError(
                f"{sample.path} has label {sample.label}, but there are {num_classes} class names; "
                "number the classes from 0 in the order of the names"
            )
