"""The paper's maths: forward, gradients, initialisation, sizes and precision.

The gradient identities are those of the authors' gradient-scaling layer (clip/gsl.py), checked in
float64 against plain autograd through the same weights.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import build_batch, build_host, logits
from torch import nn
from transformers import CLIPConfig, CLIPModel

from mma_adapter import MMAConfig, MultiModalAdapter, disable_mma, inject_mma, remove_mma, rescale
from mma_adapter.backbones import describe, first_norm

VIT_B_16 = {"text_width": 512, "vision_width": 768, "text_depth": 12, "vision_depth": 12}
SMALL = {"text_width": 12, "vision_width": 20, "start_layer": 2, "end_layer": 3}


@pytest.fixture
def float64():
    """Let hosts make their masks in float64 too: transformers 4 takes the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def formula(adapter, x, tower, pair):
    """The branch written out, without the scale and without any gradient scaling."""
    w = adapter.state_dict(keep_vars=True)
    shared = {"tied": "shared", "untied": f"{tower}_shared"}.get(adapter.config.shared)
    for name in filter(None, (f"{tower}_down", shared)):
        x = F.linear(x, w[f"{name}.{pair}.weight"], w[f"{name}.{pair}.bias"]).relu()
    return F.linear(x, w[f"{tower}_up.{pair}.weight"], w[f"{tower}_up.{pair}.bias"])


class Plain:
    """The same branch under plain autograd, as a hook of its own."""

    def __init__(self, adapter, tower, pair):
        self.adapter, self.tower, self.pair = adapter, tower, pair

    def __call__(self, layer, args, kwargs, output):
        x = first_norm(layer)(args[0] if args else kwargs["hidden_states"])
        x = self.adapter.scale * formula(self.adapter, x, self.tower, self.pair)
        return output + x if isinstance(output, torch.Tensor) else (output[0] + x, *output[1:])


def plain_twin(model):
    """Return a copy of an injected model whose branches know nothing of gradient scaling."""
    twin = copy.deepcopy(model)
    adapter, backbone = twin.mma, describe(twin)
    remove_mma(twin)
    twin.mma = adapter
    for tower in adapter.config.towers:
        for pair in adapter.config.pairs:
            layer = backbone.towers[tower].layers[adapter.config.layer_of(tower, pair) - 1]
            layer.register_forward_hook(Plain(adapter, tower, pair), with_kwargs=True)
    return twin


def exact_case(scale):
    model = inject_mma(build_host("clip"), 3, bottleneck_dim=8, scale=scale, seed=2).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in build_batch(model).items()}
    return model, batch


def loss_and_gradients(model, batch):
    pixels = batch["pixel_values"].clone().requires_grad_()
    out = model(**{**batch, "pixel_values": pixels}).logits_per_image
    loss = F.cross_entropy(out, torch.tensor([0, 1, 2]))
    names, weights = zip(*model.mma.named_parameters(), strict=True)
    *grads, pixel_grad = torch.autograd.grad(loss, [*weights, pixels])
    return out.detach(), dict(zip(names, grads, strict=True)), pixel_grad


def deviation(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(params=["tied", "untied", "none"])
def adapter(request):
    return MultiModalAdapter(MMAConfig(**SMALL, shared=request.param, scale=0.5), seed=0)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_forward_is_the_papers_formula(adapter, tower):
    x = torch.randn(2, 5, 12 if tower == "text" else 20)
    for pair in (2, 3):
        expected = 0.5 * formula(adapter, x, tower, pair)
        torch.testing.assert_close(adapter(x, tower=tower, pair=pair), expected)
        assert expected.abs().max() > 0.1


def test_what_a_hook_kept_of_the_up_projection_is_not_overwritten(adapter):
    seen = []
    up = adapter.text_up["2"]
    handle = up.register_forward_hook(lambda _, args, out: seen.append((out, out.clone())))
    with torch.no_grad():
        adapter(torch.randn(2, 5, 12), tower="text", pair=2)
    handle.remove()
    torch.testing.assert_close(*seen[0], rtol=0, atol=0)


def sum_and_gradients(adapter, normed, onto, *, fused):
    """Return output + branch, and the gradients of both inputs and of every weight."""
    inputs = [normed.clone().requires_grad_(), onto.clone().requires_grad_()]
    # A fresh tensor, as a layer's output is: a leaf may not be overwritten.
    out, options = inputs[1] * 1.0, {"tower": "vision", "pair": 2}
    added = adapter(inputs[0], **options, onto=out if fused else None)
    out = added if fused else out + added
    weights = [p for p in adapter.parameters() if p.requires_grad]
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    return [out, *torch.autograd.grad(loss, [*inputs, *weights], allow_unused=True)]


@pytest.mark.parametrize("shape", [(2, 5, 20), (3, 20)])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("scale", [0.001, 2.0])
def test_adding_onto_the_output_equals_the_sum_of_both(shape, frozen, scale):
    adapter = MultiModalAdapter(MMAConfig(**SMALL, bottleneck_dim=8, scale=scale)).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    adapter.requires_grad_(not frozen)
    normed, onto = torch.randn(2, *shape, dtype=torch.float64)
    got = sum_and_gradients(adapter, normed, onto, fused=True)
    expected = sum_and_gradients(adapter, normed, onto, fused=False)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        overwritten = onto.clone()
        out = adapter(normed, tower="vision", pair=2, onto=overwritten)
        torch.testing.assert_close(out, got[0], rtol=1e-12, atol=1e-12)
        assert out.data_ptr() == overwritten.data_ptr()


def test_onto_a_half_precision_output_the_sum_keeps_its_type(adapter):
    normed, onto = torch.randn(2, 5, 12), torch.randn(2, 5, 12, dtype=torch.bfloat16)
    out = adapter(normed, tower="text", pair=2, onto=onto.clone())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, onto + adapter(normed, tower="text", pair=2).bfloat16())


