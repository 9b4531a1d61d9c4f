"""The shape of a Multi-Modal Adapter, as saved in `adapter_config.json`.

Layers are counted from 1, as in the paper and the authors' code. The number of a pair of layers is
its number in the shallower tower; it names the pair's weights in the adapter's state dict.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from .errors import ConfigError

Tower = Literal["text", "vision"]
Shared = Literal["tied", "untied", "none"]
Pairing = Literal["top", "index"]

TOWERS: tuple[Tower, ...] = get_args(Tower)
FORMAT = 1  # raise when an adapter saved in the old format would load wrongly

# Far above any model in use; a damaged file must not make us build lists of a billion layers.
_MAX_LAYER, _MAX_WIDTH = 1024, 65536

# What the fields that only describe may hold, and how to say so.
_OPTIONAL: dict[str, tuple[Any, str]] = {
    "model_type": (str, "a string"),
    "base_model_name_or_path": (str, "a string"),
    "revision": (str, "a string"),
    "base_fingerprint": (dict, "a dictionary"),
    "template": (str | tuple, "a string or a list of strings"),
    "classnames": (tuple, "a list of strings"),
}


@dataclass(frozen=True, kw_only=True)
class MMAConfig:
    """Everything needed to rebuild an adapter before its weights are read.

    `inject_mma` fills in the widths and depths from the model. Defaults are the paper's for
    ViT-B/16 (authors' `vit_b16_ep5.yaml`).

    Args:
        text_width: Hidden size of the text tower (512 for ViT-B/16); None if it has no adapter.
        vision_width: Hidden size of the vision tower (768 for ViT-B/16); None likewise.
        text_depth: Number of layers of the text tower; None where unknown or not there.
        vision_depth: Number of layers of the vision tower; None likewise.
        start_layer: First adapted layer, counted from 1 on the shallower tower.
        end_layer: Last adapted layer, included, counted the same way.
        bottleneck_dim: Inner size of the branch, the same in both towers.
        scale: Factor on the branch's output (the paper's alpha). 0 skips the branch.
        towers: The towers that carry branches.
        shared: `"tied"`: one projection per pair, used by both towers (the paper); `"untied"`: one
            per tower, equally deep; `"none"`: none at all.
        pairing: For towers of unequal depth, `"top"` pairs from the last layer down, `"index"`
            pairs layers of equal number, as the authors' indexing would.
        model_type: Family of the base model, such as `"clip"`.
        base_model_name_or_path: Base model on the Hub or on disk.
        revision: Revision of the base model.
        base_fingerprint: What `backbones.fingerprint` said of the base model.
        template: Prompt template or templates the adapter was trained with, with `{}`.
        classnames: Class names the adapter was trained on.

    Raises:
        ConfigError: A value is out of range or two values contradict each other.
    """

    text_width: int | None = None
    vision_width: int | None = None
    text_depth: int | None = None
    vision_depth: int | None = None
    start_layer: int = 5
    end_layer: int = 12
    bottleneck_dim: int = 32
    scale: float = 0.001
    towers: tuple[Tower, ...] = TOWERS
    shared: Shared = "tied"
    pairing: Pairing = "top"
    model_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    base_fingerprint: dict[str, Any] | None = None
    template: str | tuple[str, ...] | None = None
    classnames: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        # JSON has lists only, and people write towers="text"; one form inside.
        asked = (self.towers,) if isinstance(self.towers, str) else self.towers
        if (
            not isinstance(asked, list | tuple | set | frozenset)
            or not all(isinstance(tower, str) and tower in TOWERS for tower in asked)
            or not len(set(asked)) == len(asked) > 0
        ):
            raise ConfigError(
                f'towers={self.towers!r}; pass ("text", "vision"), ("text",) or ("vision",)'
            )
        object.__setattr__(self, "towers", tuple(tower for tower in TOWERS if tower in asked))
        for name in ("template", "classnames"):
            if isinstance(value := getattr(self, name), list | tuple):
                object.__setattr__(self, name, tuple(value))
        for name, (kind, what) in _OPTIONAL.items():
            value = getattr(self, name)
            items = value if isinstance(value, tuple) else ()
            if not isinstance(value, kind | None) or not all(isinstance(i, str) for i in items):
                raise ConfigError(f"{name}={value!r}; pass {what} or None")
        _one_of("shared", self.shared, get_args(Shared))
        _one_of("pairing", self.pairing, get_args(Pairing))
        for tower in self.towers:
            _whole(f"{tower}_width", self.width(tower), _MAX_WIDTH)
        for name in ("text_depth", "vision_depth"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), _MAX_LAYER)
        _whole("bottleneck_dim", self.bottleneck_dim, _MAX_WIDTH)
        _whole("start_layer", self.start_layer, _MAX_LAYER)
        _whole("end_layer", self.end_layer, _MAX_LAYER)
        if self.start_layer > self.end_layer:
            raise ConfigError(
                f"start_layer={self.start_layer}, end_layer={self.end_layer} select no layer; "
                "layers are counted from 1 and end_layer is included"
            )
        depths = [d for d in (self.text_depth, self.vision_depth) if d is not None]
        if depths and self.end_layer > min(depths):
            which = "the model" if len(depths) == 1 else "the shallower tower"
            raise ConfigError(
                f"end_layer={self.end_layer} and start_layer={self.start_layer}, but {which} has "
                f"{min(depths)} layers, counted from 1; pass at most {min(depths)}"
            )
        if not _is_number(self.scale) or self.scale < 0:
            raise ConfigError(f"scale={self.scale!r}; pass a finite number, 0 or more")

    def width(self, tower: Tower) -> int | None:
        """Return the hidden size of `tower`."""
        return self.text_width if tower == "text" else self.vision_width

    def depth(self, tower: Tower) -> int | None:
        """Return the number of layers of `tower`."""
        return self.text_depth if tower == "text" else self.vision_depth

    @property
    def pairs(self) -> range:
        """Numbers of the adapted pairs of layers, counted from 1 on the shallower tower."""
        return range(self.start_layer, self.end_layer + 1)

    def layer_of(self, tower: Tower, pair: int) -> int:
        """Return the number, counted from 1, of the layer of `tower` that belongs to `pair`."""
        if self.pairing == "index" or self.text_depth is None or self.vision_depth is None:
            return pair
        own = self.text_depth if tower == "text" else self.vision_depth
        return pair + own - min(self.text_depth, self.vision_depth)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight: exactly the adapter's state dict."""
        inner, shapes = self.bottleneck_dim, {}
        for name, (d_in, d_out) in self.projections().items():
            for pair in self.pairs:
                shapes[f"{name}.{pair}.weight"] = (d_out or inner, d_in or inner)
                shapes[f"{name}.{pair}.bias"] = (d_out or inner,)
        return shapes

    def projections(self) -> dict[str, tuple[int | None, int | None]]:
        """Return each projection's name with its sizes in and out; None is `bottleneck_dim`."""
        table: dict[str, tuple[int | None, int | None]] = {}
        for tower in self.towers:
            table[f"{tower}_down"] = (self.width(tower), None)
            table[f"{tower}_up"] = (None, self.width(tower))
            if self.shared == "untied":
                table[f"{tower}_shared"] = (None, None)
        if self.shared == "tied":
            table["shared"] = (None, None)
        return table

    @property
    def num_weights(self) -> int:
        """Number of trainable weights: 674,560 for ViT-B/16 from layer 5."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON values, with the format number."""
        return {"mma_format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MMAConfig":
        """Rebuild a config.

        Raises:
            ConfigError: The format is newer than this version reads, a key is unknown or missing,
                or a value has the wrong type or is out of range.
        """
        data = dict(data)
        found = data.pop("mma_format", None)
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
            raise ConfigError(
                f"the adapter has format {found!r}, this version reads formats 1 to {FORMAT}; "
                "upgrade with `pip install -U mma-adapter`, or save the adapter again"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(data.keys() - known):
            raise ConfigError(
                f"unknown keys in the adapter's config: {', '.join(unknown)}; known: "
                f"{', '.join(sorted(known))}"
            )
        required = {"start_layer", "end_layer", "bottleneck_dim", "scale", "towers", "shared"}
        if missing := sorted(required - data.keys()):
            raise ConfigError(f"keys missing from the adapter's config: {', '.join(missing)}")
        return cls(**data)


def _is_number(value: Any) -> bool:
    # Compared, not `math.isfinite`: that overflows for the huge integers JSON may hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38


def _whole(name: str, value: Any, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ConfigError(f"{name}={value!r}; pass a whole number from 1 to {largest}")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}; pass one of {', '.join(map(repr, choices))}")
