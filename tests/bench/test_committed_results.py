"""The committed results of the embedded bench: complete, and made of their records alone."""

from pathlib import Path

import pytest

from mma_adapter.analysis import LayerAnalysis, suggest_start_layer
from mma_adapter.bench.comparison import differences_table
from mma_adapter.bench.demo_sets import demo_encoder, demo_runs
from mma_adapter.bench.results import PROTOCOLS, read_results
from mma_adapter.bench.tables import results_table

FOLDER = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def records():
    return read_results(FOLDER / "records.jsonl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("format", "suffix"), [("markdown", "md"), ("latex", "tex"), ("csv", "csv")]
)
def test_tables_are_made_anew_from_the_records(records, protocol, format, suffix):
    table = FOLDER / "tables" / f"{protocol}.{suffix}"
    assert results_table(records, protocol, format=format) == table.read_text("utf-8")


def test_differences_are_made_anew_from_the_records(records):
    for protocol in ("base-to-novel", "cross-dataset", "domain-generalization"):
        table = FOLDER / "tables" / f"{protocol}-differences.md"
        assert differences_table(records, protocol) == table.read_text("utf-8")


def test_every_run_of_the_bench_is_recorded_as_the_code_would_make_it(records):
    """Recipes, data sets or the host that changed since would ask for other runs."""
    encoder = demo_encoder()
    wanted = {key for run in demo_runs() for key in run.keys(encoder)}
    assert {record.key for record in records} == wanted


def test_counts_and_accuracies_agree(records):
    for record in records:
        if record.correct is not None:
            assert record.accuracy_pct == 100 * record.correct / record.total
            assert sum(map(sum, record.confusion)) == record.total
            assert sum(row[i] for i, row in enumerate(record.confusion)) == record.correct


def test_the_suggested_layer_follows_from_the_committed_curves():
    analysis = LayerAnalysis.load(FOLDER / "layers.json")
    assert suggest_start_layer(analysis.towers) == (analysis.start_layer, analysis.reason)
