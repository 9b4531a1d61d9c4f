"""Layer analysis on the embedded CLIP: features are the host's own, figures mean what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mma_adapter import analysis as analysis_module
from mma_adapter import inject_mma, remove_mma
from mma_adapter.analysis import LayerAnalysis, LayerScores, analyze, suggest_start_layer
from mma_adapter.backbones import as_features, describe
from mma_adapter.data import Dataset, from_processor, open_image, sample_shots
from mma_adapter.demo.icons import load_icon_clip
from mma_adapter.demo.splits import icon_dataset
from mma_adapter.errors import ConfigError, DataError, StorageError
from mma_adapter.layer_features import image_parts, text_parts
from mma_adapter.probes import class_probe, dataset_accuracy_pct, transfer_accuracy_pct

pytest.importorskip("sklearn")

TEMPLATES = ("a photo of a {}.", "an icon of a {}.", "itap of a {}.")


@pytest.fixture(scope="module")
def clip():
    return load_icon_clip()


@pytest.fixture(scope="module")
def datasets() -> list[Dataset]:
    return [icon_dataset(topic, name=topic) for topic in ("nature", "food and animals")]


@pytest.fixture(scope="module")
def result(clip, datasets) -> LayerAnalysis:
    return analyze(*clip, datasets, shots=3, templates=TEMPLATES)


def test_every_layer_of_both_towers_is_scored(result: LayerAnalysis) -> None:
    assert set(result.towers) == {"text", "vision"}
    for layers in result.towers.values():
        assert [layer.layer for layer in layers] == list(range(1, 13))
        for layer in layers:
            assert 0 <= layer.class_accuracy_pct <= 100
            assert 0 <= layer.dataset_accuracy_pct <= 100
            assert 0 <= layer.transfer_accuracy_pct <= 100
    assert len(result.modality_gap) == 12
    assert all(0 < gap < 2 for gap in result.modality_gap)
    assert 1 <= result.start_layer <= 12
    assert result.datasets == ("nature", "food and animals")
    assert result.host == "tiny-icon-clip"  # not where its folder lies
    assert result.num_classes == (17, 14)
    assert result.dataset_chance_pct == 50
    assert result.class_chance_pct == pytest.approx((100 / 17 + 100 / 14) / 2)


def test_a_trained_clip_tells_more_in_its_upper_layers(result: LayerAnalysis) -> None:
    vision = result.towers["vision"]
    for field in ("class_accuracy_pct", "transfer_accuracy_pct"):
        values = [getattr(layer, field) for layer in vision]
        assert np.mean(values[-3:]) > np.mean(values[:3]) + 15
    # The last layer was trained to bring the two towers together.
    assert min(result.modality_gap) == result.modality_gap[-1]


def test_the_analysis_is_reproducible_and_survives_json(
    clip, datasets, result: LayerAnalysis, tmp_path
) -> None:
    assert analyze(*clip, datasets, shots=3, templates=TEMPLATES) == result
    result.save(tmp_path / "layers.json")
    assert LayerAnalysis.load(tmp_path / "layers.json") == result
    other = json.dumps({**json.loads(result.to_json()), "format": 99})
    for text in ("{}", "[]", "no json", other, result.to_json().replace("towers", "other")):
        with pytest.raises(StorageError):
            LayerAnalysis.from_json(text)
    with pytest.raises(StorageError, match="is not there"):
        LayerAnalysis.load(tmp_path / "nothing.json")


@torch.no_grad()
def test_the_last_layer_gives_the_hosts_own_features(clip, datasets) -> None:
    model, tokenizer, processor = clip
    backbone, dataset = describe(model), datasets[0]
    _, test, mean = image_parts(backbone, processor, dataset, 2, 1, 7)
    assert test.states.shape == (12, len(test.labels), 128)
    transform = from_processor(processor)[1]
    samples = sample_shots(dataset.test, 2, 1)
    pixels = torch.stack([transform(open_image(sample)) for sample in samples])
    features = as_features(model.get_image_features(pixel_values=pixels))
    expected = torch.nn.functional.normalize(features, dim=-1).mean(0)
    np.testing.assert_allclose(mean[-1], expected, atol=1e-5)
    train, held_out, mean = text_parts(model, tokenizer, backbone, dataset, TEMPLATES)
    prompts = [t.replace("{}", name) for name in dataset.classnames for t in TEMPLATES]
    ids = tokenizer(prompts, return_tensors="pt", padding=True)["input_ids"]
    features = as_features(model.get_text_features(input_ids=ids))
    expected = torch.nn.functional.normalize(features, dim=-1).mean(0)
    np.testing.assert_allclose(mean[-1], expected, atol=1e-5)
    # Even templates to learn from, odd ones held out: two and one of three.
    assert train.labels.tolist() == sorted([*range(17), *range(17)])
    assert held_out.labels.tolist() == list(range(17))


def test_an_adapter_changes_its_layers_and_none_below(clip, datasets) -> None:
    model = clip[0]
    plain = image_parts(describe(model), clip[2], datasets[0], 1, 1, 50)[1].states
    inject_mma(model, start_layer=9, scale=1.0, seed=0)
    try:
        adapted = image_parts(describe(model), clip[2], datasets[0], 1, 1, 50)[1].states
    finally:
        remove_mma(model)
    changed = [bool((a != b).any()) for a, b in zip(plain, adapted, strict=True)]
    assert changed == [False] * 8 + [True] * 4


def test_train_mode_comes_back(clip, datasets) -> None:
    clip[0].train()
    try:
        analyze(*clip, datasets[:1], shots=1, templates=TEMPLATES[:2])
        assert clip[0].training
    finally:
        clip[0].eval()


def test_one_data_set_has_no_transfer(clip, datasets) -> None:
    result = analyze(*clip, datasets[:1], shots=1, templates=TEMPLATES[:2])
    for layers in result.towers.values():
        assert {layer.transfer_accuracy_pct for layer in layers} == {None}
        assert {layer.dataset_accuracy_pct for layer in layers} == {None}
        assert all(layer.discriminability_pct == layer.class_accuracy_pct for layer in layers)


def curve(*values: float) -> tuple[LayerScores, ...]:
    return tuple(LayerScores(i, value, value, 50.0) for i, value in enumerate(values, 1))


@pytest.mark.parametrize(
    ("text", "vision", "start"),
    [
        ((0, 10, 60, 100), (0, 10, 60, 100), 3),
        ((0, 60, 10, 100), (0, 60, 10, 100), 4),  # a fall below the middle starts anew
        ((50, 50, 50, 50), (50, 50, 50, 50), 1),
        ((100, 50, 0, 0), (100, 50, 0, 0), 4),  # falling: at least the last layer
        ((100, 100, 0), (9, 9, 9, 100, 0, 100), 3),  # of the deeper tower the last layers count
    ],
)
def test_the_start_layer_is_where_the_curve_passes_the_middle_for_good(
    text: tuple, vision: tuple, start: int
) -> None:
    found, reason = suggest_start_layer({"text": curve(*text), "vision": curve(*vision)})
    assert found == start
    assert f"from layer {start} of {len(text)}" in reason


def blobs(seed: int, shift: float, dims: slice) -> tuple:
    """Four classes apart in the given dimensions, moved as a whole by `shift` in dimension 9."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 30)
    states = 0.1 * generator.normal(size=(120, 10))
    states[:, dims] += np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[labels]
    states[:, 9] += shift
    half = np.arange(120) % 2 == 0
    return (states[half], labels[half]), (states[~half], labels[~half])


