"""The authors' checkpoints: built from their own weights, read, attached, compared, written."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import build_host
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel

from mma_adapter import (
    ConfigError,
    MMAConfig,
    MultiModalAdapter,
    StorageError,
    inject_mma,
    read_official,
    write_official,
)
from mma_adapter.injection import attach

GOLDEN = Path(__file__).parent / "golden" / "mma"


def golden(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = {key: json.loads(value) for key, value in file.metadata().items()}
    return tensors, meta


@pytest.fixture
def weights():
    """The authors' weights of `mma_a`: layers 3 to 8, bottleneck 16."""
    tensors, _ = golden("mma_a")
    return {k.removeprefix("adapter."): v for k, v in tensors.items() if k[:8] == "adapter."}


@pytest.fixture
def write(tmp_path, weights):
    def write(change=lambda state: None, *, bare=False):
        state = OrderedDict(
            token_embedding=torch.randn(11, 16, 64),
            tokenized_prompts=torch.randint(0, 300, (11, 16)),
            **weights,
        )
        change(state)
        path = tmp_path / "model.pth.tar-5"
        momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 1}]}
        whole = {"state_dict": state, "epoch": 5, "optimizer": momentum, "val_result": None}
        torch.save(state if bare else whole, path)
        return path

    return write


@pytest.mark.parametrize("name", ["mma_a", "mma_b"])
def test_a_checkpoint_of_the_authors_gives_their_logits(name, tmp_path):
    tensors, meta = golden(name)
    state = {k.removeprefix("adapter."): v for k, v in tensors.items() if k[:8] == "adapter."}
    torch.save({"state_dict": state, "epoch": 5}, tmp_path / "model.pth.tar-5")
    adapter = read_official(tmp_path / "model.pth.tar-5", scale=meta["mma"]["scale"])

    model = CLIPModel(CLIPConfig(**meta["clip_config"])).eval()
    clip = {k.removeprefix("clip."): v.float() for k, v in tensors.items() if k[:5] == "clip."}
    assert not model.load_state_dict(clip, strict=False).unexpected_keys
    attach(model, adapter, name="default", freeze=True, train=False)
    with torch.no_grad():
        found = model(input_ids=tensors["input_ids"], pixel_values=tensors["pixel_values"])
    torch.testing.assert_close(found.logits_per_image, tensors["logits"], atol=1e-5, rtol=0)
    # Far from the frozen model, so that this cannot pass without the adapter.
    assert (found.logits_per_image - tensors["logits_zero_shot"]).abs().max() > 1e-3


def test_the_config_follows_from_the_weights(write):
    config = read_official(write(), scale=0.25).config
    assert config == MMAConfig(
        text_width=64,
        vision_width=128,
        start_layer=3,
        end_layer=8,
        bottleneck_dim=16,
        scale=0.25,
        pairing="index",
        model_type="clip",
    )


def test_reading_what_was_written_gives_equal_weights_and_layout(write, weights, tmp_path):
    adapter = read_official(write(), scale=0.001)
    write_official(adapter, tmp_path / "again" / "model.pth.tar-1")
    raw = torch.load(tmp_path / "again" / "model.pth.tar-1", weights_only=True)
    assert raw["epoch"] == 0
    assert raw["state_dict"].keys() == weights.keys()
    assert all(torch.equal(raw["state_dict"][key], weights[key]) for key in weights)
    # The order of the authors' modules: text ascending, then vision, then shared.
    keys = list(raw["state_dict"])
    assert keys[:4] == [
        f"text_adapter.3.{part}"
        for part in ("down.0.weight", "down.0.bias", "up.weight", "up.bias")
    ]
    assert keys[-1] == "shared_adapter.8.0.bias"
    again = read_official(tmp_path / "again" / "model.pth.tar-1", scale=0.001)
    assert again.config == adapter.config
    assert sorted(os.listdir(tmp_path / "again")) == ["model.pth.tar-1"]


def test_a_bare_state_dict_with_module_prefix_is_read_too(write, weights):
    def wrap(state):
        for key in list(state):
            state[f"module.{key}"] = state.pop(key)

    adapter = read_official(write(wrap, bare=True), scale=0.001)
    assert torch.equal(adapter.shared["3"].weight, weights["shared_adapter.3.0.weight"])


