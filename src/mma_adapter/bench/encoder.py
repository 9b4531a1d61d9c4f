"""The host as the protocols see it: a dual encoder with what belongs to it, and its kept features.

Shapes: B pictures, E size of the joint space.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..backbones import as_features, fingerprint
from ..classifier import TEMPLATE, FewShotClassifier
from ..data import ProcessorTransform, Sample, TrainTransform, from_processor, open_image
from .features import FeatureStore

Template = str | tuple[str, ...]
TransformKind = Literal["reference", "processor"]
Transform = Callable[[Image.Image], Tensor]

TEST_BATCH = 100
"""Pictures per batch in tests, as in the reference implementation."""


@dataclass(frozen=True)
class DualEncoder:
    """A two-tower model with its tokenizer, image processor and prompt template.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        image_processor: Its image processor; gives size, mean and std of the pictures.
        template: Prompt pattern of the data set at hand, for methods without one of their own.
        name: Name of the model in records.
        transform: `"reference"` is the papers' preprocessing, `"processor"` the model's own (in
            tests; training crops are always the reference's).
        store: Where features of the untouched image tower are kept.
        tag: Name of the data set at hand, which keeps equal picture names of two sets apart.
        origin: The untouched encoder that this one is a copy of.
    """

    model: nn.Module
    tokenizer: Any
    image_processor: Any
    template: Template = TEMPLATE
    name: str = ""
    transform: TransformKind = "reference"
    store: FeatureStore = field(default_factory=FeatureStore, compare=False)
    tag: str = ""
    origin: "DualEncoder | None" = field(default=None, repr=False, compare=False)

    def copy(self) -> "DualEncoder":
        """Return an encoder with a model of its own, for a method to change as it likes."""
        return replace(self, model=copy.deepcopy(self.model), origin=self.origin or self)

    def at(self, tag: str, template: Template) -> "DualEncoder":
        """Return this encoder, same model, for a data set."""
        return replace(self, tag=tag, template=template, origin=self.origin or self)

    def classifier(
        self, classnames: Sequence[str], template: Template | None = None
    ) -> FewShotClassifier:
        """Return a classifier of this model; equal names are accepted, as ImageNet has them."""
        return FewShotClassifier(
            self.model,
            self.tokenizer,
            classnames,
            template or self.template,
            allow_duplicates=True,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def train_transform(self) -> TrainTransform:
        """Random crop and flip for training."""
        return from_processor(self.image_processor)[0]

    @property
    def test_transform(self) -> Transform:
        """Picture to pixel values (3, S, S) for tests."""
        if self.transform == "processor":
            return ProcessorTransform(self.image_processor)
        return from_processor(self.image_processor)[1]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """`backbones.fingerprint`, and a hash over all weights, which tells any two hosts apart."""
        sha = hashlib.sha256()
        for key, tensor in self.model.state_dict().items():
            sha.update(key.encode())
            raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            sha.update(memoryview(raw.numpy()))
        return {**fingerprint(self.model), "weights_sha256": sha.hexdigest()[:16]}

    def pixel_batches(self, samples: Sequence[Sample]) -> Iterator[Tensor]:
        """Yield pixel values (B, 3, S, S) of the pictures, in order, on the model's device."""
        transform = self.test_transform
        # Pillow decodes and resizes without the interpreter lock, so threads help.
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(samples), TEST_BATCH):
                part = samples[start : start + TEST_BATCH]
                pixels = list(pool.map(lambda sample: transform(open_image(sample)), part))
                yield torch.stack(pixels).to(self.device)

    def frozen_features(self, samples: Sequence[Sample]) -> Tensor:
        """Return unit features (B, E), on the CPU, of the untouched image tower; computed once.

        A copy asks the encoder it was copied from, whatever a method did to the copy.
        """
        untouched = self.origin or self
        key = [untouched.fingerprint, str(self.device.type), repr(self.test_transform), self.tag]
        return self.store.get(
            [*map(str, key), *map(_identity, samples)],
            lambda: torch.cat(
                [untouched.encode(p).cpu() for p in untouched.pixel_batches(samples)]
            ),
        )

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Return unit image features (B, E), float32, of this encoder's model."""
        features = as_features(self.model.get_image_features(pixel_values=pixel_values))  # pyright: ignore
        return F.normalize(features.float(), dim=-1)


def _identity(sample: Sample) -> str:
    """Name of a picture, with size and time of its file, which may be replaced by another one."""
    name = sample.path.as_posix()
    if sample.image is not None or not sample.path.is_file():
        return name
    stat = sample.path.stat()
    return f"{name} {stat.st_size} {stat.st_mtime_ns}"
