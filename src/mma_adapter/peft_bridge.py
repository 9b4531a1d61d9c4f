"""MMA as a method of Hugging Face PEFT (0.21 or newer); importing this module registers it.

`get_peft_model`, `PeftModel.from_pretrained`, `CLIPModel.from_pretrained(<adapter folder>)` and
`pipeline(..., model=<adapter folder>)` then work, for folders saved by PEFT and by
`model.mma.save_pretrained` alike. The adapter joins the host exactly as `inject_mma` would have it,
so the functions of this package work on such a model too.

PEFT's ways of adding methods are internal to it; `peft_hook` loads this module and turns what goes
wrong into one warning.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import wraps
from typing import Any, NoReturn

import peft
from torch import Tensor, nn

from . import __version__, injection
from .adapter import MultiModalAdapter
from .backbones import describe
from .config import FORMAT, TOWERS, MMAConfig, Pairing, Shared, Tower
from .errors import ConfigError, StorageError
from .loading import check_base

if tuple(int(part) for part in peft.__version__.split(".")[:2]) < (0, 21):
    raise ImportError(f"it needs peft 0.21 or newer, found {peft.__version__}")
if hasattr(peft.PeftType, "MMA"):
    raise ImportError(f"peft {peft.__version__} has a method MMA of its own; use its config class")

from peft import PeftConfig
from peft.import_utils import is_transformers_ge_v5
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

_PREFIX = "mma."  # where the active adapter's weights stand on the host, and in PEFT's files
_WRAPPED = "base_model.model."  # what PeftModel puts before the host's keys
# PEFT's files and ours differ in front of the weight's name only; transformers 4 drops half of it.
_NATIVE_NAME = r"^(?:base_model\.model\.)?(?:mma\.)?((?:text_|vision_)?(?:down|up|shared)\.)"


class _Type(str, Enum):
    """PEFT's enum of methods is closed, but a string that can say `.value` will do."""

    MMA = "MMA"


@dataclass
class MMAPeftConfig(PeftConfig):
    """What `get_peft_model` needs to put a Multi-Modal Adapter on a model.

    The settings are those of `inject_mma`; the other fields are filled in from the model or the
    adapter's file. See `MMAConfig`, which checks them all.
    """

    start_layer: int = 5
    end_layer: int | None = None
    bottleneck_dim: int = 32
    scale: float = 0.001
    towers: tuple[Tower, ...] | Tower = TOWERS
    shared: Shared = "tied"
    pairing: Pairing = "top"
    text_width: int | None = None
    vision_width: int | None = None
    text_depth: int | None = None
    vision_depth: int | None = None
    model_type: str | None = None
    base_fingerprint: dict[str, Any] | None = None
    template: str | list[str] | None = None
    classnames: list[str] | None = None
    mma_format: int = FORMAT
    mma_version: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _Type.MMA

    def for_model(self, model: nn.Module) -> MMAConfig:
        """Return the checked config for `model`, and take over what was filled in.

        Raises:
            ConfigError: A value is out of range.
            StorageError: The adapter was trained on another kind of model.
        """
        own = {field.name: getattr(self, field.name) for field in fields(MMAConfig)}
        if self.text_width or self.vision_width:  # read from a file, or used before
            config = MMAConfig.from_dict({**own, "mma_format": self.mma_format})
            check_base(config, model, strict=False)
            return config
        asked = ("start_layer", "end_layer", "bottleneck_dim", "scale", "towers", "shared")
        rest = ("pairing", "template", "classnames")
        config = injection.config_for(model, **{key: own[key] for key in (*asked, *rest)})
        self.take(config)
        return config

    def take(self, config: MMAConfig) -> None:
        """Copy every value of `config`, except where PEFT keeps its own book on the base model."""
        for field in fields(MMAConfig):
            if field.name not in ("base_model_name_or_path", "revision"):
                setattr(self, field.name, getattr(config, field.name))
        self.mma_format, self.mma_version = FORMAT, __version__