def test_hooks_on_the_up_projection_fire_when_adding_onto_the_output(adapter):
    seen = []
    handle = adapter.text_up["2"].register_forward_hook(lambda *_: seen.append(1))
    adapter(torch.randn(2, 5, 12), tower="text", pair=2, onto=torch.zeros(2, 5, 12))
    handle.remove()
    assert seen == [1]


def test_a_pair_without_a_branch_is_a_key_error(adapter):
    with pytest.raises(KeyError):
        adapter(torch.zeros(1, 1, 12), tower="text", pair=4)


def test_names_and_shapes_of_the_weights_are_those_the_config_promises(adapter):
    found = {name: tuple(weight.shape) for name, weight in adapter.state_dict().items()}
    assert found == adapter.config.shapes()
    assert sum(p.numel() for p in adapter.parameters()) == adapter.config.num_weights


# The five identities of the gradient-scaling layer, in float64.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [1e-3, 0.3])
def test_gradient_scaling_leaves_the_logits_alone(scale):
    model, batch = exact_case(scale)
    assert torch.equal(logits(model, batch), logits(plain_twin(model), batch))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [1e-3, 0.3, 2.0])
def test_adapter_gradients_are_the_plain_ones_divided_by_scale(scale):
    model, batch = exact_case(scale)
    _, ours, _ = loss_and_gradients(model, batch)
    _, plain, _ = loss_and_gradients(plain_twin(model), batch)
    for name in ours:
        assert deviation(ours[name], plain[name] / scale) < 1e-12, name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [1e-3, 0.3, 2.0])
def test_the_gradient_that_reaches_the_pixels_is_the_plain_one(scale):
    model, batch = exact_case(scale)
    *_, ours = loss_and_gradients(model, batch)
    *_, plain = loss_and_gradients(plain_twin(model), batch)
    assert deviation(ours, plain) < 1e-12
    with disable_mma(model):
        pixels = batch["pixel_values"].clone().requires_grad_()
        out = model(**{**batch, "pixel_values": pixels}).logits_per_image
        F.cross_entropy(out, torch.tensor([0, 1, 2])).backward()
    assert deviation(pixels.grad, plain) > scale / 100  # the branch does carry some of it


@pytest.mark.usefixtures("float64")
def test_adapter_gradients_converge_linearly_as_scale_goes_to_zero():
    model, batch = exact_case(1e-14)
    _, limit, _ = loss_and_gradients(model, batch)
    limit = torch.cat([grad.flatten() for grad in limit.values()])
    errors = []
    for scale in (1e-6, 1e-7, 1e-8):  # so small that no ReLU switches over on the way
        model.mma.scale = scale
        _, grads, _ = loss_and_gradients(model, batch)
        errors.append(deviation(torch.cat([g.flatten() for g in grads.values()]), limit))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


@pytest.mark.usefixtures("float64")
def test_sgd_equals_plain_sgd_with_lr_over_scale_and_weight_decay_times_scale():
    scale, lr, decay = 1e-2, 1e-3, 5e-2
    model, batch = exact_case(scale)
    twin, naive = plain_twin(model), plain_twin(model)
    runs = [(model, lr, decay), (twin, lr / scale, decay * scale), (naive, lr, decay)]
    for run, rate, weight_decay in runs:
        optimizer = torch.optim.SGD(
            run.mma.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay
        )
        for _ in range(20):
            optimizer.zero_grad()
            out = run(**batch).logits_per_image
            F.cross_entropy(out, torch.tensor([0, 1, 2])).backward()
            optimizer.step()
    ours, plain, other = (nn.utils.parameters_to_vector(r.mma.parameters()) for r, *_ in runs)
    assert deviation(ours, plain) < 1e-12
    assert deviation(other, plain) > 1e-3


