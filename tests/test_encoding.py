"""The fast paths equal the plain path: features, logits and every gradient, on every host."""

import pytest
import torch
import torch.nn.functional as F
from conftest import HOSTS, build_batch, build_host
from hypothesis import given, settings
from hypothesis import strategies as st

from mma_adapter import disable_mma, inject_mma
from mma_adapter.backbones import as_features, describe, pooled_positions
from mma_adapter.encoding import (
    FastPaths,
    can_run,
    encode_image,
    encode_text,
    lower_text_states,
    plan_prompts,
)
from mma_adapter.injection import active_branches

END, CONTEXT = 98, 16


def fast_text(model, ids, paths, max_tokens=None):
    backbone = describe(model)
    text = backbone.towers["text"]
    pooled = pooled_positions(model, ids)
    plan = plan_prompts(ids, pooled, causal=backbone.family.causal_text, paths=paths)
    branches = active_branches(model, "text")
    first, last = min(branches, default=len(text.layers) - 1), len(text.layers) - 1
    branched = paths.cache_lower_layers and first < last
    depth = first + branched if paths.cache_lower_layers else 0
    states = lower_text_states(text, plan, depth, branched=branched)
    return encode_text(
        text,
        plan,
        states,
        depth,
        branches,
        pool_last=paths.pool_last_layer,
        max_tokens=max_tokens,
    )


def fast_image(model, pixel_values, pool_last=True):
    backbone = describe(model)
    return encode_image(
        backbone.towers["vision"],
        pixel_values,
        active_branches(model, "vision"),
        pools_first=backbone.family.pools_first_image_token,
        pool_last=pool_last,
    )


def gradients(model, features):
    model.zero_grad()
    (
        F.normalize(features, dim=-1) * torch.linspace(-1, 1, features.numel()).view_as(features)
    ).sum().backward()
    return {n: p.grad.clone() for n, p in model.mma.named_parameters() if p.grad is not None}


def assert_equal_everything(model, fast, plain, tolerance=1e-5):
    torch.testing.assert_close(fast, plain, atol=tolerance, rtol=tolerance)
    got, expected = gradients(model, fast), gradients(model, plain)
    assert got.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            got[name] / scale, expected[name] / scale, atol=tolerance, rtol=0
        )


PATHS = {
    "all": FastPaths(),
    "none": FastPaths.off(),
    "cut": FastPaths(True, False, False, False),
    "prefix": FastPaths(False, True, False, False),
    "cut+prefix": FastPaths(True, True, False, False),
    "lower": FastPaths(False, False, True, False),
    "pooled": FastPaths(False, False, False, True),
    "cut+pooled": FastPaths(True, False, False, True),
}


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS.keys())
def test_text_paths_equal_the_plain_path(host, paths):
    inject_mma(host, 3, scale=0.5, seed=0, bottleneck_dim=8)
    ids = build_batch(host, prompts=5)["input_ids"]
    ids[:, 1:3] = torch.tensor([7, 8])  # a shared prefix of three tokens
    plain = as_features(host.get_text_features(input_ids=ids))
    assert_equal_everything(host, fast_text(host, ids, paths), plain)


@pytest.mark.parametrize("name", [n for n in HOSTS if n != "siglip2"])
@pytest.mark.parametrize("pool_last", [True, False])
def test_image_paths_equal_the_plain_path(name, pool_last):
    model = build_host(name)
    inject_mma(model, 3, scale=0.5, seed=0, bottleneck_dim=8)
    pixels = build_batch(model)["pixel_values"]
    plain = as_features(model.get_image_features(pixel_values=pixels))
    assert_equal_everything(model, fast_image(model, pixels, pool_last), plain)


def test_paths_follow_the_adapter_when_it_is_off_or_partial(clip, batch):
    inject_mma(clip, 6, scale=0.5, towers=("vision",), seed=0)
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    with torch.no_grad():
        plain = as_features(clip.get_text_features(input_ids=ids))
        torch.testing.assert_close(fast_text(clip, ids, FastPaths()), plain, atol=1e-5, rtol=0)
        with disable_mma(clip):
            plain = as_features(clip.get_image_features(pixel_values=pixels))
            torch.testing.assert_close(fast_image(clip, pixels), plain, atol=1e-5, rtol=0)


@st.composite
def prompts(draw):
    """Prompts with a shared beginning, own middles and one end token each."""
    token = st.integers(1, 96)
    shared = draw(st.lists(token, max_size=6))
    own = draw(st.lists(st.lists(token, max_size=8), min_size=1, max_size=6))
    rows = [[97, *shared, *middle, END] for middle in own]
    return torch.tensor([row + [END] * (CONTEXT - len(row)) for row in rows])


# Float64, so that no drawn example can hide a mistake behind rounding, or fail because of it.
MODEL = build_host("clip").double()
inject_mma(MODEL, 3, scale=0.5, seed=0, bottleneck_dim=8).double()


@settings(max_examples=40, deadline=None)
@given(prompts(), st.sampled_from([None, 1, 5, 12]))
def test_any_prompts_give_equal_features_and_gradients_in_any_chunks(ids, max_tokens):
    torch.set_default_dtype(torch.float64)  # transformers 4.46 makes its masks in it
    try:
        plain = as_features(MODEL.get_text_features(input_ids=ids))
    finally:
        torch.set_default_dtype(torch.float32)
    fast = fast_text(MODEL, ids, FastPaths(), max_tokens)
    assert_equal_everything(MODEL, fast, plain, tolerance=1e-9)


@given(prompts())
def test_each_token_that_matters_runs_once(ids):
    pooled = pooled_positions(MODEL, ids)
    plan = plan_prompts(ids, pooled, causal=True, paths=FastPaths())
    # Distinct beginnings of the longest common length, plus what is each prompt's own.
    shared = len(plan.prefix)
    assert (ids[:, :shared] == ids[0, :shared]).all()
    assert shared == int(pooled.min()) or len({int(t) for t in ids[:, shared]}) > 1
    assert plan.num_tokens == shared + int((pooled + 1 - shared).sum())
    assert torch.equal(plan.own[plan.pooled], torch.full_like(plan.pooled, END))


@given(prompts(), st.integers(1, 30))
def test_chunks_cover_all_prompts_in_order(ids, max_tokens):
    plan = plan_prompts(ids, pooled_positions(MODEL, ids), causal=True, paths=FastPaths())
    parts = plan.chunks(max_tokens)
    assert torch.equal(torch.cat([part.own for part in parts]), plan.own)
    assert torch.equal(torch.cat([part.lengths for part in parts]), plan.lengths)
    for part in parts:
        assert len(part.own) <= max_tokens or len(part.lengths) == 1
        assert torch.equal(part.own[part.pooled], torch.full_like(part.pooled, END))


def test_hosts_with_other_hooks_or_checkpointing_are_left_whole(clip):
    text = describe(clip).towers["text"]
    assert can_run(text)
    handle = text.layers[0].register_forward_hook(lambda *_: None)
    assert not can_run(text)
    handle.remove()
    for module in (text.layers[0].self_attn, text.layers[0].mlp):
        handle = module.register_forward_hook(lambda *_: None)
        assert not can_run(text)
        handle.remove()
    inject_mma(clip)
    assert can_run(text)
    clip.gradient_checkpointing_enable()
    clip.train()
    assert not can_run(text)
