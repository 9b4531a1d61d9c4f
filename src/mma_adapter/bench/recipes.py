"""Recipes: named settings per method and protocol, and changes to them by hand.

`origin` says how far a recipe can be trusted: `"paper"` is published as it stands,
`"reconstruction"` fills the gaps of what is published, `"ours"` is our choice.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import ConfigError
from .methods import (
    METHODS,
    LastLayersConfig,
    LinearProbeConfig,
    MMAMethodConfig,
    ZeroShotConfig,
    ZeroShotEnsembleConfig,
)
from .results import PROTOCOLS, Protocol

Origin = Literal["paper", "reconstruction", "ours"]
Family = Literal["paper", "icons"]
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one method.

    Args:
        name: Name in records.
        method: Name in `METHODS`.
        config: The method's settings.
        origin: Where the settings come from.
        note: What is known about them.
    """

    name: str
    method: str
    config: Any
    origin: Origin
    note: str = ""


# Small crops of icons of 48 pixels show nothing.
_ICON_CROPS = (0.4, 1.0)

_RECIPES = (
    Recipe(
        name="mma-base-to-novel",
        method="mma",
        config=MMAMethodConfig(),
        origin="paper",
        note="configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml of the authors' code",
    ),
    Recipe(
        name="mma-base-to-novel-imagenet",
        method="mma",
        config=MMAMethodConfig(batch_size=128),
        origin="paper",
        note="configs/trainers/MultiModalAdapter/vit_b16_ep5_imnet.yaml",
    ),
    Recipe(
        name="mma-transfer",
        method="mma",
        config=MMAMethodConfig(start_layer=9, epochs=1, batch_size=128),
        origin="reconstruction",
        note="the paper says k = 9 and one epoch; batch and learning rate are not published",
    ),
    Recipe(
        name="mma-few-shot",
        method="mma",
        config=MMAMethodConfig(),
        origin="ours",
        note="MMA never published a few-shot setting; this is its base-to-novel recipe",
    ),
    Recipe(
        name="mma-icons",
        method="mma",
        config=MMAMethodConfig(
            lr=0.02, epochs=10, scale=0.2, crop_scale=_ICON_CROPS, template=None
        ),
        origin="ours",
        note="for the embedded small CLIP; layers as in the paper, the rest found on classes and "
        "pictures held out of the demo's training part (benchmarks/results/demo_recipe.json)",
    ),
    Recipe(
        name="mma-icons-transfer",
        method="mma",
        config=MMAMethodConfig(
            start_layer=9, lr=0.02, epochs=5, scale=0.2, crop_scale=_ICON_CROPS, template=None
        ),
        origin="ours",
        note="for the embedded small CLIP; k = 9 as in the paper",
    ),
    Recipe(
        name="zero-shot",
        method="zero_shot",
        config=ZeroShotConfig(),
        origin="paper",
        note="CoOp's template of each data set",
    ),
    Recipe(
        name="zero-shot-ensemble",
        method="zero_shot_ensemble",
        config=ZeroShotEnsembleConfig(),
        origin="paper",
        note="CoOp's seven selected templates and the data set's own",
    ),
    Recipe(
        name="zero-shot-ensemble-icons",
        method="zero_shot_ensemble",
        config=ZeroShotEnsembleConfig(
            templates=("{}", "{} icon", "a picture of a {}.", "a drawing of a {}.", "a {} symbol.")
        ),
        origin="ours",
        note="templates of the embedded CLIP's pretraining captions",
    ),
    Recipe(
        name="linear-probe",
        method="linear_probe",
        config=LinearProbeConfig(),
        origin="ours",
        note="C as in the CLIP paper, fixed",
    ),
    Recipe(
        name="last-layers",
        method="last_layers",
        config=LastLayersConfig(),
        origin="ours",
        note="no published setting",
    ),
    Recipe(
        name="last-layers-icons",
        method="last_layers",
        config=LastLayersConfig(lr=3e-4, epochs=10, crop_scale=_ICON_CROPS, template=None),
        origin="ours",
        note="for the embedded small CLIP",
    ),
    Recipe(
        name="last-layers-icons-transfer",
        method="last_layers",
        config=LastLayersConfig(lr=3e-4, epochs=5, crop_scale=_ICON_CROPS, template=None),
        origin="ours",
        note="for the embedded small CLIP",
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}

_TRANSFER: tuple[Protocol, ...] = ("cross-dataset", "domain-generalization")

# Recipe by family and method; one more level where it depends on the protocol.
_CHOICES: dict[Family, dict[str, str | dict[Protocol, str]]] = {
    "paper": {
        "zero_shot": "zero-shot",
        "zero_shot_ensemble": "zero-shot-ensemble",
        "linear_probe": "linear-probe",
        "last_layers": "last-layers",
        "mma": {
            **dict.fromkeys(PROTOCOLS, "mma-base-to-novel"),
            **dict.fromkeys(_TRANSFER, "mma-transfer"),
            "few-shot": "mma-few-shot",
        },
    },
    "icons": {
        "zero_shot": "zero-shot",
        "zero_shot_ensemble": "zero-shot-ensemble-icons",
        "linear_probe": "linear-probe",
        "last_layers": {
            **dict.fromkeys(PROTOCOLS, "last-layers-icons"),
            **dict.fromkeys(_TRANSFER, "last-layers-icons-transfer"),
        },
        "mma": {
            **dict.fromkeys(PROTOCOLS, "mma-icons"),
            **dict.fromkeys(_TRANSFER, "mma-icons-transfer"),
        },
    },
}


def recipe_for(
    method: str, protocol: Protocol, dataset: str, *, family: Family = "paper"
) -> Recipe:
    """Return the recipe a method follows in a protocol.

    Args:
        method: Name in `METHODS`.
        protocol: The protocol.
        dataset: Data set to train on; ImageNet has a recipe of its own.
        family: `"paper"` for CLIP at its usual size, `"icons"` for the embedded small CLIP.

    Raises:
        ConfigError: There is no such method.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; pass one of {', '.join(METHODS)}")
    choice = _CHOICES[family].get(method)
    if choice is None:  # a method without a recipe of its own follows its defaults
        return Recipe(name=method, method=method, config=METHODS[method].Config(), origin="ours")
    name = choice if isinstance(choice, str) else choice[protocol]
    if name == "mma-base-to-novel" and dataset == "imagenet":
        name = "mma-base-to-novel-imagenet"
    return RECIPES[name]


def override(config: Config, changes: Mapping[str, str]) -> Config:
    """Return `config` with fields changed to values given as texts, as `--set` does.

    Lists are written with commas (`towers=text,vision`), and None as `none`.

    Raises:
        ConfigError: There is no such field, or the text is no value for it.
    """
    hints = typing.get_type_hints(type(config))
    values = {}
    for key, text in changes.items():
        if key not in hints:
            raise ConfigError(
                f"{type(config).__name__} has no setting {key!r}; it has {', '.join(hints)}"
            )
        try:
            values[key] = _parse(text, hints[key])
        except ValueError as error:
            raise ConfigError(f"--set {key}={text}: {error}") from None
    return dataclasses.replace(config, **values)  # pyright: ignore[reportArgumentType]


def has_setting(config: Any, key: str) -> bool:
    """Whether `config` has the field `key`."""
    return key in {field.name for field in dataclasses.fields(config)}


def _parse(text: str, hint: Any) -> Any:
    """Read `text` as a value of the annotation `hint`; ValueError says what would be one."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        if type(None) in inner and text.lower() == "none":
            return None
        return _parse(text, next(arg for arg in inner if arg is not type(None)))
    if kind is Literal:
        if text not in inner:
            raise ValueError(f"pass one of {', '.join(map(str, inner))}")
        return text
    if kind is tuple:
        return tuple(_parse(part.strip(), inner[0]) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("pass true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"pass a {'whole number' if hint is int else 'number'}") from None
    return text
