"""What every method keeps to, and three sketches of methods that are to come.

The sketches are no methods of the package: they show that a method that learns prompts, one that
keeps a cache of shots, and one whose weights both towers share fit the contract as it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from mma_adapter.backbones import describe
from mma_adapter.bench.encoder import DualEncoder, Template
from mma_adapter.bench.methods import (
    METHODS,
    FeatureScorer,
    LastLayers,
    LastLayersConfig,
    LoopConfig,
    Method,
    MMAMethodConfig,
    Predictor,
    Scorer,
)
from mma_adapter.bench.methods.base import check_same_classes
from mma_adapter.bench.methods.loop import train
from mma_adapter.bench.methods.zero_shot import ZeroShotEnsemble, ZeroShotEnsembleConfig
from mma_adapter.data import Sample
from mma_adapter.errors import ConfigError

from .tiny import icon_encoder, icon_loader


@dataclass(frozen=True, kw_only=True)
class ContextConfig(LoopConfig):
    n_ctx: int = 2
    lr: float = 0.01


class ContextLearner(Method):
    """Like CoOp: learnt vectors stand in the prompt's place, by a hook on the token embeddings."""

    Config: ClassVar[type] = ContextConfig
    transfers: ClassVar[bool] = True

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        encoder.model.requires_grad_(False)
        module = _Prompted(encoder, self.config.n_ctx, classnames)
        losses = train(module, shots, self.config, encoder.train_transform, seed=seed)
        return _ContextPredictor(encoder, module.context, losses)


