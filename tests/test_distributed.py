"""Two processes: DistributedDataParallel and fully sharded weights, over gloo on the CPU.

One pair of processes runs everything and leaves its numbers in files, which the tests then read.
"""

import contextlib
import datetime
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import build_batch, build_host
from torch import nn

from mma_adapter import MultiModalAdapter, inject_mma
from mma_adapter.backbones import describe

WORLD, LIMIT_SECONDS = 2, 120


def adapted_host():
    return inject_mma(build_host("clip"), 3, bottleneck_dim=8, scale=0.5, seed=0)


def joint_batch():
    return build_batch(build_host("clip"), images=4)


def train_step(run, model, rows, labels):
    """Take one SGD step on the given rows of the joint batch; return the loss."""
    batch = joint_batch()
    batch["pixel_values"] = batch["pixel_values"][rows]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    loss = F.cross_entropy(run(**batch).logits_per_image, labels)
    loss.backward()
    grads = {name: p.grad for name, p in model.mma.named_parameters()}
    optimizer.step()
    return grads


def full(tensors):
    """Gather sharded tensors; every process must call it."""
    return {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()
        for name, t in tensors.items()
    }


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=LIMIT_SECONDS),
    )
    rows = slice(2 * rank, 2 * rank + 2)
    labels = torch.arange(4)[rows]
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        run_ddp(rank, Path(folder), rows, labels)
        run_fsdp(rank, Path(folder), rows, labels)


def run_ddp(rank, folder, rows, labels):
    model = adapted_host()
    grads = train_step(nn.parallel.DistributedDataParallel(model), model, rows, labels)
    torch.save((grads, dict(model.mma.state_dict())), folder / f"ddp-{rank}.pt")
    if rank == 0:
        model.mma.save_pretrained(folder / "ddp")


def run_fsdp(rank, folder, rows, labels):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    model = adapted_host()
    for parts in describe(model).towers.values():
        for layer in parts.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model.mma, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})  # scalars cannot be split
    grads = full(train_step(model, model, rows, labels))
    local = sum(p.to_local().numel() for p in model.mma.parameters())
    model.mma.save_pretrained(folder / "fsdp")
    torch.save((grads, full(model.mma.state_dict()), local), folder / f"fsdp-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    processes = mp.spawn(worker, (str(folder),), nprocs=WORLD, join=False)
    deadline = time.monotonic() + LIMIT_SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "the processes did not finish in time"
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    return folder


@pytest.fixture(scope="module")
def alone():
    """Gradients and weights of one process on the joint batch."""
    model = adapted_host()
    grads = train_step(model, model, slice(0, 4), torch.arange(4))
    return grads, dict(model.mma.state_dict())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_the_joint_batch(folder, alone, kind):
    expected_grads, expected_weights = alone
    for rank in range(WORLD):
        grads, weights, *_ = torch.load(folder / f"{kind}-{rank}.pt", weights_only=True)
        assert_equal(grads, expected_grads)
        assert_equal(weights, expected_weights)


def test_each_process_holds_a_part_of_a_sharded_adapter(folder):
    parts = [torch.load(folder / f"fsdp-{r}.pt", weights_only=True)[2] for r in range(WORLD)]
    assert sum(parts) == adapted_host().mma.config.num_weights
    assert min(parts) > 0


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_saved_adapter_is_whole(folder, kind):
    _, weights, *_ = torch.load(folder / f"{kind}-0.pt", weights_only=True)
    saved = MultiModalAdapter.from_pretrained(folder / kind)
    assert saved.config == adapted_host().mma.config
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
