"""Published results to print beside one's own: `paper_numbers.json`, read into typed rows.

All rows are CLIP ViT-B/16, 16 shots, means over 3 seeds; each names where its numbers come from.
What no source at hand gives is left out: the MMA paper's rows of single data sets and its ablation
curves are not among them.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

AVERAGE = "average"
"""Name of the average over data sets (of the targets, in transfer protocols)."""


@dataclass(frozen=True)
class Published:
    """One published row, in per cent; None where the source does not print a number.

    Args:
        protocol: One of `bench.results.PROTOCOLS`.
        method: Name of the method in this library, such as `"zero_shot"`.
        dataset: Name of the data set, or `"average"`.
        source: Where the numbers were read.
        base: Accuracy on base classes.
        novel: Accuracy on novel classes.
        hm: Harmonic mean, as printed.
        accuracy: Accuracy, in protocols without base and novel classes.
    """

    protocol: str
    method: str
    dataset: str
    source: str
    base: float | None = None
    novel: float | None = None
    hm: float | None = None
    accuracy: float | None = None

    @property
    def name(self) -> str:
        """Name of the method in papers, such as `"CLIP"`."""
        return method_name(self.method)


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    text = resources.files("mma_adapter.bench").joinpath("paper_numbers.json").read_text("utf-8")
    return json.loads(text)


def method_name(method: str) -> str:
    """Return the name papers use for a method, or its own name if it is in no paper."""
    return _file()["names"].get(method, method)


def published_host() -> str:
    """Return the base model of all published rows."""
    return _file()["host"]


def averaged_datasets(protocol: str) -> list[str]:
    """Return the data sets the published averages of a protocol are over."""
    return list(_file()["averaged"].get(protocol, []))


def published(protocol: str, dataset: str | None = None) -> list[Published]:
    """Return the published rows of a protocol, of one data set or of all, in the file's order."""
    sources = _file()["sources"]
    return [
        Published(**{**row, "source": sources[row["source"]]})
        for row in _file()["rows"]
        if row["protocol"] == protocol and dataset in (None, row["dataset"])
    ]
