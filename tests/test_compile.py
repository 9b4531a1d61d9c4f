"""torch.compile and torch.export see the adapted layers, without a graph break."""

import pytest
import torch
import torch.nn.functional as F
from conftest import build_batch, build_host, logits

from mma_adapter import disable_mma, inject_mma, remove_mma


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture(params=["clip", "siglip"])
def adapted(request):
    return inject_mma(build_host(request.param), 3, scale=0.5, seed=0)


def compiled(model):
    # One graph or an error; the backend runs it with torch's own kernels, so that nothing is built.
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def gradients(run, model, batch):
    model.zero_grad()
    out = run(**batch).logits_per_image
    F.cross_entropy(out, torch.arange(len(out))).backward()
    return {"logits": out, **{name: p.grad.clone() for name, p in model.mma.named_parameters()}}


def test_a_compiled_model_equals_eager_in_logits_and_gradients(clip, batch):
    inject_mma(clip, 5, scale=0.5, seed=0)
    run = compiled(clip)
    expected = gradients(clip, clip, batch)
    found = gradients(run, clip, batch)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_compiled_model_follows_disabling_scaling_switching_and_removal(clip, batch):
    plain = logits(clip, batch)
    inject_mma(clip, 6, scale=0.5, seed=0)
    run = compiled(clip)

    def assert_current():
        found = logits(run, batch)
        torch.testing.assert_close(found, logits(clip, batch), atol=1e-5, rtol=1e-5)
        return found

    first = assert_current()
    with disable_mma(clip):
        torch.testing.assert_close(assert_current(), plain, atol=1e-5, rtol=1e-5)
    clip.mma.scale = 1.0
    assert not torch.allclose(assert_current(), first)
    inject_mma(clip, 6, scale=0.5, seed=1, name="second")
    assert not torch.allclose(assert_current(), first)
    remove_mma(clip)
    torch.testing.assert_close(assert_current(), plain, atol=1e-5, rtol=1e-5)


def test_an_exported_model_equals_eager(adapted):
    batch = build_batch(adapted)
    with torch.no_grad():
        program = torch.export.export(adapted, (), batch, strict=False)
        found = program.module()(**batch).logits_per_image
    torch.testing.assert_close(found, logits(adapted, batch), atol=1e-5, rtol=1e-5)
    assert {name for name in program.state_dict if name.startswith("mma.")} == {
        f"mma.{name}" for name in adapted.mma.state_dict()
    }
