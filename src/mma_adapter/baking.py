"""A fixed classifier for deployment: image tower, its half of the adapter, and class features.

MMA cannot be merged into the host, but once the classes are fixed the text tower has done its work:
what remains is one module from pixels to logits that `torch.export` and ONNX take whole.

Shapes: B images, K classes, E size of the joint space.
"""

import copy
import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import MultiModalAdapter
from .backbones import TowerParts, describe, logit_scale_and_bias
from .classifier import FewShotClassifier
from .encoding import can_run, encode_image
from .errors import ConfigError
from .injection import Branch, active_branches


class BakedClassifier(nn.Module):
    """Images to logits with fixed classes; made by `bake`.

    Args:
        vision: The host's image tower and projection, without adapters.
        adapter: The image half of the adapter, or None.
        weights: Class features times the logit scale, (K, E).
        bias: What the host adds to the logits, or None.
        classnames: Names of the K classes, in order.
        pools_first: Whether the image feature is the first token of the last layer.
    """

    def __init__(
        self,
        vision: TowerParts,
        adapter: MultiModalAdapter | None,
        weights: Tensor,
        bias: Tensor | None,
        classnames: tuple[str, ...],
        pools_first: bool,
    ) -> None:
        super().__init__()
        self.vision, self.adapter = vision, adapter
        self.root = vision.root  # registered, so that `.to(...)` reaches the weights
        self.head = vision.head if isinstance(vision.head, nn.Module) else None
        self.classnames, self.pools_first = classnames, pools_first
        self.weights: Tensor
        self.bias: Tensor | None
        self.register_buffer("weights", weights)
        self.register_buffer("bias", bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (B, K), float32, for pixel values (B, 3, height, width)."""
        branches = {}
        if self.adapter is not None:
            config = self.adapter.config
            for pair in config.pairs:
                index = config.layer_of("vision", pair) - 1
                branches[index] = Branch(self.adapter, "vision", pair)
        features = encode_image(
            self.vision, pixel_values, branches, pools_first=self.pools_first, pool_last=True
        )
        logits = F.normalize(features.float(), dim=-1) @ self.weights.t()
        return logits if self.bias is None else logits + self.bias


@torch.no_grad()
def bake(classifier: FewShotClassifier) -> BakedClassifier:
    """Return a fixed classifier with the same logits; later changes of `classifier` leave it alone.

    Raises:
        ConfigError: The host's image tower cannot be taken out (SigLIP 2 NaFlex takes further
            inputs; hooks or sharding would be lost).
    """
    model = classifier.model
    backbone = describe(model)
    branches = active_branches(model, "vision")
    if backbone.family.name == "siglip2" or not can_run(backbone.towers["vision"]):
        raise ConfigError(
            f"the image tower of this {type(model).__name__} cannot be baked: it takes more than "
            "pixel values, or carries hooks that would be lost; export the classifier itself"
        )
    text = classifier.text_features()
    scale, bias = logit_scale_and_bias(model)
    vision = copy.deepcopy(backbone.towers["vision"])
    for layer in vision.layers:
        # `can_run` saw to it that these are our hooks only; they hold the whole adapter.
        layer._forward_hooks.clear()
        layer._forward_hooks_with_kwargs.clear()
    adapter = None
    if branches:
        full: MultiModalAdapter = next(iter(branches.values())).adapter
        config = dataclasses.replace(full.config, towers=("vision",))
        adapter = MultiModalAdapter(config, device="meta")
        own = {k: v.clone() for k, v in full.state_dict().items() if k in config.shapes()}
        adapter.load_state_dict(own, assign=True)
    baked = BakedClassifier(
        vision,
        adapter,
        scale.float() * text,
        None if bias is None else bias.float().clone(),
        classifier.classnames,
        backbone.family.pools_first_image_token,
    )
    return baked.eval().requires_grad_(False)


def export_onnx(baked: BakedClassifier, path: str | Path, pixel_values: Tensor) -> None:
    """Write an ONNX file with a free batch size: input `pixel_values`, output `logits`.

    Args:
        baked: What `bake` returned.
        path: File to write.
        pixel_values: An example batch of at least two images, (B, 3, height, width).
    """
    program = torch.onnx.export(
        baked,
        (pixel_values,),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # dynamo=True always returns a program
    program.save(str(path))
