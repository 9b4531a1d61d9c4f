"""The embedded model and pictures are what the package says they are."""

from collections import Counter

import torch
from torch.nn import functional as F

from mma_adapter.demo import TEMPLATE, icon_clip_path, load_icon_clip, load_icons, topics
from mma_adapter.demo.icons import data_path


def test_there_are_6812_different_icons_of_218_classes() -> None:
    icons = load_icons()
    assert len(icons) == len({icon.key for icon in icons}) == 6812
    per_class = Counter(icon.classname for icon in icons)
    assert len(per_class) == 218
    assert min(per_class.values()) == 19
    assert max(per_class.values()) == 40


def test_topics_group_the_classes() -> None:
    classes = Counter(topic for topic, _ in {(i.topic, i.classname) for i in load_icons()})
    assert classes == {
        "nature": 17,
        "food and animals": 14,
        "transport and places": 22,
        "body and health": 19,
        "devices": 24,
        "objects": 60,
        "interface": 62,
    }
    assert topics() == sorted(classes)


def test_an_icon_opens_as_48_rgb_pixels() -> None:
    icon = load_icons()[0]
    picture = icon.open()
    assert (picture.size, picture.mode) == ((48, 48), "RGB")
    assert icon.key == "mingcute:airplane-fill"


def test_no_icon_comes_from_a_pretraining_family() -> None:
    import json

    families = json.loads(data_path("families.json").read_text())
    shown = {icon.family for icon in load_icons()}
    assert shown <= set(families["held_out"])
    assert not shown & set(families["pretraining"])


def test_every_family_is_attributed_and_free_to_ship() -> None:
    attribution = data_path("ATTRIBUTION.md").read_text(encoding="utf-8")
    icons = load_icons()
    assert all(f"| {family} |" in attribution for family in {icon.family for icon in icons})
    assert {icon.license for icon in icons} == {
        *("MIT", "CC-BY-4.0", "Apache-2.0", "CC0-1.0", "CC-BY-3.0")
    }


def test_the_model_has_twelve_layers_in_each_tower_and_reads_40_pixels_and_24_tokens() -> None:
    model, tokenizer, processor = load_icon_clip()
    assert icon_clip_path().name == "tiny-icon-clip"
    assert len(model.text_model.encoder.layers) == 12
    assert len(model.vision_model.encoder.layers) == 12
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert tokenizer.model_max_length == model.config.text_config.max_position_embeddings == 24
    pixels = processor(load_icons()[0].open(), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 40, 40)


def test_zero_shot_on_icons_it_never_saw_is_far_above_chance() -> None:
    model, tokenizer, processor = load_icon_clip()
    icons = load_icons()[::23]
    classnames = sorted({icon.classname for icon in load_icons()})
    prompts = tokenizer(
        [TEMPLATE.format(name) for name in classnames], padding=True, return_tensors="pt"
    )
    pixels = processor([icon.open() for icon in icons], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels, **prompts).logits_per_image
    labels = torch.tensor([classnames.index(icon.classname) for icon in icons])
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    assert len(icons) == 297
    assert accuracy > 0.30  # chance is below 0.005
    assert F.cross_entropy(logits, labels).item() < 3.5  # log 218 is 5.4
