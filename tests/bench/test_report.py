"""The report holds every table, picture and record, and needs nothing outside its folder."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mma_adapter.analysis import LayerAnalysis, LayerScores
from mma_adapter.bench.report import write_report
from mma_adapter.bench.results import Result, ResultsError, read_results

from .bench_records import make, runs

pytest.importorskip("matplotlib")

ODD = "<b>cats & dogs</b>"


class Page(HTMLParser):
    """Collects links, sources and open elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values[key] or "" for key in ("href", "src") if key in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def every_protocol() -> list[Result]:
    config = {"scale": 0.001, "loop": {"lr": 0.0015}}
    more = {
        "per_class_accuracy": {"cat": 60.0, "dog": 40.0},
        "config": config,
        "recipe": "mma-base-to-novel",
        "versions": {"torch": "9.9.9"},
        "host": "openai/clip",
        "template": ("a {}.", "the {}."),
        "finished_at": "2030-01-01T00:00:00+00:00",
        "train_peak_bytes": 3 * 2**20,
    }
    results = runs("mma", {"dtd": ([80, 82], [60, 61]), ODD: ([50, 51], [52, 53])}, **more)
    zero = {"dtd": ([50], [60]), ODD: ([40], [41])}
    results += runs("zero_shot", zero, shots=0, **{**more, "recipe": "", "config": {}})
    for name in ("imagenet", "dtd", "imagenet_a"):
        role = "source" if name == "imagenet" else "target"
        kind = "domain-generalization" if name == "imagenet_a" else "cross-dataset"
        results += [make("mma", name, role, s, 40.0 + s, protocol=kind) for s in (1, 2)]
    few = {"protocol": "few-shot", "confusion": ((3, 1), (2, 2)), **more}
    results += [
        make("mma", "dtd", "all", s, 50.0 + k, shots=k, **few) for s in (1, 2) for k in (1, 4)
    ]
    for variant in ("", "scale=0.01"):
        changed = {"variant": variant, "protocol": "ablation", "config": config}
        results += runs("mma", {"dtd": ([70], [60])}, **changed)
    return results


def layers() -> LayerAnalysis:
    scores = tuple(LayerScores(i, 10.0 * i, 50.0, 20.0) for i in (1, 2, 3))
    towers = {"text": scores, "vision": scores}
    return LayerAnalysis("clip", ("a", "b"), (4, 4), 16, 1, towers, (1.0, 0.9, 0.8), 2, "Because.")


def test_the_report_shows_every_protocol_and_is_self_contained(tmp_path: Path) -> None:
    results = every_protocol()
    index = write_report(
        results, tmp_path, title="My runs", analysis=layers(), remarks=["seed 3 is missing"]
    )
    text = index.read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://", text)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (tmp_path / link).is_file(), link
    for heading in (
        "Base-to-novel",
        "Cross-dataset",
        "Domain gen",
        "Few-shot",
        "Ablation",
        "Layers",
    ):
        assert heading in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "base-novel-plane.svg",
        "few-shot-curves.svg",
        "ablation-curves.svg",
        "layers.svg",
        "base-to-novel-dtd-classes.svg",
        "base-to-novel-_b_cats_dogs_b_-classes.svg",
        "few-shot-dtd-confusion.svg",
    }
    assert "seed 3 is missing" in text
    assert "Because." in text


def test_everything_in_the_records_can_be_found_in_the_report(tmp_path: Path) -> None:
    results = every_protocol()
    text = write_report(results, tmp_path).read_text("utf-8")
    for needle in (
        "torch=9.9.9",
        "openai/clip",
        "2 templates: a {}. / the {}.",
        "mma-base-to-novel",
    ):
        assert needle in text
    assert "&quot;lr&quot;: 0.0015" in text
    assert "(scale=0.01)" in text
    assert text.count("<tr><td>") >= len(results)
    assert "published" in text
    assert "bootstrap" in text
    assert read_results(tmp_path / "records.jsonl") == results


def test_names_from_records_cannot_break_the_page(tmp_path: Path) -> None:
    text = write_report(every_protocol(), tmp_path, title=ODD).read_text("utf-8")
    assert ODD not in text
    assert "&lt;b&gt;cats &amp; dogs&lt;/b&gt;" in text


def test_the_same_records_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(every_protocol(), tmp_path / name, analysis=layers())
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), (
            file
        )


def test_methods_that_do_not_transfer_do_not_stop_the_report(tmp_path: Path) -> None:
    probe = runs("linear_probe", {"dtd": ([70, 71], [None, None])})
    text = write_report(probe, tmp_path).read_text("utf-8")
    assert "–" in text
    assert list((tmp_path / "figures").iterdir()) == []


def test_published_rows_stand_beside_published_data_sets_only(tmp_path: Path) -> None:
    own = runs("mma", {"my-photos": ([70, 71], [60, 61])})
    assert "MMA, published" not in write_report(own, tmp_path).read_text("utf-8")
    known = runs("mma", {"dtd": ([70, 71], [60, 61])})
    assert "MMA, published" in write_report(own + known, tmp_path).read_text("utf-8")


def test_no_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="run a protocol first"):
        write_report([], tmp_path / "new")
    assert not (tmp_path / "new").exists()
