"""MMA as a PEFT method: every road in and out gives what the native path gives, bit for bit."""

import copy
import dataclasses
import importlib.util
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import build_batch, build_host, logits
from torch import Tensor, nn

from mma_adapter import (
    ConfigError,
    FewShotClassifier,
    MMAConfig,
    MultiModalAdapter,
    StorageError,
    disable_mma,
    inject_mma,
    set_adapter,
)

if importlib.util.find_spec("peft") is None:
    pytest.skip("peft is not installed", allow_module_level=True)

import peft
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from mma_adapter import MMAPeftConfig
from mma_adapter.backbones import as_features
from mma_adapter.demo import icon_clip_path, load_icon_clip
from mma_adapter.injection import adapter_names, is_enabled
from mma_adapter.loading import load_mma

LOUD = {"start_layer": 2, "scale": 0.5}  # so that no adapter can be overlooked


@dataclasses.dataclass
class Case:
    """A base model on disk and one adapter for it, saved natively and through PEFT."""

    folder: Path
    batch: dict[str, Tensor]
    plain: Tensor
    adapted: Tensor
    adapter: MultiModalAdapter

    def base(self) -> nn.Module:
        return transformers.CLIPModel.from_pretrained(self.folder / "base").eval()

    def logits(self, model: nn.Module) -> Tensor:
        return logits(model.eval(), self.batch)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("peft")
    build_host("clip").save_pretrained(folder / "base")
    base = transformers.CLIPModel.from_pretrained(folder / "base").eval()
    batch = build_batch(base)
    native = inject_mma(copy.deepcopy(base), **LOUD, seed=3)
    native.mma.save_pretrained(folder / "native")
    wrapped = get_peft_model(copy.deepcopy(base), MMAPeftConfig(**LOUD))
    wrapped.base_model.model.mma.load_state_dict(native.mma.state_dict())
    wrapped.save_pretrained(folder / "peft")
    plain, adapted = logits(base, batch), logits(native, batch)
    assert (plain - adapted).abs().max() > 0.1
    return Case(folder, batch, plain, adapted, native.mma)


@pytest.fixture(params=["native", "peft"])
def saved(request: pytest.FixtureRequest, case: Case) -> Path:
    return case.folder / request.param