# Initialisation and size.


def test_initial_weights_are_kaiming_normal_over_the_fan_out_with_zero_biases():
    adapter = MultiModalAdapter(MMAConfig(**VIT_B_16), seed=0)
    expected = {
        "text_down": 0.25,
        "vision_down": 0.25,
        "shared": 0.25,
        "text_up": 0.0625,
        "vision_up": 0.0510,
    }
    for name, std in expected.items():
        weights = [layer.weight.flatten() for layer in getattr(adapter, name).values()]
        assert torch.cat(weights).std().item() == pytest.approx(std, rel=0.05), name
        assert torch.cat(weights).mean().abs().item() < 0.05 * std, name
        assert all(not layer.bias.any() for layer in getattr(adapter, name).values())


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (MultiModalAdapter(MMAConfig(**SMALL), seed=7) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    other = MultiModalAdapter(MMAConfig(**SMALL), seed=8)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert name.endswith("bias") or not torch.equal(weight, other.state_dict()[name])


def test_without_a_seed_the_global_one_decides():
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(MultiModalAdapter(MMAConfig(**SMALL)).shared["2"].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.fixture(scope="module")
def vit_b_16():
    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8}
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        return CLIPModel(config)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 674_560),
        ({"start_layer": 9}, 337_280),
        ({"bottleneck_dim": 64}, 1_355_264),
        ({"towers": "text"}, 274_944),
        ({"towers": "text", "shared": "none"}, 266_496),
        ({"towers": "vision"}, 408_064),
        ({"towers": "vision", "shared": "none"}, 399_616),
        ({"shared": "none"}, 666_112),
        ({"shared": "untied"}, 683_008),
    ],
)
def test_trainable_weights_on_vit_b_16_are_counted_without_allocating_any(
    vit_b_16, settings, count
):
    model = inject_mma(copy.deepcopy(vit_b_16), **settings)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert all(p.is_meta for p in model.parameters())


def test_start_layer_5_on_vit_b_16_adapts_layers_index_4_to_11_of_both_towers(vit_b_16):
    model = inject_mma(copy.deepcopy(vit_b_16))
    for parts in describe(model).towers.values():
        hooked = [index for index, layer in enumerate(parts.layers) if layer._forward_hooks]
        assert hooked == list(range(4, 12))


# What the branch does to a model.


@pytest.mark.usefixtures("float64")
def test_the_last_layers_output_is_exactly_linear_in_scale():
    _, batch = exact_case(1.0)
    model = inject_mma(build_host("clip"), 6, bottleneck_dim=8, seed=0).double()
    layer, seen = describe(model).towers["vision"].layers[-1], []
    # Appended after the branch, which stands first in line.
    layer.register_forward_hook(
        lambda _m, _a, out: seen.append(out if torch.is_tensor(out) else out[0])
    )
    for scale in (0.0, 1.0, 0.25, -0.0):
        model.mma.scale = scale
        logits(model, batch)
    plain, full, quarter, again = seen
    assert torch.equal(plain, again)
    assert (full - plain).norm() > 0.1
    assert deviation(quarter - plain, 0.25 * (full - plain)) < 1e-12


def test_layers_below_the_first_adapted_one_are_untouched(clip, batch):
    plain = clip(**batch, output_hidden_states=True)
    inject_mma(clip, 6, scale=1.0)
    adapted = clip(**batch, output_hidden_states=True)
    for tower in ("text_model_output", "vision_model_output"):
        before, after = plain[tower].hidden_states, adapted[tower].hidden_states
        assert all(torch.equal(a, b) for a, b in zip(before[:6], after[:6], strict=True))
        assert not torch.allclose(before[6], after[6])


def test_zero_up_projections_change_nothing_whatever_the_scale(clip, batch):
    plain = logits(clip, batch)
    inject_mma(clip, 2, scale=3.0)
    with torch.no_grad():
        for tower in ("text", "vision"):
            for layer in getattr(clip.mma, f"{tower}_up").values():
                layer.weight.zero_()
    assert torch.equal(logits(clip, batch), plain)


