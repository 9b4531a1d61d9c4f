"""Draws a flat icon as if it lay on tinted paper and were photographed in coloured light.

The drawing is a shift that training and test pictures share, which is what an adapter can learn;
plain icons, on which the embedded CLIP was trained, leave nothing to gain. It is deterministic: a
private generator is seeded from the given seed and from the picture itself.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from ..errors import ConfigError

FRAME = 48
"""Side of a photographed icon, in pixels."""

LIGHT = (0.7, 1.2)
"""Brightness at the dark and at the bright edge of the frame."""

Strength = Literal["strong", "mild"]


@dataclass(frozen=True)
class Shift:
    """How far a photographed icon is from a flat one.

    Attributes:
        icon_px: Side of the icon within the frame, in pixels.
        max_degrees: Largest rotation, either way.
        blur_px: Smallest and largest standard deviation of the blur.
        noise: Standard deviation of the noise; 1 is white.
        ink: Smallest and largest brightness of the ink as a fraction of the paper's.
    """

    icon_px: int
    max_degrees: float
    blur_px: tuple[float, float]
    noise: float
    ink: tuple[float, float]


STRONG = Shift(icon_px=40, max_degrees=30, blur_px=(0.4, 1.0), noise=0.06, ink=(0.15, 0.5))
MILD = Shift(icon_px=44, max_degrees=15, blur_px=(0.2, 0.7), noise=0.03, ink=(0.1, 0.35))
SHIFTS: dict[str, Shift] = {"strong": STRONG, "mild": MILD}


def photograph(image: Image.Image, *, seed: int = 0, strength: Strength = "strong") -> Image.Image:
    """Photograph one icon: an RGB picture of 48 x 48 pixels.

    Args:
        image: Dark drawing on white, of any size.
        seed: Another seed gives another photograph of the same icon (0 or more).
        strength: `"strong"` or `"mild"`.

    Raises:
        ConfigError: `strength` is neither, or `seed` is negative.
    """
    if strength not in SHIFTS:
        raise ConfigError(f"strength={strength!r} is unknown; pass one of {', '.join(SHIFTS)}")
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative; pass 0 or more")
    shift = SHIFTS[strength]
    gray = image.convert("L")
    rng = np.random.default_rng([seed, zlib.crc32(gray.tobytes())])

    ink = _lay_down(gray, shift, rng)[:, :, None]
    paper = np.array(
        colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 0.6), rng.uniform(0.45, 0.75))
    )
    picture = paper * (1 - ink + ink * rng.uniform(*shift.ink))
    picture *= _light(rng.uniform(0, 2 * math.pi))[:, :, None]
    picture += rng.normal(0, shift.noise, picture.shape)
    return Image.fromarray(np.rint(255 * picture.clip(0, 1)).astype(np.uint8))


def _lay_down(gray: Image.Image, shift: Shift, rng: np.random.Generator) -> np.ndarray:
    """Amount of ink per pixel (48, 48), from 0 to 1: the icon scaled, turned and blurred."""
    side, margin = shift.icon_px, (FRAME - shift.icon_px) // 2
    frame = Image.new("L", (FRAME, FRAME), 255)
    frame.paste(gray.resize((side, side), Image.Resampling.BICUBIC), (margin, margin))
    degrees = rng.uniform(-shift.max_degrees, shift.max_degrees)
    frame = frame.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255)
    frame = frame.filter(ImageFilter.GaussianBlur(rng.uniform(*shift.blur_px)))
    return 1 - np.asarray(frame, dtype=np.float64) / 255


def _light(angle: float) -> np.ndarray:
    """Brightness per pixel (48, 48), rising evenly across the frame towards `angle` (radians)."""
    along = np.linspace(-1, 1, FRAME)
    x, y = math.cos(angle), math.sin(angle)
    position = (along[None, :] * x + along[:, None] * y) / (abs(x) + abs(y))
    dark, bright = LIGHT
    return dark + (bright - dark) * (position + 1) / 2
