"""Why upper layers: what each layer of a dual encoder tells, and a `start_layer` that follows.

What is known of the paper's procedure: MMA's authors analyse features "at the level of data sets",
look for discriminative and for generalisable ones, and adapt the upper layers of both towers
because of what they find. Their exact measurements are not part of their code. The procedure
here is ours, in the same spirit:

- *Discriminability*: accuracy of a linear probe for the classes of each data set, on pictures (or
  prompts) it has not seen; and of a linear probe that tells the data sets apart, on classes it has
  not seen.
- *Transferability*: a class probe is fitted on one data set, and its class scores are taken as the
  features of another. A nearest-class-mean classifier (cosine) on those scores is fitted on the
  other set's training part and scored on its test part. This asks how much of what tells the one
  set's classes apart is of use on the other; the mean is over ordered pairs of data sets.
- *Modality gap*: distance between the mean unit features of pictures and of class prompts. For
  this each layer's pooled state is sent through the tower's final norm and projection, as if it
  were the last layer, so that both towers' features live in one space.

Probes read the pooled token as the layer leaves it: the CLS token (the mean of all tokens where
the host has none) and the end token. Text probes learn from half of the templates and are scored
on the other half; since a prompt spells its class out, they are near 100 % at every layer.

Shapes: N items, L layers, D width of the tower, E size of the joint space, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .backbones import Backbone, describe
from .config import Tower
from .errors import ConfigError, DataError, StorageError
from .layer_features import Part, image_parts, text_parts
from .probes import class_probe, dataset_accuracy_pct, transfer_accuracy_pct

if TYPE_CHECKING:
    from .data import Dataset

FORMAT = 1

TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of the {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "itap of a {}.",
    "art of the {}.",
    "a drawing of a {}.",
    "a rendering of the {}.",
)
"""Prompts of each class, from the list published with CLIP; every other one is held out."""


@dataclass(frozen=True)
class LayerScores:
    """What the features one layer of one tower leaves are good for, in per cent.

    Args:
        layer: Number of the layer, from 1.
        class_accuracy_pct: Linear probe for classes, mean over data sets.
        dataset_accuracy_pct: Linear probe for the data set, on unseen classes, mean over data
            sets; None with one data set.
        transfer_accuracy_pct: Classes of one data set read from class scores of another, mean over
            ordered pairs; None with one data set.
    """

    layer: int
    class_accuracy_pct: float
    dataset_accuracy_pct: float | None
    transfer_accuracy_pct: float | None

    @property
    def discriminability_pct(self) -> float:
        """Mean of the class and the data set probe."""
        if self.dataset_accuracy_pct is None:
            return self.class_accuracy_pct
        return (self.class_accuracy_pct + self.dataset_accuracy_pct) / 2


@dataclass(frozen=True)
class LayerAnalysis:
    """Result of `analyze`.

    Args:
        host: Name of the model.
        datasets: Names of the data sets.
        num_classes: Number of classes of each.
        shots: Pictures per class, at most, in training and in test.
        seed: Seed of the choice of pictures.
        towers: Scores of the layers, from the first to the last, by tower.
        modality_gap: Distance between the towers' mean unit features, 0 to 2, for each pair of
            layers. Towers of unequal depth are paired from the last layer down.
        start_layer: Suggested first layer to adapt, counted on the shallower tower, for
            `inject_mma(model, start_layer=...)`.
        reason: Why, in a sentence with the numbers.
    """

    host: str
    datasets: tuple[str, ...]
    num_classes: tuple[int, ...]
    shots: int
    seed: int
    towers: Mapping[Tower, tuple[LayerScores, ...]]
    modality_gap: tuple[float, ...]
    start_layer: int
    reason: str

    @property
    def class_chance_pct(self) -> float:
        """Accuracy of guessing classes, mean over data sets."""
        return float(np.mean([100 / k for k in self.num_classes]))

    @property
    def dataset_chance_pct(self) -> float:
        """Accuracy of guessing the data set."""
        return 100 / len(self.datasets)

    def to_json(self) -> str:
        """Return the analysis as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LayerAnalysis:
        """Rebuild an analysis.

        Raises:
            StorageError: The text is no analysis, or one of another version.
        """
        try:
            data = json.loads(text)
            if (found := data.pop("format", None)) != FORMAT:
                raise StorageError(f"the analysis has format {found!r}; pass one of {FORMAT}")
            towers = {
                tower: tuple(LayerScores(**layer) for layer in layers)
                for tower, layers in data.pop("towers").items()
            }
            rest: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
            }
            return cls(towers=towers, **rest)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise StorageError(f"this is no analysis ({error}); it needs {names}") from error

    def save(self, path: Path | str) -> None:
        """Write the analysis to a JSON file."""
        Path(path).write_text(self.to_json(), "utf-8")

    @classmethod
    def load(cls, path: Path | str) -> LayerAnalysis:
        """Read an analysis that `save` wrote.

        Raises:
            StorageError: The file is not there, or holds no analysis.
        """
        if not Path(path).is_file():
            raise StorageError(f"{path} is not there; pass a file written by LayerAnalysis.save")
        return cls.from_json(Path(path).read_text("utf-8"))


