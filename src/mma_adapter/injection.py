"""Join adapters to a host model, switch between them, take them off.

An adapter joins each adapted layer with a forward hook; the host's modules, weights and state-dict
keys stay as they are. Only the active adapter has hooks. Disabling it is a flag that they read, not
their removal, because a compiled model does not look whether hooks come and go.

The active adapter stands on the host as `model.mma`; others wait in `model.mma_inactive`.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from .adapter import MultiModalAdapter
from .backbones import Backbone, describe, fingerprint, first_norm
from .config import TOWERS, MMAConfig, Pairing, Shared, Tower
from .errors import ConfigError, MMAError

Model = TypeVar("Model", bound=nn.Module)


class Branch:
    """The hook of one adapted layer: output + adapter(first norm(input)).

    A stateless object, not a closure, so that `copy.deepcopy` and `pickle` of the host carry the
    hook over to the copied adapter.
    """

    def __init__(self, adapter: MultiModalAdapter, tower: Tower, pair: int) -> None:
        self.adapter, self.tower, self.pair = adapter, tower, pair

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if getattr(layer, "_is_replica", False):
            raise MMAError(
                "nn.DataParallel copies the layers but not the adapter; use one process per GPU "
                "instead: `accelerate launch` or `torchrun` with DistributedDataParallel"
            )
        if not self.adapter.enabled or self.adapter.scale == 0:  # not even a rounding error
            return output
        hidden = args[0] if args else kwargs["hidden_states"]
        residual = self.adapter(first_norm(layer)(hidden), tower=self.tower, pair=self.pair)
        if isinstance(output, Tensor):  # transformers 5
            return output + residual.to(output.dtype)
        return (output[0] + residual.to(output[0].dtype), *output[1:])


class _Attachment:
    """What must be remembered to undo an injection."""

    def __init__(self, frozen: list[str], ignored: Any) -> None:
        self.active = ""
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.frozen = frozen  # names of the host's parameters that inject_mma froze
        self.ignored = ignored  # the host's own `_keys_to_ignore_on_save`


def inject_mma(
    model: Model,
    start_layer: int = 5,
    *,
    end_layer: int | None = None,
    bottleneck_dim: int = 32,
    scale: float = 0.001,
    towers: tuple[Tower, ...] | Tower = TOWERS,
    shared: Shared = "tied",
    pairing: Pairing = "top",
    name: str = "default",
    freeze: bool = True,
    seed: int | None = None,
) -> Model:
    """Put a fresh Multi-Modal Adapter on `model`, in place, and make it the active one.

    Layers count from 1, as in the paper: `start_layer=5` on CLIP ViT-B/16 adapts
    `encoder.layers[4]` to `[11]` of both towers, 674,560 weights. An untrained adapter changes the
    features slightly (by about `scale`), because the paper draws all its weights at random.

    Args:
        model: `CLIPModel` or a model of another supported family, or one tower of it.
        start_layer: First adapted layer, counted from 1. With towers of unequal depth it counts on
            the shallower one; see `pairing`.
        end_layer: Last adapted layer, included; None is the last layer (of the shallower tower).
        bottleneck_dim: Inner size of the branches.
        scale: Factor on the branches' output (the paper's alpha). 0 skips them.
        towers: Towers to adapt; a model that has only one of them gets that one.
        shared: Projection between down and up: `"tied"` across towers (the paper), `"untied"` or
            `"none"`.
        pairing: Towers of unequal depth are paired from the last layer down (`"top"`) or by equal
            number (`"index"`, the authors' indexing).
        name: Name of this adapter among several on one model.
        freeze: Stop the gradients of all other weights.
        seed: Seed of the weights; None follows `torch.manual_seed`.

    Returns:
        The same model, with the adapter as `model.mma`.

    Raises:
        UnsupportedHostError: The model belongs to no supported family.
        ConfigError: A value does not fit the model, or `name` is taken.
    """
    backbone = describe(model)
    config = config_for(
        model,
        start_layer=start_layer,
        end_layer=end_layer,
        bottleneck_dim=bottleneck_dim,
        scale=scale,
        towers=towers,
        shared=shared,
        pairing=pairing,
    )
    first = next(backbone.towers[config.towers[0]].layers.parameters())
    check_name(model, name)  # before anything is allocated
    adapter = MultiModalAdapter(config, seed=seed, device=first.device)
    attach(model, adapter, name=name, freeze=freeze)
    return model


def config_for(model: nn.Module, *, end_layer: int | None = None, **settings: Any) -> MMAConfig:
    """Return the config of an adapter for `model`, with the model's sizes filled in."""
    backbone = describe(model)
    asked = settings.pop("towers", TOWERS)
    asked: tuple[Any, ...] = (asked,) if isinstance(asked, str) else tuple(asked)
    towers: tuple[Tower, ...] = tuple(t for t in backbone.towers if t in asked)
    # A one-tower model narrows the default; an explicit wish for the missing tower is a mistake.
    if not towers or (len(towers) != len(asked) and set(asked) != set(TOWERS)):
        raise ConfigError(
            f"towers={asked!r}, but this {type(model).__name__} has {', '.join(backbone.towers)}; "
            f"pass towers={tuple(backbone.towers)!r}"
        )
    depths = [len(parts.layers) for parts in backbone.towers.values()]
    return MMAConfig(
        text_width=backbone.width("text") if "text" in towers else None,
        vision_width=backbone.width("vision") if "vision" in towers else None,
        text_depth=backbone.depth("text"),
        vision_depth=backbone.depth("vision"),
        end_layer=min(depths) if end_layer is None else end_layer,
        towers=towers,
        model_type=backbone.family.name,
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
        revision=getattr(model.config, "_commit_hash", None),
        base_fingerprint=fingerprint(model),
        **settings,
    )


def check_name(model: nn.Module, name: str) -> None:
    """Refuse a name that is taken or cannot name a module."""
    # Names become keys of a ModuleDict, which refuses those of its own methods.
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ConfigError(
            f"name={name!r}; use letters, digits and underscores, but no method of nn.ModuleDict"
        )
    if name in adapter_names(model):
        raise ConfigError(
            f"the model already has an adapter named {name!r}; call remove_mma(model) or "
            f"delete_adapter(model, {name!r}) first, or pass another name="
        )


def attach(
    model: nn.Module, adapter: MultiModalAdapter, *, name: str, freeze: bool, train: bool = True
) -> None:
    """Join a finished adapter to `model` under `name` and make it the active one."""
    check_name(model, name)
    _check_fit(adapter.config, describe(model))
    if not isinstance(getattr(model, "_mma", None), _Attachment):
        ignored = getattr(model, "_keys_to_ignore_on_save", None)
        model._mma = _Attachment([], ignored)  # pyright: ignore
        model.mma_inactive = nn.ModuleDict()
    state: _Attachment = model._mma  # pyright: ignore
    if freeze:
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and not key.startswith(("mma.", "mma_inactive.")):
                parameter.requires_grad_(False)
                state.frozen.append(key)
    adapter.requires_grad_(train)
    adapter.train(model.training)
    model.mma_inactive[name] = adapter  # pyright: ignore
    set_adapter(model, name, train=train)


def _check_fit(config: MMAConfig, backbone: Backbone) -> None:
    for tower in config.towers:
        parts = backbone.towers.get(tower)
        if parts is None:
            raise ConfigError(
                f"the adapter adapts the towers {', '.join(config.towers)}, the model has "
                f"{', '.join(backbone.towers)}; load it onto a model that has them all"
            )
        if parts.width != config.width(tower):
            raise ConfigError(
                f"the adapter is for a {tower} tower of width {config.width(tower)}, the model's "
                f"has {parts.width}; load it onto the base model it was trained on"
                + (f", {config.base_model_name_or_path}" if config.base_model_name_or_path else "")
            )
        depth, last = len(parts.layers), config.layer_of(tower, config.end_layer)
        if last > depth or config.depth(tower) not in (None, depth):
            raise ConfigError(
                f"the adapter is for a {tower} tower of {config.depth(tower) or last} layers, the "
                f"model's has {depth}; load it onto the base model it was trained on"
            )


def _state(model: nn.Module) -> _Attachment:
    describe(model)  # wrappers pass attributes on, but hooks must go on the model inside
    state = getattr(model, "_mma", None)
    if not isinstance(state, _Attachment):
        raise ConfigError(
            f"this {type(model).__name__} has no adapter; call inject_mma(model) or "
            "load_mma(path, model=model) first"
        )
    return state


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of all adapters on `model`, the active one first."""
    state = getattr(model, "_mma", None)
    if not isinstance(state, _Attachment):
        return []
    return [*filter(None, [state.active]), *model.mma_inactive]  # pyright: ignore


def set_adapter(model: nn.Module, name: str, *, train: bool = True) -> None:
    """Make the adapter called `name` the active one; no weight is copied.

    Args:
        model: A model with adapters.
        name: The adapter to activate.
        train: Let its weights get gradients; the other adapters' never do.

    Raises:
        ConfigError: There is no adapter of that name.
    """
    state = _state(model)
    if name not in adapter_names(model):
        raise ConfigError(f"no adapter named {name!r}; the model has {adapter_names(model)}")
    if name != state.active:
        enabled = not state.active or is_enabled(model)
        _disconnect(state)
        chosen = model.mma_inactive.pop(name)  # pyright: ignore
        if state.active:
            model.mma.requires_grad_(False)  # pyright: ignore
            model.mma_inactive[state.active] = model._modules.pop("mma")  # pyright: ignore
        model.mma, state.active = chosen, name
        chosen.enabled = enabled
        _connect(model)
    model.mma.requires_grad_(train)  # pyright: ignore
    keys = [key for key in model.state_dict() if key.startswith(("mma.", "mma_inactive."))]
    # `model.save_pretrained` writes the stock model; the adapter has a file of its own.
    model._keys_to_ignore_on_save = {*(state.ignored or ()), *keys}  # pyright: ignore


def delete_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter off; deleting the last one equals `remove_mma`.

    If the active adapter goes, the first of the others takes its place.

    Raises:
        ConfigError: There is no adapter of that name.
    """
    state, names = _state(model), adapter_names(model)
    if name not in names:
        raise ConfigError(f"no adapter named {name!r}; the model has {names}")
    if names == [name]:
        remove_mma(model)
        return
    trained = next(model.mma.parameters()).requires_grad  # pyright: ignore
    if name == state.active:
        set_adapter(model, names[1])
    del model.mma_inactive[name]  # pyright: ignore
    set_adapter(model, state.active, train=trained)


def remove_mma(model: Model) -> Model:
    """Take every adapter off `model`, in place; its outputs are the original ones again.

    Equal bit for bit. Parameters that `inject_mma` froze can be trained again.

    Returns:
        The same model.

    Raises:
        ConfigError: The model has no adapter.
    """
    state = _state(model)
    _disconnect(state)
    parameters = dict(model.named_parameters())
    for key in state.frozen:
        if key in parameters:
            parameters[key].requires_grad_(True)
    if state.ignored is None:
        del model._keys_to_ignore_on_save
    else:
        model._keys_to_ignore_on_save = state.ignored  # pyright: ignore
    del model.mma, model.mma_inactive, model._mma
    return model


@contextlib.contextmanager
def disable_mma(model: Model) -> Iterator[Model]:
    """Run a block with the original model, bit for bit.

    Blocks nest; the previous state comes back at the end, also after an exception.

    Raises:
        ConfigError: The model has no adapter.
    """
    state, enabled = _state(model), is_enabled(model)
    set_enabled(model, False)
    try:
        yield model
    finally:
        if getattr(model, "_mma", None) is state:  # not removed inside the block
            set_enabled(model, enabled)


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch the active adapter on or off until further notice; see `disable_mma` for a block.

    Raises:
        ConfigError: The model has no adapter.
    """
    frozen = set(_state(model).frozen)
    model.mma.enabled = enabled  # pyright: ignore
    # torch multiplies by the packed weights of its own attention, which pools SigLIP's images, in
    # another order where they are frozen: the last bit of the original needs them as they were.
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and f"{name}.in_proj_weight" in frozen:
            module.in_proj_weight.requires_grad_(not enabled)


def is_enabled(model: nn.Module) -> bool:
    """Return whether an adapter is on `model` and takes part in its outputs."""
    return bool(adapter_names(model)) and model.mma.enabled  # pyright: ignore


def active_branches(model: nn.Module, tower: Tower) -> dict[int, Branch]:
    """Return the enabled branches of `tower` by layer index, counted from 0."""
    if not is_enabled(model) or model.mma.scale == 0:  # pyright: ignore
        return {}
    adapter: MultiModalAdapter = model.mma  # pyright: ignore
    if tower not in adapter.config.towers:
        return {}
    config = adapter.config
    return {config.layer_of(tower, p) - 1: Branch(adapter, tower, p) for p in config.pairs}


def _connect(model: nn.Module) -> None:
    state, backbone = _state(model), describe(model)
    adapter: MultiModalAdapter = model.mma  # pyright: ignore
    for tower in adapter.config.towers:
        layers = backbone.towers[tower].layers
        for pair in adapter.config.pairs:
            layer = layers[adapter.config.layer_of(tower, pair) - 1]
            # First in line, so that hooks recording `hidden_states` see the adapted output.
            handle = layer.register_forward_hook(
                Branch(adapter, tower, pair), with_kwargs=True, prepend=True
            )
            state.handles.append(handle)
    _forget_compiled()


def _disconnect(state: _Attachment) -> None:
    while state.handles:
        state.handles.pop().remove()
    _forget_compiled()


def _forget_compiled() -> None:
    """Make compiled models look again: by default they do not notice hooks that come or go."""
    if dynamo := sys.modules.get("torch._dynamo"):  # not imported: nothing can be compiled
        dynamo.reset()


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable and of all parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the trainable share of the weights in PEFT's format."""
    trainable, total = num_parameters(model)
    share = 100 * trainable / total
    print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")


def merge_and_unload(model: nn.Module) -> NoReturn:
    """Refuse: the branch is not linear, so no weights of the host could stand in for it.

    Raises:
        NotImplementedError: Always, with the ways out.
    """
    raise NotImplementedError(
        "MMA cannot be merged: each branch holds two ReLUs beside a whole layer. Use "
        "remove_mma(model) (a PEFT model's unload()) for the original model, or "
        "mma_adapter.bake(classifier) for a fixed classifier that exports to ONNX and torch.export"
    )
