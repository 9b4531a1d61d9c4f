"""Small random hosts of every family, built in memory; nothing here touches the network."""

import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from torch import Tensor, nn

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "pad_token_id": 98,
    "bos_token_id": 97,
    "eos_token_id": 98,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def _clip(**vision: int) -> nn.Module:
    config = transformers.CLIPConfig(
        text_config={**TEXT, "projection_dim": 24},
        vision_config={**VISION, **vision, "projection_dim": 24},
        projection_dim=24,
    )
    return transformers.CLIPModel(config)


def _metaclip_2() -> nn.Module:
    config = transformers.MetaClip2Config(
        text_config={**TEXT, "projection_dim": 24},
        vision_config={**VISION, "projection_dim": 24},
        projection_dim=24,
    )
    return transformers.MetaClip2Model(config)


def _siglip() -> nn.Module:
    text = {**TEXT, "hidden_size": 48, "projection_size": 48}
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=VISION)
    )


def _siglip2() -> nn.Module:
    text = {**TEXT, "hidden_size": 48, "projection_size": 48}
    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    return transformers.Siglip2Model(
        transformers.Siglip2Config(text_config=text, vision_config=vision)
    )


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "clip": _clip,
    "clip-deep-vision": lambda: _clip(num_hidden_layers=9),
    "siglip": _siglip,
}
if hasattr(transformers, "MetaClip2Model"):
    HOSTS["metaclip_2"] = _metaclip_2
if hasattr(transformers, "Siglip2Model"):
    HOSTS["siglip2"] = _siglip2


def build_host(name: str, seed: int = 0) -> nn.Module:
    """Return a random host whose weights are large enough for every layer to matter."""
    torch.manual_seed(seed)
    model = HOSTS[name]().float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return model


def build_batch(model: nn.Module, images: int = 3, prompts: int = 4) -> dict[str, Tensor]:
    """Return `input_ids` (prompts, 16) with an end token each, and pixel values."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (prompts, 16), generator=generator)
    ids[:, 0] = 97
    for row in range(prompts):
        ids[row, 5 + row :] = 98
    if model.config.model_type == "siglip2":
        return {
            "input_ids": ids,
            "pixel_values": torch.randn(images, 16, 3 * 8 * 8, generator=generator),
            "pixel_attention_mask": torch.ones(images, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * images),
        }
    return {"input_ids": ids, "pixel_values": torch.randn(images, 3, 16, 16, generator=generator)}


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest) -> nn.Module:
    return build_host(request.param)


@pytest.fixture
def clip() -> nn.Module:
    return build_host("clip")


@pytest.fixture
def batch(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    name = "host" if "host" in request.fixturenames else "clip"
    return build_batch(request.getfixturevalue(name))


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the image-text logits without a graph."""
    with torch.no_grad():
        return model(**batch).logits_per_image
