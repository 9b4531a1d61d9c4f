"""The baked classifier equals the live one, exports whole, and stands alone."""

import copy

import pytest
import torch

from mma_adapter import FewShotClassifier, disable_mma, inject_mma
from mma_adapter.baking import bake, export_onnx
from mma_adapter.demo import load_icon_clip

NAMES = ["alarm clock", "key", "umbrella"]


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer, _ = load_icon_clip()
    return inject_mma(model, 9, scale=0.5, seed=0), tokenizer


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_baked_logits_equal_live_ones_and_stay(loaded, pixels):
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    classifier = FewShotClassifier(model, tokenizer, NAMES)
    live = classifier(pixels).logits
    baked = bake(classifier)
    torch.testing.assert_close(baked(pixels), live, atol=1e-5, rtol=1e-5)
    names = dict(baked.named_parameters())
    assert not any("text" in name for name in names)
    assert not any(module._forward_hooks for module in baked.modules())
    model.mma.vision_up["12"].weight.add_(1.0)
    torch.testing.assert_close(baked(pixels), live, atol=1e-5, rtol=1e-5)
    with disable_mma(model):
        plain = bake(classifier)
        torch.testing.assert_close(plain(pixels), classifier(pixels).logits, atol=1e-5, rtol=1e-5)
    assert plain.adapter is None


@torch.no_grad()
def test_torch_export_takes_any_batch(loaded, pixels):
    baked = bake(FewShotClassifier(*loaded, NAMES))
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(baked, (pixels,), dynamic_shapes=shapes)
    more = torch.cat([pixels, pixels + 1])
    torch.testing.assert_close(program.module()(more), baked(more), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_onnx_runtime_gives_equal_logits(loaded, pixels, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    baked = bake(FewShotClassifier(*loaded, NAMES))
    export_onnx(baked, tmp_path / "icons.onnx", pixels)
    session = runtime.InferenceSession(tmp_path / "icons.onnx")
    more = torch.cat([pixels, pixels + 1])
    (got,) = session.run(["logits"], {"pixel_values": more.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), baked(more), atol=1e-4, rtol=1e-4)
