"""The adapter's config: what it accepts, how it counts, and its way through JSON."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mma_adapter import ConfigError, MMAConfig

VIT_B_16 = {"text_width": 512, "vision_width": 768, "text_depth": 12, "vision_depth": 12}
VIT_L_14 = {"text_width": 768, "vision_width": 1024, "text_depth": 12, "vision_depth": 24}

words = st.text(min_size=1, max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> MMAConfig:
    start = draw(st.integers(1, 30))
    end = draw(st.integers(start, 40))
    depths = st.none() | st.integers(end, 48)
    widths = st.integers(1, 4096)
    return MMAConfig(
        text_width=draw(widths),
        vision_width=draw(widths),
        text_depth=draw(depths),
        vision_depth=draw(depths),
        start_layer=start,
        end_layer=end,
        bottleneck_dim=draw(st.integers(1, 512)),
        scale=draw(st.floats(0, 10) | st.integers(0, 10)),
        towers=draw(st.sampled_from([("text", "vision"), ("text",), ("vision",)])),
        shared=draw(st.sampled_from(["tied", "untied", "none"])),
        pairing=draw(st.sampled_from(["top", "index"])),
        model_type=draw(st.none() | words),
        base_model_name_or_path=draw(st.none() | words),
        revision=draw(st.none() | words),
        base_fingerprint=draw(
            st.none() | st.dictionaries(words, st.none() | st.integers() | words, max_size=4)
        ),
        template=draw(st.none() | words | st.lists(words, min_size=1, max_size=3).map(tuple)),
        classnames=draw(st.none() | st.lists(words, max_size=4).map(tuple)),
    )


@given(configs())
@settings(max_examples=100, deadline=None)
def test_a_config_survives_a_dict_and_json_unchanged(config):
    assert MMAConfig.from_dict(config.to_dict()) == config
    assert MMAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(configs())
@settings(max_examples=50, deadline=None)
def test_shapes_projections_and_the_weight_count_agree(config):
    shapes = config.shapes()
    assert len(shapes) == 2 * len(config.projections()) * len(config.pairs)
    assert all(len(shapes[name]) == (2 if name.endswith("weight") else 1) for name in shapes)
    assert config.num_weights >= len(shapes)


def test_the_defaults_are_the_papers():
    config = MMAConfig(**VIT_B_16)
    assert (config.start_layer, config.end_layer) == (5, 12)
    assert (config.bottleneck_dim, config.scale) == (32, 0.001)
    assert (config.towers, config.shared) == (("text", "vision"), "tied")


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 674_560),
        ({"start_layer": 9}, 337_280),
        ({"start_layer": 1}, 1_011_840),
        ({"bottleneck_dim": 8}, 174_784),
        ({"bottleneck_dim": 16}, 340_352),
        ({"bottleneck_dim": 64}, 1_355_264),
        ({"bottleneck_dim": 128}, 2_765_824),
        ({"towers": "text"}, 274_944),
        ({"towers": "text", "shared": "none"}, 266_496),
        ({"towers": "vision"}, 408_064),
        ({"towers": "vision", "shared": "none"}, 399_616),
        ({"shared": "none"}, 666_112),
        ({"shared": "untied"}, 683_008),
    ],
)
def test_weight_counts_on_vit_b_16_are_the_published_ones(settings, count):
    assert MMAConfig(**VIT_B_16, **settings).num_weights == count


def test_a_frozen_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MMAConfig(**VIT_B_16).scale = 1.0  # pyright: ignore


@pytest.mark.parametrize("towers", ["text", ["text"], ("text",), {"text"}])
def test_one_tower_may_be_written_in_any_collection(towers):
    assert MMAConfig(text_width=8, towers=towers).towers == ("text",)


def test_the_order_of_the_towers_does_not_matter():
    assert MMAConfig(**VIT_B_16, towers=("vision", "text")) == MMAConfig(**VIT_B_16)


def test_top_pairing_counts_from_the_last_layer_of_each_tower():
    config = MMAConfig(**VIT_L_14)
    assert [config.layer_of("text", pair) for pair in config.pairs] == list(range(5, 13))
    assert [config.layer_of("vision", pair) for pair in config.pairs] == list(range(17, 25))


def test_index_pairing_joins_layers_of_equal_number():
    config = MMAConfig(**VIT_L_14, pairing="index")
    for tower in ("text", "vision"):
        assert [config.layer_of(tower, pair) for pair in config.pairs] == list(range(5, 13))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_layer": 0}, ["start_layer=0", "1 to"]),
        ({"start_layer": 2.5}, ["start_layer=2.5"]),
        ({"start_layer": True}, ["start_layer=True"]),
        ({"start_layer": 8, "end_layer": 7}, ["start_layer=8", "end_layer=7", "from 1"]),
        ({"end_layer": 13}, ["end_layer=13", "12 layers"]),
        ({"end_layer": 10**12}, ["end_layer=1000000000000", "1024"]),
        ({"bottleneck_dim": 0}, ["bottleneck_dim=0"]),
        ({"bottleneck_dim": 10**9}, ["bottleneck_dim=1000000000", "65536"]),
        ({"bottleneck_dim": "32"}, ["bottleneck_dim='32'"]),
        ({"text_width": None}, ["text_width=None"]),
        ({"vision_depth": "12"}, ["vision_depth='12'"]),
        ({"scale": -1}, ["scale=-1", "0 or more"]),
        ({"scale": float("nan")}, ["scale=nan"]),
        ({"scale": float("inf")}, ["scale=inf"]),
        ({"scale": 10**400}, ["scale=", "finite"]),
        ({"scale": "0.1"}, ["scale='0.1'"]),
        ({"scale": None}, ["scale=None"]),
        ({"towers": ()}, ["towers=()", '"vision"']),
        ({"towers": ("audio",)}, ["audio", '"vision"']),
        ({"towers": ("text", "text")}, ["towers=('text', 'text')"]),
        ({"towers": 5}, ["towers=5"]),
        ({"towers": None}, ["towers=None"]),
        ({"towers": [["text"]]}, ["towers=[['text']]"]),
        ({"shared": "both"}, ["shared='both'", "'tied'"]),
        ({"shared": ["tied"]}, ["shared=['tied']"]),
        ({"pairing": None}, ["pairing=None", "'top'"]),
        ({"model_type": 5}, ["model_type=5"]),
        ({"base_model_name_or_path": ["a"]}, ["base_model_name_or_path=['a']"]),
        ({"revision": 1.5}, ["revision=1.5"]),
        ({"base_fingerprint": "abc"}, ["base_fingerprint='abc'"]),
        ({"template": 3}, ["template=3"]),
        ({"template": ["a {}", 3]}, ["template=", "3"]),
        ({"classnames": "cat"}, ["classnames='cat'"]),
        ({"classnames": ["cat", None]}, ["classnames=", "None"]),
    ],
)
def test_every_impossible_value_is_refused_by_name(settings, words):
    for build in (
        lambda: MMAConfig(**{**VIT_B_16, **settings}),
        lambda: MMAConfig.from_dict({**MMAConfig(**VIT_B_16).to_dict(), **settings}),
    ):
        with pytest.raises(ConfigError) as error:
            build()
        assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("found", [2, 99, 0, -1, None, "1", 1.0, True])
def test_formats_this_version_does_not_know_are_refused(found):
    data = {**MMAConfig(**VIT_B_16).to_dict(), "mma_format": found}
    with pytest.raises(ConfigError, match="format") as error:
        MMAConfig.from_dict(data)
    assert repr(found) in str(error.value)
    assert "pip install -U" in str(error.value)


def test_unknown_and_missing_keys_are_named():
    data = MMAConfig(**VIT_B_16).to_dict()
    with pytest.raises(ConfigError, match=r"unknown keys.*dropout, rank"):
        MMAConfig.from_dict({**data, "rank": 4, "dropout": 0.1})
    for key in ("start_layer", "end_layer", "bottleneck_dim", "scale", "towers", "shared"):
        with pytest.raises(ConfigError, match=rf"missing.*{key}"):
            MMAConfig.from_dict({k: v for k, v in data.items() if k != key})


def test_from_dict_leaves_its_argument_alone():
    data = MMAConfig(**VIT_B_16).to_dict()
    before = json.dumps(data)
    MMAConfig.from_dict(data)
    assert json.dumps(data) == before
