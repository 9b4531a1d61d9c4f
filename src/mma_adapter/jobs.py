"""The work of the commands: a host by name, a training run on a source, predictions of pictures."""

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from .adapter import MultiModalAdapter
from .card import CardResult
from .classifier import FewShotClassifier
from .data import Dataset, Sample, few_shot, find_unreadable, from_processor, load_samples
from .data.assemble import read_classnames
from .demo import icon_clip_path, load_icon_clip
from .errors import ConfigError, StorageError
from .evaluation import Evaluation, evaluate
from .injection import disable_mma, inject_mma
from .loading import load_mma
from .processors import load_image_processor, load_tokenizer
from .reporting import METRICS
from .train_config import TrainConfig
from .training import FitResult, fit, to_training_device

DEMO = "demo"
"""The embedded CLIP's name on the command line."""

Counter = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how many pictures are done: (what, total) to a function that is told."""


def uncounted(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Host:
    """A model with what belongs to it."""

    model: nn.Module
    tokenizer: Any
    processor: Any

    def classifier(
        self, classnames: Sequence[str], template: str | Sequence[str]
    ) -> FewShotClassifier:
        """Return a classifier on the device a run would use."""
        classifier = FewShotClassifier(self.model, self.tokenizer, classnames, template)
        to_training_device(classifier)
        return classifier


def load_host(name: str) -> Host:
    """Load a model by its name on the Hub or its folder; `"demo"` is the embedded CLIP.

    Raises:
        ConfigError: There is no such model.
    """
    if name == DEMO:
        return Host(*load_icon_clip())
    try:
        model = transformers.AutoModel.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot load the model {name!r}: {first} Pass a model on the Hub, the folder of one, "
            f"or {DEMO!r} for the embedded small CLIP"
        ) from error
    return Host(model.float().eval(), load_tokenizer(model), load_image_processor(model))


def load_adapted(adapter: str, model: str | None = None) -> Host:
    """Load an adapter onto its base model, or onto the model named.

    Raises:
        MMAError: As `load_mma` and `load_host` do.
    """
    if model is None:
        base = MultiModalAdapter.from_pretrained(adapter).config.base_model_name_or_path
        # Each environment has its own copy of the embedded CLIP.
        if base is not None and Path(base).name == icon_clip_path().name:
            model = DEMO
    if model is not None:
        host = load_host(model)
        with warnings.catch_warnings():
            if model == DEMO:
                warnings.filterwarnings("ignore", message=".* with name ")
            load_mma(adapter, model=host.model)
        return host
    loaded = load_mma(adapter)
    return Host(loaded, load_tokenizer(loaded), load_image_processor(loaded))


@dataclass(frozen=True)
class TrainedOn:
    """What training on a source gave.

    Args:
        data: The pictures that were used; `train` holds the shots.
        zero_shot: Test pictures scored without the adapter.
        adapted: Test pictures scored with it.
        result: What `fit` returned.
        skipped: Unreadable pictures that were left out, with the reason.
    """

    data: Dataset
    zero_shot: Evaluation
    adapted: Evaluation
    result: FitResult
    skipped: tuple[tuple[Sample, str], ...]


def train_on_source(
    source: str,
    model: str,
    output_dir: Path,
    *,
    shots: int = 16,
    classnames: Path | None = None,
    config: TrainConfig,
    adapter: dict[str, Any],
    skip_bad: bool = False,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    counter: Counter = uncounted,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> TrainedOn:
    """Train on a source's train part, score its test part before and after, save the adapter.

    Args:
        source: As for `load_samples`.
        model: As for `load_host`.
        output_dir: Where the adapter goes.
        shots: Training pictures per class; -1 for all.
        classnames: Text file with names of the classes; see `load_source`.
        config: How to train.
        adapter: Arguments of `inject_mma`.
        skip_bad: Leave unreadable pictures out instead of stopping.
        resume: Go on with the interrupted run in `output_dir`.
        tell: Gets a sentence whenever something is known.
        counter: Shows how far scoring is.
        callbacks: Callbacks of the Trainer.

    Raises:
        MMAError: As the steps do.
        TrainingInterrupted: Ctrl-C; the run can be resumed.
    """
    data = load_source(source, classnames)
    train, _ = few_shot(data.train, data.val, shots, config.seed)
    test, skipped = data.test, ()
    if skip_bad:
        train, test, skipped = _drop_unreadable(train, test)
    data = replace(data, train=train, test=test)
    tell(
        f"{data.name}: {data.num_classes} classes, {len(train)} pictures to train on, "
        f"{len(test)} to test on"
    )
    for sample, reason in skipped:
        tell(f"left out {sample.path}: {reason}")
    host = load_host(model)
    classifier = host.classifier(data.classnames, config.template)
    _, transform = from_processor(host.processor)
    with counter("zero-shot", len(test)) as done:
        zero_shot = evaluate(classifier, test, transform, on_batch=done)
    tell(f"zero-shot accuracy: {zero_shot.accuracy_pct:.1f} % of {zero_shot.total} test pictures")
    inject_mma(host.model, seed=config.seed, **adapter)
    result = fit(
        host.model,
        train,
        data.classnames,
        config,
        tokenizer=host.tokenizer,
        image_processor=host.processor,
        output_dir=output_dir,
        resume=resume,
        callbacks=callbacks,
    )
    with counter("adapted", len(test)) as done:
        adapted = evaluate(result.classifier, test, transform, on_batch=done)
    trained: Any = host.model.mma
    trained.save_pretrained(
        output_dir, results=[card_result(data.name, zero_shot.accuracy_pct, adapted.accuracy_pct)]
    )
    return TrainedOn(data, zero_shot, adapted, result, skipped)


def card_result(name: str, zero_shot_pct: float, adapted_pct: float) -> CardResult:
    """Return the row of the model card; local paths never land in a card."""
    return CardResult(
        dataset=Path(name.partition(":")[2] or name).name,
        accuracy_pct=adapted_pct,
        zero_shot_accuracy_pct=zero_shot_pct,
    )


def evaluate_on_source(
    adapter: str,
    source: str,
    *,
    model: str | None = None,
    classnames: Path | None = None,
    everything: bool = False,
    counter: Counter = uncounted,
) -> tuple[Evaluation, Evaluation]:
    """Score a source's test part without and with an adapter.

    Args:
        adapter: Folder or repository.
        source: As for `load_samples`.
        model: Base model instead of the one the adapter names.
        classnames: Text file with names of the classes; see `load_source`.
        everything: Score all pictures, also those the adapter may have been trained on.
        counter: Shows how far scoring is.
    """
    data = load_source(source, classnames)
    samples = [*data.train, *data.val, *data.test] if everything else data.test
    host = load_adapted(adapter, model)
    trained: Any = host.model.mma
    classifier = host.classifier(data.classnames, trained.config.template or data.template)
    _, transform = from_processor(host.processor)
    with disable_mma(host.model), counter("zero-shot", len(samples)) as done:
        zero_shot = evaluate(classifier, samples, transform, on_batch=done)
    with counter("adapted", len(samples)) as done:
        return zero_shot, evaluate(classifier, samples, transform, on_batch=done)


def _drop_unreadable(
    train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[list[Sample], list[Sample], tuple[tuple[Sample, str], ...]]:
    bad = find_unreadable([*train, *test])
    broken = {sample for sample, _ in bad}
    kept = [[sample for sample in part if sample not in broken] for part in (train, test)]
    return kept[0], kept[1], tuple(bad)


def reported_results(folder: Path) -> list[CardResult]:
    """Return what the report beside an adapter says, for its card; nothing without a report."""
    path = folder / "report" / METRICS
    try:
        metrics = json.loads(path.read_text())
        accuracies = [float(metrics[key]["accuracy_pct"]) for key in ("zero_shot", "adapted")]
        return [card_result(str(metrics["source"]), *accuracies)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is not a report: {error!r}; remove it or train again"
        ) from error


def load_source(source: str, classnames: Path | None = None) -> Dataset:
    """Read a source, with class names from a file.

    Args:
        source: As for `load_samples`.
        classnames: Text file with lines of "FOLDER NAME", or one name per line in class order.
    """
    if classnames is None:
        return load_samples(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders without a name, which are named now
        keys = load_samples(source).classnames
    return load_samples(source, classnames=read_classnames(classnames, keys))
