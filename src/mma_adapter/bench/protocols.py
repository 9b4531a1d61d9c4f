"""The field's four protocols and the paper's ablations, as lists of runs.

The planners are pure: they list what is to be trained and on what it is scored. `execution.execute`
does it.

Sources: CoCoOp (base-to-novel, cross-dataset), CoOp (few-shot, domain generalisation), and the
scripts of the MMA code. All accuracies are micro, in per cent.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ..data.fewshot import Classes
from ..errors import ConfigError
from .encoder import DualEncoder
from .methods import METHODS
from .recipes import Family, Recipe, has_setting, override, recipe_for
from .results import Key, Protocol, Role

SEEDS = (1, 2, 3)
SHOTS = (1, 2, 4, 8, 16)

BASE_TO_NOVEL = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
"""The 11 data sets of base-to-novel and few-shot, in the order of the papers' tables."""

SOURCE = "imagenet"
CROSS_DATASET = BASE_TO_NOVEL[1:]
DOMAINS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")

ABLATIONS: dict[str, tuple[str, ...]] = {
    "towers": ("text", "vision"),
    "shared": ("untied", "none"),
    "bottleneck_dim": ("8", "16", "32", "64", "128"),
    "scale": ("0.0001", "0.0005", "0.001", "0.005", "0.01", "0.1"),
    "start_layer": ("1", "3", "5", "7", "9", "11"),
}
"""Values by setting; the recipe's own value is run once, whatever settings list it."""


@dataclass(frozen=True)
class Target:
    """What a run is scored on."""

    dataset: str
    classes: Classes
    role: Role


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and the scores that belong to it.

    Args:
        protocol: The protocol it is part of.
        recipe: Method and settings, after all changes.
        dataset: Data set to train on.
        classes: Which of its classes.
        shots: Pictures per class; -1 is all.
        seed: Seed of shots and training.
        targets: What it is scored on.
        overrides: Settings changed by hand.
        variant: What an ablation changed.
    """

    protocol: Protocol
    recipe: Recipe
    dataset: str
    classes: Classes
    shots: int
    seed: int
    targets: tuple[Target, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    variant: str = ""

    @property
    def method(self) -> str:
        """Name in `METHODS`."""
        return self.recipe.method

    def id(self, encoder: DualEncoder) -> str:
        """Hash of all that can change a score; the targets and the recipe's name cannot."""
        what = {
            "protocol": self.protocol,
            "method": self.method,
            "config": asdict(self.recipe.config),
            "dataset": self.dataset,
            "classes": self.classes,
            "shots": self.shots,
            "seed": self.seed,
            "host": (encoder.origin or encoder).fingerprint,
            "transform": encoder.transform,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]

    def keys(self, encoder: DualEncoder) -> set[Key]:
        """Keys of the records this run leaves."""
        run_id = self.id(encoder)
        return {(run_id, target.role, target.dataset) for target in self.targets}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all runs of a sweep have in common.

    Args:
        methods: Names in `METHODS`.
        seeds: One run each.
        overrides: Settings changed by hand (`--set`), for the methods that have them.
        family: Recipes for CLIP at its usual size (`"paper"`) or for the embedded one (`"icons"`).

    Raises:
        ConfigError: A method is unknown, or no method has an overridden setting.
    """

    methods: Sequence[str]
    seeds: Sequence[int] = SEEDS
    overrides: Mapping[str, str] = field(default_factory=dict)
    family: Family = "paper"

    def __post_init__(self) -> None:
        for method in self.methods:
            recipe_for(method, "few-shot", "")
        for key in self.overrides:
            if not any(has_setting(METHODS[m].Config(), key) for m in self.methods):
                raise ConfigError(
                    f"none of the methods {', '.join(self.methods)} has the setting {key!r}"
                )

    def runs(
        self,
        protocol: Protocol,
        dataset: str,
        classes: Classes,
        shots: int,
        targets: Sequence[Target],
        *,
        variant: str = "",
    ) -> list[Run]:
        """List the runs of all methods and seeds on one data set."""
        runs = []
        for method in self.methods:
            recipe = recipe_for(method, protocol, dataset, family=self.family)
            own = {k: v for k, v in self.overrides.items() if has_setting(recipe.config, k)}
            changes = dict([variant.split("=", 1)]) if variant else {}
            config = override(recipe.config, {**own, **changes})
            recipe = dataclasses.replace(recipe, config=config)
            runs += [
                Run(
                    protocol=protocol,
                    recipe=recipe,
                    dataset=dataset,
                    classes=classes,
                    shots=shots,
                    seed=seed,
                    targets=tuple(targets),
                    overrides=tuple(own.items()),
                    variant=variant,
                )
                for seed in self.seeds
            ]
        return runs


def base_to_novel(
    plan: Plan, datasets: Sequence[str] = BASE_TO_NOVEL, *, shots: int = 16
) -> list[Run]:
    """Train on the base half of the classes; score base and novel classes, each among its own."""
    return [
        run
        for dataset in datasets
        for run in plan.runs("base-to-novel", dataset, "base", shots, _halves(dataset))
    ]


def cross_dataset(
    plan: Plan,
    source: str = SOURCE,
    targets: Sequence[str] = CROSS_DATASET,
    *,
    shots: int = 16,
) -> list[Run]:
    """Train on all classes of the source; score other data sets with all their classes."""
    return plan.runs("cross-dataset", source, "all", shots, _transfer(source, targets))


def domain_generalization(
    plan: Plan, source: str = SOURCE, targets: Sequence[str] = DOMAINS, *, shots: int = 16
) -> list[Run]:
    """Train on all classes of the source; score other renderings of (some of) these classes."""
    return plan.runs("domain-generalization", source, "all", shots, _transfer(source, targets))


def few_shot(
    plan: Plan, datasets: Sequence[str] = BASE_TO_NOVEL, *, shots: Sequence[int] = SHOTS
) -> list[Run]:
    """Train and score on all classes, with growing numbers of shots."""
    return [
        run
        for dataset in datasets
        for k in shots
        for run in plan.runs("few-shot", dataset, "all", k, [Target(dataset, "all", "all")])
    ]


def ablation(
    plan: Plan,
    datasets: Sequence[str] = BASE_TO_NOVEL,
    *,
    values: Mapping[str, Sequence[str]] | None = None,
    shots: int = 16,
) -> list[Run]:
    """MMA base-to-novel with one setting changed at a time.

    The unchanged method is run once, with an empty `variant`; it belongs to every curve.

    Args:
        plan: Seeds and changes for all runs; its methods must be `("mma",)`.
        datasets: Data sets to average over.
        values: Values to try by setting; `ABLATIONS` by default.
        shots: Training pictures per class.
    """
    if tuple(plan.methods) != ("mma",):
        raise ConfigError(f"an ablation is of mma alone, not of {', '.join(plan.methods)}")
    values = ABLATIONS if values is None else values
    variants = ["", *(f"{key}={value}" for key in values for value in values[key])]
    runs: list[Run] = []
    for dataset in datasets:
        own: list[Run] = []
        for variant in variants:
            some = plan.runs("ablation", dataset, "base", shots, _halves(dataset), variant=variant)
            # A value that is the recipe's own changes nothing: that run is listed already.
            own += [r for r in some if all(r.recipe != o.recipe for o in own)]
        runs += own
    return runs


def _halves(dataset: str) -> list[Target]:
    return [Target(dataset, "base", "base"), Target(dataset, "novel", "novel")]


def _transfer(source: str, targets: Sequence[str]) -> list[Target]:
    return [Target(source, "all", "source"), *(Target(t, "all", "target") for t in targets)]
