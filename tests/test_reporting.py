"""The report of a training run: what it says, and what it does without matplotlib."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from mma_adapter.evaluation import Evaluation
from mma_adapter.reporting import class_changes, write_report

NAMES = ("cat", "<b>dog</b>", "fox & co")


def evaluation(predictions):
    return Evaluation(np.array([0, 0, 1, 1, 1, 2]), np.array(predictions), NAMES)


BEFORE, AFTER = evaluation([0, 1, 0, 0, 1, 2]), evaluation([0, 0, 1, 1, 2, 0])


def report(folder, **options):
    return write_report(folder, BEFORE, AFTER, title="pets", facts={"shots": 4}, **options)


def test_changes_are_differences_of_accuracies_by_class():
    changes = class_changes(BEFORE, AFTER)
    assert [c.classname for c in changes] == list(NAMES)
    assert [c.pictures for c in changes] == [2, 3, 1]
    assert [c.zero_shot_pct for c in changes] == pytest.approx([50, 100 / 3, 100])
    assert [c.change for c in changes] == pytest.approx([50, 100 / 3, -100])


def test_a_class_without_test_pictures_is_left_out():
    names = (*NAMES, "owl")
    before, after = (Evaluation(e.labels, e.predictions, names) for e in (BEFORE, AFTER))
    assert [c.classname for c in class_changes(before, after)] == list(NAMES)


def test_metrics_hold_figures_classes_confusion_losses_and_facts(tmp_path):
    report(tmp_path, losses=[2.0, 1.5])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["title"] == "pets"
    assert metrics["shots"] == 4
    assert metrics["zero_shot"]["correct"] == 3
    assert metrics["adapted"]["correct"] == 4
    assert metrics["adapted"]["total"] == 6
    assert metrics["confusion"] == [[2, 0, 0], [0, 2, 1], [1, 0, 0]]
    assert metrics["classes"][2]["change"] == -100
    assert metrics["losses"] == [2.0, 1.5]


def test_the_page_shows_every_picture_that_was_written_and_escapes_names(tmp_path):
    files = report(tmp_path / "new")
    page = files[0].read_text()
    assert files[0].name == "index.html"
    assert "50.0 % → 66.7 %" in page
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "<b>dog</b>" not in page
    assert "fox &amp; co" in page
    for picture in (file for file in files if file.suffix == ".png"):
        assert f'src="{picture.name}"' in page
        with Image.open(picture) as image:
            assert min(image.size) > 200
    assert {file.name for file in files} == {path.name for path in (tmp_path / "new").iterdir()}


def test_many_classes_still_give_pictures(tmp_path):
    labels = np.arange(120)
    names = tuple(f"class {n}" for n in labels)
    before = Evaluation(labels, np.zeros(120, dtype=int), names)
    files = write_report(
        tmp_path, before, Evaluation(labels, labels, names), title="many", facts={}
    )
    assert len([file for file in files if file.suffix == ".png"]) == 2


def test_without_matplotlib_the_figures_are_there_and_the_page_says_how_to_get_pictures(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files = report(tmp_path)
    assert [file.name for file in files] == ["index.html", "metrics.json"]
    assert "pip install &#x27;mma-adapter[report]&#x27;" in files[0].read_text() or (
        "pip install 'mma-adapter[report]'" in files[0].read_text()
    )
    assert "<img" not in files[0].read_text()