def test_half_precision_weights_become_float32(write, weights):
    def halve(state):
        state.update({k: v.half() for k, v in state.items() if v.is_floating_point()})

    adapter = read_official(write(halve), scale=0.001)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    half = weights["text_adapter.5.up.weight"].half().float()
    assert torch.equal(adapter.text_up["5"].weight, half)


def test_reading_draws_no_random_numbers(write):
    path = write()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    read_official(path, scale=0.001)
    assert torch.equal(torch.rand(2), expected)


def drop(*names):
    return lambda state: [state.pop(name) for name in names]


def put(**tensors):
    return lambda state: state.update({k.replace("__", "."): v for k, v in tensors.items()})


def move(old, new):
    def change(state):
        for key in [k for k in state if f"adapter.{old}." in k]:
            state[key.replace(f"adapter.{old}.", f"adapter.{new}.")] = state.pop(key)

    return change


def drop_layer(prefix):
    return lambda state: [state.pop(key) for key in list(state) if key.startswith(prefix)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(prompt_learner__ctx=torch.zeros(4)), "unknown key 'prompt_learner.ctx'"),
        (put(text_adapter__3__gate=torch.zeros(4)), r"unknown: \['text_adapter.3.gate'\]"),
        (drop("text_adapter.4.up.bias"), r"missing: \['text_adapter.4.up.bias'\]"),
        (drop("text_adapter.3.down.0.weight"), "text_adapter.3.down.0.weight is missing"),
        (put(visual_adapter__5__up__bias=torch.zeros(64)), r"visual_adapter.5.up.bias has .*64"),
        (drop_layer("shared_adapter.8"), "different layers"),
        (drop_layer("visual_adapter"), "different layers"),
        (drop_layer(("text_adapter", "visual_adapter", "shared_adapter")), "none at all"),
        (move(8, 10), "have gaps"),
        (move(8, 0), "index 0"),
        (
            put(shared_adapter__4__0__bias=torch.full((16,), float("inf"))),
            "shared_adapter.4.0.bias",
        ),
        (put(shared_adapter__4__0__bias=torch.zeros(16, dtype=torch.int64)), "floating-point"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(write, change, message):
    with pytest.raises(StorageError, match=message):
        read_official(write(change), scale=0.001)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data, 2))]
)
def test_a_pickle_that_runs_code_is_refused_without_running_it(save, tmp_path):
    trap, path = tmp_path / "executed", tmp_path / "model.pth.tar-5"
    save({"state_dict": Malicious(str(trap)), "epoch": 5}, path)
    with pytest.raises(StorageError, match="nothing of it was executed"):
        read_official(path, scale=0.001)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_one_clear_error(content, tmp_path):
    path = tmp_path / "model.pth.tar-5"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"model\.pth\.tar-5"):
        read_official(path, scale=0.001)


def test_a_truncated_checkpoint_and_a_missing_one_are_clear_errors(write, tmp_path):
    path = write()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(StorageError, match="no readable checkpoint"):
        read_official(path, scale=0.001)
    with pytest.raises(StorageError, match="there is no file"):
        read_official(tmp_path / "nowhere", scale=0.001)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(StorageError, match="holds a list"):
        read_official(tmp_path / "list.pt", scale=0.001)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared": "untied"}, "shared='untied'"),
        ({"shared": "none"}, "shared='none'"),
        ({"towers": "vision"}, "towers="),
    ],
)
def test_only_the_papers_shape_can_be_written(settings, message, tmp_path):
    model = inject_mma(build_host("clip"), 3, **settings)
    with pytest.raises(ConfigError, match=message):
        write_official(model.mma, tmp_path / "model.pth.tar-1")
    assert not list(tmp_path.iterdir())


def test_pairs_of_unequal_layers_cannot_be_written_but_equal_numbers_can(tmp_path):
    model = inject_mma(build_host("clip-deep-vision"), 3)
    with pytest.raises(ConfigError, match="text layer 3 with vision layer 6"):
        write_official(model.mma, tmp_path / "a")
    model = inject_mma(build_host("clip-deep-vision"), 3, pairing="index")
    write_official(model.mma, tmp_path / "b")
    adapter: MultiModalAdapter = read_official(tmp_path / "b", scale=0.001)
    assert all(torch.equal(v, model.mma.state_dict()[k]) for k, v in adapter.state_dict().items())


def test_a_failed_write_leaves_the_old_file(write, tmp_path):
    adapter = read_official(write(), scale=0.001)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        write_official(adapter, tmp_path / "file" / "model.pth.tar-1")
    assert (tmp_path / "file").read_text() == "in the way"
