"""Hosts and data small enough for many runs in a test."""

from functools import partial

import torch
import transformers
from PIL import Image

from mma_adapter.bench.encoder import DualEncoder
from mma_adapter.bench.features import FeatureStore
from mma_adapter.data import Dataset, Sample, few_shot, select_classes
from mma_adapter.data.fewshot import Classes
from mma_adapter.demo import TEMPLATE, icon_dataset, load_icon_clip


def icon_encoder(store: FeatureStore | None = None) -> DualEncoder:
    """The embedded CLIP."""
    model, tokenizer, processor = load_icon_clip()
    return DualEncoder(
        model, tokenizer, processor, TEMPLATE, name="icons", store=store or FeatureStore()
    )


def tiny_encoder(seed: int = 0, store: FeatureStore | None = None) -> DualEncoder:
    """A random CLIP of 6 layers that reads the embedded CLIP's tokens and 16-pixel pictures."""
    _, tokenizer, processor = load_icon_clip()
    tokenizer.model_max_length = 48
    processor.size, processor.crop_size = {"shortest_edge": 16}, {"height": 16, "width": 16}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "projection_dim": 24,
    }
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 48}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).float().eval()
    return DualEncoder(model, tokenizer, processor, name="tiny", store=store or FeatureStore())


def icon_loader(
    name: str, *, shots: int, seed: int, classes: Classes, num_classes: int = 6
) -> Dataset:
    """Plain icons of a topic, the first few classes."""
    full = icon_dataset(name)
    train, test = (
        [sample for sample in part if sample.label < num_classes]
        for part in (full.train, full.test)
    )
    train, _ = few_shot(train, [], shots, seed)
    train, test = select_classes(classes, train, test)
    return Dataset(name, train, [], test, template=full.template, split_origin="own")


def colour_loader(name: str, *, shots: int, seed: int, classes: Classes) -> Dataset:
    """Four classes of plain colours, drawn at once."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "gray": (99,) * 3}
    parts: list[list[Sample]] = [[], []]
    for part, samples in zip(("train", "test"), parts, strict=True):
        for label, (colour, rgb) in enumerate(colours.items()):
            draw = partial(Image.new, "RGB", (16, 16), rgb)
            samples += [
                Sample(f"{name}/{part}/{colour}/{i}", label, colour, draw) for i in range(3)
            ]  # type: ignore[arg-type]
    train, _ = few_shot(parts[0], [], shots, seed)
    train, test = select_classes(classes, train, parts[1])
    return Dataset(name, train, [], test, split_origin="own")
