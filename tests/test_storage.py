"""Adapters on disk: equal after loading, whole after a kill, and refused when anything is wrong."""

import contextlib
import functools
import itertools
import json
import os
import random
import signal
import time
import warnings

import pytest
import torch
from conftest import HOSTS, build_batch, build_host, logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPVisionModelWithProjection

from mma_adapter import (
    ConfigError,
    MMAError,
    MultiModalAdapter,
    StorageError,
    inject_mma,
    load_mma,
    remove_mma,
)
from mma_adapter.storage import CONFIG, WEIGHTS, read_adapter, save_adapter


@pytest.fixture
def model():
    return inject_mma(build_host("clip"), 3, bottleneck_dim=8, scale=0.5, seed=1)


@pytest.fixture
def folder(model, tmp_path):
    model.mma.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def edit(folder, **changes):
    data = json.loads((folder / CONFIG).read_text())
    data.update(changes)
    (folder / CONFIG).write_text(json.dumps(data))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


# Round trips


@pytest.mark.parametrize("name", list(HOSTS))
def test_logits_are_bit_equal_after_loading_on_every_host(name, tmp_path):
    model = inject_mma(build_host(name), 3, scale=0.5, seed=1)
    expected = logits(model, build_batch(model))
    model.mma.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same base: nothing to warn of
        again = load_mma(tmp_path, build_host(name))
    assert torch.equal(logits(again, build_batch(again)), expected)
    assert not torch.equal(logits(remove_mma(again), build_batch(again)), expected)


def test_the_folder_holds_three_files_and_exactly_the_state_dict(folder, model):
    assert sorted(os.listdir(folder)) == ["README.md", CONFIG, WEIGHTS]
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert set(file.keys()) == set(model.mma.state_dict())
        assert file.metadata()["format"] == "pt"


def test_the_config_has_the_keys_peft_looks_for_and_is_sorted(folder):
    text = (folder / CONFIG).read_text()
    data = json.loads(text)
    assert (data["peft_type"], data["task_type"], data["inference_mode"]) == ("MMA", None, True)
    assert {"auto_mapping", "base_model_name_or_path", "revision", "mma_version"} <= data.keys()
    assert text == json.dumps(data, indent=2, sort_keys=True) + "\n"


def test_reading_gives_the_config_back_and_draws_no_random_numbers(folder, model):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    adapter = MultiModalAdapter.from_pretrained(folder)
    assert torch.equal(torch.rand(2), expected)
    assert adapter.config == model.mma.config
    assert same(adapter, model.mma)


def test_half_precision_files_are_cast_to_float32_and_double_stays(folder):
    for dtype, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        rewrite(folder, lambda t, d=dtype: t.update({k: v.to(d) for k, v in t.items()}))
        adapter = read_adapter(folder)
        assert {p.dtype for p in adapter.parameters()} == {expected}


def test_a_folder_in_pefts_key_layout_is_read(folder, model):
    def wrap(tensors):
        for key in list(tensors):
            tensors[f"base_model.model.mma.{key}"] = tensors.pop(key)

    rewrite(folder, wrap)
    edit(folder, peft_version="0.21.2", inference_mode=False)
    assert same(read_adapter(folder), model.mma)


def test_a_model_loaded_for_use_is_frozen_and_in_evaluation_mode(folder):
    model = load_mma(folder, build_host("clip").train())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_loaded_for_training_trains_the_adapter_alone(folder):
    model = load_mma(folder, build_host("clip").train(), is_trainable=True)
    assert model.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"mma.{name}" for name in model.mma.state_dict()}


def test_a_second_adapter_is_loaded_beside_the_first(folder, model):
    model.mma.scale = 0.25
    load_mma(folder, model, name="other")
    assert model.mma.scale == 0.5
    assert model.mma_inactive["default"].scale == 0.25
    with pytest.raises(ConfigError, match="already has an adapter"):
        load_mma(folder, model, name="other")


def test_the_base_model_is_loaded_by_the_name_in_the_config(tmp_path):
    build_host("clip").save_pretrained(tmp_path / "base")
    model = inject_mma(CLIPModel.from_pretrained(tmp_path / "base"), 3, scale=0.5)
    model.mma.save_pretrained(tmp_path / "saved")
    again = load_mma(tmp_path / "saved")
    assert type(again) is CLIPModel
    batch = build_batch(model)
    assert torch.equal(logits(again, batch), logits(model.eval(), batch))
    # The config needs the path to find the base; the card must not tell it.
    assert str(tmp_path) not in (tmp_path / "saved" / "README.md").read_text()


