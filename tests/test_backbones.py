"""The contract every family of hosts meets, and what sets the families apart.

To support a new family: one entry in `backbones.FAMILIES`, one tiny host in `conftest.HOSTS`, and
everything here must pass.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import HOSTS, TEXT, VISION, build_batch, build_host, logits
from torch import nn

from mma_adapter import ConfigError, disable_mma, inject_mma, remove_mma
from mma_adapter.backbones import (
    FAMILIES,
    as_features,
    describe,
    fingerprint,
    first_norm,
    logit_scale_and_bias,
)

CLIP_HOSTS = [name for name in HOSTS if "siglip" not in name]


def features(model, batch):
    """Return image and text features, as the model's own methods give them."""
    batch = dict(batch)
    ids = batch.pop("input_ids")
    with torch.no_grad():
        image = as_features(model.get_image_features(**batch))
        return image, as_features(model.get_text_features(input_ids=ids))


def gradients(model, batch):
    model.zero_grad()
    out = model(**batch).logits_per_image
    F.cross_entropy(out, torch.arange(len(out))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def nudge(adapter, prefix):
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.startswith(prefix):
                parameter.add_(0.3 * torch.randn(parameter.shape))


# The contract.


def test_every_family_has_a_tiny_host_here():
    built = {build_host(name).config.model_type for name in HOSTS}
    missing = {family.name for family in FAMILIES.values()} - built
    # Families that came after the oldest transformers we support.
    assert all(not hasattr(transformers, "Siglip2Model") for _ in missing), missing


def test_towers_widths_and_depths_are_found(host):
    backbone = describe(host)
    assert list(backbone.towers) == ["text", "vision"]
    for tower in ("text", "vision"):
        config = getattr(host.config, f"{tower}_config")
        assert backbone.width(tower) == config.hidden_size
        assert backbone.depth(tower) == config.num_hidden_layers
        parts = backbone.towers[tower]
        assert parts.final_norm in list(parts.root.children())


def test_the_branch_reads_the_norm_before_attention(host, batch):
    seen = {}
    layer = describe(host).towers["vision"].layers[2]
    layer.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    attention = next(m for name, m in layer.named_children() if "attn" in name)
    attention.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.update(a=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    logits(host, batch)
    assert torch.equal(first_norm(layer)(seen["x"]), seen["a"])


def test_injection_changes_the_logits_and_removal_restores_them_bit_for_bit(host, batch):
    plain = logits(host, batch)
    inject_mma(host, 2, scale=0.5)
    adapted = logits(host, batch)
    assert (adapted - plain).abs().max() > 1e-3
    with disable_mma(host):
        assert torch.equal(logits(host, batch), plain)
    assert torch.equal(logits(host, batch), adapted)
    remove_mma(host)
    assert torch.equal(logits(host, batch), plain)


def test_scale_zero_is_the_frozen_host_bit_for_bit(host, batch):
    host.requires_grad_(False)  # torch's attention rounds differently where it needs no gradient
    plain = logits(host, batch)
    inject_mma(host, 2, scale=0)
    assert torch.equal(logits(host, batch), plain)


def test_disabling_leaves_frozen_what_was_frozen(host, batch):
    inject_mma(host, 2)
    expected = {f"mma.{key}" for key in host.mma.state_dict()}
    with disable_mma(host), disable_mma(host):
        pass
    assert {name for name, p in host.named_parameters() if p.requires_grad} == expected
    before = host.logit_scale.requires_grad
    with disable_mma(host):
        remove_mma(host)
    assert not before
    assert all(p.requires_grad for p in host.parameters())


def test_the_hosts_keys_and_weights_do_not_move(host, batch):
    before = {key: value.clone() for key, value in host.state_dict().items()}
    inject_mma(host, 2, scale=0.5)
    after = host.state_dict()
    extra = {f"mma.{key}" for key in host.mma.state_dict()}
    assert [key for key in after if key not in extra] == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_only_the_adapter_gets_gradients_and_all_of_it(host, batch):
    inject_mma(host, 2, scale=0.5, seed=0)
    grads = gradients(host, batch)
    assert set(grads) == {f"mma.{key}" for key in host.mma.state_dict()}
    assert all(grad.any() for grad in grads.values())


def test_text_and_vision_weights_act_on_their_own_tower_and_shared_ones_on_both(host, batch):
    inject_mma(host, 2, scale=0.5, seed=0)
    weights = copy.deepcopy(host.mma.state_dict())
    image, text = features(host, batch)
    for prefix in ("text_down", "text_up", "vision_down", "vision_up", "shared.3"):
        nudge(host.mma, prefix)
        new_image, new_text = features(host, batch)
        assert torch.equal(new_image, image) == prefix.startswith("text"), prefix
        assert torch.equal(new_text, text) == prefix.startswith("vision"), prefix
        host.mma.load_state_dict(weights)


def test_both_losses_reach_the_shared_projection(host, batch):
    inject_mma(host, 2, scale=0.5, seed=0)
    ids = batch.pop("input_ids")
    total = 0
    for loss in (
        as_features(host.get_image_features(**batch)).sum(),
        as_features(host.get_text_features(input_ids=ids)).sum(),
    ):
        (grad,) = torch.autograd.grad(loss, [host.mma.shared["3"].weight])
        assert grad.any()
        total = total + grad
    image, text = features(host, {**batch, "input_ids": ids})
    assert image.shape[1] == text.shape[1]
    joint = as_features(host.get_image_features(**batch)).sum()
    joint = joint + as_features(host.get_text_features(input_ids=ids)).sum()
    (both,) = torch.autograd.grad(joint, [host.mma.shared["3"].weight])
    torch.testing.assert_close(both, total)


def test_untied_projections_do_not_couple_the_towers(host, batch):
    inject_mma(host, 2, scale=0.5, shared="untied")
    image, text = features(host, batch)
    nudge(host.mma, "text_shared")
    new_image, new_text = features(host, batch)
    assert torch.equal(new_image, image)
    assert not torch.allclose(new_text, text)


@pytest.mark.parametrize("ran_before", [False, True])
def test_recorded_hidden_states_include_the_adapter(host, batch, ran_before):
    if ran_before:
        host(**batch, output_hidden_states=True)
    inject_mma(host, 3, scale=0.5)
    backbone, seen = describe(host), {}
    for tower, parts in backbone.towers.items():
        parts.layers[-1].register_forward_hook(
            lambda _m, _a, out, tower=tower: seen.update(
                {tower: out if torch.is_tensor(out) else out[0]}
            )
        )
    with torch.no_grad():
        out = host(**batch, output_hidden_states=True)
    for tower, parts in backbone.towers.items():
        states = out[f"{tower}_model_output"].hidden_states
        assert len(states) == len(parts.layers) + 1
        assert torch.equal(states[-1], seen[tower])


def test_recorded_hidden_states_lead_to_the_features(host, batch):
    inject_mma(host, 2, scale=0.5)
    backbone = describe(host)
    with torch.no_grad():
        out = host(**batch, output_hidden_states=True)
        image, text = features(host, batch)
        parts = backbone.towers["text"]
        hidden = out.text_model_output.hidden_states[-1]
        ends = (batch["input_ids"] == TEXT["eos_token_id"]).int().argmax(-1)
        if not backbone.family.causal_text:
            ends = torch.full_like(ends, hidden.shape[1] - 1)
        pooled = parts.head(parts.final_norm(hidden[range(len(ends)), ends]))
        torch.testing.assert_close(pooled, text)
        parts = backbone.towers["vision"]
        first = out.vision_model_output.hidden_states[-1][:, 0]
        first = parts.head(parts.final_norm(first))
        is_first = first.shape == image.shape and torch.allclose(first, image, atol=1e-5)
        assert is_first == backbone.family.pools_first_image_token


def test_only_causal_text_towers_ignore_what_follows_the_end_token(host, batch):
    inject_mma(host, 2, scale=0.5)
    _, text = features(host, batch)
    ids = batch["input_ids"].clone()
    ids[:, -3:] = 5
    _, changed = features(host, {**batch, "input_ids": ids})
    assert torch.equal(changed, text) == describe(host).family.causal_text


def test_logits_are_the_cosine_times_scale_plus_bias(host, batch):
    inject_mma(host, 2, scale=0.5)
    image, text = (F.normalize(x, dim=-1) for x in features(host, batch))
    factor, bias = logit_scale_and_bias(host)
    expected = factor * image @ text.T + (0 if bias is None else bias)
    torch.testing.assert_close(logits(host, batch), expected.detach(), atol=1e-4, rtol=1e-4)
    assert (bias is None) == ("siglip" not in host.config.model_type)


def test_saving_the_host_writes_the_stock_model_only(host, batch, tmp_path):
    plain = logits(host, batch)
    inject_mma(host, 2, scale=0.5)
    inject_mma(host, 3, scale=0.5, name="second")
    host.save_pretrained(tmp_path)
    again, info = type(host).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again.eval(), batch), plain)