def test_transfer_is_full_where_classes_differ_alike_and_far_lower_where_they_do_not() -> None:
    for dims, low, high in ((slice(0, 2), 99, 100), (slice(4, 6), 10, 80)):
        layer = [blobs(0, 0, slice(0, 2)), blobs(1, 0, dims)]
        probes = [class_probe(*train) for train, _ in layer]
        accuracy = transfer_accuracy_pct(probes, layer)
        assert accuracy is not None
        assert low <= accuracy <= high


def test_the_data_set_probe_generalises_to_classes_it_has_not_seen() -> None:
    apart = dataset_accuracy_pct([blobs(0, 0, slice(0, 2)), blobs(1, 3, slice(0, 2))])
    assert apart is not None
    assert apart > 99
    alike = dataset_accuracy_pct([blobs(0, 0, slice(0, 2)), blobs(1, 0, slice(0, 2))])
    assert alike is not None
    assert 30 < alike < 70
    assert dataset_accuracy_pct([blobs(0, 0, slice(0, 2))]) is None


def test_wrong_inputs_are_refused(clip, datasets) -> None:
    with pytest.raises(ConfigError, match="all different"):
        analyze(*clip, [datasets[0], datasets[0]])
    with pytest.raises(ConfigError, match="pass one or more"):
        analyze(*clip, [])
    with pytest.raises(ConfigError, match="half are held out"):
        analyze(*clip, datasets, templates=TEMPLATES[:1])
    with pytest.raises(DataError, match="some test pictures are needed"):
        analyze(*clip, [replace(datasets[0], test=[])])


def test_the_picture_has_a_panel_for_each_curve(result: LayerAnalysis) -> None:
    pytest.importorskip("matplotlib")
    from mma_adapter.bench.plots import layer_curves

    figure = layer_curves(result)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "Linear probe for classes"
    assert titles[-1] == "Modality gap"
    assert len(titles) == 4
    text = next(line for line in figure.axes[0].lines if line.get_label() == "text tower")
    expected = [layer.class_accuracy_pct for layer in result.towers["text"]]
    assert text.get_ydata().tolist() == expected
    assert figure.axes[-1].lines[0].get_ydata().tolist() == list(result.modality_gap)


def test_the_docstring_says_what_is_the_papers_and_what_is_ours() -> None:
    assert "procedure here is ours" in " ".join((analysis_module.__doc__ or "").split())