class _Prompted(nn.Module):
    def __init__(self, encoder: DualEncoder, n_ctx: int, classnames: Sequence[str]) -> None:
        super().__init__()
        self.classifier = encoder.classifier(classnames, "x " * n_ctx + "{}")
        embeddings = describe(encoder.model).towers["text"].root.embeddings.token_embedding
        ids = self.classifier.input_ids[0, 1 : 1 + n_ctx]
        self.context = nn.Parameter(embeddings.weight[ids].detach().clone())
        embeddings.register_forward_hook(self._replace)

    def _replace(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        n = len(self.context)
        learnt = self.context.expand(*output.shape[:-2], -1, -1)
        return torch.cat([output[..., :1, :], learnt, output[..., 1 + n :, :]], dim=-2)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> ImageClassifierOutput:
        model, ids = self.classifier.model, self.classifier.input_ids
        logits = model(input_ids=ids, pixel_values=pixel_values).logits_per_image
        return ImageClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


class _ContextPredictor(Predictor):
    def __init__(self, encoder: DualEncoder, context: Tensor, losses: tuple[float, ...]) -> None:
        self.encoder, self.losses = encoder, losses
        self.n_ctx, self.num_trainable = len(context), context.numel()

    def prompt(self, own: Template) -> Template:
        return "x " * self.n_ctx + "{}"

    @torch.no_grad()
    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        ids = self.encoder.classifier(classnames, self.prompt("")).input_ids

        @torch.no_grad()
        def score(pixel_values: Tensor) -> Tensor:
            model = self.encoder.model
            return model(input_ids=ids, pixel_values=pixel_values).logits_per_image

        return score


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    alpha: float = 1.0
    beta: float = 5.5


class Cache(Method):
    """Like Tip-Adapter: the shots' features and labels are the model; no new classes."""

    Config: ClassVar[type] = CacheConfig
    transfers: ClassVar[bool] = False

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        keys = encoder.frozen_features(shots)
        values = F.one_hot(torch.tensor([s.label for s in shots]), len(classnames)).float()
        text = encoder.classifier(classnames).text_features()
        return _CachePredictor(encoder, list(classnames), self.config, keys, values, text)


class _CachePredictor(Predictor):
    def __init__(
        self, encoder: DualEncoder, classnames: list[str], config: CacheConfig, *parts: Tensor
    ) -> None:
        self.encoder, self.classnames, self.config, self.parts = encoder, classnames, config, parts

    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        check_same_classes(self.classnames, classnames, Cache)
        keys, values, text = self.parts

        def score(features: Tensor) -> Tensor:
            near = torch.exp(-self.config.beta * (1 - features @ keys.t()))
            return 100 * features @ text.t() + self.config.alpha * near @ values

        return FeatureScorer(self.encoder.encode, score)


@dataclass(frozen=True, kw_only=True)
class SharedConfig(LoopConfig):
    lr: float = 0.01


class SharedShift(Method):
    """Weights that both towers share: one square matrix added to the features of either."""

    Config: ClassVar[type] = SharedConfig
    transfers: ClassVar[bool] = True

    def fit(
        self, encoder: DualEncoder, shots: Sequence[Sample], classnames: Sequence[str], *, seed: int
    ) -> Predictor:
        encoder.model.requires_grad_(False)
        module = _Shared(encoder, classnames)
        losses = train(module, shots, self.config, encoder.train_transform, seed=seed)
        return _SharedPredictor(encoder, module.shared, losses)


class _Shared(nn.Module):
    def __init__(self, encoder: DualEncoder, classnames: Sequence[str]) -> None:
        super().__init__()
        self.classifier = encoder.classifier(classnames)
        size = self.classifier.text_features().shape[-1]
        self.shared = nn.Parameter(torch.zeros(size, size))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        image = self.classifier.image_features(pixel_values)
        text = self.classifier.text_features()
        image, text = (F.normalize(x + x @ self.shared, dim=-1) for x in (image, text))
        logits = self.classifier.model.logit_scale.exp() * image @ text.t()  # type: ignore[operator]
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class _SharedPredictor(Predictor):
    def __init__(
        self, encoder: DualEncoder, shared: nn.Parameter, losses: tuple[float, ...]
    ) -> None:
        self.encoder, self.shared, self.losses = encoder, shared, losses
        self.num_trainable = shared.numel()

    def bind(self, classnames: Sequence[str], *, template: Template | None = None) -> Scorer:
        module = _Shared(self.encoder.at("", template or self.encoder.template), classnames)
        module.shared = self.shared

        @torch.no_grad()
        def score(pixel_values: Tensor) -> Tensor:
            return module(pixel_values).logits

        return score


QUICK = {
    "last_layers": LastLayersConfig(epochs=2, lr=1e-4, template=None),
    "mma": MMAMethodConfig(epochs=2, scale=0.02, template=None),
}
SKETCHES = {"context": ContextLearner, "cache": Cache, "shared": SharedShift}
EVERY = {**METHODS, **SKETCHES}


def build(name: str) -> Method:
    if name in SKETCHES and issubclass(SKETCHES[name].Config, LoopConfig):
        return EVERY[name](SKETCHES[name].Config(epochs=2))
    return EVERY[name](QUICK.get(name))


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return icon_encoder()


@pytest.fixture(scope="module")
def fitted(encoder: DualEncoder) -> dict[str, tuple[Method, DualEncoder, Predictor]]:
    """Every method, trained once."""
    data = icon_loader("nature", shots=4, seed=1, classes="base")
    trained = {}
    for name in EVERY:
        method, own = build(name), encoder.at(data.name, data.template).copy()
        trained[name] = (method, own, method.fit(own, data.train, data.classnames, seed=1))
    return trained


def logits_of(predictor: Predictor, encoder: DualEncoder, classes: str = "base") -> Tensor:
    data = icon_loader("nature", shots=4, seed=1, classes=classes)  # type: ignore[arg-type]
    scorer = predictor.bind(data.classnames, template=data.template)
    return torch.cat([scorer(pixels) for pixels in encoder.pixel_batches(data.test)])


@pytest.mark.parametrize("name", EVERY)
def test_equal_seeds_give_equal_logits(name: str, encoder: DualEncoder, fitted: dict) -> None:
    data = icon_loader("nature", shots=4, seed=1, classes="base")
    again = encoder.at(data.name, data.template).copy()
    predictor = build(name).fit(again, data.train, data.classnames, seed=1)
    torch.testing.assert_close(
        logits_of(predictor, encoder), logits_of(fitted[name][2], encoder), rtol=0, atol=0
    )
    assert predictor.losses == fitted[name][2].losses


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_finite_one_per_class_and_beat_chance(
    name: str, encoder: DualEncoder, fitted: dict
) -> None:
    data = icon_loader("nature", shots=4, seed=1, classes="base")
    logits = logits_of(fitted[name][2], encoder)
    assert logits.shape == (len(data.test), data.num_classes)
    assert logits.isfinite().all()
    labels = torch.tensor([sample.label for sample in data.test])
    assert (logits.argmax(1) == labels).float().mean() > 1.5 / data.num_classes


@pytest.mark.parametrize("name", EVERY)
def test_new_classes_are_scored_or_refused(name: str, encoder: DualEncoder, fitted: dict) -> None:
    method, _, predictor = fitted[name]
    if method.transfers:
        logits = logits_of(predictor, encoder, "novel")
        assert logits.isfinite().all()
        assert (
            logits.shape[1] == icon_loader("nature", shots=4, seed=1, classes="novel").num_classes
        )
    else:
        with pytest.raises(ConfigError, match="trained on"):
            predictor.bind(["a", "b", "c"])


@pytest.mark.parametrize("name", EVERY)
def test_the_protocols_own_host_is_untouched(name: str, encoder: DualEncoder, fitted: dict) -> None:
    pristine = icon_encoder().model.state_dict()
    assert pristine.keys() == encoder.model.state_dict().keys()
    for key, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, pristine[key]), key
    assert not any(p._forward_hooks for p in encoder.model.modules())


