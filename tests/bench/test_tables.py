"""Tables hold the field's figures, mark what is incomplete, and read the same in four notations."""

import csv
import io
import re
from collections.abc import Mapping

import numpy as np
import pytest

from mma_adapter.bench.comparison import build_differences, differences_table, paired_difference
from mma_adapter.bench.formats import render
from mma_adapter.bench.paper import method_name, published
from mma_adapter.bench.results import Result, ResultsError
from mma_adapter.bench.summary import group
from mma_adapter.bench.tables import build_table, results_table
from mma_adapter.errors import ConfigError
from mma_adapter.metrics import harmonic_mean

from .bench_records import make, runs

CLIP = {row.dataset: row for row in published("base-to-novel") if row.method == "zero_shot"}


MMA = runs("mma", {"dtd": ([80, 82, 84], [60, 61, 62]), "eurosat": ([90, 90, 93], [70, 70, 70])})
COOP = runs("coop", {"dtd": ([78, 78, 78], [64, 64, 64]), "eurosat": ([94, 94, 94], [50, 50, 50])})


def rows_of(table) -> dict[tuple[str, str], tuple]:
    return {(row.block, row.label): row.cells for row in table.rows}


def test_figures_are_means_over_seeds_and_the_average_is_the_hm_of_the_means() -> None:
    rows = rows_of(build_table(MMA, "base-to-novel"))
    assert list(rows) == [("Average of 2", "MMA"), ("dtd", "MMA"), ("eurosat", "MMA")]
    base, novel, hm = (cell.score for cell in rows["dtd", "MMA"])
    assert (base.mean, novel.mean, hm.mean) == (82, 61, harmonic_mean(82, 61))
    assert base.std == pytest.approx(np.std([80, 82, 84]))
    assert hm.std == pytest.approx(
        np.std([harmonic_mean(b, n) for b, n in ((80, 60), (82, 61), (84, 62))])
    )
    base, novel, hm = (cell.score for cell in rows["Average of 2", "MMA"])
    assert (base.mean, novel.mean) == (86.5, 65.5)
    assert hm.mean == harmonic_mean(86.5, 65.5)
    assert base.std == pytest.approx(np.std([85, 86, 88.5]))
    assert all(score.complete and score.seeds == 3 for score in (base, novel, hm))


def test_the_published_zero_shot_rows_give_the_published_average() -> None:
    measured = [
        make("zero_shot", name, role, 1, value, shots=0)
        for name, row in CLIP.items()
        if name != "average"
        for role, value in (("base", row.base), ("novel", row.novel))
    ]
    table = build_table(measured, "base-to-novel", paper=True)
    cells = rows_of(table)["Average of 11", "CLIP"]
    assert [round(cell.score.mean, 2) for cell in cells] == [69.34, 74.22, 71.70]
    blocks = list(dict.fromkeys(row.block for row in table.rows))
    assert blocks[:4] == ["Average of 11", "imagenet", "caltech101", "oxford_pets"]
    assert not any("not to be compared" in note for note in table.notes)
    labels = [row.label for row in table.rows if row.block == "Average of 11"]
    assert labels[:2] == ["CLIP", "CLIP, published"]
    assert labels[-2:] == ["MMA, published", "MMA++, published"]
    for name, row in CLIP.items():
        assert row.hm == pytest.approx(harmonic_mean(row.base, row.novel), abs=0.005), name


def test_every_published_row_is_consistent_and_names_its_source() -> None:
    for protocol in ("base-to-novel", "cross-dataset", "domain-generalization"):
        rows = published(protocol)
        assert len({(row.method, row.dataset) for row in rows}) == len(rows)
        for row in rows:
            assert row.source
            assert row.hm is not None or row.accuracy is not None
            if row.base and row.novel and row.hm:
                expected = 77.78 if row.method == "rpo" else harmonic_mean(row.base, row.novel)
                assert row.hm == pytest.approx(expected, abs=0.011), row
    averages = {row.method: row for row in published("base-to-novel", "average")}
    mma = averages["mma"]
    assert (mma.base, mma.novel, mma.hm) == (83.20, 76.80, 79.87)
    variants = [
        row.accuracy
        for row in published("domain-generalization")
        if row.method == "zero_shot" and row.dataset not in ("average", "imagenet")
    ]
    assert np.mean(variants) == pytest.approx(57.18, abs=0.005)
    assert (method_name("mma"), method_name("my_method")) == ("MMA", "my_method")


def test_the_best_complete_figure_is_bold_and_ties_share_it() -> None:
    cells = rows_of(build_table(MMA + COOP, "base-to-novel", paper=True))
    assert [cell.best for cell in cells["dtd", "MMA"]] == [True, False, False]
    assert [cell.best for cell in cells["dtd", "CoOp"]] == [False, True, True]
    assert not any(
        cell.best for (_, label), row in cells.items() for cell in row if "published" in label
    )
    tied = runs("mma", {"dtd": ([80], [60])}) + runs("coop", {"dtd": ([80], [60])})
    assert all(c.best for row in build_table(tied, "base-to-novel").rows for c in row.cells)
    assert not any(c.best for row in build_table(MMA, "base-to-novel").rows for c in row.cells)


