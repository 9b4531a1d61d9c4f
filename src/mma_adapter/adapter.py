"""The Multi-Modal Adapter: two bottlenecks per pair of layers that meet in a shared projection.

Source: Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024, and the
authors' code (github.com/ZjjConan/VLM-MultiModalAdapter, clip/model.py, clip/gsl.py,
trainers/mmadapter.py). From the code: the branch reads the layer's input through the layer's own
first norm and joins the layer's output; the shared projection has its own bias and ReLU; `scale`
does not shrink the gradient that reaches the adapter.

Shapes: B batch, L tokens, D width of the tower, R bottleneck. No physical units.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import MMAConfig, Tower
from .operators import AddScaledLinear, can_add_in_place


class ScaleForward(torch.autograd.Function):
    """Multiply by `factor` forward; hand the gradient back as if `factor` were 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad, None


class ScaleGradient(torch.autograd.Function):
    """Identity forward; multiply the gradient by `factor` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad * ctx.factor, None


class MultiModalAdapter(nn.Module):
    """Trainable residual branches for the towers of a frozen dual encoder.

    Owns every trained weight and knows nothing of the host model, so its `state_dict` is the whole
    adapter file. `inject_mma` connects it to a model, where it stands as `model.mma`.

    The weights stay in float32 when the host is cast to half precision (`model.half()`,
    `model.to(torch.bfloat16)`): at the paper's learning rates their updates are smaller than half
    precision resolves. Autocast still runs the matrix products in half precision.

    Args:
        config: Sizes and layers.
        seed: Seed of the private generator the weights are drawn from; None takes one number from
            torch's global generator, so that `torch.manual_seed` decides.
        device: Where the weights live; `"meta"` allocates nothing.
    """

    def __init__(
        self,
        config: MMAConfig,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.enabled = True  # read by the hooks on the host; see `disable_mma`
        inner = config.bottleneck_dim
        for name, (d_in, d_out) in config.projections().items():
            layers = {
                # Created empty: the default initialisation would draw from the global generator.
                str(pair): nn.Linear(d_in or inner, d_out or inner, device="meta")
                for pair in config.pairs
            }
            setattr(self, name, nn.ModuleDict(layers))
        if torch.device(device or "cpu").type != "meta":
            self.to_empty(device="cpu")
            self._reset_parameters(seed)
            self.to(device or "cpu")

    @torch.no_grad()
    def _reset_parameters(self, seed: int | None) -> None:
        """Kaiming-normal, fan-out weights and zero biases (trainers/mmadapter.py:127-131)."""
        if seed is None:
            seed = int(torch.randint(2**31, ()).item())
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = math.sqrt(2 / module.out_features)
                module.weight.normal_(0, std, generator=generator)
                module.bias.zero_()

    @property
    def scale(self) -> float:
        """Factor on the branches' output; may be set at any time, 0 switches the branches off."""
        return self.config.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self.config = dataclasses.replace(self.config, scale=value)

    def forward(
        self, normed: Tensor, *, tower: Tower, pair: int, onto: Tensor | None = None
    ) -> Tensor:
        """Return what the adapted layer should add to its own output.

        Args:
            normed: The layer's input after the layer's own first norm, (B, L, D).
            tower: The tower `normed` belongs to.
            pair: Number of the pair of layers, one of `config.pairs`.
            onto: Output of the layer, (B, L, D), which may be overwritten: fresh memory and passes
                over it are most of what a branch costs.

        Returns:
            The residual, (B, L, D), already multiplied by `scale`; with `onto`, their sum in the
            type of `onto`.

        Raises:
            KeyError: `pair` is not one of `config.pairs`.
        """
        scale, key = self.config.scale, str(pair)
        down, up = getattr(self, f"{tower}_down")[key], getattr(self, f"{tower}_up")[key]
        shared = {"tied": "shared", "untied": f"{tower}_shared", "none": None}[self.config.shared]

        # Cast first: beside a half-precision host both factors below must act in float32.
        x = ScaleGradient.apply(normed.to(down.weight.dtype), scale)  # (B, L, D)
        x = down(x).relu()  # (B, L, R)
        if shared is not None:
            x = getattr(self, shared)[key](x).relu()  # (B, L, R)
        if onto is not None and can_add_in_place(onto, x, up):
            return AddScaledLinear.apply(onto, x, up.weight, up.bias, scale)
        # Float32 again because autocast may have left half precision behind.
        x = up(x).to(down.weight.dtype)  # (B, L, D)
        if x.requires_grad or up._forward_hooks:
            x = ScaleForward.apply(x, scale)
        else:
            x.mul_(scale)  # nobody else has seen it
        return x if onto is None else onto + x.to(onto.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MultiModalAdapter":
        def keep_precision(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            if out.is_floating_point() and out.itemsize < 4:
                return tensor.to(out.device)
            return out

        return super()._apply(keep_precision, recurse)

    def save_pretrained(self, directory: str | Path, **card: Any) -> None:
        """Write `adapter_config.json`, `adapter_model.safetensors` and `README.md`.

        See `mma_adapter.storage.save_adapter`.
        """
        from .storage import save_adapter  # the layer above; only its two doors live on the class

        save_adapter(self, directory, **card)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload the adapter to the Hub. See `mma_adapter.storage.push_adapter`."""
        from .storage import push_adapter

        return push_adapter(self, repo_id, **options)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, **options: Any) -> "MultiModalAdapter":
        """Read an adapter from a folder or the Hub. See `mma_adapter.storage.read_adapter`."""
        from .storage import read_adapter

        return read_adapter(path_or_repo, **options)

    def extra_repr(self) -> str:
        c = self.config
        return f"layers {c.start_layer}-{c.end_layer}, R={c.bottleneck_dim}, scale={c.scale}"


@contextlib.contextmanager
def rescale(adapter: MultiModalAdapter, scale: float) -> Iterator[MultiModalAdapter]:
    """Run a block with another `scale`, then put the old one back, also after an exception."""
    before = adapter.scale
    adapter.scale = scale
    try:
        yield adapter
    finally:
        adapter.scale = before
