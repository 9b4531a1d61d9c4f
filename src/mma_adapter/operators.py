"""Operations of a layer and its branch with fewer passes over memory, and on faster products.

They give the modules' results to float precision. A module that is not plainly what it seems to be
(wrapped by PEFT, quantised, hooked, trainable, under autocast or a compiler) is simply called.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SLOPE = 1.702  # of CLIP's "quick" GELU, x * sigmoid(1.702 x)


class _QuickGELU(torch.autograd.Function):
    """Written with SiLU it keeps one wide tensor for the backward pass instead of three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _quick_gelu_(x.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        y = ctx.saved_tensors[0] * _SLOPE
        return torch.ops.aten.silu_backward.grad_input(grad, y, grad_input=y)


class FrozenLinear(torch.autograd.Function):
    """A linear layer whose weights get no gradient, on oneDNN's products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return _product(grad.contiguous(), ctx.saved_tensors[0].t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _quick_gelu_(x: Tensor) -> Tensor:
    # In place, because on a CPU a fresh wide tensor costs more than the arithmetic.
    return F.silu(x.mul_(_SLOPE), inplace=True).mul_(1 / _SLOPE)


@cache
def _onednn_is_faster() -> bool:
    """Return whether torch's own float32 products leave a part of this processor unused.

    torch multiplies through MKL, which does not use AVX-512 on AMD's processors; oneDNN, which
    comes with torch too, does. How much that is depends on how wide the processor's units are;
    `benchmarks/step.py` records both rates.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.exists()
        and "AuthenticAMD" in cpuinfo.read_text()
    )


def _is_plain(module: nn.Module) -> bool:
    """Return whether calling the module does no more than its class says."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or torch.compiler.is_compiling()
    )


def _is_frozen_float32(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and not x.requires_grad


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """Return `module(x)` for a linear layer of the host, (..., D) to (..., E).

    `torch.backends.mkldnn.flags(enabled=False)` switches oneDNN's products off.
    """
    if (
        type(module) is nn.Linear
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and _onednn_is_faster()
        and torch.backends.mkldnn.enabled  # pyright: ignore[reportAttributeAccessIssue]
        and _is_frozen_float32(module.weight)
        and (module.bias is None or _is_frozen_float32(module.bias))
        and not torch.is_autocast_enabled("cpu")
        and _is_plain(module)
    ):
        return FrozenLinear.apply(x, module.weight, module.bias)
    return module(x)


def mlp(widen: nn.Module, activation: nn.Module, narrow: nn.Module, x: Tensor) -> Tensor:
    """Return `narrow(activation(widen(x)))`, (..., D) to (..., D)."""
    wide = linear(widen, x)
    # By name: the class has moved between transformers versions.
    if type(activation).__name__ != "QuickGELUActivation" or not _is_plain(activation):
        wide = activation(wide)
    elif wide.requires_grad or type(widen) is not nn.Linear or not _is_plain(widen):
        wide = _QuickGELU.apply(wide)
    else:
        wide = _quick_gelu_(wide)  # nobody else has seen it
    return linear(narrow, wide)


class AddScaledLinear(torch.autograd.Function):
    """`onto += factor * linear(x)` in one pass over memory; gradients as if `factor` were 1.

    Shapes: onto (..., D), contiguous and overwritten; x (..., R); weight (D, R); bias (D,).
    """

    @staticmethod
    def forward(
        ctx: Any, onto: Tensor, x: Tensor, weight: Tensor, bias: Tensor, factor: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(onto)
        # The bias rides along as the weight of an input that is always 1.
        inputs = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1).flatten(0, -2)
        weights = torch.cat([weight, bias[:, None]], dim=1).t()
        onto.view(-1, len(weight)).addmm_(inputs, weights, alpha=factor)
        return onto

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        rows, (_, to_x, to_weight, to_bias, _) = grad.flatten(0, -2), ctx.needs_input_grad
        return (
            grad,
            grad @ weight if to_x else None,
            rows.t() @ x.flatten(0, -2) if to_weight else None,
            rows.sum(0) if to_bias else None,
            None,
        )


def can_add_in_place(onto: Tensor, x: Tensor, module: nn.Module) -> bool:
    """Return whether `AddScaledLinear` may stand for calling `module`: it is only arithmetic."""
    return (
        type(module) is nn.Linear
        and _is_plain(module)
        and not torch.is_autocast_enabled(onto.device.type)
        and type(onto) is type(x) is Tensor
        and onto.dtype == x.dtype == module.weight.dtype
        and onto.is_contiguous()
    )