def _run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that shows every warning, `path` searched first."""
    lines = [f"import sys; sys.path[:0] = {[str(p) for p in path]!r}", code]
    command = [sys.executable, "-W", "always::UserWarning", "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Registration


def test_importing_mma_adapter_does_not_import_peft_and_peft_learns_the_method_later(
    case: Case,
) -> None:
    result = _run(
        "import importlib.util, mma_adapter\n"
        "assert importlib.util.find_spec('peft').origin.endswith('peft/__init__.py')\n"
        "assert not {'peft', 'mma_adapter.peft_bridge', 'transformers'} & sys.modules.keys()\n"
        "from transformers import CLIPModel\n"
        f"model = CLIPModel.from_pretrained({str(case.folder / 'native')!r})\n"
        "assert 'MMA' in sys.modules['peft'].mapping.PEFT_TYPE_TO_TUNER_MAPPING\n"
        "print(model.mma.scale)"
    )
    assert result.stdout.strip() == "0.5", result.stderr


def test_importing_peft_first_works_as_well() -> None:
    result = _run(
        "import peft\n"
        "assert 'MMA' not in peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING\n"
        "import mma_adapter\n"
        "print(peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING['MMA'].__name__)\n"
        "print(mma_adapter.MMAPeftConfig().peft_type.value)"
    )
    assert result.stdout.split() == ["MMATuner", "MMA"], result.stderr


def _package(folder: Path, text: str) -> Path:
    (folder / "peft").mkdir()
    (folder / "peft" / "__init__.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__version__ = '0.17.1'", "it needs peft 0.21 or newer, found 0.17.1"),
        ("__version__ = '9.9'\nclass PeftType: pass", "cannot import name 'PeftConfig'"),
    ],
)
def test_a_peft_it_cannot_work_with_costs_one_warning_and_nothing_else(
    tmp_path: Path, text: str, reason: str
) -> None:
    code = "import mma_adapter, peft\nprint(peft.__version__, mma_adapter.inject_mma.__name__)"
    result = _run(code, _package(tmp_path, text))
    assert result.stdout.split()[1] == "inject_mma", result.stderr
    shown = [line for line in result.stderr.splitlines() if "Warning:" in line]
    assert len(shown) == 1
    assert reason in shown[0]
    assert "inject_mma and load_mma do not need it" in shown[0]


def test_it_steps_aside_when_peft_has_a_method_of_that_name(tmp_path: Path) -> None:
    text = "__version__ = '1.0'\nclass PeftType:\n    MMA = 'MMA'"
    code = "import mma_adapter, peft\nprint(1)\nmma_adapter.MMAPeftConfig"
    result = _run(code, _package(tmp_path, text))
    assert result.stdout.strip() == "1"
    assert "Warning" not in result.stderr
    assert "ImportError: peft 1.0 has a method MMA of its own" in result.stderr


def test_other_peft_methods_load_as_before(case: Case, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    lora = get_peft_model(case.base(), config)
    lora.save_pretrained(tmp_path)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path)
    assert torch.equal(case.logits(loaded), case.logits(lora))
    assert not torch.equal(case.logits(loaded), case.plain)


# The config


def test_the_peft_config_has_every_setting_of_the_native_one() -> None:
    ours = {field.name for field in dataclasses.fields(MMAConfig)}
    theirs = {field.name for field in dataclasses.fields(MMAPeftConfig)}
    base = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    assert ours <= theirs
    assert theirs - ours - base == {"mma_format", "mma_version"}
    for field in dataclasses.fields(MMAConfig):
        if field.name != "end_layer":  # unknown until there is a model
            assert getattr(MMAPeftConfig(), field.name) == field.default


def test_both_saved_configs_describe_the_same_adapter(case: Case) -> None:
    native, through_peft = (
        json.loads((case.folder / name / "adapter_config.json").read_text())
        for name in ("native", "peft")
    )
    assert native["peft_type"] == through_peft["peft_type"] == "MMA"
    for field in dataclasses.fields(MMAConfig):
        if field.name != "base_fingerprint":
            assert native[field.name] == through_peft[field.name], field.name
    assert native["mma_format"] == through_peft["mma_format"] == 1
    assert native["mma_version"] == through_peft["mma_version"]


@pytest.mark.filterwarnings("error:Unexpected keyword")
def test_neither_saved_config_surprises_peft(saved: Path) -> None:
    assert isinstance(peft.PeftConfig.from_pretrained(saved), MMAPeftConfig)


def test_a_wrong_setting_is_refused_as_natively(clip: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"end_layer=7 .* has 6 layers"):
        get_peft_model(clip, MMAPeftConfig(start_layer=2, end_layer=7))


def test_an_adapter_of_a_newer_format_is_refused(case: Case, tmp_path: Path) -> None:
    data = json.loads((case.folder / "native" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**data, "mma_format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        PeftModel.from_pretrained(case.base(), tmp_path)


# Fresh adapters


def test_get_peft_model_equals_inject_mma_on_every_family(
    host: nn.Module, batch: dict[str, Tensor]
) -> None:
    torch.manual_seed(5)
    native = inject_mma(copy.deepcopy(host), **LOUD)
    torch.manual_seed(5)
    wrapped = get_peft_model(host, MMAPeftConfig(**LOUD))
    assert torch.equal(logits(wrapped.eval(), batch), logits(native, batch))
    assert wrapped.get_nb_trainable_parameters()[0] == native.mma.config.num_weights


def test_only_the_adapter_trains_and_each_weight_exists_once(case: Case) -> None:
    model = get_peft_model(case.base(), MMAPeftConfig(**LOUD))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"base_model.model.mma.{name}" for name in case.adapter.state_dict()]
    everywhere = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(everywhere) == len(set(dict(model.named_parameters()).values()))
    shared = model.base_model.model.mma.shared["4"].weight
    roads = {"get_text_features": "input_ids", "get_image_features": "pixel_values"}
    for name, inputs in roads.items():  # one parameter, moved by either tower
        model.zero_grad()
        as_features(getattr(model, name)(case.batch[inputs])).sum().backward()
        assert shared.grad.abs().sum() > 0, name


def test_print_trainable_parameters_counts_as_natively(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    get_peft_model(case.base(), MMAPeftConfig(**LOUD)).print_trainable_parameters()
    assert f"trainable params: {case.adapter.config.num_weights:,d} ||" in capsys.readouterr().out


def test_recorded_hidden_states_include_the_adapter(case: Case, saved: Path) -> None:
    model = PeftModel.from_pretrained(case.base(), saved).eval()
    with torch.no_grad():
        output = model(**case.batch, output_hidden_states=True).vision_model_output
    if output.hidden_states is None:
        pytest.skip("this transformers records no hidden states for CLIP")
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_a_name_that_is_part_of_the_models_own_names_is_refused(case: Case) -> None:
    model = get_peft_model(case.base(), MMAPeftConfig(**LOUD))
    with pytest.raises(ConfigError, match="'text_down' is part of the model's own names"):
        model.add_adapter("text_down", MMAPeftConfig(**LOUD))
    assert list(model.peft_config) == ["default"]
    assert adapter_names(model.base_model.model) == ["default"]


# Loading


def _through_peft(case: Case, folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(case.base(), folder)


def _through_peft_sparingly(case: Case, folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(case.base(), folder, low_cpu_mem_usage=True)


def _through_peft_by_name(case: Case, folder: Path) -> nn.Module:
    model = get_peft_model(case.base(), MMAPeftConfig())
    model.load_adapter(folder, "second")
    model.set_adapter("second")
    return model


def _through_transformers(case: Case, folder: Path) -> nn.Module:
    return transformers.CLIPModel.from_pretrained(folder)


def _through_transformers_again(case: Case, folder: Path) -> nn.Module:
    model = case.base()
    model.load_adapter(str(folder), adapter_name="pets")
    return model


def _through_our_own(case: Case, folder: Path) -> nn.Module:
    return load_mma(folder)


ROADS = [
    _through_peft,
    _through_peft_sparingly,
    _through_peft_by_name,
    _through_transformers,
    _through_transformers_again,
    _through_our_own,
]


@pytest.mark.parametrize("road", ROADS)
def test_every_road_from_either_folder_gives_the_native_logits(
    case: Case, saved: Path, road: Callable[[Case, Path], nn.Module]
) -> None:
    model = road(case, saved)
    assert torch.equal(case.logits(model), case.adapted)
    host = model.get_base_model() if isinstance(model, PeftModel) else model
    with disable_mma(host):
        assert torch.equal(case.logits(model), case.plain)
    for name, value in case.adapter.state_dict().items():
        assert torch.equal(host.mma.state_dict()[name], value)


@pytest.mark.parametrize("road", [_through_peft, _through_transformers])
def test_what_is_loaded_for_use_gets_no_gradients(
    case: Case, saved: Path, road: Callable[[Case, Path], nn.Module]
) -> None:
    assert not [n for n, p in road(case, saved).named_parameters() if p.requires_grad]


def test_a_loaded_adapter_can_go_on_training(case: Case, saved: Path) -> None:
    model = PeftModel.from_pretrained(case.base(), saved, is_trainable=True)
    assert model.get_nb_trainable_parameters()[0] == case.adapter.config.num_weights


def test_adapters_stay_float32_beside_a_half_precision_base(case: Case, saved: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert model.text_projection.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.mma.parameters()} == {torch.float32}


def test_the_weights_in_both_files_carry_the_same_names(case: Case) -> None:
    native = load_file(case.folder / "native" / "adapter_model.safetensors")
    through_peft = load_file(case.folder / "peft" / "adapter_model.safetensors")
    assert list(through_peft) == [f"base_model.model.mma.{name}" for name in native]


def test_a_file_that_misses_a_weight_is_refused(case: Case, tmp_path: Path) -> None:
    weights = load_file(case.folder / "native" / "adapter_model.safetensors")
    del weights["text_up.3.bias"]
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config = (case.folder / "native" / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(StorageError, match=r"missing or unexpected: text_up\.3\.bias"):
        PeftModel.from_pretrained(case.base(), tmp_path)


def test_an_adapter_for_another_kind_of_model_is_refused(case: Case, saved: Path) -> None:
    with pytest.raises(StorageError, match="text_width 32, the model has 48"):
        PeftModel.from_pretrained(build_host("siglip"), saved)


def test_an_adapter_on_a_base_of_other_weights_is_reported(case: Case, saved: Path) -> None:
    other = build_host("clip", seed=1)
    with torch.no_grad():
        other.logit_scale.add_(1)
    with pytest.warns(UserWarning, match="sha256 .* results may differ"):
        PeftModel.from_pretrained(other, saved)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the adapter was trained")
        PeftModel.from_pretrained(case.base(), saved)
        transformers.CLIPModel.from_pretrained(saved)


def test_a_model_loaded_from_an_adapter_folder_saves_the_adapter_alone(
    case: Case, saved: Path, tmp_path: Path
) -> None:
    transformers.CLIPModel.from_pretrained(saved).save_pretrained(tmp_path)
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert names <= {p.name for p in tmp_path.iterdir()} <= names | {"README.md"}
    for road in (_through_transformers, _through_our_own):
        assert torch.equal(case.logits(road(case, tmp_path)), case.adapted)


def test_the_scale_set_at_run_time_is_saved(case: Case, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native")
    model.base_model.model.mma.scale = 0.25
    model.save_pretrained(tmp_path)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path)
    assert loaded.mma.scale == 0.25
    assert torch.equal(case.logits(loaded), case.logits(model))


def test_copies_and_pickles_have_their_own_adapter(case: Case, saved: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(saved)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(case.logits(twin), case.adapted)
        twin.disable_adapters()
        assert torch.equal(case.logits(twin), case.plain)
        assert torch.equal(case.logits(model), case.adapted)


# Several adapters


def test_adding_an_adapter_leaves_the_active_one_active(case: Case) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native", is_trainable=True)
    model.add_adapter("other", MMAPeftConfig(start_layer=3, scale=0.5))
    assert model.active_adapters == ["default"]
    assert torch.equal(case.logits(model), case.adapted)
    assert model.get_nb_trainable_parameters()[0] == case.adapter.config.num_weights
    model.set_adapter("other")
    other = case.logits(model)
    assert not torch.equal(other, case.adapted)
    assert not torch.equal(other, case.plain)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == len(model.base_model.model.mma.state_dict())
    model.set_adapter("default")
    assert torch.equal(case.logits(model), case.adapted)


def test_several_adapters_are_saved_and_loaded_one_by_one(case: Case, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native")
    model.add_adapter("other", MMAPeftConfig(start_layer=3, scale=0.5))
    model.set_adapter("other")
    other = case.logits(model)
    model.save_pretrained(tmp_path)  # the active one and the waiting one
    for folder, expected in ((tmp_path, case.adapted), (tmp_path / "other", other)):
        assert torch.equal(case.logits(_through_peft(case, folder)), expected)
        assert torch.equal(case.logits(_through_our_own(case, folder)), expected)


def test_two_active_adapters_are_refused(case: Case) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native")
    model.add_adapter("other", MMAPeftConfig(**LOUD))
    with pytest.raises(ConfigError, match="only one MMA adapter can be active"):
        model.base_model.set_adapter(["default", "other"])


def test_deleting_the_active_adapter_activates_the_next(case: Case) -> None:
    model = get_peft_model(case.base(), MMAPeftConfig())
    model.load_adapter(case.folder / "native", "other")
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert torch.equal(case.logits(model), case.adapted)
    assert not [name for name in model.state_dict() if "mma_inactive" in name]


def test_disable_adapter_gives_the_base_for_a_block(case: Case) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native")
    with model.disable_adapter():
        assert torch.equal(case.logits(model), case.plain)
    assert torch.equal(case.logits(model), case.adapted)


def test_unload_gives_the_clean_base_back(case: Case) -> None:
    names = list(case.base().state_dict())
    base = PeftModel.from_pretrained(case.base(), case.folder / "native").unload()
    assert type(base) is transformers.CLIPModel
    assert list(base.state_dict()) == names
    assert all(p.requires_grad for p in base.parameters())
    assert torch.equal(case.logits(base), case.plain)
    again = PeftModel.from_pretrained(base, case.folder / "peft")
    assert torch.equal(case.logits(again), case.adapted)


@pytest.mark.parametrize("verb", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_with_the_reason_and_the_way_out(case: Case, verb: str) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native")
    with pytest.raises(NotImplementedError, match=r"two ReLUs .* unload\(\)"):
        getattr(model, verb)()
    assert torch.equal(case.logits(model), case.adapted)


def test_peft_reports_the_status_of_the_model(case: Case) -> None:
    model = PeftModel.from_pretrained(case.base(), case.folder / "native")
    model.add_adapter("other", MMAPeftConfig(**LOUD))
    status = model.get_model_status()
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.available_adapters == ["default", "other"]
    assert status.peft_types == {"default": "MMA", "other": "MMA"}
    model.base_model.disable_adapter_layers()
    assert model.get_model_status().enabled is False


def test_the_verbs_of_transformers_work_on_a_model_loaded_by_it(case: Case, tmp_path: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(case.folder / "native")
    model.add_adapter(MMAPeftConfig(start_layer=3, scale=0.5), "other")
    assert model.active_adapters() == ["other"]
    assert not torch.equal(case.logits(model), case.adapted)
    model.set_adapter("default")
    assert torch.equal(case.logits(model), case.adapted)
    model.disable_adapters()
    assert not is_enabled(model)
    assert torch.equal(case.logits(model), case.plain)
    model.enable_adapters()
    set_adapter(model, "other")  # ours and theirs may be mixed
    assert model.active_adapters() == ["other"]
    model.delete_adapter("other")
    assert torch.equal(case.logits(model), case.adapted)
    model.delete_adapter("default")
    assert torch.equal(case.logits(model), case.plain)
    assert list(model.state_dict()) == list(case.base().state_dict())
    model.save_pretrained(tmp_path)  # a plain model again
    again = transformers.CLIPModel.from_pretrained(tmp_path)
    assert torch.equal(case.logits(again), case.plain)


# The tools around


class _Pairs(torch.utils.data.Dataset):
    """Four pictures with one caption each."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.pixel_values = batch["pixel_values"].repeat(2, 1, 1, 1)[:4]
        self.input_ids = batch["input_ids"][:4]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, object]:
        return {
            "input_ids": self.input_ids[index],
            "pixel_values": self.pixel_values[index] + 0.1 * index,
            "return_loss": True,
        }