def test_tokens_after_the_end_token_do_not_matter(clip, batch):
    inject_mma(clip, 2, scale=1.0)
    before = logits(clip, batch)
    ids = batch["input_ids"].clone()
    for row in range(len(ids)):
        ids[row, 6 + row :] = torch.randint(1, 90, (10 - row,))
    torch.testing.assert_close(logits(clip, {**batch, "input_ids": ids}), before, atol=0, rtol=0)


def test_permuting_the_classes_permutes_the_logits(clip, batch):
    inject_mma(clip, 2, scale=1.0)
    order = torch.tensor([2, 0, 3, 1])
    permuted = {**batch, "input_ids": batch["input_ids"][order]}
    torch.testing.assert_close(logits(clip, permuted), logits(clip, batch)[:, order])


def test_scale_may_be_set_at_run_time_and_zero_gives_the_host_bit_for_bit(clip, batch):
    plain = logits(clip, batch)
    inject_mma(clip, 2, scale=0.5)
    adapted = logits(clip, batch)
    clip.mma.scale = 0
    assert torch.equal(logits(clip, batch), plain)
    assert clip.mma.config.scale == 0
    clip.mma.scale = 0.5
    assert torch.equal(logits(clip, batch), adapted)
    with pytest.raises(ValueError, match="scale=-1"):
        clip.mma.scale = -1


def test_rescale_restores_the_scale_also_after_an_exception_and_nests(clip, batch):
    plain = logits(clip, batch)
    inject_mma(clip, 2, scale=0.5)
    adapted = logits(clip, batch)

    def fail():
        with rescale(clip.mma, 0.1) as inner:
            assert inner is clip.mma
            with rescale(clip.mma, 0):
                assert torch.equal(logits(clip, batch), plain)
            assert clip.mma.scale == 0.1
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert clip.mma.scale == 0.5
    assert torch.equal(logits(clip, batch), adapted)


# Precision.


@pytest.mark.parametrize("cast", ["half", "bfloat16", "to_half", "to_bfloat16"])
def test_the_adapter_stays_float32_beside_a_half_precision_host(clip, batch, cast):
    inject_mma(clip, 2, scale=0.5, seed=0)
    expected, weights = logits(clip, batch), copy.deepcopy(clip.mma.state_dict())
    dtype = torch.float16 if "half" in cast else torch.bfloat16
    clip.to(dtype) if cast.startswith("to_") else getattr(clip, cast)()
    assert {p.dtype for p in clip.mma.parameters()} == {torch.float32}
    assert clip.logit_scale.dtype == dtype
    assert all(torch.equal(weights[k], v) for k, v in clip.mma.state_dict().items())

    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    out = clip(**batch).logits_per_image
    assert out.dtype == dtype
    assert deviation(out.float().detach(), expected) < 0.1
    out.float().logsumexp(-1).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in clip.mma.parameters())
    assert all(p.grad.isfinite().all() for p in clip.mma.parameters())


def test_double_casts_the_adapter_too(clip, batch, request):
    inject_mma(clip, 2, scale=0.5, seed=0)
    expected = logits(clip, batch)
    clip.double()
    request.getfixturevalue("float64")
    assert {p.dtype for p in clip.parameters()} == {torch.float64}
    batch["pixel_values"] = batch["pixel_values"].double()
    torch.testing.assert_close(logits(clip, batch).float(), expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_keeps_the_scaling_of_the_branch_in_float32(clip, batch):
    inject_mma(clip, 2, scale=0.5, seed=0)
    expected = logits(clip, batch)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 4, 32)
        assert clip.mma(x, tower="text", pair=2).dtype == torch.float32
        out = clip(**batch).logits_per_image
    assert deviation(out.float().detach(), expected) < 0.1
    out.float().logsumexp(-1).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in clip.mma.parameters())


@pytest.mark.parametrize("scale", [1e-3, 1e-30])
def test_gradients_beside_a_half_precision_host_survive_a_tiny_scale(scale):
    config = MMAConfig(**SMALL, scale=scale)
    adapter = MultiModalAdapter(config, seed=0)
    x = torch.randn(2, 5, 12)
    grads = []
    for dtype in (torch.float32, torch.float16):
        adapter.zero_grad()
        adapter(x.to(dtype), tower="text", pair=2).sum().backward()
        grads.append(adapter.text_up["2"].weight.grad.clone())
    assert deviation(grads[1], grads[0]) < 1e-2
    assert math.isfinite(grads[1].sum().item())


def test_the_text_form_names_layers_bottleneck_and_scale():
    assert "layers 2-3, R=32, scale=0.001" in repr(MultiModalAdapter(MMAConfig(**SMALL)))
