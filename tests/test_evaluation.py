"""Evaluation against counting by hand, in any batch size, and when memory runs out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from mma_adapter.data import Sample, TestTransform
from mma_adapter.errors import DataError
from mma_adapter.evaluation import evaluate, predict_logits

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
TRANSFORM = TestTransform(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class BrightestChannel(nn.Module):
    """Logits are the mean of each colour channel."""

    classnames = tuple(COLOURS)

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.most, self.batches = most, []

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        self.batches.append(len(pixel_values))
        if len(pixel_values) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return ImageClassifierOutput(logits=pixel_values.mean((2, 3)) * self.weight)


def picture(colour: str, label: int, number: int = 0) -> Sample:
    image = Image.new("RGB", (12, 9), COLOURS[colour])
    return Sample(Path(f"{colour}-{number}.png"), label, tuple(COLOURS)[label], image)


@pytest.fixture
def samples() -> list[Sample]:
    """Five pictures; the fourth is green but called blue."""
    shown = [("red", 0), ("green", 1), ("blue", 2), ("green", 2), ("red", 0)]
    return [picture(colour, label, number) for number, (colour, label) in enumerate(shown)]


def test_counts_are_those_of_the_pictures(samples: list[Sample]) -> None:
    found = evaluate(BrightestChannel(), samples, TRANSFORM)

    assert found.predictions.tolist() == [0, 1, 2, 1, 0]
    assert (found.correct, found.total, found.accuracy_pct) == (4, 5, 80.0)
    assert found.per_class_accuracy_pct == {0: 100.0, 1: 100.0, 2: 50.0}
    assert found.mean_class_accuracy_pct == pytest.approx(250 / 3)
    assert found.macro_f1_pct == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)
    assert np.array_equal(found.confusion, [[2, 0, 0], [0, 1, 0], [0, 1, 1]])
    assert found.classnames == ("red", "green", "blue")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_the_batch_size_changes_neither_order_nor_result(
    samples: list[Sample], batch_size: int
) -> None:
    done: list[int] = []
    expected = torch.stack([TRANSFORM(s.image).mean((1, 2)) for s in samples])

    found = predict_logits(
        BrightestChannel(), samples, TRANSFORM, batch_size=batch_size, on_batch=done.append
    )

    assert torch.allclose(found, expected)
    assert done == [*range(batch_size, 5, batch_size), 5]


def test_batches_are_halved_until_they_fit(samples: list[Sample]) -> None:
    classifier = BrightestChannel(most=1)

    found = predict_logits(classifier, samples * 2, TRANSFORM, batch_size=5)

    assert torch.equal(found, predict_logits(BrightestChannel(), samples * 2, TRANSFORM))
    # 5 and 2 did not fit; the second batch starts from what did.
    assert classifier.batches == [5, 2, *[1] * 10]


def test_other_errors_are_not_taken_for_a_lack_of_memory(samples: list[Sample]) -> None:
    class Broken(BrightestChannel):
        def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        predict_logits(Broken(), samples, TRANSFORM)


def test_the_classifiers_mode_is_put_back(samples: list[Sample]) -> None:
    classifier = BrightestChannel().train()
    evaluate(classifier, samples, TRANSFORM)
    assert classifier.training


def test_an_unreadable_picture_is_named(samples: list[Sample]) -> None:
    broken = Sample(Path("broken.png"), 0, "red", b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        evaluate(BrightestChannel(), [*samples, broken], TRANSFORM)


def test_labels_outside_the_classes_and_empty_lists_are_refused(samples: list[Sample]) -> None:
    stranger = Sample(Path("cat.png"), 3, "cat", samples[0].image)
    with pytest.raises(DataError, match=r"cat\.png has label 3.*3 classes"):
        evaluate(BrightestChannel(), [*samples, stranger], TRANSFORM)
    with pytest.raises(DataError, match="no pictures"):
        evaluate(BrightestChannel(), [], TRANSFORM)