def test_a_missing_seed_is_marked_and_never_bold() -> None:
    short = [r for r in MMA if not (r.dataset == "dtd" and r.role == "novel" and r.seed == 3)]
    table = build_table(short + COOP, "base-to-novel")
    base, novel, hm = rows_of(table)["dtd", "MMA"]
    assert base.score.complete
    assert (novel.score.seeds, novel.score.expected_seeds) == (2, 3)
    assert novel.score.mean == 60.5
    assert not hm.score.complete
    assert not hm.best
    text = render(table)
    assert "60.50 ± 0.50 [2/3 seeds]" in text
    assert "not comparable" in text
    assert "not comparable" not in results_table(MMA + COOP, "base-to-novel")


def test_a_missing_data_set_is_marked_in_the_average() -> None:
    table = build_table(MMA + [r for r in COOP if r.dataset == "eurosat"], "base-to-novel")
    base, novel, hm = rows_of(table)["Average of 2", "CoOp"]
    assert base.score.mean == 94
    assert (base.score.datasets, base.score.expected_datasets) == (1, 2)
    assert not any(cell.best for cell in (base, novel, hm))
    assert "94.00 ± 0.00 [1/2 data sets]" in render(table)
    assert "not run" in render(table)


def test_a_method_that_cannot_transfer_gets_a_dash() -> None:
    probe = runs("linear_probe", {"dtd": ([70, 70, 70], [None] * 3)})
    table = build_table(probe + MMA, "base-to-novel")
    line = next(x for x in render(table).splitlines() if "Linear probe" in x and "dtd" in x)
    assert line == "| **dtd** | Linear probe | 70.00 ± 0.00 | – | – |"
    assert "cannot score classes" in render(table)


def test_zero_shot_needs_one_seed_only() -> None:
    zero = runs("zero_shot", {"dtd": ([50], [60]), "eurosat": ([50], [60])}, shots=0)
    for cells in rows_of(build_table(zero + MMA, "base-to-novel")).values():
        assert all(cell.score.complete for cell in cells)


def test_other_settings_of_a_method_are_other_rows_and_say_what_differs() -> None:
    changed = runs("mma", {"dtd": ([70], [70])}, overrides={"lr": "0.1"})
    host = runs("mma", {"dtd": ([60], [60])}, host="ViT-L/14")
    labels = [row.label for row in build_table(MMA + changed + host, "base-to-novel").rows]
    assert labels[:3] == [
        "MMA (defaults; defaults)",
        "MMA (lr=0.1; defaults)",
        "MMA (defaults; ViT-L/14)",
    ]
    few = runs("mma", {"dtd": ([70], [70])}, shots=4)
    labels = [row.label for row in build_table(MMA + few, "base-to-novel").rows]
    assert labels[:2] == ["MMA (16 shots)", "MMA (4 shots)"]
    # A recipe may change with the data set, as MMA's does on ImageNet, without being another row.
    mixed = runs("mma", {"imagenet": ([70], [70])}, recipe="a") + runs(
        "mma", {"dtd": ([70], [70])}, recipe="b"
    )
    assert {row.label for row in build_table(mixed, "base-to-novel").rows} == {"MMA"}


def test_two_records_for_one_place_are_refused_by_name() -> None:
    twice = [*MMA, make("mma", "dtd", "base", 1, 50.0, versions={"torch": "9"}, run_id="other")]
    with pytest.raises(ResultsError, match=r"mma on dtd \(base, seed 1\).*run_id, versions"):
        build_table(twice, "base-to-novel")


def test_wrong_protocols_and_formats_are_refused() -> None:
    with pytest.raises(ResultsError, match="there are records of: base-to-novel"):
        results_table(MMA, "few-shot")
    with pytest.raises(ResultsError, match="pass one of base-to-novel"):
        results_table(MMA, "zero")  # pyright: ignore
    with pytest.raises(ConfigError, match="markdown, latex, csv, html"):
        results_table(MMA, "base-to-novel", format="pdf")  # pyright: ignore


def transfer(method: str, scores: Mapping[str, float], protocol: str) -> list[Result]:
    return [
        make(
            method,
            name,
            "source" if name == "imagenet" else "target",
            seed,
            value,
            protocol=protocol,
        )
        for name, value in scores.items()
        for seed in (1, 2, 3)
    ]


def test_transfer_tables_average_the_targets_only() -> None:
    results = transfer("mma", {"imagenet": 71.0, "dtd": 40.0, "eurosat": 50.0}, "cross-dataset")
    table = build_table(results, "cross-dataset", paper=True)
    assert table.columns == ("Average of 2 targets", "Source: imagenet", "dtd", "eurosat")
    rows = {row.label: [c.score and c.score.mean for c in row.cells] for row in table.rows}
    assert rows["MMA"] == [45.0, 71.0, 40.0, 50.0]
    assert rows["MMA, published"] == [66.61, 71.00, None, None]
    assert rows["CLIP, published"][0] == 65.15
    assert any("over 10 data sets (caltech101, " in note for note in table.notes)
    domain = transfer("zero_shot", {"imagenet_a": 47.77}, "domain-generalization")
    table = build_table(domain, "domain-generalization", paper=True)
    assert table.rows[1].label == "CLIP, published"
    assert [c.score and c.score.mean for c in table.rows[1].cells] == [57.18, 47.77]


