"""Recipes hold the published settings, say where they come from, and change by text."""

import pytest

from mma_adapter.bench.methods import METHODS, LinearProbeConfig, MMAMethodConfig
from mma_adapter.bench.recipes import RECIPES, override, recipe_for
from mma_adapter.bench.results import PROTOCOLS
from mma_adapter.errors import ConfigError


def test_the_papers_base_to_novel_recipe() -> None:
    recipe = recipe_for("mma", "base-to-novel", "eurosat")
    assert (recipe.name, recipe.origin) == ("mma-base-to-novel", "paper")
    config = recipe.config
    assert (config.start_layer, config.end_layer, config.bottleneck_dim) == (5, None, 32)
    assert (config.scale, config.lr, config.momentum, config.weight_decay) == (
        *(0.001, 0.0015),
        *(0.9, 5e-4),
    )
    assert (config.optimizer, config.epochs, config.batch_size) == ("sgd", 5, 16)
    assert config.template == "a photo of a {}."


def test_imagenet_has_batches_of_128() -> None:
    recipe = recipe_for("mma", "base-to-novel", "imagenet")
    assert recipe.config == MMAMethodConfig(batch_size=128)
    assert recipe.origin == "paper"


@pytest.mark.parametrize("protocol", ["cross-dataset", "domain-generalization"])
def test_transfers_are_marked_as_reconstructed(protocol: str) -> None:
    recipe = recipe_for("mma", protocol, "imagenet")  # type: ignore[arg-type]
    assert recipe.origin == "reconstruction"
    assert recipe.config == MMAMethodConfig(start_layer=9, epochs=1, batch_size=128)


def test_few_shot_is_marked_as_ours() -> None:
    assert recipe_for("mma", "few-shot", "dtd").origin == "ours"


@pytest.mark.parametrize("family", ["paper", "icons"])
def test_every_method_has_a_recipe_of_its_type_for_every_protocol(family: str) -> None:
    for method, kind in METHODS.items():
        for protocol in PROTOCOLS:
            recipe = recipe_for(method, protocol, "dtd", family=family)  # type: ignore[arg-type]
            assert recipe.method == method
            assert isinstance(recipe.config, kind.Config)


def test_names_of_recipes_are_their_keys_and_methods_exist() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.method in METHODS


def test_settings_are_read_from_text_by_type() -> None:
    config = override(
        MMAMethodConfig(),
        {
            "scale": "0.05",
            "epochs": "3",
            "towers": "text,vision",
            "end_layer": "none",
            "shared": "untied",
            "template": "the {}.",
            "crop_scale": "0.5,1",
            "precision": "fp32",
        },
    )
    assert config == MMAMethodConfig(
        scale=0.05,
        epochs=3,
        shared="untied",
        template="the {}.",
        crop_scale=(0.5, 1.0),
        precision="fp32",
    )
    assert override(MMAMethodConfig(), {"towers": "vision"}).towers == ("vision",)
    assert override(MMAMethodConfig(), {"end_layer": "7"}).end_layer == 7
    assert override(MMAMethodConfig(), {"template": "none"}).template is None
    ensemble = override(METHODS["zero_shot_ensemble"].Config(), {"add_own": "False"})
    assert ensemble.add_own is False


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("sclae", "1", "no setting 'sclae'"),
        ("epochs", "1.5", "whole number"),
        ("epochs", "0", "epochs=0"),
        ("lr", "fast", "pass a number"),
        ("shared", "both", "tied, untied, none"),
        ("towers", "text,image", "text, vision"),
        ("crop_scale", "0.5", "two shares"),
    ],
)
def test_wrong_settings_are_named(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(MMAMethodConfig(), {key: text})


def test_a_truth_value_must_be_one() -> None:
    with pytest.raises(ConfigError, match="true or false"):
        override(METHODS["zero_shot_ensemble"].Config(), {"add_own": "maybe"})


def test_an_unknown_method_is_named_and_no_config_changes_in_place() -> None:
    with pytest.raises(ConfigError, match="no method 'coop2'"):
        recipe_for("coop2", "few-shot", "dtd")
    config = LinearProbeConfig()
    assert override(config, {"c": "1"}).c == 1.0
    assert config == LinearProbeConfig()
