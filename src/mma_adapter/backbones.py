"""Where layers, norms and projections live in each family of host models.

The only file that knows the attribute names of `transformers` models and how they moved between
transformers 4.46 and 5.x. A new CLIP-like family is one entry in `FAMILIES`.

Shapes: B batch, L tokens, D width of the tower, E size of the joint space.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import TOWERS, Tower
from .errors import UnsupportedHostError


@dataclass(frozen=True)
class Family:
    """What sets one family of dual encoders apart from the others.

    Args:
        name: Name of the family, the `model_type` of its two-tower model.
        causal_text: Text tokens see earlier tokens only, so tokens after the pooled one are moot.
        pad_to_context: Prompts must be padded to the full context, as in pretraining.
        cleans_text: Pretraining lower-cased the text and removed punctuation.
        pools_first_image_token: The image feature is the first (CLS) token of the last layer.
    """

    name: str
    causal_text: bool = True
    pad_to_context: bool = False
    cleans_text: bool = False
    pools_first_image_token: bool = True


_CLIP = Family("clip")
_METACLIP_2 = Family("metaclip_2")
# No end-token pooling: the last position is pooled, and every position sees every other one.
_SIGLIP = Family("siglip", False, True, False, False)
_SIGLIP2 = Family("siglip2", False, True, True, False)

FAMILIES: dict[str, Family] = {
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "clip_vision_model": _CLIP,
    "metaclip_2": _METACLIP_2,
    "metaclip_2_text_model": _METACLIP_2,
    "metaclip_2_vision_model": _METACLIP_2,
    "siglip": _SIGLIP,
    "siglip_text_model": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_text_model": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
}


@dataclass(frozen=True)
class TowerParts:
    """The parts of one tower that adapters and fast paths touch.

    Args:
        root: Module that holds embeddings, encoder and final norm.
        layers: The tower's layers, in order.
        width: Hidden size D.
        head: Map from pooled hidden states (B, D) after the final norm to features (B, E).
    """

    root: nn.Module
    layers: nn.ModuleList
    width: int
    head: Callable[[Tensor], Tensor]

    @property
    def final_norm(self) -> nn.Module:
        """Norm after the last layer."""
        return getattr(self.root, "final_layer_norm", None) or self.root.post_layernorm  # pyright: ignore


@dataclass(frozen=True)
class Backbone:
    """A host model as this library sees it: its family and the one or two towers it has."""

    family: Family
    towers: dict[Tower, TowerParts]

    def depth(self, tower: Tower) -> int | None:
        """Return the number of layers of `tower`, None if the model does not have it."""
        return len(self.towers[tower].layers) if tower in self.towers else None

    def width(self, tower: Tower) -> int | None:
        """Return the hidden size of `tower`, None if the model does not have it."""
        return self.towers[tower].width if tower in self.towers else None


def first_norm(layer: nn.Module) -> nn.Module:
    """Return the norm a layer applies to its input before attention."""
    return layer.layer_norm1  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class LayerParts:
    """The parts of one pre-norm transformer layer; the same in every supported family."""

    first_norm: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    num_heads: int
    second_norm: nn.Module
    widen: nn.Module
    activation: nn.Module
    narrow: nn.Module


def layer_parts(layer: nn.Module) -> LayerParts:
    """Take one layer apart, for running it with fewer tokens than its own `forward` does."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    return LayerParts(
        first_norm(layer),
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.out_proj,
        attention.num_heads,
        layer.layer_norm2,  # pyright: ignore[reportArgumentType]
        mlp.fc1,
        mlp.activation_fn,
        mlp.fc2,
    )