def test_the_class_named_in_auto_mapping_is_restored(tmp_path):
    host = CLIPVisionModelWithProjection(build_host("clip").config.vision_config)
    host.save_pretrained(tmp_path / "base")
    host = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "base")
    inject_mma(host, 3).mma.save_pretrained(tmp_path / "saved")
    mapping = {"base_model_class": type(host).__name__, "parent_library": "transformers"}
    edit(tmp_path / "saved", auto_mapping=mapping)
    again = load_mma(tmp_path / "saved")
    assert type(again) is CLIPVisionModelWithProjection
    again.mma.save_pretrained(tmp_path / "twice")  # and is not lost on the way
    assert json.loads((tmp_path / "twice" / CONFIG).read_text())["auto_mapping"] == mapping


@pytest.mark.parametrize("name", ["os", "AutoConfig", "NoSuchModel", "PreTrainedTokenizer"])
def test_a_class_that_is_no_model_is_not_used(name, tmp_path):
    build_host("clip").save_pretrained(tmp_path / "base")
    model = inject_mma(CLIPModel.from_pretrained(tmp_path / "base"), 3)
    model.mma.save_pretrained(tmp_path / "saved")
    edit(tmp_path / "saved", auto_mapping={"base_model_class": name, "parent_library": "os"})
    assert type(load_mma(tmp_path / "saved")) is CLIPModel


def test_a_vision_adapter_goes_from_one_tower_onto_the_whole_model(tmp_path):
    whole = build_host("clip")
    tower = CLIPVisionModelWithProjection(whole.config.vision_config)
    state = {k: v for k, v in whole.state_dict().items() if k.startswith("vis")}
    tower.load_state_dict(state, strict=False)
    inject_mma(tower, 3, scale=0.5).mma.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a hash over other towers is not compared
        load_mma(tmp_path, whole)
    assert same(whole.mma, tower.mma)


# The base model


def test_without_a_base_name_the_way_out_is_to_pass_the_model(folder):
    with pytest.raises(StorageError, match="model="):
        load_mma(folder)


def test_a_base_that_is_gone_is_one_error_that_names_it(folder, tmp_path):
    edit(folder, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"gone.*pass it as model="):
        load_mma(folder)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("model_type", "siglip", "'siglip'.*'clip'"),
        ("vision_depth", 24, "24.*6"),
        ("text_width", 512, "512.*32"),
        ("projection_dim", 512, "512.*24"),
        ("patch_size", 32, "32.*8"),
    ],
)
def test_a_base_of_another_shape_is_refused_and_left_untouched(folder, key, value, shown):
    print_of_base = json.loads((folder / CONFIG).read_text())["base_fingerprint"]
    edit(folder, base_fingerprint={**print_of_base, key: value}, base_model_name_or_path="a/clip")
    model = build_host("clip").train()
    with pytest.raises(StorageError, match=rf"{key} {shown}.*a/clip"):
        load_mma(folder, model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "mma")
    assert not hasattr(model, "_mma")


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "0" * 16), ("image_size", 224), ("vision_hidden_act", "gelu"), ("name", "a/clip")],
)
def test_a_base_of_other_weights_is_a_warning_or_on_request_an_error(folder, key, value):
    data = json.loads((folder / CONFIG).read_text())
    edit(folder, base_fingerprint={**data["base_fingerprint"], key: value})
    if key == "name":
        edit(folder, base_fingerprint=data["base_fingerprint"], base_model_name_or_path=value)
    model = build_host("clip")
    model.name_or_path = model.config.name_or_path = "b/clip"
    with pytest.raises(StorageError, match=rf"{key} {value!r}, the model has"):
        load_mma(folder, model, strict_base=True)
    with pytest.warns(UserWarning, match=rf"{key} {value!r}, the model has"):
        load_mma(folder, model)
    assert hasattr(model, "mma")


