"""Putting adapters on a model, switching between them, taking them off."""

import contextlib
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import build_batch, build_host, logits
from torch import nn
from transformers import CLIPModel, PretrainedConfig

from mma_adapter import (
    ConfigError,
    MMAError,
    UnsupportedHostError,
    delete_adapter,
    disable_mma,
    inject_mma,
    merge_and_unload,
    print_trainable_parameters,
    remove_mma,
    set_adapter,
)
from mma_adapter.backbones import FAMILIES, describe
from mma_adapter.injection import active_branches, adapter_names, is_enabled


def hooked_layers(model):
    """Return the numbers of the layers that carry a hook, counted from 1, by tower."""
    return {
        tower: [number for number, layer in enumerate(parts.layers, 1) if layer._forward_hooks]
        for tower, parts in describe(model).towers.items()
    }


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def backward(model, batch):
    out = model(**batch).logits_per_image
    F.cross_entropy(out, torch.arange(len(out))).backward()


def reseed(adapter, seed):
    """Move an adapter's weights far away, biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.5, generator=generator)


def test_injection_works_in_place_and_returns_the_model(clip, batch):
    plain = logits(clip, batch)
    assert inject_mma(clip, 2, scale=0.5) is clip
    assert not torch.allclose(logits(clip, batch), plain)


def test_layers_count_from_1_and_the_last_one_is_included(clip):
    inject_mma(clip, 2, end_layer=4)
    assert hooked_layers(clip) == {"text": [2, 3, 4], "vision": [2, 3, 4]}
    assert list(clip.mma.text_down) == ["2", "3", "4"]
    assert {tower: list(active_branches(clip, tower)) for tower in ("text", "vision")} == {
        "text": [1, 2, 3],
        "vision": [1, 2, 3],
    }


def test_without_an_end_the_adapter_reaches_the_last_layer(clip):
    assert hooked_layers(inject_mma(clip))["vision"] == [5, 6]


@pytest.mark.parametrize(
    ("pairing", "vision"), [("top", [7, 8, 9]), ("index", [4, 5, 6])], ids=["top", "index"]
)
def test_towers_of_unequal_depth_pair_as_asked(pairing, vision):
    model = build_host("clip-deep-vision")
    inject_mma(model, 4, pairing=pairing)
    assert hooked_layers(model) == {"text": [4, 5, 6], "vision": vision}
    assert list(model.mma.shared) == ["4", "5", "6"]
    with pytest.raises(ConfigError, match="the shallower tower has 6 layers"):
        inject_mma(model, 4, end_layer=7, name="deeper")


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_may_be_adapted_alone(clip, batch, tower):
    inject_mma(clip, 3, towers=tower, scale=0.5)
    other = {"text": "vision", "vision": "text"}[tower]
    assert hooked_layers(clip) == {tower: [3, 4, 5, 6], other: []}
    assert active_branches(clip, other) == {}
    backward(clip, batch)
    assert all(p.grad is not None for p in clip.mma.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_layer": 0}, "start_layer=0"),
        ({"start_layer": 7}, "start_layer=7"),
        ({"end_layer": 7}, "6 layers"),
        ({"bottleneck_dim": 0}, "bottleneck_dim=0"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"towers": "audio"}, "audio"),
        ({"towers": ("text", "audio")}, "audio"),
        ({"towers": ()}, r"towers=\(\)"),
        ({"shared": "half"}, "shared='half'"),
        ({"pairing": "bottom"}, "pairing='bottom'"),
        ({"name": "a.b"}, "name='a.b'"),
        ({"name": "keys"}, "name='keys'"),
    ],
)
def test_a_refused_setting_leaves_the_model_as_it_was(clip, settings, words):
    before = set(clip.__dict__), trainable(clip), list(clip.state_dict())
    with pytest.raises(ConfigError, match=words):
        inject_mma(clip, **settings)
    assert before == (set(clip.__dict__), trainable(clip), list(clip.state_dict()))
    assert hooked_layers(clip) == {"text": [], "vision": []}


def test_injecting_twice_under_one_name_says_what_to_do(clip, batch):
    inject_mma(clip, 2)
    before = logits(clip, batch)
    with pytest.raises(ConfigError) as error:
        inject_mma(clip, 3)
    for way_out in ("'default'", "remove_mma(model)", "delete_adapter", "name="):
        assert way_out in str(error.value)
    assert torch.equal(logits(clip, batch), before)


def test_a_seed_repeats_the_adapter_and_leaves_the_global_generator_alone():
    models = [build_host("clip") for _ in range(2)]
    state = torch.get_rng_state()
    for model in models:
        inject_mma(model, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (model.mma.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


# Freezing.


def test_only_the_adapter_gets_gradients(clip, batch):
    inject_mma(clip, 2, scale=0.5)
    backward(clip, batch)
    for name, parameter in clip.named_parameters():
        assert (parameter.grad is not None) == name.startswith("mma."), name


def test_freeze_false_leaves_the_host_trainable(clip, batch):
    before = trainable(clip)
    inject_mma(clip, 2, freeze=False)
    assert trainable(clip) == before | {f"mma.{name}" for name in clip.mma.state_dict()}
    backward(clip, batch)
    assert clip.logit_scale.grad is not None
    remove_mma(clip)
    assert trainable(clip) == before


def test_removal_restores_what_was_trainable_and_nothing_else(clip):
    clip.logit_scale.requires_grad_(False)
    before = trainable(clip)
    inject_mma(clip, 2)
    inject_mma(clip, 3, name="second")
    remove_mma(clip)
    assert trainable(clip) == before
    assert not clip.logit_scale.requires_grad


def test_training_mode_passes_to_the_adapter(clip):
    assert not inject_mma(clip, 2).mma.training
    remove_mma(clip).train()
    assert inject_mma(clip, 2).mma.training


# Removing and disabling.


def test_removal_leaves_no_trace(clip, batch):
    plain, attributes = logits(clip, batch), set(clip.__dict__)
    keys, modules = list(clip.state_dict()), [name for name, _ in clip.named_modules()]
    inject_mma(clip, 2, scale=0.5)
    inject_mma(clip, 3, scale=0.5, name="second")
    assert remove_mma(clip) is clip
    assert torch.equal(logits(clip, batch), plain)
    assert set(clip.__dict__) == attributes
    assert list(clip.state_dict()) == keys
    assert [name for name, _ in clip.named_modules()] == modules
    assert hooked_layers(clip) == {"text": [], "vision": []}
    inject_mma(clip, 2)  # and the name is free again


@pytest.mark.parametrize("own", [None, ["logit_scale"], {"logit_scale"}])
def test_removal_restores_the_hosts_own_list_of_keys_not_to_save(clip, own):
    if own is not None:
        clip._keys_to_ignore_on_save = own
    before = clip._keys_to_ignore_on_save
    inject_mma(clip, 2)
    saved = clip._keys_to_ignore_on_save
    assert set(saved) == {f"mma.{key}" for key in clip.mma.state_dict()} | set(own or ())
    remove_mma(clip)
    assert clip._keys_to_ignore_on_save == before


def test_disabling_nests_and_restores_the_adapter_after_exceptions(clip, batch):
    plain = logits(clip, batch)
    inject_mma(clip, 2, scale=0.5)
    adapted = logits(clip, batch)
    with disable_mma(clip) as inner:
        assert inner is clip
        assert not is_enabled(clip)
        assert active_branches(clip, "text") == {}
        with contextlib.suppress(RuntimeError), disable_mma(clip):
            raise RuntimeError
        assert torch.equal(logits(clip, batch), plain)
    assert is_enabled(clip)
    assert torch.equal(logits(clip, batch), adapted)
    with contextlib.suppress(RuntimeError), disable_mma(clip):
        assert torch.equal(logits(clip, batch), plain)
        raise RuntimeError
    assert torch.equal(logits(clip, batch), adapted)


def test_an_adapter_may_be_removed_replaced_or_switched_inside_disable(clip, batch):
    plain = logits(clip, batch)
    inject_mma(clip, 2, scale=0.5, seed=0)
    inject_mma(clip, 2, scale=0.5, seed=1, name="second")
    second = logits(clip, batch)
    with disable_mma(clip):
        set_adapter(clip, "default")
        assert torch.equal(logits(clip, batch), plain)
    assert not torch.equal(logits(clip, batch), second)
    with disable_mma(clip):
        set_adapter(clip, "second")
    assert torch.equal(logits(clip, batch), second)
    with disable_mma(clip):
        remove_mma(clip)
        inject_mma(clip, 3, scale=0.5, seed=2)
        fresh = logits(clip, batch)
    assert torch.equal(logits(clip, batch), fresh)
    with disable_mma(clip):
        remove_mma(clip)
    assert torch.equal(logits(clip, batch), plain)


@pytest.mark.parametrize(
    "verb",
    [
        remove_mma,
        lambda model: disable_mma(model).__enter__(),
        lambda model: set_adapter(model, "a"),
        lambda model: delete_adapter(model, "a"),
    ],
    ids=["remove", "disable", "set", "delete"],
)
def test_verbs_on_a_model_without_an_adapter_name_the_way_in(clip, verb):
    with pytest.raises(ConfigError, match=r"no adapter; call inject_mma\(model\) or load_mma"):
        verb(clip)


# Several adapters.


@pytest.fixture
def pair(clip):
    inject_mma(clip, 2, scale=0.5, seed=0, name="first")
    return inject_mma(clip, 4, scale=0.25, bottleneck_dim=8, seed=1, name="second")


def pointers(adapter):
    return [parameter.data_ptr() for parameter in adapter.parameters()]


def test_adapters_are_switched_without_copying_a_weight(pair, batch):
    second, second_logits = pair.mma, logits(pair, batch)
    first = pair.mma_inactive["first"]
    before = pointers(first), pointers(second)
    set_adapter(pair, "first")
    assert pair.mma is first
    assert pair.mma_inactive["second"] is second
    assert not torch.equal(logits(pair, batch), second_logits)
    assert hooked_layers(pair)["text"] == [2, 3, 4, 5, 6]
    set_adapter(pair, "second")
    assert (pointers(first), pointers(second)) == before
    assert torch.equal(logits(pair, batch), second_logits)
    assert hooked_layers(pair)["text"] == [4, 5, 6]


def test_each_adapter_gives_what_it_gives_alone(pair, batch):
    alone = inject_mma(build_host("clip"), 2, scale=0.5, seed=0)
    set_adapter(pair, "first")
    assert torch.equal(logits(pair, batch), logits(alone, batch))


def test_inactive_adapters_get_no_gradients(pair, batch):
    for name, other in (("first", "second"), ("second", "first")):
        pair.zero_grad()
        set_adapter(pair, name)
        backward(pair, batch)
        assert all(p.grad is not None for p in pair.mma.parameters())
        assert not any(p.requires_grad for p in pair.mma_inactive[other].parameters())
        assert all(p.grad is None for p in pair.mma_inactive[other].parameters())


def test_an_adapter_may_be_activated_without_gradients(pair):
    set_adapter(pair, "first", train=False)
    assert trainable(pair) == set()


def test_setting_the_scale_touches_one_adapter_only(pair):
    pair.mma.scale = 0.125
    assert pair.mma_inactive["first"].scale == 0.5


def test_deleting_the_active_adapter_activates_the_first_of_the_others(pair, batch):
    set_adapter(pair, "first")
    first = logits(pair, batch)
    set_adapter(pair, "second", train=False)
    assert adapter_names(pair) == ["second", "first"]
    delete_adapter(pair, "second")
    assert adapter_names(pair) == ["first"]
    assert torch.equal(logits(pair, batch), first)
    assert trainable(pair) == set()  # as before the deletion
    assert not any("mma_inactive" in key for key in pair._keys_to_ignore_on_save)


def test_deleting_an_inactive_adapter_changes_no_result(pair, batch):
    before = logits(pair, batch)
    delete_adapter(pair, "first")
    assert adapter_names(pair) == ["second"]
    assert torch.equal(logits(pair, batch), before)
    assert trainable(pair) == {f"mma.{name}" for name in pair.mma.state_dict()}


def test_deleting_the_last_adapter_removes_everything(clip, batch):
    plain, before = logits(clip, batch), trainable(clip)
    inject_mma(clip, 2, scale=0.5, name="only")
    delete_adapter(clip, "only")
    assert torch.equal(logits(clip, batch), plain)
    assert trainable(clip) == before
    assert not hasattr(clip, "mma")


def test_an_unknown_name_is_answered_with_the_known_ones(pair):
    for verb in (set_adapter, delete_adapter):
        with pytest.raises(ConfigError, match=r"'third'.*\['second', 'first'\]"):
            verb(pair, "third")


# Copies.


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
@pytest.mark.parametrize("disabled", [False, True], ids=["enabled", "disabled"])
def test_a_copy_uses_its_own_weights_and_can_be_removed_by_itself(clip, batch, clone, disabled):
    plain = logits(clip, batch)
    inject_mma(clip, 2, scale=0.5)
    adapted = logits(clip, batch)
    with disable_mma(clip) if disabled else contextlib.nullcontext():
        twin = clone(clip)
    assert is_enabled(twin) is not disabled
    if disabled:
        assert torch.equal(logits(twin, batch), plain)
        set_adapter(twin, "default")  # stays disabled: switching is not enabling
        assert not is_enabled(twin)
        return
    assert torch.equal(logits(twin, batch), adapted)
    reseed(twin.mma, 5)
    moved = logits(twin, batch)
    assert not torch.allclose(moved, adapted)
    assert torch.equal(logits(clip, batch), adapted)
    remove_mma(clip)
    assert torch.equal(logits(clip, batch), plain)
    assert torch.equal(logits(twin, batch), moved)
    twin.bfloat16().float()
    remove_mma(twin)
    assert hooked_layers(twin) == {"text": [], "vision": []}


def test_a_copy_keeps_all_its_adapters(pair, batch):
    twin = copy.deepcopy(pair)
    set_adapter(twin, "first")
    delete_adapter(twin, "second")
    assert adapter_names(pair) == ["second", "first"]
    set_adapter(pair, "first")
    assert torch.equal(logits(twin, batch), logits(pair, batch))


# Hosts that are refused, and wrappers.


def test_unsupported_hosts_are_refused_with_the_list_of_supported_ones():
    class Other(nn.Module):
        config = PretrainedConfig()

    other = Other()
    other.config.model_type = "bert"
    for model in (nn.Linear(2, 2), other):
        with pytest.raises(UnsupportedHostError) as error:
            inject_mma(model)
        assert type(model).__name__ in str(error.value)
        assert all(family in str(error.value) for family in FAMILIES)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
@pytest.mark.parametrize("verb", [inject_mma, remove_mma, lambda m: disable_mma(m).__enter__()])
def test_wrapped_models_are_refused_with_a_hint(clip, batch, wrap, verb):
    inject_mma(clip, 2, name="inside", scale=0.5)
    before = logits(clip, batch)
    with pytest.raises(UnsupportedHostError, match=r"wrapped.*pass the CLIPModel"):
        verb(wrap(clip))
    assert torch.equal(logits(clip, batch), before)


def test_peft_models_are_refused_with_a_hint(clip):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(clip, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedHostError, match=r"wrapped in PeftModel.*pass the CLIPModel"):
        inject_mma(model)


def replicate(module):
    """Copy a module as nn.DataParallel does for its second device, here onto the same one."""
    replicas = {old: old._replicate_for_data_parallel() for old in module.modules()}
    for old, new in replicas.items():
        for name, child in old._modules.items():
            new._modules[name] = replicas[child]
        for name, parameter in old._parameters.items():
            setattr(new, name, parameter)
    return replicas[module]


def test_a_replica_of_data_parallel_stops_with_the_way_out(clip, batch):
    plain = logits(clip, batch)
    assert torch.equal(logits(replicate(clip), batch), plain)
    inject_mma(clip, 2)
    with pytest.raises(MMAError, match=r"accelerate launch.*torchrun"):
        replicate(clip)(**batch)


def test_one_device_in_data_parallel_is_no_replica_and_works(clip, batch):
    inject_mma(clip, 2, scale=0.5)
    assert torch.equal(logits(nn.DataParallel(clip), batch), logits(clip, batch))


# Reports.


def test_the_trainable_share_is_printed_in_pefts_format(clip, capsys):
    inject_mma(clip, 2)
    print_trainable_parameters(clip)
    trained = clip.mma.config.num_weights
    total = sum(p.numel() for p in clip.parameters())
    assert capsys.readouterr().out == (
        f"trainable params: {trained:,d} || all params: {total:,d} || "
        f"trainable%: {100 * trained / total:.4f}\n"
    )


def test_merging_is_refused_with_the_reason_and_the_ways_out(clip):
    inject_mma(clip, 2)
    with pytest.raises(NotImplementedError, match=r"ReLU.*remove_mma.*bake"):
        merge_and_unload(clip)


def test_the_config_knows_the_base_model(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    model = inject_mma(CLIPModel.from_pretrained(tmp_path), 2)
    config = model.mma.config
    assert config.base_model_name_or_path == str(tmp_path)
    assert config.model_type == "clip"
    assert (config.text_width, config.vision_width) == (32, 48)
    assert (config.text_depth, config.vision_depth) == (6, 6)
    assert config.base_fingerprint == inject_mma(clip, 2).mma.config.base_fingerprint


def test_a_batch_of_another_size_works(clip):
    inject_mma(clip, 2)
    assert logits(clip, build_batch(clip, images=1, prompts=2)).shape == (1, 2)
