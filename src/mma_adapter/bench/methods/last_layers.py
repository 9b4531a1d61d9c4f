"""Fine-tune the last n layers of the towers: the plain way to adapt upper layers.

There is no reference code. The norms after the last layer and the projections stay frozen. On
ViT-B/16 a layer has 7,087,872 (vision) and 3,152,384 (text) weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...backbones import describe
from ...classifier import TEMPLATE
from ...config import TOWERS, Tower
from ...data import Sample
from ...errors import ConfigError
from ..encoder import DualEncoder
from .base import Method, Predictor
from .loop import LoopConfig, train
from .mma import AdaptedPredictor


@dataclass(frozen=True, kw_only=True)
class LastLayersConfig(LoopConfig):
    """What is fine-tuned and how; the values are ours.

    Args:
        num_layers: How many layers, counted from the last.
        towers: In which towers.
        template: Prompt pattern for every data set; None is each data set's own.
    """

    num_layers: int = 1
    towers: tuple[Tower, ...] = TOWERS
    template: str | None = TEMPLATE
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-5
    weight_decay: float = 0.01


class LastLayers(Method):
    """Fine-tuning of the last layers."""

    Config: ClassVar[type] = LastLayersConfig
    transfers: ClassVar[bool] = True

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        """Train the last layers on the shots."""
        config: LastLayersConfig = self.config
        unfreeze_last_layers(encoder, config.num_layers, config.towers)
        classifier = encoder.classifier(classnames, config.template)
        losses = train(classifier, shots, config, encoder.train_transform, seed=seed)
        adapted_images = "vision" in config.towers
        return AdaptedPredictor(encoder, config.template, losses, adapted_images=adapted_images)


def unfreeze_last_layers(encoder: DualEncoder, num_layers: int, towers: Sequence[Tower]) -> None:
    """Let gradients into the last layers of `towers` and nowhere else.

    Raises:
        ConfigError: A tower has fewer layers.
    """
    encoder.model.requires_grad_(False)
    parts = describe(encoder.model).towers
    for tower in towers:
        layers = parts[tower].layers
        if not 1 <= num_layers <= len(layers):
            raise ConfigError(
                f"num_layers={num_layers}; pass 1 to {len(layers)}, the {tower} tower's depth"
            )
        for layer in list(layers)[-num_layers:]:
            layer.requires_grad_(True)