class MMASwitch(nn.Module, BaseTunerLayer):
    """The one module that PEFT and transformers find when they look for adapter layers.

    Holds no weights and takes no part in the forward pass; hands every wish on to `injection`.
    """

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self._host = (host,)  # in a tuple, or the host would become a child of its child

    @property
    def host(self) -> nn.Module:
        """Return the model that carries the adapters, ready for its children to change."""
        host = self._host[0]
        # Callers reach this module by walking the host's children. They may walk on undisturbed.
        host._modules = dict(host._modules)
        return host

    @property
    def active_adapter(self) -> list[str]:
        return injection.adapter_names(self._host[0])[:1]

    @property
    def disable_adapters(self) -> bool:
        return not injection.is_enabled(self._host[0])

    def _get_available_adapters(self) -> set[str]:
        return set(injection.adapter_names(self._host[0]))

    def get_base_layer(self) -> nn.Module:
        return self._host[0]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise ConfigError(f"adapters {names}; only one MMA adapter can be active, pass one")
        for name in names:
            injection.set_adapter(self.host, name, train=not inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        injection.set_enabled(self._host[0], enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        host = self.host
        injection.delete_adapter(host, adapter_name)
        if not injection.adapter_names(host):
            del host.peft_switch

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            _adapter(self._host[0], name)[1].requires_grad_(requires_grad)

    def requires_grad_(self, requires_grad: bool = True) -> "MMASwitch":
        self.set_requires_grad(self.active_adapter, requires_grad)
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        adapter = _adapter(self._host[0], adapter_name)[1]
        adapter.to(device or _device(self._host[0]))


class MMATuner(BaseTuner):
    """Puts adapters on a host as `inject_mma` does, and speaks PEFT's file format."""

    prefix = _PREFIX
    tuner_layer_cls = MMASwitch
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT declares it so

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter; another one that is active stays so."""
        # PEFT tells adapters apart by such a part in the keys of their weights.
        if any(adapter_name in key.split(".") for key in model.state_dict()):
            raise ConfigError(f"adapter_name={adapter_name!r} is part of the model's own names")
        peft_config: Any = self.peft_config[adapter_name]
        device = "meta" if low_cpu_mem_usage else _device(model)
        adapter = MultiModalAdapter(peft_config.for_model(model), device=device)
        active = injection.adapter_names(model)[:1]
        trained = bool(active) and next(model.mma.parameters()).requires_grad  # pyright: ignore
        train = not peft_config.inference_mode
        injection.attach(model, adapter, name=adapter_name, freeze=True, train=train)
        if active and adapter_name not in self.active_adapters:
            injection.set_adapter(model, active[0], train=trained)
        if not hasattr(model, "peft_switch"):
            model.peft_switch = MMASwitch(model)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("MMA replaces no modules; see inject_adapter")

    def _check_merge_allowed(self) -> None:
        injection.merge_and_unload(self.model)

    def _unload_and_optionally_merge(self, merge: bool = True, **_: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        if injection.adapter_names(self.model):
            injection.remove_mma(self.model)
            del self.model.peft_switch
        del self.model.peft_config
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        wrapped = _WRAPPED if hasattr(model, "get_base_model") else ""
        prefix, adapter = _adapter(_host(model), adapter_name)
        config.take(adapter.config)  # `scale` may have been set since
        return {
            f"{wrapped}{_PREFIX}{name}": state_dict[f"{wrapped}{prefix}{name}"]
            for name in adapter.config.shapes()
        }

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        prefix, adapter = _adapter(_host(model), adapter_name)
        found = {re.sub(_NATIVE_NAME, r"\1", key): value for key, value in state_dict.items()}
        expected = adapter.config.shapes()
        if odd := found.keys() ^ expected.keys():
            raise StorageError(
                f"the adapter's file holds {len(found)} weights, its config describes "
                f"{len(expected)}; missing or unexpected: {', '.join(sorted(odd)[:8])}"
            )
        return {f"{_WRAPPED}{prefix}{name}": value for name, value in found.items()}


def _host(model: Any) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _device(model: nn.Module) -> Any:
    towers = describe(model).towers.values()
    return next(p for tower in towers for p in tower.layers.parameters()).device


def _adapter(host: Any, name: str) -> tuple[str, MultiModalAdapter]:
    """Return the adapter called `name` with the prefix of its keys in the host's state dict."""
    if injection.adapter_names(host)[0] == name:
        return _PREFIX, host.mma
    return f"mma_inactive.{name}.", host.mma_inactive[name]


def _renaming(build: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Let transformers 5 find our names: it asks `build` how a file's keys become the model's."""
    from transformers.core_model_loading import WeightRenaming

    class Renaming(WeightRenaming):
        __slots__ = ()

        def was_used(self) -> bool:
            """Say no: what was used would be undone in the keys of the base when that is saved."""
            return False

    @wraps(build)
    def build_for_mma(conversions: Any, adapter_name: str, peft_config: Any = None) -> list[Any]:
        if isinstance(peft_config, MMAPeftConfig):
            return [Renaming(_NATIVE_NAME, rf"{_PREFIX}\1")]
        return build(conversions, adapter_name, peft_config)

    return build_for_mma


def _register() -> None:
    if is_transformers_ge_v5:
        from peft.utils import transformers_weight_conversion as conversion

        conversion.build_peft_weight_mapping = _renaming(conversion.build_peft_weight_mapping)
    # PEFT's tables are typed by its own enum; they work by hash and equality.
    tables: Any = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, MMAPeftConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, MMATuner),
        (PEFT_TYPE_TO_PREFIX_MAPPING, _PREFIX),
    )
    for table, value in tables:
        table[_Type.MMA] = value


_register()
