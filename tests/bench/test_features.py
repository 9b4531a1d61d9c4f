"""Features are computed once per host, transform, data set and pictures, and never mistaken."""

from pathlib import Path

import pytest
import torch

from mma_adapter.bench.encoder import DualEncoder
from mma_adapter.bench.features import FeatureStore
from mma_adapter.data import Sample
from mma_adapter.injection import inject_mma

from .tiny import colour_loader, tiny_encoder

PICTURES = colour_loader("colours", shots=1, seed=1, classes="all").test


class Counting(FeatureStore):
    """Counts how often features are computed."""

    computed = 0

    def get(self, key, compute):
        def counted():
            self.computed += 1
            return compute()

        return super().get(key, counted)


def encoders(folder: Path | None = None) -> tuple[DualEncoder, Counting]:
    store = Counting(folder)
    return tiny_encoder(store=store), store


def test_features_are_those_of_the_host_and_of_unit_length() -> None:
    encoder, _ = encoders()
    features = encoder.frozen_features(PICTURES)
    pixels = torch.stack([encoder.test_transform(s.image()) for s in PICTURES])  # type: ignore[operator]
    with torch.no_grad():
        expected = encoder.classifier(["a", "b"]).image_features(pixels)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(PICTURES)))


def test_features_are_computed_once(tmp_path: Path) -> None:
    encoder, store = encoders(tmp_path)
    first = encoder.at("set", "{}").frozen_features(PICTURES)
    again = encoder.at("set", "the {}").copy().frozen_features(PICTURES)
    assert store.computed == 1
    assert torch.equal(first, again)


def test_features_on_disk_are_read_by_the_next_process(tmp_path: Path) -> None:
    first = encoders(tmp_path)[0].frozen_features(PICTURES)
    encoder, store = encoders(tmp_path)
    assert torch.equal(encoder.frozen_features(PICTURES), first)
    assert store.computed == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("change", ["host", "pictures", "order", "data set", "transform"])
def test_whatever_features_depend_on_is_part_of_the_key(tmp_path: Path, change: str) -> None:
    encoder, store = encoders(tmp_path)
    encoder.frozen_features(PICTURES)
    pictures = PICTURES
    if change == "host":
        encoder = tiny_encoder(seed=1, store=store)
    elif change == "pictures":
        pictures = PICTURES[:-1]
    elif change == "order":
        pictures = PICTURES[::-1]
    elif change == "data set":
        encoder = encoder.at("another", "{}")
    else:
        encoder = DualEncoder(
            encoder.model,
            encoder.tokenizer,
            encoder.image_processor,
            transform="processor",
            store=store,
        )
    encoder.frozen_features(pictures)
    assert store.computed == 2


def test_a_replaced_picture_is_noticed(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40), "red").save(path)
    first = encoders(tmp_path / "kept")[0].frozen_features([Sample(path, 0, "a")])
    Image.new("RGB", (40, 40), "blue").save(path)
    encoder, store = encoders(tmp_path / "kept")
    assert not torch.equal(encoder.frozen_features([Sample(path, 0, "a")]), first)
    assert store.computed == 1


def test_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    first = encoders(tmp_path)[0].frozen_features(PICTURES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    encoder, store = encoders(tmp_path)
    assert torch.equal(encoder.frozen_features(PICTURES), first)
    assert store.computed == 1


def test_a_changed_copy_still_gets_the_untouched_hosts_features() -> None:
    encoder, _ = encoders()
    expected = encoder.encode(next(encoder.pixel_batches(PICTURES)))
    copy = encoder.copy()
    inject_mma(copy.model, 5, scale=1.0, seed=1)
    assert not torch.allclose(copy.encode(next(copy.pixel_batches(PICTURES))), expected, atol=1e-3)
    torch.testing.assert_close(copy.frozen_features(PICTURES), expected, rtol=0, atol=0)


def test_hosts_of_equal_norms_have_different_fingerprints() -> None:
    one, other = tiny_encoder(0).fingerprint, tiny_encoder(1).fingerprint
    assert one["sha256"] == other["sha256"]  # random hosts differ only in what that leaves out
    assert one["weights_sha256"] != other["weights_sha256"]
    assert one == tiny_encoder(0).fingerprint
