"""FewShotClassifier: logits, text features that are never stale, and clear refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mma_adapter import FastPaths, FewShotClassifier, disable_mma, inject_mma, rescale
from mma_adapter.backbones import as_features
from mma_adapter.demo import load_icon_clip
from mma_adapter.errors import ConfigError, DataError

NAMES = ["alarm clock", "key", "umbrella", "paint_brush", "pencil"]


@pytest.fixture(scope="module")
def loaded():
    return load_icon_clip()


@pytest.fixture
def parts(loaded):
    model, tokenizer, _ = loaded
    model = inject_mma(copy.deepcopy(model), scale=0.5, seed=0)
    return model, tokenizer


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def stock_logits(model, tokenizer, prompts, pixels):
    ids = tokenizer(prompts, padding=True, return_tensors="pt")
    return model(**ids, pixel_values=pixels).logits_per_image


def test_logits_and_loss_equal_the_stock_model(parts, pixels):
    model, tokenizer = parts
    labels = torch.tensor([0, 3, 4])
    out = FewShotClassifier(model, tokenizer, NAMES, "an icon of a {}.")(pixels, labels)
    prompts = [f"an icon of a {n.replace('_', ' ')}." for n in NAMES]
    expected = stock_logits(model, tokenizer, prompts, pixels)
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, F.cross_entropy(expected, labels), atol=1e-5, rtol=1e-5)


def test_every_gradient_equals_the_plain_path(parts, pixels):
    model, tokenizer = parts
    labels, found = torch.tensor([0, 3, 4]), []
    for paths in (FastPaths(), FastPaths.off(), FastPaths(text_memory_bytes=1)):
        model.zero_grad()
        FewShotClassifier(model, tokenizer, NAMES, paths=paths)(pixels, labels).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.mma.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-6, rtol=1e-5)


def test_only_tokens_that_matter_pass_through_the_layers(parts, pixels):
    """Tokens through each text layer's MLP, in the first step and in every later one."""
    model, tokenizer = parts  # adapters from layer 5 on
    classifier = FewShotClassifier(model, tokenizer, NAMES)
    layers, tokens = model.text_model.encoder.layers, [0] * 12

    def count(index, args):
        tokens[index] += args[0].shape[:-1].numel()

    for index, layer in enumerate(layers):
        layer.mlp.fc1.register_forward_pre_hook(lambda _, args, i=index: count(i, args))
    ids = [tokenizer(f"a photo of a {n.replace('_', ' ')}.")["input_ids"] for n in NAMES]
    shared = next(i for i in range(24) if len({row[i] for row in ids}) > 1)
    distinct = shared + sum(len(row) - shared for row in ids)
    for below in (
        distinct,
        0,
    ):  # what is frozen runs once: four layers, and the fifth but for its branch
        classifier(pixels, torch.tensor([0, 1, 2])).loss.backward()
        assert tokens == [below] * 5 + [distinct] * 6 + [len(NAMES)]
        tokens[:] = [0] * 12
        torch.optim.SGD(model.mma.parameters(), lr=0.1).step()
    with torch.no_grad():
        layers[4].mlp.fc2.weight.add_(0.01)  # the first adapted layer is part of what was kept
    classifier(pixels)
    assert tokens == [distinct] * 11 + [len(NAMES)]


