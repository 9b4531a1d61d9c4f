"""Picture to tensor on Pillow alone, equal to the reference pipeline bit for bit.

Source: Dassl 0.6.3 `build_transform` with `random_resized_crop`, `random_flip`, `normalize`, that
is torchvision's RandomResizedCrop, RandomHorizontalFlip, Resize, CenterCrop, ToTensor, Normalize.
The training transform draws from torch's generator in torchvision's order: crop first, then flip.

Two traps it stays clear of. Hugging Face's CLIP processor rounds the corner of the centre crop
down, the reference rounds half to even. And `resize(box=...)` is not crop-then-resize: its filter
reads pixels outside the box.

From Pillow 13 on, resizing a picture that shrinks much more in height than in width runs the
vertical pass first, and differs by a few of 255 levels from older versions: record the version.

Shapes: H, W height and width of a picture, S `size`. uint8 in 0..255; float32 normalised.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RGB = tuple[float, float, float]
Box = tuple[int, int, int, int]

CROP_ATTEMPTS = 10


def to_uint8(image: Image.Image) -> Tensor:
    """An RGB picture as a uint8 tensor, (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def normalise(pixels: Tensor, mean: RGB = CLIP_MEAN, std: RGB = CLIP_STD) -> Tensor:
    """`(pixels / 255 - mean) / std` in float32.

    Args:
        pixels: uint8, (..., 3, H, W).
        mean: Per channel, on the scale 0..1.
        std: Per channel, on the scale 0..1.

    Returns:
        float32, the shape and device of `pixels`.
    """
    shape = (3, 1, 1)
    centre = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(shape)
    spread = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(shape)
    return pixels.to(torch.float32).div(255).sub_(centre).div_(spread)


@dataclass(frozen=True)
class TestTransform:
    """Resize the short side to `size`, crop the centre, normalise.

    Args:
        size: Side of the square the model sees, pixels.
        mean: Per channel, on the scale 0..1.
        std: Per channel, on the scale 0..1.
    """

    __test__ = False  # keeps pytest from collecting a class of this name

    size: int = 224
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD

    def uint8(self, image: Image.Image) -> Tensor:
        """The crop before normalisation, uint8 (3, S, S)."""
        image = image.convert("RGB")
        width, height = image.size
        short = min(width, height)
        new = (int(self.size * width / short), int(self.size * height / short))
        image = image.resize(new, Image.Resampling.BICUBIC)
        # Python's round: half to even.
        left, top = round((new[0] - self.size) / 2), round((new[1] - self.size) / 2)
        return to_uint8(image.crop((left, top, left + self.size, top + self.size)))

    def __call__(self, image: Image.Image) -> Tensor:
        """Normalised pixel values, float32 (3, S, S)."""
        return normalise(self.uint8(image), self.mean, self.std)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, random horizontal flip, normalise.

    Args:
        size: Side of the square the model sees, pixels.
        mean: Per channel, on the scale 0..1.
        std: Per channel, on the scale 0..1.
        scale: Smallest and largest area of the crop, as a share of the picture's.
        ratio: Smallest and largest width / height of the crop.
        flip_probability: Share of pictures that are mirrored.
    """

    size: int = 224
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def draw(
        self, width: int, height: int, generator: torch.Generator | None = None
    ) -> tuple[Box, bool]:
        """Draw the crop (top, left, height, width) and whether to mirror it."""
        box = draw_crop(width, height, self.scale, self.ratio, generator)
        return box, torch.rand(1, generator=generator).item() < self.flip_probability

    def uint8(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """The crop before normalisation, uint8 (3, S, S)."""
        image = image.convert("RGB")
        (top, left, height, width), flip = self.draw(*image.size, generator)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_uint8(image)

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Normalised pixel values, float32 (3, S, S); torch's global generator by default."""
        return normalise(self.uint8(image, generator), self.mean, self.std)


def draw_crop(
    width: int,
    height: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
) -> Box:
    """Draw a crop as torchvision's RandomResizedCrop does: (top, left, height, width), pixels.

    Area and log-ratio are uniform. After ten crops that do not fit, the largest centre crop with
    an allowed ratio is taken.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    def offset(room: int) -> int:
        return int(torch.randint(0, room + 1, size=(1,), generator=generator).item())

    # The reference computes bounds and exponential in float32, and so must we.
    log_low, log_high = torch.log(torch.tensor(ratio)).tolist()
    for _ in range(CROP_ATTEMPTS):
        area = width * height * uniform(*scale).item()
        aspect = torch.exp(uniform(log_low, log_high)).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = offset(height - h)
            return top, offset(width - w), h, w

    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class ProcessorTransform:
    """A Hugging Face image processor's own preprocessing, picture by picture.

    It is not the reference pipeline (see the module's first lines): its numbers differ a little.
    """

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixel values as the processor makes them, float32 (3, S, S)."""
        return self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def from_processor(processor: Any) -> tuple[TrainTransform, TestTransform]:
    """The reference transforms with the size, mean and std of a Hugging Face processor.

    Args:
        processor: An image processor, or a processor that owns one.

    Raises:
        ConfigError: The processor does not make squares of a fixed size.
    """
    processor = getattr(processor, "image_processor", processor)
    cropped = getattr(processor, "do_center_crop", None)
    size = processor.crop_size if cropped else getattr(processor, "size", None)
    sides = {size} if isinstance(size, int) else {v for v in dict(size or {}).values() if v}
    if len(sides) != 1:
        raise ConfigError(
            f"{type(processor).__name__} has the size {size}; these transforms need one square "
            "size, for example TestTransform(size=224)"
        )
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if getattr(processor, "do_normalize", True):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    (side,) = sides
    return TrainTransform(side, mean, std), TestTransform(side, mean, std)
