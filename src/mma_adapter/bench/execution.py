"""Executes a run: trains once, scores every target. The only place that sees test pictures."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .. import metrics
from ..data import Dataset, load_dataset
from ..data.fewshot import Classes
from ..training import to_training_device
from .encoder import TEST_BATCH, DualEncoder
from .machine import machine_name, now_utc, versions, watch_memory
from .methods import METHODS, FeatureScorer, LoopConfig, Predictor, Scorer
from .protocols import Run, Target
from .results import Result

MAX_CONFUSION_CLASSES = 100
"""Larger confusion matrices would swell the records, and nobody can read them."""


class Loader(Protocol):
    """What hands out data sets by name: `partial(load_dataset, root=...)`, or the demo's."""

    def __call__(self, name: str, *, shots: int, seed: int, classes: Classes) -> Dataset: ...


def root_loader(root: Path | str | None, *, own_split: bool = False) -> Loader:
    """Return a loader of the data sets below a data root, and of people's own pictures."""
    return partial(load_dataset, root=root, own_split=own_split)  # pyright: ignore


def execute(run: Run, encoder: DualEncoder, load: Loader) -> list[Result]:
    """Train once and score every target.

    Args:
        run: What to do.
        encoder: The untouched host; the method gets a copy.
        load: Where data sets come from.

    Returns:
        One record per target. A method that cannot score a target's classes gets one without
        accuracy.
    """
    to_training_device(encoder.model)
    train = load(run.dataset, shots=run.shots, seed=run.seed, classes=run.classes)
    method = METHODS[run.method](run.recipe.config)
    host = encoder.at(run.dataset, train.template).copy()
    watch, begin = watch_memory(encoder.device), time.perf_counter()
    predictor = method.fit(host, train.train, train.classnames, seed=run.seed)
    about = {
        **_about(run, encoder),
        "train_seconds": time.perf_counter() - begin,
        "train_peak_bytes": watch(),
        "num_trainable": predictor.num_trainable,
        "losses": predictor.losses,
    }
    results = []
    for target in run.targets:
        dataset = train
        if (target.dataset, target.classes) != (run.dataset, run.classes):
            # Targets of a transfer give nothing to learn from: their shots are never drawn.
            drawn = run.shots if target.dataset == run.dataset else -1
            dataset = load(target.dataset, shots=drawn, seed=run.seed, classes=target.classes)
        score: dict[str, Any] = {"correct": None, "accuracy_pct": None}
        if method.transfers or dataset.classnames == train.classnames:
            score = _score(predictor, dataset, encoder.at(target.dataset, dataset.template))
        template = predictor.prompt(dataset.template)
        results.append(Result(**about, **_about_data(dataset, target), template=template, **score))
    return results


def _about(run: Run, encoder: DualEncoder) -> dict[str, Any]:
    config, precision = run.recipe.config, "fp32"
    if isinstance(config, LoopConfig):
        precision = config.resolved_precision(encoder.device)
    return {
        "run_id": run.id(encoder),
        "method": run.method,
        "recipe": run.recipe.name,
        "config": asdict(config),
        "overrides": dict(run.overrides),
        "variant": run.variant,
        "protocol": run.protocol,
        "source": run.dataset,
        "seed": run.seed,
        "shots": run.shots,
        "host": encoder.name,
        "host_fingerprint": (encoder.origin or encoder).fingerprint,
        "versions": versions(),
        "precision": precision,
        "transform": encoder.transform,
        "machine": machine_name(encoder.device),
    }


def _about_data(dataset: Dataset, target: Target) -> dict[str, Any]:
    return {
        "role": target.role,
        "dataset": target.dataset,
        "split_hash": dataset.split_hash(),
        "split_origin": dataset.split_origin,
        "classnames_hash": dataset.classnames_hash(),
        "total": len(dataset.test),
        "finished_at": now_utc(),
    }


def _score(predictor: Predictor, dataset: Dataset, encoder: DualEncoder) -> dict[str, Any]:
    watch, begin = watch_memory(encoder.device), time.perf_counter()
    scorer = predictor.bind(dataset.classnames, template=dataset.template)
    predictions = predict(scorer, dataset, encoder)
    return {
        "test_seconds": time.perf_counter() - begin,
        "test_peak_bytes": watch(),
        **_counts(dataset, predictions),
    }


def predict(scorer: Scorer, dataset: Dataset, encoder: DualEncoder) -> np.ndarray:
    """Return the predicted labels of the test pictures; of equal scores the lowest label wins."""
    if isinstance(scorer, FeatureScorer):
        features = encoder.frozen_features(dataset.test)
        logits = [scorer.score(part.to(encoder.device)) for part in features.split(TEST_BATCH)]
    else:
        logits = [scorer(pixels) for pixels in encoder.pixel_batches(dataset.test)]
    return metrics.predicted_labels(torch.cat([part.float().cpu() for part in logits]).numpy())


def _counts(dataset: Dataset, predictions: np.ndarray) -> dict[str, Any]:
    labels = [sample.label for sample in dataset.test]
    names = _distinct(dataset.classnames)
    per_class = metrics.per_class_accuracy_pct(labels, predictions)
    confusion = None
    if dataset.num_classes <= MAX_CONFUSION_CLASSES:
        confusion = metrics.confusion_matrix(labels, predictions, dataset.num_classes).tolist()
    return {
        "correct": metrics.num_correct(labels, predictions),
        "accuracy_pct": metrics.accuracy_pct(labels, predictions),
        "macro_f1_pct": metrics.macro_f1_pct(labels, predictions),
        "per_class_accuracy": {names[label]: pct for label, pct in per_class.items()},
        "confusion": confusion,
    }


def _distinct(classnames: Sequence[str]) -> list[str]:
    """Class names, the second of two equal ones with its label behind: `"missile (744)"`."""
    seen: set[str] = set()
    names = []
    for label, name in enumerate(classnames):
        names.append(f"{name} ({label})" if name in seen else name)
        seen.add(name)
    return names
