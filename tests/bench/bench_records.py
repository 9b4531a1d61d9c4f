"""Records for tests of tables, plots and reports."""

from collections.abc import Mapping

from mma_adapter.bench.results import Result


def make(method: str, dataset: str, role: str, seed: int, accuracy: float | None, **more: object):
    values: dict = {
        "run_id": f"{method}-{dataset}-{seed}-{more}",
        "protocol": "base-to-novel",
        "shots": 16,
        "total": 1000,
        "correct": None if accuracy is None else round(10 * accuracy),
        "accuracy_pct": accuracy,
    }
    values |= {"method": method, "dataset": dataset, "role": role, "seed": seed, **more}
    return Result(**values)


def runs(method: str, scores: Mapping[str, tuple], **more: object) -> list[Result]:
    """Records of (base, novel) accuracies per data set, each a list over the seeds 1, 2, ..."""
    return [
        make(method, dataset, role, seed, value, **more)
        for dataset, pair in scores.items()
        for role, values in zip(("base", "novel"), pair, strict=True)
        for seed, value in enumerate(values, 1)
    ]
