"""The faster operations equal the modules they stand for, and step back where they might not."""

import copy

import pytest
import torch
from torch import nn
from transformers.activations import QuickGELUActivation

from mma_adapter import operators
from mma_adapter.operators import linear, mlp


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def products(request, monkeypatch):
    """Both answers to the question which products are faster, on any machine that has both."""
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch comes without oneDNN")
    monkeypatch.setattr(operators, "_onednn_is_faster", lambda: request.param)


def frozen_mlp(activation=None, **options):
    torch.manual_seed(0)
    widen, narrow = nn.Linear(12, 40, **options), nn.Linear(40, 12, **options)
    for module in (widen, narrow):
        module.requires_grad_(False)
    return widen, activation or QuickGELUActivation(), narrow


def outputs_and_gradient(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("shape", [(1, 12), (7, 12), (3, 5, 12), (0, 12)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_mlp_equals_its_modules(products, shape, bias, dtype):
    parts = frozen_mlp(bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    got = outputs_and_gradient(lambda x: mlp(*parts, x), x)
    expected = outputs_and_gradient(nn.Sequential(*parts), x)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(mlp(*parts, x), got[0], atol=tolerance, rtol=tolerance)


def test_rows_that_are_not_packed_in_memory(products):
    widen, _, _ = frozen_mlp()
    x = torch.randn(12, 5, 3).transpose(0, 2)  # (3, 5, 12)
    got = outputs_and_gradient(lambda x: linear(widen, x.transpose(0, 1)), x)
    expected = outputs_and_gradient(lambda x: widen(x.transpose(0, 1)), x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_inputs_and_weights_stay_as_they_were(products):
    parts = frozen_mlp()
    before, x = copy.deepcopy(nn.ModuleList(parts).state_dict()), torch.randn(4, 12)
    kept = x.clone()
    with torch.no_grad():
        mlp(*parts, x)
    assert torch.equal(x, kept)
    for name, value in nn.ModuleList(parts).state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_hooks_fire_and_what_they_kept_is_not_overwritten(products, index):
    parts, seen = frozen_mlp(), []
    parts[index].register_forward_hook(lambda _, args, out: seen.append((out, out.clone())))
    with torch.no_grad():
        mlp(*parts, torch.randn(4, 12))
    assert len(seen) == 1
    assert torch.equal(*seen[0])


def test_a_replaced_forward_is_used(products):
    widen, activation, narrow = frozen_mlp()
    widen.forward = lambda x: torch.full((len(x), 40), 3.0)
    expected = narrow(activation(torch.full((2, 40), 3.0)))
    torch.testing.assert_close(mlp(widen, activation, narrow, torch.randn(2, 12)), expected)


def test_weights_that_are_trained_get_their_gradients(products):
    parts = frozen_mlp()
    parts[0].requires_grad_(True)
    parts[2].bias.requires_grad_(True)
    x = torch.randn(6, 12)
    mlp(*parts, x).square().sum().backward()
    got = [parts[0].weight.grad, parts[0].bias.grad, parts[2].bias.grad]
    nn.ModuleList(parts).zero_grad()
    nn.Sequential(*parts)(x).square().sum().backward()
    expected = [parts[0].weight.grad, parts[0].bias.grad, parts[2].bias.grad]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_other_activations_are_left_alone(products):
    parts = frozen_mlp(nn.GELU(approximate="tanh"))
    x = torch.randn(6, 12)
    torch.testing.assert_close(mlp(*parts, x), nn.Sequential(*parts)(x), atol=1e-6, rtol=1e-6)


def test_autocast_decides_about_precision(products):
    parts = frozen_mlp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mlp(*parts, torch.randn(6, 12)).dtype == torch.bfloat16


def test_torchs_own_switch_turns_onednn_off(monkeypatch):
    monkeypatch.setattr(operators, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(operators, "_product", None)  # calling it would fail
    widen, _, _ = frozen_mlp()
    with torch.backends.mkldnn.flags(enabled=False):
        assert linear(widen, torch.randn(2, 12)).shape == (2, 40)


def test_less_is_kept_for_the_backward_pass():
    def kept(function):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            function(torch.randn(8, 12, requires_grad=True))
        return sum(size for size in sizes if size == 8 * 40)

    parts = frozen_mlp()
    plain = kept(nn.Sequential(*parts))
    assert kept(lambda x: mlp(*parts, x)) == 8 * 40
    assert plain >= 3 * 8 * 40
