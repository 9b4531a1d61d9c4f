"""Score pictures with a classifier, and count how often it is right.

Evaluation runs in float32 whatever the training ran in, as in the field's protocols.

Shapes: N pictures, K classes, S side of the square the model sees.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from . import metrics
from .data.samples import Sample, open_image
from .errors import DataError

Transform = Callable[[Image.Image], Tensor]

# What the memory errors of the platforms have in common; some are plain RuntimeErrors.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a classifier said about labelled pictures.

    Args:
        labels: True labels (N,).
        predictions: Predicted labels (N,).
        classnames: Names of the K classes in label order.
    """

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    classnames: tuple[str, ...]

    @property
    def correct(self) -> int:
        """Number of pictures with the right prediction."""
        return metrics.num_correct(self.labels, self.predictions)

    @property
    def total(self) -> int:
        """Number of pictures N."""
        return len(self.labels)

    @property
    def accuracy_pct(self) -> float:
        """Share of pictures with the right prediction, per cent."""
        return metrics.accuracy_pct(self.labels, self.predictions)

    @property
    def macro_f1_pct(self) -> float:
        """Mean F1 over the classes that occur, per cent."""
        return metrics.macro_f1_pct(self.labels, self.predictions)

    @cached_property
    def per_class_accuracy_pct(self) -> dict[int, float]:
        """Accuracy by label, per cent; classes without a picture are left out."""
        return metrics.per_class_accuracy_pct(self.labels, self.predictions)

    @property
    def mean_class_accuracy_pct(self) -> float:
        """Mean of the classes' accuracies, per cent."""
        return metrics.mean_class_accuracy_pct(self.labels, self.predictions)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Number of pictures (K, K) by true class (row) and predicted class (column)."""
        return metrics.confusion_matrix(self.labels, self.predictions, len(self.classnames))


def evaluate(
    classifier: nn.Module,
    samples: Sequence[Sample],
    transform: Transform,
    *,
    classnames: Sequence[str] | None = None,
    batch_size: int = 100,
    on_batch: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Classify labelled pictures.

    Args:
        classifier: Takes `pixel_values` (B, 3, S, S) and returns an output with `logits` (B, K).
        samples: Pictures with labels 0 to K - 1.
        transform: Picture to `pixel_values` of one picture, such as `TestTransform`.
        classnames: Names of the K classes; those of the classifier by default.
        batch_size: Pictures per forward pass; halved whenever memory runs out.
        on_batch: Called with the number of pictures done after every batch.

    Raises:
        DataError: There are no pictures, one cannot be read, or its label is not one of the K.
    """
    names = tuple(getattr(classifier, "classnames", ()) if classnames is None else classnames)
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    if len(outside := np.flatnonzero((labels < 0) | (labels >= len(names)))):
        sample = samples[outside[0]]
        raise DataError(
            f"{sample.path} has label {sample.label}, the classifier has {len(names)} classes; "
            "pass pictures of the classifier's classes, numbered in its order"
        )
    logits = predict_logits(
        classifier, samples, transform, batch_size=batch_size, on_batch=on_batch
    )
    return Evaluation(labels, metrics.predicted_labels(logits.numpy()), names)


def predict_logits(
    classifier: nn.Module,
    samples: Sequence[Sample],
    transform: Transform,
    *,
    batch_size: int = 100,
    on_batch: Callable[[int], Any] | None = None,
) -> Tensor:
    """Return the logits of pictures, (N, K), float32, on the CPU.

    Pictures are read and transformed in threads while the model works. Labels are not looked at.

    Args:
        classifier: As for `evaluate`.
        samples: Pictures.
        transform: As for `evaluate`.
        batch_size: Pictures per forward pass; halved whenever memory runs out.
        on_batch: Called with the number of pictures done after every batch.

    Raises:
        DataError: There are no pictures, or one cannot be read; the message names it.
    """
    if not len(samples):
        raise DataError("no pictures to classify; pass one or more")
    device = next(classifier.parameters()).device
    batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    rows: list[Tensor] = []
    limit = batch_size
    with modes_kept(classifier), torch.inference_mode(), ThreadPoolExecutor() as pool:
        classifier.eval()

        def begin(batch: Sequence[Sample]) -> list[Any]:
            return [pool.submit(lambda s: transform(open_image(s)), s) for s in batch]

        coming = begin(batches[0])
        for number in range(len(batches)):
            now = coming
            coming = begin(batches[number + 1]) if number + 1 < len(batches) else []
            pixel_values = torch.stack([future.result() for future in now])
            logits, limit = _forward(classifier, pixel_values, device, limit)
            rows.append(logits)
            if on_batch is not None:
                on_batch(min((number + 1) * batch_size, len(samples)))
    return torch.cat(rows)


@contextlib.contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put every part of `module` back into train or eval mode as it was.

    `module.train(before)` would not do: a classifier and the model in it may be in different modes.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _forward(
    classifier: nn.Module, pixel_values: Tensor, device: torch.device, limit: int
) -> tuple[Tensor, int]:
    """Return the logits of one batch, and the batch size that fitted."""
    while True:
        try:
            parts = [
                classifier(pixel_values=part.to(device)).logits.float().cpu()
                for part in pixel_values.split(limit)
            ]
            return torch.cat(parts), limit
        except RuntimeError as error:
            if limit == 1 or not any(text in str(error) for text in _OUT_OF_MEMORY):
                raise
        # Outside the handler, which would hold on to the tensors of the failed pass.
        limit = max(1, limit // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
