"""Few-shot sampling, the base/novel halves, and own splits: pure functions of lists and a seed.

Source: `DatasetBase.generate_fewshot_dataset` of Dassl 0.6.3 and `subsample_classes`,
`split_trainval`, `read_and_split_data` of CoOp. At equal list order and seed the subsets are
theirs, picture by picture. One difference: seeds come from a private `random.Random`, never from
the global generator, and seed 0 is a seed like any other (the reference ignores it).
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from ..errors import ConfigError
from .samples import Sample

Classes = Literal["all", "base", "novel"]

MAX_VAL_SHOTS = 4


def random_stream(seed: int | random.Random) -> random.Random:
    """A private random stream; one that is already running is continued."""
    if isinstance(seed, random.Random):
        return seed
    if seed < 0:  # Python would take its absolute value
        raise ConfigError(f"seed={seed}; pass 0 or more (the published runs use 1, 2 and 3)")
    return random.Random(seed)


def group_by_label(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    """Pictures per label. The labels stand in order of first occurrence, which is not sorted."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.label, []).append(sample)
    return groups


def sample_shots(samples: Sequence[Sample], shots: int, seed: int | random.Random) -> list[Sample]:
    """Draw `shots` pictures of every class; a class with fewer gives all it has.

    Args:
        samples: Pictures; their order matters.
        shots: Pictures per class, or -1 for all pictures in their order.
        seed: A seed, or a stream to continue. A class with too few pictures draws nothing.

    Raises:
        ConfigError: `shots` is neither -1 nor positive, or the seed is negative.
    """
    if shots == -1:
        return list(samples)
    if shots < 1:
        raise ConfigError(f"shots={shots}; pass 1 or more, or -1 for all pictures")
    rng = random_stream(seed)
    drawn: list[Sample] = []
    for group in group_by_label(samples).values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return drawn


def few_shot(
    train: Sequence[Sample], val: Sequence[Sample], shots: int, seed: int | random.Random
) -> tuple[list[Sample], list[Sample]]:
    """Draw `shots` training and min(shots, 4) validation pictures per class, from one stream.

    Raises:
        ConfigError: As for `sample_shots`.
    """
    rng = random_stream(seed)
    few_train = sample_shots(train, shots, rng)
    return few_train, sample_shots(val, min(shots, MAX_VAL_SHOTS), rng)


def base_classes(labels: Iterable[int]) -> list[int]:
    """The first half of the distinct labels, sorted; an odd one out belongs here."""
    ordered = sorted(set(labels))
    return ordered[: (len(ordered) + 1) // 2]


def novel_classes(labels: Iterable[int]) -> list[int]:
    """The labels that `base_classes` leaves, sorted."""
    ordered = sorted(set(labels))
    return ordered[(len(ordered) + 1) // 2 :]


def select_classes(
    classes: Classes, train: Sequence[Sample], *others: Sequence[Sample]
) -> list[list[Sample]]:
    """Keep one half of the classes in every list, renumbered from 0 in label order.

    Args:
        classes: `"all"`, `"base"` or `"novel"`.
        train: The list whose labels are halved.
        others: Further lists, filtered with the same labels.

    Returns:
        The filtered lists, `train` first.

    Raises:
        ConfigError: `classes` is another word, or `"novel"` leaves no class.
    """
    if classes == "all":
        return [list(train), *(list(other) for other in others)]
    if classes not in get_args(Classes):
        raise ConfigError(f"classes={classes!r}; pass one of {', '.join(get_args(Classes))}")
    halve = base_classes if classes == "base" else novel_classes
    new_label = {label: new for new, label in enumerate(halve(s.label for s in train))}
    if not new_label:
        raise ConfigError(f"classes={classes!r} needs two classes or more, the data has one")
    return [
        [replace(s, label=new_label[s.label]) for s in part if s.label in new_label]
        for part in (train, *others)
    ]


def split_groups(
    groups: Iterable[Sequence[Sample]], rng: random.Random
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Shuffle each group and cut it into 50 % train, 20 % val and 30 % test, as CoOp does.

    A group of two or more always gives one picture to train and one to test.
    """
    train: list[Sample] = []
    val: list[Sample] = []
    test: list[Sample] = []
    for group in groups:
        shuffled = list(group)
        rng.shuffle(shuffled)
        num_train = max(1, round(0.5 * len(shuffled)))
        num_val = min(round(0.2 * len(shuffled)), max(0, len(shuffled) - num_train - 1))
        train += shuffled[:num_train]
        val += shuffled[num_train : num_train + num_val]
        test += shuffled[num_train + num_val :]
    return train, val, test


def hold_out_val(
    groups: Iterable[Sequence[Sample]], rng: random.Random
) -> tuple[list[Sample], list[Sample]]:
    """Shuffle each group and move 20 % of it from train to val, as CoOp does."""
    train: list[Sample] = []
    val: list[Sample] = []
    for group in groups:
        shuffled = list(group)
        rng.shuffle(shuffled)
        num_val = round(0.2 * len(shuffled))
        val += shuffled[:num_val]
        train += shuffled[num_val:]
    return train, val


def sorted_groups(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Pictures per class, labels and paths sorted, so that the order of `samples` is forgotten."""
    groups = group_by_label(samples)
    return [sorted(groups[label], key=lambda s: s.path.as_posix()) for label in sorted(groups)]


def split_samples(
    samples: Iterable[Sample], seed: int = 1
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Divide pictures into train, val and test, class by class: 50, 20 and 30 %.

    The result depends on the set of pictures and the seed, not on their order.
    """
    return split_groups(sorted_groups(samples), random_stream(seed))
