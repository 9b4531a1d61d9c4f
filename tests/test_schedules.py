"""Learning rates equal those of the reference implementation, epoch by epoch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mma_adapter.errors import ConfigError
from mma_adapter.schedules import Schedule, learning_rate, make_scheduler

CASES = json.loads((Path(__file__).parent / "golden/data/lr.json").read_text())["cases"]


def schedule_of(config: dict[str, Any]) -> Schedule:
    """Translate the reference implementation's options."""
    epochs, steps = config["MAX_EPOCH"], config["STEPSIZE"]
    milestones: tuple[int, ...] = ()
    if config["LR_SCHEDULER"] == "multi_step":
        milestones = tuple(steps)
    elif config["LR_SCHEDULER"] == "single_step":
        every = steps[-1] if steps[-1] > 0 else epochs
        milestones = tuple(range(every, epochs + 1, every))
    return Schedule(
        decay="cosine" if config["LR_SCHEDULER"] == "cosine" else "step",
        warmup_epochs=max(0, config["WARMUP_EPOCH"]),
        warmup=config["WARMUP_TYPE"],
        warmup_lr=config["WARMUP_CONS_LR"],
        recount=config["WARMUP_RECOUNT"],
        milestones=milestones,
        gamma=config["GAMMA"],
    )


def optimizer_of(case: dict[str, Any]) -> torch.optim.Optimizer:
    rates = [rate or case["config"]["LR"] for rate in case["group_lr"] or [None]]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=case["config"]["LR"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_rates_equal_the_reference_in_every_epoch_and_after_the_last(case: dict[str, Any]) -> None:
    config, full = case["config"], case["group_lr"]
    rates = [r or config["LR"] for r in full or [None]]
    schedule, epochs = schedule_of(config), config["MAX_EPOCH"]

    found = [
        [learning_rate(epoch, rate, epochs, schedule) for rate in rates]
        for epoch in range(epochs + 1)
    ]

    expected = [*case["lr"], case["lr_after_last_epoch"]]
    assert found == [
        pytest.approx(e if isinstance(e, list) else [e], rel=1e-9, abs=1e-18) for e in expected
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_scheduler_changes_all_groups_with_the_last_step_of_an_epoch(
    case: dict[str, Any],
) -> None:
    optimizer, epochs = optimizer_of(case), case["config"]["MAX_EPOCH"]
    scheduler = make_scheduler(optimizer, epochs, 3, schedule_of(case["config"]))

    for expected in case["lr"]:
        expected = expected if isinstance(expected, list) else [expected]
        for _ in range(3):
            assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            scheduler.step()


def test_the_default_is_the_papers_cosine() -> None:
    rates = [learning_rate(epoch, 0.0015, 5) for epoch in range(5)]

    assert rates == pytest.approx([1.5e-3, 1.3568e-3, 9.818e-4, 5.182e-4, 1.432e-4], rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"decay": "linear"}, {"warmup": "cosine"}, {"warmup_epochs": -1}, {"warmup_lr": float("nan")}],
)
def test_wrong_values_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Schedule(**wrong)
