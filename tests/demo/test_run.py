"""The demo job on its real pictures, shortened to one epoch, and its recipe."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mma_adapter import MultiModalAdapter, load_mma
from mma_adapter.demo import photographed_objects, run
from mma_adapter.demo.picture import representative
from mma_adapter.demo.run import RECIPE, IconClip, Task, check_reload, run_demo
from mma_adapter.errors import StorageError
from mma_adapter.evaluation import Evaluation

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "demo_recipe.json"


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    """The demo with one epoch, and what it said."""
    folder, said = tmp_path_factory.mktemp("demo") / "new", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "RECIPE", replace(RECIPE, epochs=1))
        threads = torch.get_num_threads()
        result = run_demo(folder, (1, 2), tell=said.append)
        assert torch.get_num_threads() == threads
    return folder, result, said


def test_the_demo_writes_adapter_picture_and_figures(short_demo):
    folder, result, _ = short_demo
    assert {path.name for path in folder.iterdir()} == {"adapter", "predictions.png", "demo.json"}
    assert json.loads((folder / "demo.json").read_text()) == result.to_dict()
    with Image.open(result.picture) as image:
        assert image.size == (1430, 1144)
    config = MultiModalAdapter.from_pretrained(result.adapter).config
    assert config.template == "an icon of a {}."
    assert len(config.classnames) == 30


def test_the_demo_scores_base_and_novel_classes_of_each_seed(short_demo):
    _, result, _ = short_demo
    figures = result.to_dict()
    assert [row["seed"] for row in figures["runs"]] == [1, 2]
    assert figures["pictures"] == {"base_test": 363, "novel_test": 407}
    assert figures["weights"] == 142_080
    for key, mean in figures["mean"].items():
        values = [row[key] for row in figures["runs"]]
        assert mean == pytest.approx(np.mean(values))
        assert figures["std"][key] == pytest.approx(np.std(values))
    # One epoch of twenty already lifts the classes it trains on.
    assert figures["mean"]["base_pct"] > figures["zero_shot"]["base_pct"]


def test_the_demo_says_what_it_finds_before_and_after(short_demo):
    *_, said = short_demo
    starts = ("A small CLIP", "Before", "Training", "After", "Saved", "Training", "After")
    assert len(said) == len(starts)
    assert all(text.startswith(start) for text, start in zip(said, starts, strict=True))


def test_a_reloaded_adapter_that_differs_in_one_weight_is_caught(short_demo):
    _, result, _ = short_demo
    data = photographed_objects(classes="base")
    task = Task((), data.test[:20], data.classnames)
    clip = IconClip()
    load_mma(result.adapter, model=clip.model)
    check_reload(clip, task, result.adapter)
    with torch.no_grad():
        clip.model.mma.vision_up["12"].bias[0] += 1e-3
    with pytest.raises(StorageError, match="expected none"):
        check_reload(clip, task, result.adapter)


def test_the_recipe_is_one_of_those_measured_and_as_good_as_the_best_within_the_error():
    found = json.loads(RESULTS.read_text())
    scores = {json.dumps(row["recipe"]): row["harmonic_mean_pct"] for row in found["settings"]}
    chosen = scores[json.dumps(asdict(RECIPE))]
    assert chosen > max(scores.values()) - 3
    assert chosen > found["zero_shot"]["harmonic_mean_pct"] + 10


def test_the_picture_shows_outcomes_in_their_shares():
    labels = np.zeros(100, dtype=int)
    before = Evaluation(labels, np.array([1] * 50 + [0] * 50), ("a", "b"))
    after = Evaluation(labels, np.array([0] * 25 + [1] * 25 + [0] * 45 + [1] * 5), ("a", "b"))
    chosen = representative(before, after, 20)
    outcomes = [(before.predictions[i] == 0, after.predictions[i] == 0) for i in chosen]
    assert len(set(chosen)) == 20
    assert outcomes == sorted(
        outcomes, key=[(False, True), (True, True), (True, False), (False, False)].index
    )
    assert [outcomes.count(o) for o in [(False, True), (True, True), (True, False)]] == [5, 9, 1]
    assert chosen == representative(before, after, 20)
    assert len(representative(before, after, 500)) == 100
