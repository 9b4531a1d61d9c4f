"""Pictures show the figures of the tables, with units on their axes, and nothing outside them."""

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from mma_adapter.bench import plots
from mma_adapter.bench.results import Result, ResultsError

from .bench_records import make, runs

pytest.importorskip("matplotlib")

MMA = runs("mma", {"dtd": ([80, 82, 84], [60, 61, 62]), "eurosat": ([90, 90, 93], [70, 70, 70])})
ZERO = runs("zero_shot", {"dtd": ([50], [60]), "eurosat": ([50], [60])}, shots=0)
PROBE = runs("linear_probe", {"dtd": ([70] * 3, [None] * 3)})


def texts(figure) -> set[str]:
    """Every text a reader of the picture sees."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return {artist.get_text() for artist in found if artist.get_visible()} - {""}


def test_the_plane_puts_each_method_at_its_averages() -> None:
    figure = plots.base_novel_plane(MMA + ZERO + PROBE)
    (axes,) = figure.axes
    points = {c.get_label(): c.lines[0].get_xydata()[0].tolist() for c in axes.containers}
    assert points == {"MMA": [86.5, 65.5], "CLIP": [50, 60]}
    seen = texts(figure)
    assert {"MMA", "CLIP", "Base accuracy (%), mean of 2 data sets"} <= seen
    assert any(text.startswith("HM ") for text in seen)
    assert "CoOp" not in seen
    assert {"CoOp", "MMA++"} & texts(plots.base_novel_plane(MMA, paper=True)) == {"CoOp"}


def test_curves_of_equal_hm_have_that_hm() -> None:
    (axes,) = plots.base_novel_plane(MMA + ZERO).axes
    curves = [line.get_xydata() for line in axes.lines if line.get_color() == "#BBBBBB"]
    assert len(curves) >= 3
    for points in curves:
        hm = 2 * points[:, 0] * points[:, 1] / points.sum(1)
        assert np.ptp(hm) < 1e-9
        assert hm[0] == pytest.approx(round(hm[0]))


def test_a_plane_without_novel_accuracies_is_refused() -> None:
    with pytest.raises(ResultsError, match="run one that transfers"):
        plots.base_novel_plane(PROBE)


def test_an_incomplete_method_says_so_in_the_legend() -> None:
    short = [r for r in MMA if not (r.dataset == "dtd" and r.seed == 3)]
    other = runs("coop", {"dtd": ([80] * 3, [60] * 3), "eurosat": ([80] * 3, [60] * 3)})
    assert "MMA (incomplete)" in texts(plots.base_novel_plane(short + other))


def few_shot() -> list[Result]:
    results = [
        make("mma", name, "all", seed, 50.0 + shots + seed, shots=shots, protocol="few-shot")
        for name in ("dtd", "eurosat")
        for seed in (1, 3)
        for shots in (1, 4, 16)
    ]
    zero = {"shots": 0, "protocol": "few-shot"}
    return results + [make("zero_shot", n, "all", 1, 45.0, **zero) for n in ("dtd", "eurosat")]


def test_few_shot_curves_have_a_panel_for_the_average_and_each_data_set() -> None:
    figure = plots.few_shot_curves(few_shot())
    assert [a.get_title() for a in figure.axes] == ["Average of 2 data sets", "dtd", "eurosat"]
    for axes in figure.axes:
        line = next(line for line in axes.lines if line.get_label() == "MMA")
        assert line.get_xydata().tolist() == [[1, 53], [4, 56], [16, 68]]
        band = axes.collections[0].get_paths()[0].get_extents()
        assert (band.ymin, band.ymax) == (52, 69)  # one standard deviation, 1, either way
        assert axes.get_xlabel() == "Shots (pictures per class)"
        zero = next(line for line in axes.lines if line.get_label() == "CLIP")
        assert set(zero.get_ydata()) == {45}


def test_incomplete_points_of_a_curve_are_left_out() -> None:
    results = [r for r in few_shot() if not (r.dataset == "dtd" and r.shots == 4 and r.seed == 3)]
    figure = plots.few_shot_curves(results)
    curves = [next(x for x in axes.lines if x.get_label() == "MMA") for axes in figure.axes]
    assert [curve.get_xdata().tolist() for curve in curves] == [[1, 16], [1, 16], [1, 4, 16]]


def ablation() -> list[Result]:
    config = {"scale": 0.001, "towers": ["text", "vision"]}
    results: list[Result] = []
    for variant, gain in {"": 0, "scale=0.1": 3, "scale=0.0001": 2, "towers=text": 1}.items():
        more = {"variant": variant, "protocol": "ablation", "config": config}
        results += runs("mma", {"dtd": ([60 + gain] * 2, [50, 52])}, **more)
    return results


def test_ablation_curves_run_over_the_values_in_order_through_the_default() -> None:
    figure = plots.ablation_curves(ablation())
    assert [axes.get_xlabel() for axes in figure.axes] == ["scale", "towers"]
    scale, towers = figure.axes
    assert [t.get_text() for t in scale.get_xticklabels()] == ["0.0001", "0.001", "0.1"]
    assert [t.get_text() for t in towers.get_xticklabels()] == ["text", "text +\nvision"]
    curves = {c.get_label(): c.lines[0] for c in scale.containers}
    assert curves["Base"].get_ydata().tolist() == [62, 60, 63]
    assert curves["Novel"].get_ydata().tolist() == [51, 51, 51]
    assert set(curves) == {"Base", "Novel", "HM"}
    assert "the authors' choice" in texts(figure)
    # Words have no order, so no line joins them.
    assert {c.lines[0].get_linestyle() for c in towers.containers} == {"None"}


def by_class(method: str, accuracies: dict[str, float], seed: int = 1) -> Result:
    return make(
        method, "dtd", "all", seed, 50.0, protocol="few-shot", per_class_accuracy=accuracies
    )


def test_per_class_change_is_the_difference_of_the_means_in_order() -> None:
    results = [
        by_class("zero_shot", {"cat": 50.0, "dog": 50.0, "owl": 50.0}),
        by_class("mma", {"cat": 80.0, "dog": 40.0, "owl": 50.0}, 1),
        by_class("mma", {"cat": 70.0, "dog": 30.0, "owl": 60.0}, 2),
    ]
    (axes,) = plots.per_class_change(results, "mma", "dtd").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["dog", "owl", "cat"]
    assert [bar.get_width() for bar in axes.patches] == [-15, 5, 25]
    with pytest.raises(ResultsError, match="coop on dtd"):
        plots.per_class_change(results, "coop", "dtd")


def test_many_classes_are_cut_to_those_that_change_most() -> None:
    names = [f"class {i}" for i in range(101)]
    gains = {name: float(i) for i, name in enumerate(names)}
    results = [by_class("zero_shot", dict.fromkeys(names, 0.0)), by_class("mma", gains)]
    figure = plots.per_class_change(results, "mma", "dtd")
    (axes,) = figure.axes
    shown = [t.get_text() for t in axes.get_yticklabels()]
    assert shown == names[:20] + names[-20:]
    assert "40 of 101 classes" in axes.get_title()


def test_confusion_is_drawn_in_per_cent_of_the_true_class() -> None:
    result = make(
        "mma",
        "dtd",
        "all",
        1,
        75.0,
        protocol="few-shot",
        confusion=((3, 1), (0, 0)),
        per_class_accuracy={"cat": 75.0, "dog": 0.0},
    )
    figure = plots.confusion_matrix(result)
    image = figure.axes[0].images[0].get_array()
    assert np.asarray(image).tolist() == [[75, 25], [0, 0]]
    assert {"cat", "dog", "True class", "Predicted class"} <= texts(figure)
    with pytest.raises(ResultsError, match="holds no confusion"):
        plots.confusion_matrix(MMA[0])


def test_the_legend_covers_no_panel_and_tick_labels_do_not_overlap() -> None:
    for figure in (
        plots.base_novel_plane(MMA + ZERO, paper=True),
        plots.few_shot_curves(few_shot()),
        plots.ablation_curves(ablation()),
    ):
        figure.savefig(io.BytesIO(), format="png", dpi=60)
        (legend,) = figure.legends
        box = legend.get_window_extent()
        for axes in figure.axes:
            assert not box.overlaps(axes.get_tightbbox())
            labels = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
            for left, right in pairwise(labels):
                assert not left.overlaps(right)


def test_importing_plots_does_not_import_matplotlib() -> None:
    code = "import sys, mma_adapter.bench.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
