"""The planners list the field's runs, and a run is trained once and scored as the field does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mma_adapter.bench import execution
from mma_adapter.bench.execution import execute, predict
from mma_adapter.bench.methods import METHODS
from mma_adapter.bench.protocols import (
    ABLATIONS,
    BASE_TO_NOVEL,
    CROSS_DATASET,
    DOMAINS,
    Plan,
    Run,
    Target,
    ablation,
    base_to_novel,
    cross_dataset,
    domain_generalization,
    few_shot,
)
from mma_adapter.data import Dataset
from mma_adapter.errors import ConfigError

from .tiny import colour_loader, icon_encoder, icon_loader, tiny_encoder

QUICK = {"epochs": "1", "batch_size": "4"}


def test_base_to_novel_trains_on_base_and_scores_both_halves() -> None:
    runs = base_to_novel(Plan(methods=("zero_shot", "mma")))
    assert len(runs) == 11 * 2 * 3
    assert list(dict.fromkeys(run.dataset for run in runs)) == list(BASE_TO_NOVEL)
    assert {run.seed for run in runs} == {1, 2, 3}
    for run in runs:
        assert (run.classes, run.shots) == ("base", 16)
        assert [(t.classes, t.role) for t in run.targets] == [("base", "base"), ("novel", "novel")]
        assert {t.dataset for t in run.targets} == {run.dataset}
    batch = {r.dataset: r.recipe.config.batch_size for r in runs if r.method == "mma"}
    assert batch.pop("imagenet") == 128
    assert set(batch.values()) == {16}


def test_transfers_train_once_on_imagenet() -> None:
    for plan, targets in ((cross_dataset, CROSS_DATASET), (domain_generalization, DOMAINS)):
        runs = plan(Plan(methods=("mma",), seeds=(1,)))
        (run,) = runs
        assert (run.dataset, run.classes) == ("imagenet", "all")
        assert run.targets[0] == Target("imagenet", "all", "source")
        assert run.targets[1:] == tuple(Target(t, "all", "target") for t in targets)
        assert run.recipe.name == "mma-transfer"
    assert len(CROSS_DATASET) == 10
    assert "imagenet" not in CROSS_DATASET


def test_few_shot_goes_through_all_numbers_of_shots() -> None:
    runs = few_shot(Plan(methods=("mma",), seeds=(1,)), ["dtd"])
    assert [run.shots for run in runs] == [1, 2, 4, 8, 16]
    assert {run.targets for run in runs} == {(Target("dtd", "all", "all"),)}


def test_an_ablation_changes_one_setting_at_a_time_and_lists_the_unchanged_method_once() -> None:
    runs = ablation(Plan(methods=("mma",), seeds=(1,)), ["dtd"])
    variants = [run.variant for run in runs]
    # bottleneck_dim=32, scale=0.001 and start_layer=5 are the recipe's own.
    assert len(variants) == len(set(variants)) == 1 + sum(map(len, ABLATIONS.values())) - 3
    unchanged = runs[0]
    assert unchanged.variant == ""
    for run in runs[1:]:
        key, _, text = run.variant.partition("=")
        assert run.recipe.config != unchanged.recipe.config
        back = replace(run.recipe.config, **{key: getattr(unchanged.recipe.config, key)})
        assert back == unchanged.recipe.config
        value = getattr(run.recipe.config, key)
        shown = ",".join(value) if isinstance(value, tuple) else f"{value}"
        assert shown in (text, f"{float(text):g}" if key == "scale" else text)
    with pytest.raises(ConfigError, match="mma alone"):
        ablation(Plan(methods=("mma", "zero_shot")), ["dtd"])


def test_overrides_reach_the_methods_that_have_them_and_are_recorded() -> None:
    plan = Plan(methods=("zero_shot", "mma"), seeds=(1,), overrides={"scale": "0.05"})
    zero_shot, mma = base_to_novel(plan, ["dtd"])
    assert mma.recipe.config.scale == 0.05
    assert (zero_shot.overrides, mma.overrides) == ((), (("scale", "0.05"),))
    with pytest.raises(ConfigError, match="'c_value'"):
        Plan(methods=("zero_shot", "mma"), overrides={"c_value": "1"})
    with pytest.raises(ConfigError, match="no method 'clip'"):
        Plan(methods=("clip",))


def test_a_runs_id_follows_what_can_change_its_scores_and_nothing_else() -> None:
    encoder = tiny_encoder()
    run = base_to_novel(Plan(methods=("mma",), seeds=(1,)), ["dtd"])[0]
    same = [
        run.id(encoder),
        run.id(tiny_encoder()),
        run.id(encoder.at("dtd", "{}").copy()),
        replace(run, targets=run.targets[:1]).id(encoder),
        replace(run, recipe=replace(run.recipe, name="other")).id(encoder),
    ]
    different = [
        run.id(tiny_encoder(1)),
        run.id(replace(encoder, transform="processor")),
        replace(run, seed=2).id(encoder),
        replace(run, shots=8).id(encoder),
        replace(run, dataset="eurosat").id(encoder),
        replace(run, classes="all").id(encoder),
        replace(run, protocol="ablation").id(encoder),
        base_to_novel(Plan(methods=("mma",), seeds=(1,), overrides={"lr": "1"}), ["dtd"])[0].id(
            encoder
        ),
    ]
    assert len(set(same)) == 1
    assert len({*same, *different}) == 1 + len(different)


def one_run(method: str = "mma", **changes: object) -> Run:
    plan = Plan(methods=(method,), seeds=(1,), overrides=QUICK if method == "mma" else {})
    return replace(base_to_novel(plan, ["colours"], shots=2)[0], **changes)  # type: ignore[arg-type]


def test_a_record_holds_what_the_run_was() -> None:
    encoder = tiny_encoder()
    base, novel = execute(one_run(), encoder, colour_loader)
    assert (base.role, novel.role) == ("base", "novel")
    data = colour_loader("colours", shots=2, seed=1, classes="novel")
    assert novel.split_hash == data.split_hash()
    assert novel.classnames_hash == data.classnames_hash() != base.classnames_hash
    assert novel.total == 6
    assert novel.accuracy_pct == pytest.approx(100 * novel.correct / 6)  # type: ignore[operator]
    assert base.run_id == novel.run_id == one_run().id(encoder)
    assert base.config["epochs"] == 1
    assert base.overrides == QUICK
    assert base.recipe == "mma-base-to-novel"
    assert base.template == "a photo of a {}."
    assert base.host_fingerprint == encoder.fingerprint
    assert set(base.versions) == {"torch", "transformers", "pillow", "mma_adapter"}
    assert base.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert len(base.losses) == 1  # 4 pictures, batches of 4, one epoch
    assert base.num_trainable > 0
    assert base.train_seconds > 0
    assert base.test_seconds > 0
    assert base.peak_bytes is None or base.peak_bytes > 10_000_000
    assert np.sum(base.confusion) == base.total
    assert set(base.per_class_accuracy) == {"red", "green"}
    assert base.finished_at.endswith("+00:00")


def test_equal_runs_give_equal_scores_and_losses() -> None:
    first, second = (execute(one_run(), tiny_encoder(), colour_loader) for _ in range(2))
    assert [r.losses for r in first] == [r.losses for r in second]
    assert [r.confusion for r in first] == [r.confusion for r in second]


def test_a_run_leaves_the_host_as_it_was() -> None:
    encoder = tiny_encoder()
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    execute(one_run(), encoder, colour_loader)
    after = encoder.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_method_without_transfer_is_scored_where_the_classes_are_its_own() -> None:
    base, novel = execute(one_run("linear_probe"), tiny_encoder(), colour_loader)
    assert base.accuracy_pct is not None
    assert (novel.correct, novel.accuracy_pct, novel.total) == (None, None, 6)
    run = domain_generalization(
        Plan(methods=("linear_probe",), seeds=(1,)), "colours", ["other colours"], shots=1
    )[0]
    # Another data set with the same class names, as ImageNetV2 is to ImageNet.
    assert all(r.accuracy_pct is not None for r in execute(run, tiny_encoder(), colour_loader))


def test_a_method_is_given_the_shots_and_nothing_of_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list = []

    class Watching(METHODS["zero_shot"]):  # type: ignore[misc]
        def fit(self, encoder, shots, classnames, *, seed):
            seen.append((encoder, shots, classnames))
            return super().fit(encoder, shots, classnames, seed=seed)

    monkeypatch.setitem(execution.METHODS, "zero_shot", Watching)
    encoder = tiny_encoder()
    execute(one_run("zero_shot"), encoder, colour_loader)
    ((given, shots, classnames),) = seen
    assert given.model is not encoder.model
    data = colour_loader("colours", shots=2, seed=1, classes="base")
    assert (shots, classnames) == (data.train, data.classnames)
    assert not set(shots) & set(data.test)


def test_kept_features_and_pictures_give_equal_predictions() -> None:
    encoder = icon_encoder()
    data = icon_loader("nature", shots=1, seed=1, classes="all")
    at = encoder.at("nature", data.template)
    predictor = METHODS["zero_shot"]().fit(at.copy(), data.train, data.classnames, seed=1)
    scorer = predictor.bind(data.classnames, template=data.template)
    by_features = predict(scorer, data, at)
    by_pictures = predict(lambda pixels: scorer(pixels), data, at)
    assert by_features.tolist() == by_pictures.tolist()
    truth = np.array([sample.label for sample in data.test])
    assert (by_features == truth).mean() > 0.5  # of six classes


def test_equal_class_names_stay_apart_in_records_and_the_first_wins() -> None:
    def load(name: str, **how: object) -> Dataset:
        data = colour_loader(name, **how)  # type: ignore[arg-type]
        parts = (
            [replace(s, classname="gray" if s.label == 0 else s.classname) for s in part]
            for part in (data.train, data.test)
        )
        train, test = parts
        return Dataset(name, train, [], test)

    run = few_shot(Plan(methods=("zero_shot",), seeds=(1,)), ["colours"], shots=[1])[0]
    (result,) = execute(run, tiny_encoder(), load)  # type: ignore[arg-type]
    assert list(result.per_class_accuracy) == ["gray", "green", "blue", "gray (3)"]
    assert result.per_class_accuracy["gray (3)"] == 0.0