def test_few_shot_tables_have_a_column_for_each_number_of_shots() -> None:
    results = [
        make("mma", name, "all", seed, 50.0 + shots, shots=shots, protocol="few-shot")
        for name in ("dtd", "eurosat")
        for seed in (1, 2)
        for shots in (16, 1, 4)
    ]
    results += [
        make("zero_shot", name, "all", 1, 45.0, shots=0, protocol="few-shot")
        for name in ("dtd", "eurosat")
    ]
    table = build_table(results, "few-shot")
    assert table.columns == ("0 shots", "1 shot", "4 shots", "16 shots")
    cells = rows_of(table)["Average of 2", "MMA"]
    assert [c.score and c.score.mean for c in cells] == [None, 51, 54, 66]
    assert "| **dtd** | MMA |  | 51.00 ± 0.00 |" in render(table)


def test_ablation_tables_have_a_block_for_each_setting_in_order_of_its_values() -> None:
    results: list[Result] = []
    config = {"scale": 0.001, "towers": ["text", "vision"]}
    variants = {"scale=0.1": 3, "scale=0.0005": 2, "towers=text": 1, "": 0}
    for variant, gain in variants.items():
        more = {"variant": variant, "protocol": "ablation", "config": config}
        results += runs("mma", {"dtd": ([60 + gain], [50])}, **more)
    table = build_table(results, "ablation")
    assert [(row.block, row.label) for row in table.rows] == [
        ("scale: dtd", "0.0005"),
        ("scale: dtd", "0.001 (default)"),
        ("scale: dtd", "0.1"),
        ("towers: dtd", "text"),
        ("towers: dtd", "text,vision (default)"),
    ]
    assert [row.cells[0].best for row in table.rows] == [False, False, True, True, False]


def test_csv_holds_full_precision_and_html_and_latex_escape() -> None:
    odd = runs("a_b&<c>", {"dtd": ([100 / 3, 50], [50, 50])})
    text = results_table(odd, "base-to-novel", format="csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert float(row["Base"]) == np.mean([100 / 3, 50])
    assert (row["Base seeds"], row["Base datasets"], row["published"]) == ("2", "1", "no")
    page = results_table(odd, "base-to-novel", format="html")
    assert "<td>a_b&amp;&lt;c&gt;</td>" in page
    assert page.count("<tr") == page.count("</tr>") == 2
    latex = results_table(odd, "base-to-novel", format="latex")
    assert r"dtd & a\_b\&<c> & 41.67$\pm$8.33" in latex.replace(" $", "$").replace("$ ", "$")
    assert latex.count("{") == latex.count("}")
    short = [r for r in MMA if not (r.dataset == "dtd" and r.seed == 3)]
    assert "{[}2/3 seeds]" in results_table(short, "base-to-novel", format="latex")


def test_markdown_rows_have_one_cell_per_column() -> None:
    text = results_table(MMA + COOP, "base-to-novel", paper=True)
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {6}
    assert re.search(r"\| \*\*Average of 2\*\* \| MMA \| \*\*86.50 ± 1.47\*\* \|", text)


def test_the_bootstrap_interval_resamples_data_sets_and_seeds() -> None:
    table = build_differences(MMA + COOP, "base-to-novel", baseline="coop")
    assert table.columns == ("Base", "Novel", "HM")
    lines = group(MMA + COOP, lambda result: result.role)
    base = paired_difference(lines[0], lines[1], ["dtd", "eurosat"], "base")
    assert base is not None
    assert base.mean == pytest.approx((4 - 3) / 2)
    assert (base.pairs, base.datasets) == (6, 2)
    assert -4 <= base.low < base.mean < base.high <= 6
    assert base == paired_difference(lines[0], lines[1], ["dtd", "eurosat"], "base")
    # One data set whose gaps are 2, 4, 6: a resample of all-equal seeds has probability 1/27 each,
    # more than 2.5 %, so the interval ends at the extremes.
    single = paired_difference(lines[0], lines[1], ["dtd"], "base")
    assert single is not None
    assert (single.low, single.mean, single.high) == (2, 4, 6)
    # Constant gaps within each data set: only the drawn data sets matter, -4 or 20 or 8.
    novel = paired_difference(lines[1], lines[0], ["eurosat"], "novel")
    assert novel is not None
    assert (novel.low, novel.mean, novel.high) == (-20, -20, -20)


def test_zero_shot_is_paired_with_every_seed() -> None:
    zero = runs("zero_shot", {"dtd": ([50], [60]), "eurosat": ([50], [60])}, shots=0)
    table = differences_table(zero + MMA, "base-to-novel")
    assert "| MMA | +36.50 [" in table
    assert "data sets are resampled" in table
    with pytest.raises(ResultsError, match="pass one of mma"):
        differences_table(MMA, "base-to-novel")