def _collate(rows: list[dict]) -> dict[str, object]:
    tensors = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key[0] != "r"}
    return {**tensors, "return_loss": True}


def _trainer(case: Case, folder: Path, steps: int) -> transformers.Trainer:
    torch.manual_seed(0)
    model = get_peft_model(case.base(), MMAPeftConfig(**LOUD))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        save_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        seed=0,
    )
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=_Pairs(case.batch), data_collator=_collate
    )


def test_trainer_checkpoints_hold_the_adapter_only_and_resume_exactly(
    case: Case, tmp_path: Path
) -> None:
    straight = _trainer(case, tmp_path / "straight", 2)
    before = copy.deepcopy(straight.model.base_model.model.mma.state_dict())
    straight.train()
    trained = straight.model.base_model.model.mma.state_dict()
    assert all(not torch.equal(trained[name], before[name]) for name in trained)

    checkpoint = tmp_path / "straight" / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not {"model.safetensors", "config.json", "pytorch_model.bin"} & names
    weights = load_file(checkpoint / "adapter_model.safetensors")
    assert sum(w.numel() for w in weights.values()) == case.adapter.config.num_weights

    resumed = _trainer(case, tmp_path / "resumed", 2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 2
    for name, value in resumed.model.base_model.model.mma.state_dict().items():
        assert torch.equal(value, trained[name]), name
    final = tmp_path / "straight" / "checkpoint-2"
    assert torch.equal(case.logits(_through_our_own(case, final)), case.logits(straight.model))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The embedded CLIP with an adapter, and the folders of the adapter saved both ways."""
    folder = tmp_path_factory.mktemp("demo")
    native, host = (transformers.CLIPModel.from_pretrained(icon_clip_path()) for _ in range(2))
    inject_mma(native.eval(), start_layer=5, scale=0.3, seed=1).mma.save_pretrained(
        folder / "native"
    )
    wrapped = get_peft_model(host, MMAPeftConfig(start_layer=5, scale=0.3))
    wrapped.base_model.model.mma.load_state_dict(native.mma.state_dict())
    wrapped.save_pretrained(folder / "peft")
    return native, folder


LABELS = ["bell", "heart", "house"]


def test_the_zero_shot_pipeline_takes_an_adapter_folder(demo: tuple[nn.Module, Path]) -> None:
    native, folder = demo
    image = pytest.importorskip("PIL.Image").linear_gradient("L").convert("RGB")
    _, tokenizer, processor = load_icon_clip()

    def scores(model: object, **tools: object) -> dict[str, float]:
        pipe = transformers.pipeline("zero-shot-image-classification", model=model, **tools)
        return {row["label"]: row["score"] for row in pipe(image, candidate_labels=LABELS)}

    base = scores(str(icon_clip_path()))
    expected = scores(native, tokenizer=tokenizer, image_processor=processor)
    assert (
        max(abs(base[label] - expected[label]) for label in LABELS) > 1e-3
    )  # equal ones differ by 1e-6
    for name in ("native", "peft"):
        assert scores(str(folder / name)) == pytest.approx(expected, abs=1e-6), name


def test_the_classifiers_fast_paths_see_an_adapter_that_peft_loaded(
    demo: tuple[nn.Module, Path],
) -> None:
    native, folder = demo
    _, tokenizer, _ = load_icon_clip()
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    loaded = transformers.CLIPModel.from_pretrained(folder / "peft")
    classifiers = (FewShotClassifier(m, tokenizer, LABELS).eval() for m in (native, loaded))
    with torch.no_grad():
        expected, found = (classifier(pixels).logits for classifier in classifiers)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