def test_what_one_side_does_not_know_is_not_compared(folder):
    edit(folder, base_fingerprint=None, model_type=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_mma(folder, build_host("clip"), strict_base=True)


# Damage


def damage(tensors, name, value):
    tensors[name] = value


BIAS = "text_up.4.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), r"missing: text_up\.4\.bias"),
        (lambda t: damage(t, "extra.weight", torch.zeros(3)), r"unexpected: extra\.weight"),
        (
            lambda t: damage(t, "other", t.pop(BIAS)),
            r"missing: text_up\.4\.bias; unexpected: other",
        ),
        (lambda t: damage(t, BIAS, torch.zeros(33)), r"text_up\.4\.bias is F32 \(33,\).*\(32,\)"),
        (lambda t: damage(t, BIAS, torch.zeros(1, 32)), r"\(1, 32\)"),
        (lambda t: damage(t, BIAS, torch.zeros(32, dtype=torch.int64)), r"text_up\.4\.bias is I64"),
        (lambda t: t[BIAS].fill_(float("nan")), r"text_up\.4\.bias holds nan"),
        (lambda t: t[BIAS][3:4].fill_(float("-inf")), r"text_up\.4\.bias holds -inf"),
        (lambda t: t.clear(), "missing"),
    ],
)
def test_weights_that_contradict_the_config_are_refused_by_name(folder, change, message):
    rewrite(folder, change)
    model = build_host("clip")
    with pytest.raises(StorageError, match=message):
        load_mma(folder, model)
    assert not hasattr(model, "_mma")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck_dim": 4}, r"\(8,.*\(4,"),
        ({"end_layer": 5}, "unexpected: .*6"),
        ({"shared": "none"}, "unexpected: shared"),
        ({"towers": ["text"]}, "unexpected: .*vision_down"),
        ({"mma_format": 2}, "format 2.*reads formats 1 to 1"),
        ({"mma_format": None}, "format None"),
        ({"alpha": 1}, "unknown keys.*alpha"),
        ({"scale": "big"}, "scale='big'"),
        ({"bottleneck_dim": 10**12}, "bottleneck_dim=1000000000000"),
        ({"end_layer": 10**9, "text_depth": None, "vision_depth": None}, "end_layer=1000000000"),
        ({"base_fingerprint": "clip"}, "base_fingerprint='clip'"),
        ({"classnames": [1]}, "classnames"),
        ({"peft_type": "LORA"}, "'LORA'.*load it with PEFT"),
        ({"peft_type": ["MMA"]}, "peft_type"),
    ],
)
def test_a_config_that_cannot_be_is_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(MMAError, match=message):
        read_adapter(folder)


def test_a_config_for_giants_allocates_nothing(folder):
    edit(folder, bottleneck_dim=65536, text_width=65536, end_layer=6)
    started = time.monotonic()
    with pytest.raises(StorageError, match="65536"):
        read_adapter(folder)  # 16 GiB per weight, had it been built
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b'"MMA"', b"\xff\xfe", b"null"),
        *(b"[" * 100_000, b'{"scale": ' + b"9" * 5000 + b"}"),
    ],
)
def test_a_config_that_is_no_json_object_is_one_clear_error(folder, content):
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(MMAError):
        read_adapter(folder)


def test_a_config_of_absurd_size_is_not_read(folder):
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(10 * 2**30)  # sparse: takes no disk
    with pytest.raises(StorageError, match="larger than"):
        read_adapter(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 3000, -1])
