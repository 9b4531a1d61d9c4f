"""The Multi-Modal Adapter as a method of the benchmark; its fields are the paper's ablations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...classifier import TEMPLATE, FewShotClassifier
from ...config import TOWERS, Pairing, Shared, Tower
from ...data import Sample
from ...injection import inject_mma
from ..encoder import DualEncoder, Template
from .base import Method, Predictor, Scorer
from .loop import LoopConfig, train
from .zero_shot import frozen_image_scorer


@dataclass(frozen=True, kw_only=True)
class MMAMethodConfig(LoopConfig):
    """Adapter and training of MMA; see `inject_mma` and `LoopConfig`.

    Args:
        template: Prompt pattern for every data set; None is each data set's own. The paper has one.
    """

    start_layer: int = 5
    end_layer: int | None = None
    bottleneck_dim: int = 32
    scale: float = 0.001
    towers: tuple[Tower, ...] = TOWERS
    shared: Shared = "tied"
    pairing: Pairing = "top"
    template: str | None = TEMPLATE


class MMA(Method):
    """The Multi-Modal Adapter (CVPR 2024)."""

    Config: ClassVar[type] = MMAMethodConfig
    transfers: ClassVar[bool] = True

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        """Train an adapter on the shots."""
        config: MMAMethodConfig = self.config
        inject_mma(
            encoder.model,
            config.start_layer,
            end_layer=config.end_layer,
            bottleneck_dim=config.bottleneck_dim,
            scale=config.scale,
            towers=config.towers,
            shared=config.shared,
            pairing=config.pairing,
            seed=seed,
        )
        classifier = encoder.classifier(classnames, config.template)
        losses = train(classifier, shots, config, encoder.train_transform, seed=seed)
        adapted_images = "vision" in config.towers
        return AdaptedPredictor(encoder, config.template, losses, adapted_images=adapted_images)


class AdaptedPredictor(Predictor):
    """Scores with a host whose own forward pass has been adapted.

    Args:
        encoder: The adapted host; the weights that require a gradient are those that were trained.
        template: Prompt pattern it was trained with; None is each data set's own.
        losses: Of the training.
        adapted_images: Whether the image tower differs from the untouched one.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        template: Template | None,
        losses: tuple[float, ...],
        *,
        adapted_images: bool = True,
    ) -> None:
        self.encoder, self.template, self.losses = encoder, template, losses
        self.adapted_images = adapted_images
        self.num_trainable = sum(p.numel() for p in encoder.model.parameters() if p.requires_grad)

    def prompt(self, own: Template) -> Template:
        """Return the pattern it was trained with, if that was fixed."""
        return self.template or own

    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        """Compute the text features of `classnames` and return the scorer."""
        pattern = self.prompt(template or self.encoder.template)
        if not self.adapted_images:
            return frozen_image_scorer(self.encoder, classnames, pattern)
        classifier = self.encoder.classifier(classnames, pattern)
        return _scorer(classifier)


def _scorer(classifier: FewShotClassifier) -> Scorer:
    @torch.no_grad()
    def score(pixel_values: Tensor) -> Tensor:
        return classifier(pixel_values).logits

    return score
