"""The authors' own numbers: logits, gradients and weights after SGD, from their code."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel

from mma_adapter import disable_mma, inject_mma

GOLDEN = Path(__file__).parent / "golden" / "mma"


def load(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = {key: json.loads(value) for key, value in file.metadata().items()}
    model = CLIPModel(CLIPConfig(**meta["clip_config"])).eval()
    weights = {k.removeprefix("clip."): v.float() for k, v in tensors.items() if k[:5] == "clip."}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    return model, tensors, meta["mma"]


def ours(theirs: str) -> str:
    """Translate `text_adapter.5.down.0.weight` to `text_down.5.weight`."""
    group, layer, *rest = theirs.split(".")
    if group == "shared_adapter":
        return f"shared.{layer}.{rest[-1]}"
    tower = {"text_adapter": "text", "visual_adapter": "vision"}[group]
    return f"{tower}_{rest[0]}.{layer}.{rest[-1]}"


def section(tensors, prefix):
    names = [key for key in tensors if key.startswith(prefix)]
    return {ours(key.removeprefix(prefix)): tensors[key] for key in names}


def forward(model, tensors):
    return model(
        input_ids=tensors["input_ids"], pixel_values=tensors["pixel_values"]
    ).logits_per_image


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


@pytest.fixture(params=["mma_a", "mma_b"])
def case(request):
    model, tensors, spec = load(request.param)
    inject_mma(
        model,
        spec["start_layer"],
        end_layer=spec["end_layer"],
        bottleneck_dim=spec["dim"],
        scale=spec["scale"],
    )
    model.mma.load_state_dict(section(tensors, "adapter."))
    return model, tensors, spec


def test_zero_shot_and_adapted_logits_equal_the_authors(case):
    model, tensors, _ = case
    with torch.no_grad():
        adapted = forward(model, tensors)
        with disable_mma(model):
            zero_shot = forward(model, tensors)
    torch.testing.assert_close(adapted, tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(zero_shot, tensors["logits_zero_shot"], atol=1e-5, rtol=0)


def test_every_gradient_equals_the_authors(case):
    model, tensors, _ = case
    loss = F.cross_entropy(forward(model, tensors), tensors["labels"])
    assert abs(loss.item() - tensors["loss"].item()) < 1e-5
    loss.backward()
    expected = section(tensors, "grad.")
    assert expected.keys() == dict(model.mma.named_parameters()).keys()
    for name, parameter in model.mma.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-5, name


def test_weights_and_logits_after_sgd_equal_the_authors(case):
    model, tensors, spec = case
    settings = {key: spec[key] for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(model.mma.parameters(), **settings)
    for _ in range(spec["steps"]):
        optimizer.zero_grad()
        F.cross_entropy(forward(model, tensors), tensors["labels"]).backward()
        optimizer.step()
    expected = section(tensors, "after.")
    for name, parameter in model.mma.named_parameters():
        assert relative(parameter, expected[name]) < 1e-5, name
    with torch.no_grad():
        after = forward(model, tensors)
    torch.testing.assert_close(after, tensors["logits_after"], atol=1e-5, rtol=0)