def test_copies_and_pickles_carry_their_own_adapter(host, batch):
    inject_mma(host, 2, scale=0.5)
    adapted = logits(host, batch)
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert torch.equal(logits(twin, batch), adapted)
        nudge(twin.mma, "")
        assert not torch.allclose(logits(twin, batch), adapted)
    assert torch.equal(logits(host, batch), adapted)


def test_gradient_checkpointing_gives_equal_gradients(host, batch):
    inject_mma(host, 2, scale=0.5, seed=0)
    host.train()
    expected = gradients(host, batch)
    host.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = [m for m in host.modules() if getattr(m, "gradient_checkpointing", False)]
    assert checkpointed
    found = gradients(host, batch)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], msg=name)


def test_adapters_stay_float32_beside_a_bfloat16_host(host, batch):
    inject_mma(host, 2, scale=0.5, seed=0)
    expected = logits(host, batch)
    host.to(torch.bfloat16)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    out = logits(host, batch)
    assert out.dtype == torch.bfloat16
    assert {p.dtype for p in host.mma.parameters()} == {torch.float32}
    assert ((out - expected).norm() / expected.norm()).item() < 0.1


# One tower alone.


def _single(kind, tower):
    sizes = {**TEXT, "projection_dim": 24} if tower == "text" else {**VISION, "projection_dim": 24}
    if kind == "Siglip2" and tower == "vision":
        sizes = {k: v for k, v in sizes.items() if k != "image_size"} | {"num_patches": 16}
    if "Siglip" in kind and tower == "text":
        sizes = {**sizes, "projection_size": 32}
    return getattr(transformers, f"{kind}{tower.title()}Config")(**sizes)


