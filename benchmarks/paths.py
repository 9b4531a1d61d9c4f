"""The training steps that `step.py` compares, on a CLIP of ViT-B/16 sizes, weights random.

conventional: what the authors' code does: every prompt padded to 77 tokens, all layers, every step.
ours:         `FewShotClassifier` on its exact fast paths.
lora:         PEFT LoRA, r=8 on query and value of both towers; prompts padded to the longest.
floor:        the image tower alone: forward, and backward from the features to the input of the
              first adapted layer. No text, no adapter, no optimiser.

On AMD processors ours takes oneDNN's products for frozen layers, the others what torch takes. Two
more series tell the library from the method: `ours_torch` is ours on torch's own products, and
`conventional_onednn`, `lora_onednn` and `floor_onednn` are the others on oneDNN's.
"""

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from mma_adapter import FastPaths, FewShotClassifier, MultiModalAdapter, inject_mma
from mma_adapter.adapter import ScaleGradient
from mma_adapter.backbones import as_features
from mma_adapter.operators import FrozenLinear

START, END, CONTEXT = 49406, 49407, 77
SIZES = {
    "vit-b-16": {"layers": 12, "width": 768, "heads": 12, "patch": 16, "text": 512, "joint": 512},
    "vit-l-14": {"layers": 24, "width": 1024, "heads": 16, "patch": 14, "text": 768, "joint": 768},
}


