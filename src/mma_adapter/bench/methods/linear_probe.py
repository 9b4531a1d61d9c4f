"""Linear probe: logistic regression on the image features of the untouched host.

Source: section 3.2 of the CLIP paper, with scikit-learn's solver. CLIP's C = 0.316 is for features
as they leave the tower, of a norm of about 10; for unit features the same penalty is C = 31.6. CLIP
and CoOp choose C on validation pictures; here it is fixed, for a method sees its shots only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...data import Sample
from ...errors import ConfigError
from ..encoder import DualEncoder, Template
from .base import FeatureScorer, Method, Predictor, Scorer, check_same_classes


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """Settings of the regression.

    Args:
        c: Inverse strength of the L2 penalty.
        max_iter: Steps of the solver.
    """

    c: float = 31.6
    max_iter: int = 1000


class LinearProbe(Method):
    """Logistic regression on image features; it has no text, so it cannot score new classes."""

    Config: ClassVar[type] = LinearProbeConfig
    transfers: ClassVar[bool] = False

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        """Solve the regression on the shots' features; nothing is drawn.

        Raises:
            ConfigError: scikit-learn is not installed.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise ConfigError(
                'the linear probe needs scikit-learn: pip install "mma-adapter[report]"'
            ) from error
        features = encoder.frozen_features(shots)
        labels = [sample.label for sample in shots]
        solver = LogisticRegression(C=self.config.c, max_iter=self.config.max_iter)
        solver.fit(features.numpy(), labels)
        weight, bias = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
        if len(weight) == 1:  # two classes: one plane between them
            weight = torch.cat([torch.zeros_like(weight), weight])
            bias = torch.cat([torch.zeros_like(bias), bias])
        return _Planes(encoder, classnames, weight.float(), bias.float())


class _Planes(Predictor):
    def __init__(
        self, encoder: DualEncoder, classnames: Sequence[str], weight: Tensor, bias: Tensor
    ) -> None:
        self.encoder, self.classnames = encoder, list(classnames)
        self.weight, self.bias = weight, bias  # (K, E), (K,)
        self.num_trainable = weight.numel() + bias.numel()

    def prompt(self, own: Template) -> Template:
        return ""  # it reads no text

    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        check_same_classes(self.classnames, classnames, LinearProbe)

        def score(features: Tensor) -> Tensor:
            weight, bias = self.weight.to(features.device), self.bias.to(features.device)
            return features @ weight.t() + bias

        return FeatureScorer(self.encoder.encode, score)