def test_a_weight_file_that_is_cut_off_is_one_clear_error(folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(StorageError, match="damaged or cut off"):
        read_adapter(folder)


def test_a_header_of_absurd_size_and_a_pickle_are_refused(folder):
    (folder / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(StorageError, match="damaged"):
        read_adapter(folder)
    torch.save({"a": torch.zeros(3)}, folder / WEIGHTS)
    with pytest.raises(StorageError, match="damaged"):
        read_adapter(folder)


def test_missing_files_folders_and_wrong_kinds_are_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=f"has no {CONFIG} and no {WEIGHTS}"):
        read_adapter(tmp_path / "empty")
    with pytest.raises(StorageError, match="is a file"):
        read_adapter(folder / WEIGHTS)
    with pytest.raises(StorageError, match="neither a folder here nor a repository"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="no folder 'you/nowhere' here"):
        read_adapter("you/nowhere", local_files_only=True)


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_is_always_one_of_our_errors_or_harmless(folder, seed):
    rng = random.Random(seed)
    path = folder / rng.choice([CONFIG, WEIGHTS])
    data = bytearray(path.read_bytes())
    limit = min(len(data), 2000)  # mostly the header: that is where damage is dangerous
    for _ in range(rng.choice([1, 3, 10])):
        data[rng.randrange(limit)] = rng.randrange(256)
    path.write_bytes(data)
    with contextlib.suppress(MMAError):
        read_adapter(folder)


# Saving


def test_a_folder_with_a_complete_model_is_refused_and_left_alone(model, tmp_path):
    build_host("clip").save_pretrained(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StorageError, match="complete model"):
        model.mma.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_in_the_way_is_named(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"cannot save to .*file"):
        model.mma.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_that_are_not_finite_never_replace_good_ones(folder, model):
    good = model.mma.state_dict()["shared.4.bias"].clone()
    with torch.no_grad():
        model.mma.shared["4"].bias[0] = float("nan")
    with pytest.raises(StorageError, match=r"shared\.4\.bias holds nan"):
        model.mma.save_pretrained(folder)
    assert torch.equal(read_adapter(folder).shared["4"].bias, good)


def test_an_unknown_card_field_fails_before_anything_is_written(model, tmp_path):
    with pytest.raises(TypeError, match="licence"):
        model.mma.save_pretrained(tmp_path / "new", licence="mit")
    assert not (tmp_path / "new").exists()


def test_a_base_model_given_by_name_lands_in_config_and_card(model, tmp_path):
    model.mma.save_pretrained(tmp_path, base_model="you/clip", license="mit")
    assert read_adapter(tmp_path).config.base_model_name_or_path == "you/clip"
    assert "base_model: you/clip\n" in (tmp_path / "README.md").read_text()
    assert model.mma.config.base_model_name_or_path is None


def test_a_config_edited_by_hand_counts(folder):
    edit(folder, scale=0.125)
    assert read_adapter(folder).scale == 0.125


# Dying while saving: old and new differ in shape, in scale alone, and back


def adapters():
    built = []
    for number, (start, inner) in enumerate([(3, 8), (3, 8), (4, 16)]):
        model = inject_mma(build_host("clip"), start, bottleneck_dim=inner, scale=0.5 + number)
        built.append(model.mma)
    return built


def which(folder, candidates):
    """Return the number of the adapter in `folder`; it must be one of them as a whole."""
    found = read_adapter(folder)
    matches = [n for n, a in enumerate(candidates) if same(found, a) and found.scale == a.scale]
    assert len(matches) == 1
    return matches[0]


def in_child(action):
    """Run `action` in a forked process and return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(77)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(step):
    """Make the process die just before its `step`-th call that changes a disk."""
    left = [step]
    for name in ("replace", "fsync", "open", "unlink"):
        original = getattr(os, name)

        def counted(*args, _original=original, **options):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return _original(*args, **options)

        setattr(os, name, counted)


@pytest.mark.parametrize(("old", "new"), [(0, 1), (0, 2), (2, 0)])
def test_dying_at_any_step_leaves_the_old_or_the_new_adapter(old, new, tmp_path):
    candidates, step, seen = adapters(), 0, []
    while True:
        folder = tmp_path / str(step)
        save_adapter(candidates[old], folder)

        def action(folder=folder, step=step):
            die_at(step)
            save_adapter(candidates[new], folder)

        status = in_child(action)
        assert status in (0, 9)
        seen.append(which(folder, candidates))
        # Whatever a dying save left behind, saving works again, and can die again.
        third = ({0, 1, 2} - {old, new}).pop()
        interrupted = functools.partial(save_adapter, candidates[third], folder)
        assert in_child(lambda save=interrupted: (die_at(1), save())) == 9
        assert which(folder, candidates) == seen[-1]
        save_adapter(candidates[third], folder)
        assert which(folder, candidates) == third
        assert sorted(os.listdir(folder)) == ["README.md", CONFIG, WEIGHTS]
        if status == 0:
            break
        step += 1
    assert step >= 6
    assert seen == sorted(seen, key=[old, new].index)  # old, old, ..., new, new
    assert {old, new} == set(seen)


def test_dying_during_the_first_save_leaves_nothing_or_the_adapter(tmp_path):
    candidates, step, seen = adapters(), 0, []
    while True:
        folder = tmp_path / str(step)
        status = in_child(lambda s=step, f=folder: (die_at(s), save_adapter(candidates[0], f)))
        try:
            seen.append(which(folder, candidates))
        except StorageError:
            seen.append(None)
        if status == 0:
            break
        step += 1
    assert seen == [None] * seen.count(None) + [0] * seen.count(0)
    assert min(seen.count(None), seen.count(0)) > 1


def test_random_kills_always_leave_a_whole_adapter(tmp_path):
    candidates, rng, seen = adapters(), random.Random(0), set()
    save_adapter(candidates[0], tmp_path)
    for turn in range(30):
        ready, started = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.ExitStack() as stack:
                stack.callback(os._exit, 1)
                for candidate in itertools.islice(itertools.cycle(candidates), turn, None):
                    save_adapter(candidate, tmp_path)
                    os.write(started, b"1")
        os.close(started)
        assert os.read(ready, 1)  # a fresh process is slow at first; kill it when it is under way
        time.sleep(rng.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        seen.add(which(tmp_path, candidates))
    assert seen == {0, 1, 2}


def test_a_full_disk_leaves_the_old_adapter_and_no_litter(model, folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    old = read_adapter(folder)
    model.mma.scale = 0.75
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        model.mma.save_pretrained(folder)
    assert read_adapter(folder).scale == old.scale == 0.5
    assert sorted(os.listdir(folder)) == ["README.md", CONFIG, WEIGHTS]


def test_the_saved_bytes_depend_on_the_adapter_alone(model, tmp_path):
    for name in ("a", "b"):
        model.mma.save_pretrained(tmp_path / name)
    written = {(tmp_path / name / WEIGHTS).read_bytes() for name in ("a", "b")}
    assert len(written) == 1