def random_clip(size: str = "vit-b-16") -> CLIPModel:
    """Return a CLIP of the given sizes with random weights, frozen, in evaluation mode."""
    torch.manual_seed(0)
    s = SIZES[size]
    text = {
        "hidden_size": s["text"],
        "intermediate_size": 4 * s["text"],
        "num_attention_heads": s["text"] // 64,
        "projection_dim": s["joint"],
        "eos_token_id": END,
        "bos_token_id": START,
    }
    vision = {
        "hidden_size": s["width"],
        "intermediate_size": 4 * s["width"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "patch_size": s["patch"],
        "projection_dim": s["joint"],
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=s["joint"])
    return CLIPModel(config).eval().requires_grad_(False)


def twin(model: CLIPModel) -> CLIPModel:
    """Return a model of its own that shares its frozen weights with `model`, to save memory."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


class RandomNames:
    """Stands in for a tokenizer: "a photo of a {}." around names of 1 to 4 random tokens.

    The shares of 1, 2, 3 and 4 tokens are 35, 35, 20 and 10 %, a mean of 2.05.
    """

    def __call__(self, prompts, padding=False, max_length=None, return_tensors=None, **_):
        draw, rows = random.Random(0), []
        for _ in prompts:
            name = draw.choices([1, 2, 3, 4], [35, 35, 20, 10])[0]
            rows.append(
                [START, 320, 1125, 539, 320, *draw.sample(range(1000, 40000), name), 269, END]
            )
        if padding == "longest":
            max_length = max(map(len, rows))
        if padding:
            rows = [row + [END] * (max_length - len(row)) for row in rows]
        return {"input_ids": torch.tensor(rows) if return_tensors else rows}


class ReferenceLayer(nn.Module):
    """A layer with its adapter as the authors' block computes it, with gradient scaling."""

    def __init__(self, layer: nn.Module, adapter: MultiModalAdapter, tower: str, pair: int) -> None:
        super().__init__()
        self.layer, self.scale = layer, adapter.scale
        self.down = getattr(adapter, f"{tower}_down")[str(pair)]
        self.up = getattr(adapter, f"{tower}_up")[str(pair)]
        self.shared = adapter.shared[str(pair)]

    def forward(self, hidden: Tensor, *args, **kwargs):
        out = self.layer(hidden, *args, **kwargs)
        x = self.layer.layer_norm1(ScaleGradient.apply(hidden, self.scale))
        x = self.up(self.shared(self.down(x).relu()).relu()) * self.scale
        x = ScaleGradient.apply(x, 1 / self.scale)
        return out + x if isinstance(out, Tensor) else (out[0] + x, *out[1:])


@dataclass
class Case:
    """One way to take a step: `loss()` builds the graph; `weights` are what it trains."""

    loss: Callable[[], Tensor]
    weights: list[nn.Parameter]
    optimizer: torch.optim.Optimizer | None = None
    products: Callable = nullcontext

    def step(self, autocast) -> float:
        """Take one step and return the loss."""
        with self.products():
            with autocast():
                loss = self.loss()
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()


def _sgd(weights):
    return torch.optim.SGD(weights, lr=0.0015, momentum=0.9, weight_decay=5e-4)


def ours(model, pixels, labels, classes, paths: FastPaths | None = None) -> Case:
    inject_mma(model, start_layer=5, seed=0)
    names = [f"class {i}" for i in range(classes)]
    classifier = FewShotClassifier(model, RandomNames(), names, paths=paths)
    weights = list(model.mma.parameters())
    return Case(lambda: classifier(pixels, labels).loss, weights, _sgd(weights))


def ours_torch(model, pixels, labels, classes) -> Case:
    return replace(
        ours(model, pixels, labels, classes),
        products=partial(torch.backends.mkldnn.flags, enabled=False),
    )


def on_onednn(make: Callable[..., Case]) -> Callable[..., Case]:
    """Return a maker of the same case whose frozen linear layers take oneDNN's products."""

    def remade(model, *data) -> Case:
        case = make(model, *data)
        for module in model.modules():
            if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
                module.forward = partial(onednn_linear, module)
        return case

    return remade


def onednn_linear(module: nn.Linear, x: Tensor) -> Tensor:
    return FrozenLinear.apply(x, module.weight, module.bias)


def conventional(model, pixels, labels, classes) -> Case:
    inject_mma(model, start_layer=5, seed=0)
    adapter = model.mma
    from mma_adapter import remove_mma

    remove_mma(model)
    for tower in ("text", "vision"):
        layers = getattr(model, f"{tower}_model").encoder.layers
        for pair in adapter.config.pairs:
            layers[pair - 1] = ReferenceLayer(layers[pair - 1], adapter, tower, pair)
    model.requires_grad_(False)
    adapter.requires_grad_(True)
    ids = RandomNames()(range(classes), "max_length", CONTEXT, "pt")["input_ids"].to(pixels.device)

    def loss():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        return F.cross_entropy(logits.float(), labels)

    weights = list(adapter.parameters())
    return Case(loss, weights, _sgd(weights))


def lora(model, pixels, labels, classes) -> Case:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, config)
    ids = RandomNames()(range(classes), "longest", None, "pt")["input_ids"].to(pixels.device)

    def loss():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        return F.cross_entropy(logits.float(), labels)

    weights = [p for p in model.parameters() if p.requires_grad]
    return Case(loss, weights, _sgd(weights))


def floor(model, pixels, labels, classes) -> Case:
    first = model.vision_model.encoder.layers[4]
    first.register_forward_pre_hook(lambda _, args: (args[0].detach().requires_grad_(), *args[1:]))

    def loss():
        return as_features(model.get_image_features(pixel_values=pixels)).float().square().mean()

    return Case(loss, [])


CASES: dict[str, Callable[..., Case]] = {
    "conventional": conventional,
    "ours": ours,
    "ours_torch": ours_torch,
    "lora": lora,
    "floor": floor,
    "conventional_onednn": on_onednn(conventional),
    "lora_onednn": on_onednn(lora),
    "floor_onednn": on_onednn(floor),
}
# Switching one path off at a time shows what each is worth.
WITHOUT = {
    "cut_prompts": FastPaths(cut_prompts=False),
    "share_prefix": FastPaths(share_prefix=False),
    "cache_lower_layers": FastPaths(cache_lower_layers=False),
    "pool_last_layer": FastPaths(pool_last_layer=False),
    "chunks (everything kept for the backward pass)": FastPaths(text_memory_bytes=2**62),
}
