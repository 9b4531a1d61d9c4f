"""Zero-shot CLIP: class prompts and nothing learnt.

Source: CoOp's `trainers/zsclip.py`: the data set's own template, or seven selected templates with
the data set's own added, averaged as unit features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...backbones import logit_scale_and_bias
from ...data import Sample
from ..encoder import DualEncoder, Template
from .base import FeatureScorer, Method, Predictor, Scorer

SELECTED_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """The prompt of zero-shot CLIP.

    Args:
        template: Prompt pattern for every data set; None is each data set's own.
    """

    template: str | None = None


@dataclass(frozen=True, kw_only=True)
class ZeroShotEnsembleConfig:
    """The prompts of zero-shot CLIP with several templates.

    Args:
        templates: Prompt patterns.
        add_own: Add the data set's own pattern where it is not among them.
    """

    templates: tuple[str, ...] = SELECTED_TEMPLATES
    add_own: bool = True


class ZeroShot(Method):
    """Zero-shot CLIP with one template."""

    Config: ClassVar[type] = ZeroShotConfig
    transfers: ClassVar[bool] = True

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        """Learn nothing."""
        return _Prompts(encoder, self.config.template)


class ZeroShotEnsemble(Method):
    """Zero-shot CLIP with several templates."""

    Config: ClassVar[type] = ZeroShotEnsembleConfig
    transfers: ClassVar[bool] = True

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        """Learn nothing."""
        return _Prompts(encoder, self.config.templates, add_own=self.config.add_own)


class _Prompts(Predictor):
    def __init__(
        self, encoder: DualEncoder, template: Template | None, *, add_own: bool = False
    ) -> None:
        self.encoder, self.template, self.add_own = encoder, template, add_own

    def prompt(self, own: Template) -> Template:
        patterns = self.template or own
        if self.add_own and isinstance(own, str) and own not in patterns:
            return (*patterns, own)
        return patterns

    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        patterns = self.prompt(template or self.encoder.template)
        return frozen_image_scorer(self.encoder, classnames, patterns)


def frozen_image_scorer(
    encoder: DualEncoder, classnames: Sequence[str], template: Template
) -> FeatureScorer:
    """Return a scorer of text features, computed here, against an untouched image tower."""
    with torch.no_grad():
        text = encoder.classifier(classnames, template).text_features()  # (K, E)
    scale, bias = logit_scale_and_bias(encoder.model)

    @torch.no_grad()
    def score(features: Tensor) -> Tensor:
        logits = scale.float() * features.to(text.device) @ text.t()
        return logits if bias is None else logits + bias.float()

    return FeatureScorer(encoder.encode, score)