def analyze(
    model: nn.Module,
    tokenizer: Any,
    image_processor: Any,
    datasets: Sequence[Dataset],
    *,
    shots: int = 16,
    templates: Sequence[str] = TEMPLATES,
    seed: int = 1,
    batch_size: int = 100,
) -> LayerAnalysis:
    """Measure discriminability, transferability and modality gap of every layer.

    The module's docstring defines them. The model is read as it is, with an adapter that is on it;
    pass it inside `disable_mma(model)` for the original one.

    Args:
        model: A dual encoder.
        tokenizer: Its tokenizer.
        image_processor: Its image processor; gives size, mean and std of the pictures.
        datasets: Data sets, two or more classes each; with one alone there is no transfer.
        shots: Pictures per class from the train part, and again from the test part.
        templates: Prompt patterns; two or more, every other one is held out.
        seed: Seed of the choice of pictures.
        batch_size: Pictures per forward pass.

    Raises:
        ConfigError: The model lacks a tower, or there are too few data sets or templates.
        DataError: A data set has fewer than two classes, or no test pictures.
    """
    backbone = describe(model)
    _check(backbone, datasets, templates)
    was_training = model.training
    model.eval()
    try:
        text = [text_parts(model, tokenizer, backbone, d, templates) for d in datasets]
        vision = [
            image_parts(backbone, image_processor, d, shots, seed, batch_size) for d in datasets
        ]
    finally:
        model.train(was_training)
    towers: dict[Tower, tuple[LayerScores, ...]] = {
        "text": _layer_scores([(train, test) for train, test, _ in text]),
        "vision": _layer_scores([(train, test) for train, test, _ in vision]),
    }
    start, reason = suggest_start_layer(towers)
    return LayerAnalysis(
        host=_name(model),
        datasets=tuple(dataset.name for dataset in datasets),
        num_classes=tuple(dataset.num_classes for dataset in datasets),
        shots=shots,
        seed=seed,
        towers=towers,
        modality_gap=_gaps(np.mean([m for *_, m in text], 0), np.mean([m for *_, m in vision], 0)),
        start_layer=start,
        reason=reason,
    )


def suggest_start_layer(towers: Mapping[Tower, Sequence[LayerScores]]) -> tuple[int, str]:
    """Return the first layer to adapt and why.

    The rule is ours: adapt from the layer on where discriminability, averaged over the towers, has
    made half of its way from its lowest to its highest value, and does not fall below that again.
    What lies below tells classes and data sets least apart, so it is common to all of them, and
    changing it would cost generality.
    """
    depth = min(map(len, towers.values()))
    curve = [
        float(
            np.mean(
                [layers[len(layers) - depth + i].discriminability_pct for layers in towers.values()]
            )
        )
        for i in range(depth)
    ]
    half = (min(curve) + max(curve)) / 2
    start = depth
    while start > 1 and curve[start - 2] >= half:
        start -= 1
    return start, (
        "Discriminability (mean of class and data set probes, both towers) runs from "
        f"{min(curve):.1f} % to {max(curve):.1f} %; from layer {start} of {depth} on it stays at "
        f"or above the middle, {half:.1f} %."
    )


def _name(model: nn.Module) -> str:
    """Name on the Hub, or of the model's folder alone: where that lies is nobody else's concern."""
    name: str = getattr(model, "name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name


def _check(backbone: Backbone, datasets: Sequence[Dataset], templates: Sequence[str]) -> None:
    if set(backbone.towers) != {"text", "vision"}:
        raise ConfigError(f"the model has {', '.join(backbone.towers)} only; pass a dual encoder")
    if not datasets or len({d.name for d in datasets}) < len(datasets):
        raise ConfigError(f"datasets={[d.name for d in datasets]}; pass one or more, all different")
    if len(templates) < 2 or isinstance(templates, str):
        raise ConfigError(f"templates={templates!r}; pass two or more, since half are held out")
    for dataset in datasets:
        if dataset.num_classes < 2 or not dataset.test:
            raise DataError(
                f"the data set {dataset.name} has {dataset.num_classes} classes and "
                f"{len(dataset.test)} test pictures; two classes and some test pictures are needed"
            )


def _layer_scores(pairs: Sequence[tuple[Part, Part]]) -> tuple[LayerScores, ...]:
    scores = []
    for index in range(len(pairs[0][0].states)):
        layer = [(train.layer(index), test.layer(index)) for train, test in pairs]
        probes = [class_probe(*train) for train, _ in layer]
        own = [100 * p.score(*test) for p, (_, test) in zip(probes, layer, strict=True)]
        scores.append(
            LayerScores(
                layer=index + 1,
                class_accuracy_pct=float(np.mean(own)),
                dataset_accuracy_pct=dataset_accuracy_pct(layer),
                transfer_accuracy_pct=transfer_accuracy_pct(probes, layer),
            )
        )
    return tuple(scores)


def _gaps(text: np.ndarray, vision: np.ndarray) -> tuple[float, ...]:
    depth = min(len(text), len(vision))
    return tuple(np.linalg.norm(text[-depth:] - vision[-depth:], axis=1).astype(float).tolist())