def test_templates_are_averaged_as_unit_features(parts):
    model, tokenizer = parts
    templates = ["a photo of a {}.", "an icon of a {}.", "{}"]
    with torch.no_grad():
        got = FewShotClassifier(model, tokenizer, NAMES, templates).text_features()
        each = [FewShotClassifier(model, tokenizer, NAMES, t).text_features() for t in templates]
    expected = F.normalize(torch.stack(each).mean(0), dim=-1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        double = FewShotClassifier(model, tokenizer, NAMES, templates * 2).text_features()
    torch.testing.assert_close(double, got, atol=1e-6, rtol=0)


def test_kept_text_features_follow_every_change(parts):
    model, tokenizer = parts
    classifier = FewShotClassifier(model, tokenizer, NAMES)

    def fresh():
        return FewShotClassifier(model, tokenizer, NAMES, paths=FastPaths.off()).text_features()

    def check():
        torch.testing.assert_close(classifier.text_features(), fresh(), atol=1e-6, rtol=0)

    with torch.no_grad():
        check()
        kept = classifier.text_features()
        assert classifier.text_features() is kept
        model.mma.text_up["7"].weight.add_(0.1)
        check()
        assert classifier.text_features() is not kept
        model.mma.text_up["7"].weight.data.mul_(1.5)  # leaves no version behind
        check()
        with rescale(model.mma, 0.1):
            check()
        check()
        with disable_mma(model):
            check()
        check()
        model.text_model.encoder.layers[1].mlp.fc1.weight.add_(0.01)  # below the first adapter
        check()
        inject_mma(model, 9, name="other", seed=3, scale=0.3)
        check()
        classifier.train()
        assert classifier.text_features() is classifier.text_features()
        classifier.eval()
        check()


def test_a_training_step_after_inference_mode_works(parts, pixels):
    model, tokenizer = parts
    classifier = FewShotClassifier(model, tokenizer, NAMES)
    with torch.inference_mode():
        before = classifier(pixels).logits
    classifier(pixels, torch.tensor([0, 1, 2])).loss.backward()
    torch.optim.SGD(model.mma.parameters(), lr=1.0).step()
    with torch.inference_mode():
        assert not torch.equal(classifier(pixels).logits, before)


def test_permuting_classes_permutes_logits(parts, pixels):
    model, tokenizer = parts
    with torch.no_grad():
        forward = FewShotClassifier(model, tokenizer, NAMES)(pixels).logits
        backward = FewShotClassifier(model, tokenizer, NAMES[::-1])(pixels).logits
    torch.testing.assert_close(forward, backward.flip(1), atol=1e-5, rtol=1e-5)


def test_prompts_are_cut_after_the_longest_end_token(parts):
    model, tokenizer = parts
    classifier = FewShotClassifier(model, tokenizer, NAMES)
    longest = max(
        len(tokenizer(f"a photo of a {n.replace('_', ' ')}.")["input_ids"]) for n in NAMES
    )
    assert classifier.input_ids.shape == (5, longest)
    whole = FewShotClassifier(model, tokenizer, NAMES, paths=FastPaths.off())
    assert whole.input_ids.shape == (5, 24)


def test_bf16_autocast_gives_finite_float32_logits(parts, pixels):
    model, tokenizer = parts
    classifier = FewShotClassifier(model, tokenizer, NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = classifier(pixels, torch.tensor([0, 1, 2]))
        out.loss.backward()
    assert out.logits.dtype == torch.float32
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.mma.parameters())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "pass a list of names"),
        ("cat", "pass a list of names"),
        (["cat", " "], "class name 1 is ' '"),
        (["a_cat", "a cat"], "'a cat'"),
        (["cat", "very long name " * 30], "takes 24"),
    ],
)
def test_class_names_that_cannot_work_are_refused(parts, names, message):
    with pytest.raises(DataError, match=message):
        FewShotClassifier(*parts, names)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", []])
def test_templates_need_one_place_for_the_name(parts, template):
    with pytest.raises(DataError, match="template"):
        FewShotClassifier(*parts, NAMES, template)


def test_duplicates_can_be_accepted(parts, pixels):
    classifier = FewShotClassifier(*parts, ["key", "missile", "missile"], allow_duplicates=True)
    with torch.no_grad():
        logits = classifier(pixels).logits
    assert torch.equal(logits[:, 1], logits[:, 2])


def test_one_tower_is_not_enough(loaded):
    from transformers import CLIPVisionModel

    model, tokenizer, _ = loaded
    vision = CLIPVisionModel(model.config.vision_config)
    with pytest.raises(ConfigError, match="both towers"):
        FewShotClassifier(vision, tokenizer, NAMES)


def test_deepcopies_do_not_share_weights(parts, pixels):
    model, tokenizer = parts
    classifier = FewShotClassifier(model, tokenizer, NAMES)
    with torch.no_grad():
        before = classifier(pixels).logits
        clone = copy.deepcopy(classifier)
        clone.model.mma.text_up["12"].weight.add_(1.0)
        assert not torch.equal(clone(pixels).logits, before)
        assert torch.equal(classifier(pixels).logits, before)


def test_image_features_are_unit_and_equal_the_stock_model(parts, pixels):
    model, tokenizer = parts
    with torch.no_grad():
        got = FewShotClassifier(model, tokenizer, NAMES).image_features(pixels)
        stock = F.normalize(as_features(model.get_image_features(pixel_values=pixels)), dim=-1)
    torch.testing.assert_close(got, stock, atol=1e-6, rtol=0)
