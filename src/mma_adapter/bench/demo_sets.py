"""Small data sets of the embedded icons that carry all four protocols offline, and their bench.

A third of the classes of every topic make up a general set, the counterpart of ImageNet: its
ordinary renderings (line and solid) are the source of transfers, its color, emoji, pixel and
hand-drawn renderings are the domains. The other classes stand in one set per topic. So the targets
of a cross-dataset transfer share no class with its source, and the domains have no other classes.

All pictures are photographed icons (`demo.photograph`), since on plain icons, which the embedded
CLIP was pretrained on, there is no shift to learn. The division into train and test is fixed; shots
are drawn from the train part.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath

from PIL import Image

from ..data import Dataset, Sample, few_shot, select_classes
from ..data.fewshot import Classes
from ..demo import TEMPLATE, Icon, Strength, load_icon_clip, load_icons, photograph, topics
from ..errors import ConfigError
from .encoder import DualEncoder
from .execution import Loader
from .features import FeatureStore
from .protocols import (
    SEEDS,
    SHOTS,
    Plan,
    Run,
    ablation,
    base_to_novel,
    cross_dataset,
    domain_generalization,
)
from .protocols import (
    few_shot as few_shot_runs,
)
from .results import PROTOCOLS, Protocol
from .sweep import Progress, SweepReport, run_sweep

GENERAL = "icons-general"
SOURCE_STYLES = ("line", "solid")
DOMAIN_STYLES = ("color", "emoji", "pixel", "hand-drawn")
GENERAL_EVERY = 3
"""Every third class of a topic belongs to the general set."""

TRAIN_PICTURES, TEST_PICTURES = 16, 20
"""At most so many pictures per class."""

METHODS = ("zero_shot", "zero_shot_ensemble", "linear_probe", "last_layers", "mma")
STRENGTH: Strength = "strong"

ABLATION_VALUES: dict[str, tuple[str, ...]] = {
    "towers": ("text", "vision"),
    "shared": ("untied", "none"),
    "bottleneck_dim": ("8", "16", "32", "64", "128"),
    "scale": ("0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1.0"),
    "start_layer": ("1", "3", "5", "7", "9", "11"),
}
"""The paper's axes, with scales about what suits the small model."""


def topical_sets() -> list[str]:
    """Names of the sets with one topic each."""
    return [f"icons-{topic.replace(' ', '-')}" for topic in topics()]


def domain_sets() -> list[str]:
    """Names of the sets with the general classes in other styles."""
    return [f"{GENERAL}-{style}" for style in DOMAIN_STYLES]


def demo_loader(strength: Strength = STRENGTH) -> Loader:
    """Return a loader of the demo's sets.

    Args:
        strength: How far the pictures are from flat icons.
    """
    return partial(_load, strength=strength)  # pyright: ignore[reportReturnType]


def demo_encoder(cache_dir: Path | str | None = None) -> DualEncoder:
    """Return the embedded CLIP.

    Args:
        cache_dir: Where to keep image features across processes.
    """
    model, tokenizer, processor = load_icon_clip()
    store = FeatureStore(cache_dir)
    return DualEncoder(model, tokenizer, processor, TEMPLATE, name="tiny-icon-clip", store=store)


def demo_runs(
    seeds: Iterable[int] = SEEDS,
    protocols: Iterable[Protocol] = PROTOCOLS,
    methods: Sequence[str] = METHODS,
) -> list[Run]:
    """List the runs of the demo's bench, one protocol after the other; the ablation is of MMA."""
    plan = Plan(methods=methods, seeds=tuple(seeds), family="icons")
    only_mma = Plan(methods=("mma",), seeds=tuple(seeds), family="icons")
    planners: dict[Protocol, Callable[[], list[Run]]] = {
        "base-to-novel": lambda: base_to_novel(plan, [GENERAL, *topical_sets()]),
        "cross-dataset": lambda: cross_dataset(plan, GENERAL, topical_sets()),
        "domain-generalization": lambda: domain_generalization(plan, GENERAL, domain_sets()),
        "few-shot": lambda: few_shot_runs(plan, FEW_SHOT_SETS, shots=SHOTS),
        "ablation": lambda: ablation(only_mma, ABLATION_SETS, values=ABLATION_VALUES),
    }
    return [run for protocol in protocols for run in planners[protocol]()]


