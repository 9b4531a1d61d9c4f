"""A photographed icon is the same picture every time, and as far from a flat one as it says."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from mma_adapter.demo import MILD, STRONG, load_icons, photograph
from mma_adapter.demo.photograph import FRAME
from mma_adapter.errors import ConfigError


@pytest.fixture
def icon() -> Image.Image:
    return load_icons()[100].open()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


@pytest.mark.parametrize("strength", ["strong", "mild"])
def test_the_same_seed_gives_the_same_bytes_whatever_the_global_generators_do(
    icon: Image.Image, strength: str
) -> None:
    first = photograph(icon, seed=3, strength=strength)
    np.random.seed(0)
    np.random.rand(5)
    assert photograph(icon, seed=3, strength=strength).tobytes() == first.tobytes()


def test_the_global_generator_is_left_alone(icon: Image.Image) -> None:
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    photograph(icon)
    assert np.random.rand() == expected


def test_another_seed_gives_another_photograph(icon: Image.Image) -> None:
    digests = {hashlib.sha256(photograph(icon, seed=s).tobytes()).digest() for s in range(8)}
    assert len(digests) == 8


def test_different_icons_get_different_light_under_one_seed() -> None:
    icons = [load_icons()[i].open() for i in (0, 1000, 2000)]
    corners = {tuple(np.asarray(photograph(i)).mean(axis=(0, 1)).round()) for i in icons}
    assert len(corners) == 3


def test_a_photograph_is_48_rgb_pixels_for_an_icon_of_any_size(icon: Image.Image) -> None:
    for size in (16, 48, 200):
        picture = photograph(icon.resize((size, size)))
        assert (picture.size, picture.mode) == ((FRAME, FRAME), "RGB")


def test_the_ink_is_darker_than_the_paper_by_the_stated_fraction() -> None:
    half = Image.new("L", (FRAME, FRAME), 255)
    half.paste(0, (FRAME // 2, 0, FRAME, FRAME))
    for strength, shift in (("strong", STRONG), ("mild", MILD)):
        for seed in range(5):
            picture = pixels(photograph(half, seed=seed, strength=strength))
            # Left and right of the middle, close enough for the light to be about equal.
            paper, ink = picture[20:28, 16:20].mean(), picture[20:28, 28:32].mean()
            low, high = shift.ink
            assert low * 0.9 < ink / paper < high * 1.3


def test_the_light_rises_from_0_7_to_1_2_across_blank_paper() -> None:
    blank = Image.new("L", (FRAME, FRAME), 255)
    for seed in range(5):
        shades = pixels(photograph(blank, seed=seed, strength="mild")).mean(axis=2)
        corners = [
            shades[a, b].mean()
            for a in (slice(4), slice(-4, None))
            for b in (slice(4), slice(-4, None))
        ]
        # 1.2 / 0.7 is 1.71 between the very corners; noise and the patches' size take a little.
        assert 1.35 < max(corners) / min(corners) < 1.85


def test_strong_noise_is_twice_mild_noise() -> None:
    blank = Image.new("L", (FRAME, FRAME), 255)

    def noise(strength: str) -> float:
        steps = np.diff(pixels(photograph(blank, strength=strength)), axis=1)
        return steps.std() / np.sqrt(2)

    assert noise("strong") == pytest.approx(STRONG.noise, rel=0.1)
    assert noise("mild") == pytest.approx(MILD.noise, rel=0.1)


def test_an_unknown_strength_is_refused_with_the_known_ones(icon: Image.Image) -> None:
    with pytest.raises(ConfigError, match=r"'medium'.*strong, mild"):
        photograph(icon, strength="medium")  # type: ignore[arg-type]


def test_a_negative_seed_is_refused(icon: Image.Image) -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        photograph(icon, seed=-1)
