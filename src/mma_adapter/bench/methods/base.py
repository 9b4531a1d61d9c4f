"""What every method of the benchmark is: it learns from shots and class names, and nothing else.

The protocol hands `fit` a deep copy of the host, so a method may change it freely, and scores the
predictor itself: a method never sees a test picture.

Shapes: B pictures, K classes, E size of the joint space.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...data import Sample
from ...errors import ConfigError
from ..encoder import DualEncoder, Template

Scorer = Callable[[Tensor], Tensor]
"""Pixel values (B, 3, S, S) to logits (B, K)."""


@dataclass(frozen=True)
class FeatureScorer:
    """A scorer that reads pictures through the untouched image tower only.

    Its promise lets the protocol score features it has kept instead of pictures.

    Args:
        encode: Pixel values (B, 3, S, S) to unit features (B, E) of the untouched tower.
        score: Features (B, E) to logits (B, K).
    """

    encode: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Pixel values (B, 3, S, S) to logits (B, K)."""
        return self.score(self.encode(pixel_values))


class Predictor(ABC):
    """What `fit` returns.

    Attributes:
        num_trainable: How many weights were trained.
        losses: Training loss of every step; empty where there are no steps.
    """

    num_trainable: int = 0
    losses: tuple[float, ...] = ()

    def prompt(self, own: Template) -> Template:
        """Return the prompt pattern used on a data set whose own is `own`, for records."""
        return own

    @abstractmethod
    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        """Fix the K candidate classes; what depends on them alone is computed once, here.

        Args:
            classnames: Names of the candidates.
            template: The data set's own prompt pattern. Methods trained with a pattern keep theirs.

        Raises:
            ConfigError: The method can score only the classes it was trained on.
        """


class Method(ABC):
    """A way to adapt a host with a few pictures per class.

    Args:
        config: Its hyperparameters, a frozen dataclass of the type `Config`.
    """

    Config: ClassVar[type]
    transfers: ClassVar[bool]
    """Whether it can score classes it was not trained on."""

    def __init__(self, config: Any = None) -> None:
        config = self.Config() if config is None else config
        if not isinstance(config, self.Config):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.Config.__name__}, "
                f"not a {type(config).__name__}"
            )
        self.config = config

    @abstractmethod
    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        """Learn from `shots`.

        Args:
            encoder: A host of the method's own, free to change.
            shots: Labelled pictures.
            classnames: Names of the classes, in label order.
            seed: Seed of all that is drawn.

        Raises:
            TrainingError: The loss became infinite or no number.
        """


def check_same_classes(fitted: Sequence[str], asked: Sequence[str], method: type[Method]) -> None:
    """Refuse classes that a method without transfer was not trained on.

    Raises:
        ConfigError: The lists differ.
    """
    if list(fitted) != list(asked):
        foreign = [name for name in asked if name not in set(fitted)] or list(asked)
        raise ConfigError(
            f"{method.__name__} scores only the {len(fitted)} classes it was trained on, not "
            f"{', '.join(map(repr, foreign[:3]))}; train it on these classes, or use a method "
            "with transfers=True"
        )