# Each of these protocols trains dozens of times per set, so they have few and small ones.
FEW_SHOT_SETS = ("icons-nature", "icons-devices")
ABLATION_SETS = ("icons-devices", "icons-transport-and-places")


def run_demo_bench(
    output_dir: Path | str,
    seeds: Iterable[int] = SEEDS,
    progress: Callable[[Progress], None] | None = None,
    *,
    protocols: Iterable[Protocol] = PROTOCOLS,
    methods: Sequence[str] = METHODS,
) -> SweepReport:
    """Run all protocols on the demo's sets; what is recorded already is not run again.

    Args:
        output_dir: Folder of the records, `results.jsonl`.
        seeds: One run each.
        progress: Told before and after every run.
        protocols: Only these.
        methods: Only these, in the protocols that compare methods.
    """
    folder = Path(output_dir)
    return run_sweep(
        demo_runs(seeds, protocols, methods),
        demo_encoder(),
        demo_loader(),
        folder / "results.jsonl",
        progress=progress,
    )


def _load(
    name: str, *, shots: int, seed: int, classes: Classes, strength: Strength = STRENGTH
) -> Dataset:
    train, test = _parts(name, strength)
    # Test pictures are the same for all seeds and shots.
    train, _ = few_shot(train, [], shots, seed)
    train, test = select_classes(classes, train, test)
    return Dataset(name, train, [], test, template=TEMPLATE, split_origin="own")


@cache
def _parts(name: str, strength: Strength) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    icons = _icons_of(name)
    is_domain = name in domain_sets()
    names = sorted({icon.classname for icon in icons})
    train: list[Sample] = []
    test: list[Sample] = []
    for label, classname in enumerate(names):
        group = sorted((i for i in icons if i.classname == classname), key=lambda i: i.key)
        # A stream of its own per class: no class's division depends on the other classes.
        random.Random(f"bench {classname}").shuffle(group)
        cut = min(TRAIN_PICTURES, (len(group) + 1) // 2)
        samples = [
            Sample(_path(icon), label, classname, partial(_draw, icon, strength)) for icon in group
        ]
        # Nothing is learnt from a domain: as with ImageNet's variants, train and test are one.
        train += samples if is_domain else samples[:cut]
        test += samples if is_domain else samples[cut : cut + TEST_PICTURES]
    return tuple(train), tuple(test)


def _icons_of(name: str) -> list[Icon]:
    general = _general_classes()
    if name == GENERAL:
        return [i for i in load_icons() if i.classname in general and i.style in SOURCE_STYLES]
    if name in domain_sets():
        style = name.removeprefix(f"{GENERAL}-")
        return [i for i in load_icons() if i.classname in general and i.style == style]
    if name in topical_sets():
        topic = topics()[topical_sets().index(name)]
        return [i for i in load_icons() if i.topic == topic and i.classname not in general]
    known = [GENERAL, *topical_sets(), *domain_sets()]
    raise ConfigError(f"the demo has no data set {name!r}; pass one of {', '.join(known)}")


@cache
def _general_classes() -> frozenset[str]:
    by_topic: dict[str, set[str]] = {}
    for icon in load_icons():
        by_topic.setdefault(icon.topic, set()).add(icon.classname)
    return frozenset(name for names in by_topic.values() for name in sorted(names)[::GENERAL_EVERY])


def _path(icon: Icon) -> Path:
    folder = icon.classname.replace(" ", "_")
    return Path(PurePosixPath(folder, f"{icon.family}--{icon.icon}.png"))


@cache
def _draw(icon: Icon, strength: Strength) -> Image.Image:
    """The photographed icon; all of them together are 47 MB."""
    return photograph(icon.open(), strength=strength)
