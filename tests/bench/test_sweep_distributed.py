"""Two processes of one launch make each run together, and one of them records it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mma_adapter.bench.results import read_results

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.bench.tiny import colour_loader, tiny_encoder
from mma_adapter.bench.protocols import Plan, base_to_novel
from mma_adapter.bench.sweep import run_sweep

plan = Plan(methods=("zero_shot", "mma"), seeds=(1,), overrides={"epochs": "2", "batch_size": "4"})
runs = base_to_novel(plan, ["colours"], shots=2)
assert run_sweep(runs, tiny_encoder(), colour_loader, sys.argv[1]).executed == 2
"""


def launch(tmp_path: Path, processes: int) -> list:
    script, path = tmp_path / "sweep.py", tmp_path / f"{processes}.jsonl"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--master_port", "29541", str(script), str(path), root],
        env=environment,
        check=True,
        timeout=300,
    )
    return read_results(path)


def test_a_batch_divided_among_two_processes_leaves_the_records_of_one(tmp_path: Path) -> None:
    one, two = launch(tmp_path, 1), launch(tmp_path, 2)
    assert len(two) == len(one) == 4
    assert [r.key for r in two] == [r.key for r in one]
    for alone, shared in zip(one, two, strict=True):
        assert len(shared.losses) == len(alone.losses)
        assert shared.confusion == alone.confusion