@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_trained_stays_as_it_was(name: str, encoder: DualEncoder, fitted: dict) -> None:
    _, own, predictor = fitted[name]
    pristine = dict(encoder.model.named_parameters())
    changed = sum(
        p.numel()
        for key, p in own.model.named_parameters()
        if key in pristine and not torch.equal(p, pristine[key])
    )
    added = sum(p.numel() for key, p in own.model.named_parameters() if key not in pristine)
    if name in SKETCHES or name == "linear_probe":  # their weights are not the host's
        assert changed == added == 0
    else:
        assert changed + added == predictor.num_trainable


def test_trainable_weights_are_counted_truly(encoder: DualEncoder, fitted: dict) -> None:
    classes, size = 3, 128
    assert fitted["zero_shot"][2].num_trainable == 0
    assert fitted["zero_shot_ensemble"][2].num_trainable == 0
    assert fitted["linear_probe"][2].num_trainable == classes * (size + 1)
    # A layer of width d has 12 d^2 + 13 d weights; one in each tower.
    assert fitted["last_layers"][2].num_trainable == 2 * (12 * size**2 + 13 * size)
    assert fitted["mma"][2].num_trainable == fitted["mma"][1].model.mma.config.num_weights
    assert fitted["context"][2].num_trainable == 2 * size
    assert fitted["shared"][2].num_trainable == size * size


@pytest.mark.parametrize("name", EVERY)
def test_a_feature_scorer_reads_the_untouched_image_tower(
    name: str, encoder: DualEncoder, fitted: dict
) -> None:
    data = icon_loader("nature", shots=4, seed=1, classes="base")
    scorer = fitted[name][2].bind(data.classnames, template=data.template)
    if isinstance(scorer, FeatureScorer):
        pixels = next(encoder.pixel_batches(data.test))
        kept = encoder.at(data.name, data.template).frozen_features(data.test)[: len(pixels)]
        torch.testing.assert_close(scorer.encode(pixels), kept, rtol=0, atol=1e-6)
    else:
        assert name in ("last_layers", "mma", "context", "shared")


def test_training_moves_the_methods_that_train(fitted: dict) -> None:
    for name in ("last_layers", "mma", "context", "shared"):
        losses = fitted[name][2].losses
        assert len(losses) == 2, name  # 12 pictures, batches of 16, two epochs
        assert losses[0] != losses[1]


def test_text_only_adapters_let_image_features_be_kept(encoder: DualEncoder) -> None:
    data = icon_loader("nature", shots=2, seed=1, classes="base")
    config = MMAMethodConfig(epochs=1, towers=("text",), template=None)
    predictor = METHODS["mma"](config).fit(encoder.copy(), data.train, data.classnames, seed=1)
    assert isinstance(predictor.bind(data.classnames), FeatureScorer)


def test_a_fixed_template_is_kept_and_the_data_sets_own_is_used_otherwise(
    encoder: DualEncoder,
) -> None:
    data = icon_loader("nature", shots=1, seed=1, classes="base")
    own = METHODS["zero_shot"]().fit(encoder.copy(), data.train, data.classnames, seed=1)
    assert own.prompt("the {}.") == "the {}."
    ensemble = ZeroShotEnsemble(ZeroShotEnsembleConfig(templates=("a {}", "the {}.")))
    several = ensemble.fit(encoder.copy(), data.train, data.classnames, seed=1)
    assert several.prompt("one {}") == ("a {}", "the {}.", "one {}")
    assert several.prompt("a {}") == ("a {}", "the {}.")
    config = MMAMethodConfig(epochs=1)
    mma = METHODS["mma"](config).fit(encoder.copy(), data.train, data.classnames, seed=1)
    assert mma.prompt("the {}.") == "a photo of a {}."


def test_configs_of_other_methods_and_impossible_depths_are_refused(encoder: DualEncoder) -> None:
    with pytest.raises(ConfigError, match="takes a LastLayersConfig"):
        LastLayers(MMAMethodConfig())
    data = icon_loader("nature", shots=1, seed=1, classes="base")
    with pytest.raises(ConfigError, match="num_layers=13"):
        LastLayers(LastLayersConfig(num_layers=13)).fit(
            encoder.copy(), data.train, data.classnames, seed=1
        )