SINGLES = [
    (kind, tower, f"{kind}{tower.title()}Model{ending}")
    for kind in ("CLIP", "MetaClip2", "Siglip", "Siglip2")
    for tower in ("text", "vision")
    for ending in ("", "WithProjection")
    if hasattr(transformers, f"{kind}{tower.title()}Model{ending}")
]


@pytest.mark.parametrize(("kind", "tower", "name"), SINGLES, ids=[name for *_, name in SINGLES])
def test_a_tower_alone_gets_its_half_of_the_adapter(kind, tower, name):
    torch.manual_seed(0)
    model = getattr(transformers, name)(_single(kind, tower)).eval()
    batch = build_batch(model if kind != "Siglip2" else build_host("siglip2"))
    ids = {"input_ids": batch.pop("input_ids")}
    inputs = ids if tower == "text" else batch
    if kind == "Siglip2" and tower == "vision":
        inputs = {"attention_mask": batch.pop("pixel_attention_mask"), **batch}
        inputs = batch | {"pixel_attention_mask": inputs["attention_mask"]}

    def run():
        with torch.no_grad():
            return model(**inputs)[0]

    plain, keys = run(), list(model.state_dict())
    inject_mma(model, 2, scale=0.5)
    config = model.mma.config
    other = {"text": "vision", "vision": "text"}[tower]
    assert config.towers == (tower,)
    assert config.width(tower) == model.config.hidden_size
    assert (config.width(other), config.depth(other)) == (None, None)
    assert (run() - plain).abs().max() > 1e-3
    assert [key for key in model.state_dict() if not key.startswith("mma.")] == keys
    model(**inputs)[0].sum().backward()
    assert all(p.grad is not None for p in model.mma.parameters())
    remove_mma(model)
    assert torch.equal(run(), plain)
    with pytest.raises(ConfigError, match=rf"{name} has {tower}"):
        inject_mma(model, 2, towers=other)


def test_a_tower_alone_gives_the_features_of_the_whole_model(clip, batch, tmp_path):
    clip.save_pretrained(tmp_path)
    inject_mma(clip, 2, scale=0.5, seed=0)
    image, text = features(clip, batch)
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
    words = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    for model in (vision, words):
        inject_mma(model, 2, scale=0.5)
        weights = clip.mma.state_dict()
        model.mma.load_state_dict({key: weights[key] for key in model.mma.state_dict()})
    with torch.no_grad():
        alone = vision(pixel_values=batch["pixel_values"]).image_embeds
        torch.testing.assert_close(alone, image)
        alone = words(input_ids=batch["input_ids"]).text_embeds
        torch.testing.assert_close(alone, text)


def test_an_image_classifier_on_a_vision_tower_can_be_adapted(batch):
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, num_labels=3)
    model = transformers.CLIPForImageClassification(config).eval()
    plain = model(pixel_values=batch["pixel_values"]).logits
    inject_mma(model, 2, scale=0.5)
    assert model.mma.config.towers == ("vision",)
    assert not torch.allclose(model(pixel_values=batch["pixel_values"]).logits, plain)


def test_a_tower_without_layers_is_not_one():
    with pytest.raises(ConfigError, match="towers="):
        inject_mma(_empty_text_tower(), 2, towers="text")


def _empty_text_tower() -> nn.Module:
    text, vision = {**TEXT, "num_hidden_layers": 0}, VISION
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


# Fingerprints.


def test_the_fingerprint_is_the_same_in_half_precision_and_beside_an_adapter(host):
    before = fingerprint(host)
    assert before["model_type"] == describe(host).family.name
    assert len(before["sha256"]) == 16
    inject_mma(host, 2)
    assert fingerprint(host) == before
    assert fingerprint(host.half()) == before
    assert fingerprint(host.bfloat16()) == {**before, "sha256": None}


def test_the_fingerprint_tells_other_weights_and_activations_apart(host):
    before = fingerprint(host)
    with torch.no_grad():
        describe(host).towers["text"].final_norm.weight.mul_(1.1)
    assert fingerprint(host)["sha256"] != before["sha256"]
    host.config.vision_config.hidden_act = "relu"
    assert fingerprint(host)["vision_hidden_act"] == "relu"
    host.to("meta")
    assert fingerprint(host)["sha256"] is None
