"""`fit`: train an injected adapter on a few labelled pictures by the paper's recipe.

Source of the defaults: the authors' `vit_b16_ep5.yaml` and Dassl 0.6.3: SGD with momentum, a cosine
that changes once per epoch, five epochs, batches of 16, random resized crops and flips.
"""

import contextlib
import dataclasses
import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from torch import nn

from .classifier import TEMPLATE, FewShotClassifier
from .data.samples import Sample, find_unreadable
from .data.transforms import TrainTransform, from_processor
from .errors import ConfigError, DataError, TrainingError
from .evaluation import Evaluation, evaluate
from .injection import disable_mma, is_enabled
from .pictures import Pictures, keep_decoded
from .processors import load_image_processor, load_tokenizer
from .schedules import Schedule
from .trainer import (
    EpochTrainer,
    ProgressBar,
    check_same_run,
    global_random_state_kept,
    interrupts_between_steps,
    latest_checkpoint,
)

OptimizerName = Literal["sgd", "adamw"]
Precision = Literal["auto", "fp32", "bf16"]

# Settings that change how fast a run goes, not where it goes.
_FREE = ("num_workers", "cache_bytes", "check_progress", "compile")


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


class TrainingInterrupted(KeyboardInterrupt):
    """Training was interrupted; `checkpoint` is where it can go on, if anywhere."""

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


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
    )
    adapter.config = dataclasses.replace(
        adapter.config, template=classifier.template, classnames=classifier.classnames
    )
    train = score(train_samples, config.check_progress, adapted=True)
    if zero_shot_train is not None and train is not None:
        check_progress(zero_shot_train, train, config)
    evaluation = score(eval_samples, True, adapted=True)
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
) -> tuple[tuple[StepRecord, ...], float]:
    """Train the trainable parameters of any classifier, in place; `fit` without its checks.

    Args:
        module: Its forward takes `pixel_values` and `labels` and returns an output with `loss`.
        samples: Training pictures.
        config: How to train; `template`, `skip_bad` and `check_progress` do not act here.
        transform: Training transform; the crop's scale and the flip are taken from `config`.
        output_dir: As for `fit`.
        resume: As for `fit`.
        callbacks: As for `fit`.
        run: What else makes this run this run; compared when it is resumed.

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
    run = {**_describe(samples, config), **(run or {})}
    transform = dataclasses.replace(
        transform, scale=config.crop_scale, flip_probability=0.5 if config.flip else 0.0
    )
    folder = None if output_dir is None else Path(output_dir) / "checkpoints"
    checkpoint = _find_checkpoint(folder, resume, run)
    was_training = module.training
    with contextlib.ExitStack() as stack:
        stack.enter_context(global_random_state_kept())
        scratch = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        args = _trainer_arguments(config, scratch, save=folder is not None)
        trainer = EpochTrainer(
            module,
            args,
            Pictures(samples, transform, config.seed),
            _make_optimizer(parameters, config),
            config.schedule,
            bf16=_use_bf16(config.precision, args.device),
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
            _remove(folder)  # it would end the same way again
            raise
        finally:
            module.train(was_training)
        seconds = time.perf_counter() - started
    _remove(folder)
    records = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    return tuple(
        StepRecord(e["step"], e["epoch"], e["loss"], e["learning_rate"]) for e in records
    ), seconds


def check_progress(before: Evaluation, after: Evaluation, config: TrainConfig) -> None:
    """Refuse an adapter that has made its own training pictures worse.

    Pictures whose answer changed are counted both ways. If training did nothing, each would be won
    or lost by the toss of a coin, so a loss within two standard deviations of that is let pass;
    with one or two pictures changed nothing can be said at all.

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


def _describe(samples: Sequence[Sample], config: TrainConfig) -> dict[str, Any]:
    """Return all that decides where a run ends up."""
    pictures = hashlib.sha256()
    for sample in samples:
        pictures.update(f"{sample.path.name}\0{sample.label}\n".encode())
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
    return {**settings, "num_pictures": len(samples), "pictures_sha256": pictures.hexdigest()}


def _find_checkpoint(folder: Path | None, resume: bool, run: dict[str, Any]) -> Path | None:
    if folder is None:
        if resume:
            raise ConfigError("resume=True needs output_dir=..., where the checkpoints are")
        return None
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        _remove(folder)  # what a kill during the first checkpoint left
        return None
    if not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run; pass resume=True to go on with it, another "
            "output_dir, or remove that folder"
        )
    check_same_run(checkpoint, run)
    return checkpoint


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


def _use_bf16(precision: Precision, device: torch.device) -> bool:
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


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
