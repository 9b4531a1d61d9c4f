"""The transforms equal the reference pipeline: boxes and uint8 exactly, float32 to 1e-6."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from mma_adapter.data import TestTransform, TrainTransform, from_processor, normalise, to_uint8
from mma_adapter.data.transforms import ProcessorTransform, draw_crop
from mma_adapter.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "transforms.safetensors"

with safe_open(GOLDEN, "pt") as _file:
    TENSORS = {key: _file.get_tensor(key) for key in _file.keys()}  # noqa: SIM118
    INFO = json.loads(_file.metadata()["info"])

NAMES = sorted(INFO["images"])
LARGE = [name for name in NAMES if 224 in INFO["images"][name]["sizes"]]
BOXES = sorted(key for key in TENSORS if key.startswith("boxes/"))


def picture(name: str) -> Image.Image:
    """The decoded picture; JPEG files from their stored pixels, since decoders differ."""
    if f"rgb/{name}" in TENSORS:
        return Image.fromarray(TENSORS[f"rgb/{name}"].numpy())
    return Image.open(io.BytesIO(TENSORS[f"file/{name}"].numpy().tobytes())).convert("RGB")


def seeds_of(name: str) -> list[int]:
    return TENSORS[f"params/{name}"][:, 0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_test_transform_equals_the_reference(name: str) -> None:
    expected = TENSORS[f"test/48/{name}"]
    torch.testing.assert_close(TestTransform(48)(picture(name)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_train_transform_equals_the_reference_from_the_global_generator(name: str) -> None:
    for seed in seeds_of(name):
        torch.manual_seed(seed)
        actual = TrainTransform(48)(picture(name))
        torch.testing.assert_close(actual, TENSORS[f"train/48/{name}/{seed}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_own_generator_draws_the_same_and_leaves_the_global_one_alone(name: str) -> None:
    before = torch.get_rng_state()
    for seed, top, left, height, width, flip in TENSORS[f"params/{name}"].tolist():
        generator = torch.Generator().manual_seed(seed)
        box, flipped = TrainTransform().draw(*INFO["images"][name]["size"], generator)
        assert (*box, flipped) == (top, left, height, width, bool(flip))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LARGE)
def test_the_uint8_forms_equal_the_reference_exactly(name: str) -> None:
    assert torch.equal(TestTransform().uint8(picture(name)), TENSORS[f"test_u8/224/{name}"])
    trained = [key for key in TENSORS if key.startswith(f"train_u8/224/{name}/")]
    assert trained
    for key in trained:
        generator = torch.Generator().manual_seed(int(key.rpartition("/")[2]))
        assert torch.equal(TrainTransform().uint8(picture(name), generator), TENSORS[key])


def test_pixels_kept_as_uint8_and_normalised_later_in_a_batch_are_bit_equal() -> None:
    images = [picture(name) for name in NAMES]
    batch = torch.stack([TestTransform(48).uint8(image) for image in images])
    direct = torch.stack([TestTransform(48)(image) for image in images])
    assert torch.equal(normalise(batch), direct)


@pytest.mark.parametrize("key", BOXES)
def test_crop_boxes_equal_the_reference(key: str) -> None:
    _, size, low = key.split("/")
    width, height = map(int, size.split("x"))
    transform = TrainTransform(scale=(float(low), 1.0))
    for seed, top, left, h, w, flip in TENSORS[key].tolist():
        torch.manual_seed(seed)
        assert transform.draw(width, height) == ((top, left, h, w), bool(flip))


def test_one_stream_over_many_pictures_equals_the_reference() -> None:
    torch.manual_seed(1)
    for width, height, top, left, h, w, flip in TENSORS["stream/1"].tolist():
        assert TrainTransform().draw(width, height) == ((top, left, h, w), bool(flip))


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 300), (149, 0, 1, 1)), ((300, 2), (0, 148, 2, 3))]
)
def test_extreme_pictures_fall_back_to_the_centre(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert draw_crop(*size, scale=(1.0, 1.0)) == expected


def test_short_side_rule_and_half_to_even_centre_crop() -> None:
    # 500 x 333 becomes 336 x 224, and the crop starts at 56; differences of 3, 5, 7 give 2, 2, 4.
    for difference, offset in [(3, 2), (5, 2), (7, 4)]:
        columns = torch.arange(224 + difference, dtype=torch.uint8).expand(224, -1)
        image = Image.fromarray(columns.contiguous().numpy()).convert("RGB")
        assert TestTransform(224).uint8(image)[0, 0, 0].item() == offset


@pytest.mark.parametrize("transform", [TestTransform(32), TrainTransform(32, scale=(0.5, 1.0))])
def test_transforms_survive_pickling(transform: Callable[[Image.Image], torch.Tensor]) -> None:
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    torch.manual_seed(0)
    expected = transform(picture(NAMES[0]))
    torch.manual_seed(0)
    assert torch.equal(copy(picture(NAMES[0])), expected)


def test_to_uint8_has_the_pixels_in_channel_first_order() -> None:
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    assert torch.equal(
        to_uint8(image), torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 3)
    )


class TestProcessors:
    def test_clip_and_siglip_processors_give_their_size_mean_and_std(self) -> None:
        from transformers import CLIPImageProcessor, SiglipImageProcessor

        train, test = from_processor(CLIPImageProcessor())
        assert (train, test) == (TrainTransform(), TestTransform())
        half = (0.5, 0.5, 0.5)
        siglip = SiglipImageProcessor(size={"height": 64, "width": 64})
        assert from_processor(siglip)[1] == TestTransform(64, half, half)

    def test_a_processor_that_owns_the_image_processor_is_looked_into(self) -> None:
        from types import SimpleNamespace

        from transformers import CLIPImageProcessor

        owner = SimpleNamespace(
            image_processor=CLIPImageProcessor(crop_size={"height": 48, "width": 48})
        )
        assert from_processor(owner)[1].size == 48

    def test_a_size_that_is_no_square_is_refused(self) -> None:
        from transformers import SiglipImageProcessor

        with pytest.raises(ConfigError, match=r"TestTransform\(size=224\)"):
            from_processor(SiglipImageProcessor(size={"height": 64, "width": 32}))

    def test_the_processors_own_preprocessing_is_an_option(self) -> None:
        from transformers import CLIPImageProcessor

        processor = CLIPImageProcessor()
        own = ProcessorTransform(processor)(picture(LARGE[0]))
        expected = processor(images=picture(LARGE[0]), return_tensors="pt")["pixel_values"][0]
        assert own.shape == (3, 224, 224)
        assert torch.equal(own, expected)