def containers(layer: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules whose own `forward` is not called when a layer is taken apart."""
    return layer, layer.self_attn, layer.mlp  # pyright: ignore[reportReturnType]


def attention_dropout(layer: nn.Module) -> float:
    """Return the dropout probability in force in the layer's attention."""
    return float(layer.self_attn.dropout) if layer.training else 0.0  # pyright: ignore


def checkpoints(tower: TowerParts) -> bool:
    """Return whether gradient checkpointing is on in the tower (transformers 4 keeps it here)."""
    return bool(getattr(tower.root.encoder, "gradient_checkpointing", False))


def lower_parameters(tower: TowerParts, depth: int) -> list[nn.Parameter]:
    """Return the parameters of the embeddings and of the first `depth` layers."""
    layers = [p for layer in list(tower.layers)[:depth] for p in layer.parameters()]
    return [*tower.root.embeddings.parameters(), *layers]  # pyright: ignore


def context_length(text: TowerParts) -> int:
    """Return how many tokens the text tower takes."""
    return text.root.embeddings.position_embedding.num_embeddings  # pyright: ignore


def vocabulary_size(model: nn.Module) -> int:
    """Return how many token ids the text tower knows."""
    text = describe(model).towers["text"]
    return text.root.embeddings.token_embedding.num_embeddings  # pyright: ignore


def embed_text(text: TowerParts, input_ids: Tensor) -> Tensor:
    """Return what enters the first text layer, (B, L, D), for token ids (B, L)."""
    return text.root.embeddings(input_ids=input_ids)  # pyright: ignore


def embed_image(vision: TowerParts, pixel_values: Tensor) -> Tensor:
    """Return what enters the first vision layer, (B, L, D)."""
    x = vision.root.embeddings(pixel_values)  # pyright: ignore
    norm = getattr(vision.root, "pre_layrnorm", None)  # SigLIP has none
    return x if norm is None else norm(x)


def pool_image(vision: TowerParts, hidden: Tensor) -> Tensor:
    """Return image features (B, E) of SigLIP's attention pooling over the last layer's output."""
    return vision.root.head(vision.final_norm(hidden))  # pyright: ignore


def pooled_positions(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the position the text tower pools in each row of `input_ids` (B, L), as the host does.

    CLIP configs from before the fix of `eos_token_id` say 2 and pool the largest id; SigLIP pools
    the last position. A missing end token is -1: the host would silently pool position 0.
    """
    family = describe(model).family
    if not family.causal_text:
        return torch.full((len(input_ids),), input_ids.shape[1] - 1)
    end = getattr(model.config, "text_config", model.config).eos_token_id  # pyright: ignore
    if end == 2 and family.name == "clip":
        return input_ids.argmax(dim=-1)
    found: Tensor = input_ids == int(end)  # pyright: ignore
    return torch.where(found.any(dim=-1), found.int().argmax(dim=-1), -1)


def describe(model: nn.Module) -> Backbone:
    """Find the towers of `model`.

    Raises:
        UnsupportedHostError: The model belongs to no known family, or is wrapped.
    """
    if isinstance(inner := _unwrapped(model), nn.Module):
        wrap = "wrap it afterwards"
        if isinstance(model, nn.DataParallel):
            wrap = "use one process per GPU instead: `accelerate launch` or `torchrun`"
        raise UnsupportedHostError(
            f"the model is wrapped in {type(model).__name__}; adapters go on the "
            f"model inside: pass the {type(inner).__name__}, and {wrap}"
        )
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    towers: dict[Tower, TowerParts] = (
        {} if family is None else {t: p for t in TOWERS if (p := _tower(model, t)) is not None}
    )
    if family is None or not towers:
        raise UnsupportedHostError(
            f"{type(model).__name__} with model_type={model_type!r} is not supported; MMA adapts "
            f"transformer towers of the model types {', '.join(FAMILIES)} (OpenAI, LAION and "
            "MetaCLIP 1 checkpoints are 'clip')"
        )
    return Backbone(family, towers)


def _unwrapped(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    if hasattr(model, "get_base_model"):  # a PEFT model
        return model.get_base_model()  # pyright: ignore
    return getattr(model, "_orig_mod", None)  # a compiled model


def _tower(model: nn.Module, tower: Tower) -> TowerParts | None:
    # CLIPModel.text_model holds the layers; a CLIPTextModel does so itself in transformers 5, and
    # one level down, again under `text_model`, in transformers 4.
    root = model
    while isinstance(inner := getattr(root, f"{tower}_model", None), nn.Module):
        root = inner
    layers = getattr(getattr(root, "encoder", None), "layers", None)
    first = next(iter(layers), None) if isinstance(layers, nn.ModuleList) else None
    if first is None or not hasattr(first, "layer_norm1"):
        return None
    if root is model and tower not in model.config.model_type:  # pyright: ignore
        return None
    width = first_norm(first).normalized_shape[0]  # pyright: ignore
    projection = getattr(model, "text_projection" if tower == "text" else "visual_projection", None)
    head = projection or (getattr(root, "head", None) if tower == "text" else None) or _identity
    return TowerParts(root, layers, width, head)  # pyright: ignore


def _identity(x: Tensor) -> Tensor:
    return x


def as_features(output: Any) -> Tensor:
    """Return the projected features of `get_*_features`: a tensor in 4.x, an output in 5.x."""
    return output if isinstance(output, Tensor) else output.pooler_output


def logit_scale_and_bias(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the factor on the cosine and, for SigLIP, what is added to it."""
    return model.logit_scale.exp(), getattr(model, "logit_bias", None)  # pyright: ignore


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Describe the base model well enough to notice that an adapter meets another one.

    Sizes must agree for an adapter to fit. `hidden_act` differs between OpenAI's and LAION's
    weights of equal sizes. `sha256` covers the final norms and the logit scale in float16, so that
    it is the same for a model loaded in half precision; it is None for models without weights.
    """
    backbone, config = describe(model), model.config
    result: dict[str, Any] = {
        "model_type": backbone.family.name,
        "model_class": type(model).__name__,
    }
    small: list[Tensor] = []
    for tower, parts in backbone.towers.items():
        result[f"{tower}_width"] = parts.width
        result[f"{tower}_depth"] = len(parts.layers)
        tower_config = getattr(config, f"{tower}_config", config)
        result[f"{tower}_hidden_act"] = getattr(tower_config, "hidden_act", None)
        small += list(parts.final_norm.parameters())
    vision = getattr(config, "vision_config", config)
    result["patch_size"] = getattr(vision, "patch_size", None)
    result["image_size"] = getattr(vision, "image_size", None)
    result["projection_dim"] = getattr(config, "projection_dim", None)
    if isinstance(scale := getattr(model, "logit_scale", None), Tensor):
        small.append(scale)
    result["sha256"] = _digest(small)
    return result


def _digest(tensors: list[Tensor]) -> str | None:
    # bfloat16 keeps fewer digits than float16, so its hash could never agree with the others.
    if any(t.is_meta or t.dtype == torch.bfloat16 for t in tensors):
        return None
    sha = hashlib.sha256()
    for tensor in tensors:
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore
        sha.update(full.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
