"""The methods of the benchmark. A new one is a module here and one line in `METHODS`."""

from .base import FeatureScorer, Method, Predictor, Scorer
from .last_layers import LastLayers, LastLayersConfig
from .linear_probe import LinearProbe, LinearProbeConfig
from .loop import LoopConfig
from .mma import MMA, MMAMethodConfig
from .zero_shot import ZeroShot, ZeroShotConfig, ZeroShotEnsemble, ZeroShotEnsembleConfig

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "zero_shot_ensemble": ZeroShotEnsemble,
    "linear_probe": LinearProbe,
    "last_layers": LastLayers,
    "mma": MMA,
}

__all__ = [
    "METHODS",
    "MMA",
    "FeatureScorer",
    "LastLayers",
    "LastLayersConfig",
    "LinearProbe",
    "LinearProbeConfig",
    "LoopConfig",
    "MMAMethodConfig",
    "Method",
    "Predictor",
    "Scorer",
    "ZeroShot",
    "ZeroShotConfig",
    "ZeroShotEnsemble",
    "ZeroShotEnsembleConfig",
]
