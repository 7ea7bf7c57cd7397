"""What the ranks of one job tell each other: every collective is here, and with one rank none of them does anything.

torchrun starts the ranks. Model, averaged model, optimiser, the guard's memory and the treatment are the same on all of
them, bit for bit; chains belong to a rank. A rank that waits for another's step gives up after `JEMSTONE_TIMEOUT`
seconds; what a rank does alone, as measuring or writing a checkpoint, is waited for through a group of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from jemstone.errors import CheckpointError, ConfigError, RankError
from jemstone.training.checkpoint import Checkpoint

T = TypeVar("T")
GRACE = 10.0
"""Seconds that rank 0 has to explain what is wrong on all ranks; torchrun then ends the others."""
CHAINS = ("buffer/x", "buffer/age")
LARGEST = ("chain_max",)
"""Metrics that are a maximum, over ranks as well; the others are means."""


def world_size() -> int:
    """How many ranks torchrun started; 1 without it."""
    return _of_torchrun("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this process is; 0 without torchrun."""
    return _of_torchrun("RANK", 0)


def local_rank() -> int:
    """Which of the ranks on its machine this process is, and so which of its GPUs it uses."""
    return _of_torchrun("LOCAL_RANK", 0)


def restarts() -> int:
    """How often torchrun has started these ranks again after a failure (`--max-restarts`)."""
    return _of_torchrun("TORCHELASTIC_RESTART_COUNT", 0)


def let_first_speak() -> None:
    """Wait, on a rank that failed: where rank 0 failed alike it explains that, and torchrun ends this process."""
    time.sleep(GRACE)


def launch(accelerator: str) -> Fabric:
    """This process joined to the others that torchrun started: gloo on CPUs, NCCL on GPUs."""
    on_machine = _of_torchrun("LOCAL_WORLD_SIZE", 1)
    if world_size() % on_machine:
        raise ConfigError("torchrun started more ranks on some machines than on others: use one --nproc-per-node.")
    gpus = torch.cuda.device_count() if accelerator != "cpu" else 0
    if 0 < gpus < on_machine:
        raise ConfigError(f"torchrun started {on_machine} ranks on a machine of {gpus} GPUs: --nproc-per-node {gpus}.")
    alone = on_machine == world_size()
    if not alone and _of_torchrun("TORCHELASTIC_MAX_RESTARTS", 0) and _shares_store():
        raise ConfigError(
            "With --max-restarts on several machines, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun: otherwise "
            "ranks that are started again find the addresses of dead ones."
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=on_machine,
        num_nodes=world_size() // on_machine,
        strategy=DDPStrategy(timeout=timedelta(seconds=_timeout())),
        plugins=[TorchElasticEnvironment()],
    )
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces what was asked for
    try:
        with _together():
            if not distributed.is_initialized():
                _meet(fabric.device, f"attempt {restarts() if alone else 0}")
            fabric.launch()
            _patient()
    finally:
        logger.setLevel(level)
    return fabric


def of_rank(fabric: Fabric) -> tuple[int, ...]:
    """What a random stream's position ends in. Rank 0 has the streams of a run on one device."""
    return (fabric.global_rank,) if fabric.global_rank else ()


def from_first(make: Callable[[], T], fabric: Fabric) -> T:
    """What `make` returns on rank 0, on every rank; the others do not call it, and wait."""
    if fabric.world_size == 1:
        return make()
    told: list[T | None] = [make() if fabric.is_global_zero else None]
    with _together():
        distributed.broadcast_object_list(told, src=0, group=_patient())
    return told[0]  # type: ignore[return-value]


def gather(value: T, fabric: Fabric, *, patient: bool = True) -> list[T]:
    """The `value` of every rank, in their order, on every rank; any object that can be pickled."""
    if fabric.world_size == 1:
        return [value]
    values: list[T | None] = [None] * fabric.world_size
    with _together():
        distributed.all_gather_object(values, value, group=_patient() if patient else None)
    return values  # type: ignore[return-value]


def require_same(value: object, what: str, fabric: Fabric) -> None:
    """Raise ConfigError, on every rank, where `value` is not the same on all."""
    if any(other != value for other in gather(value, fabric)):
        raise ConfigError(f"The {fabric.world_size} ranks have not the same {what}. Give every machine the same.")


def wait(fabric: Fabric) -> None:
    """Go on when all ranks have got here, however long they take."""
    if fabric.world_size > 1:
        with _together():
            distributed.barrier(group=_patient())


@torch.no_grad()
def replicate(model: nn.Module, fabric: Fabric) -> None:
    """Rank 0's parameters and buffers on every rank: a network given as an object may have begun at random."""
    if fabric.world_size == 1:
        return
    wait(fabric)  # until here each takes its own time, to load data for example
    for tensor in (*model.parameters(), *model.buffers()):
        value = tensor.detach().contiguous()
        with _together():
            distributed.broadcast(value, src=0)
        tensor.copy_(value)


@torch.no_grad()
def averaged(values: Tensor, fabric: Fabric) -> Tensor:
    """The mean of `values` over ranks; NaN on one is NaN on all."""
    if fabric.world_size == 1:
        return values
    total = values.detach().clone()
    with _together():
        distributed.all_reduce(total)
    mean: Tensor = total / fabric.world_size
    return mean


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], statistics: Sequence[Tensor], fabric: Fabric) -> None:
    """Put in the place of gradients and running statistics their means over ranks, in one all-reduce.

    The loss is a mean over the batch, so the mean gradient is that of the ranks' batches taken as one. A parameter that
    no rank has a gradient of keeps none.
    """
    if fabric.world_size == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    known = torch.tensor([float(p.grad is not None) for p in parameters], device=gradients[0].device)
    tensors = [known, *gradients, *statistics]
    flat = averaged(torch.cat([tensor.flatten() for tensor in tensors]), fabric)
    known, *means = torch.split(flat, [tensor.numel() for tensor in tensors])
    for old, mean in zip((*gradients, *statistics), means, strict=True):
        old.copy_(mean.view(old.shape))
    for p, gradient, somewhere in zip(parameters, gradients, known.tolist(), strict=True):
        p.grad = gradient if somewhere else None


def average_metrics(metrics: Mapping[str, float], fabric: Fabric) -> dict[str, float]:
    """Each metric over the ranks that have it: its mean, or its maximum for those of LARGEST."""
    if fabric.world_size == 1:
        return dict(metrics)
    rows = gather(dict(metrics), fabric, patient=False)
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64)
        means[name] = float(values.max() if name in LARGEST else values.mean())
    return means


def whole(checkpoint: Checkpoint, fabric: Fabric) -> Checkpoint:
    """On rank 0, `checkpoint` with the chains of all ranks, in their order; on the others, as it is."""
    if fabric.world_size == 1:
        return checkpoint
    tensors = dict(checkpoint.tensors)
    for name in (name for name in CHAINS if name in tensors):
        mine = tensors[name].detach().cpu().contiguous()
        shards = [torch.empty_like(mine) for _ in range(fabric.world_size)] if fabric.is_global_zero else None
        with _together():
            distributed.gather(mine, shards, dst=0, group=_patient())
        tensors[name] = mine if shards is None else torch.cat(shards)
    return Checkpoint(tensors, checkpoint.header)


def shard(checkpoint: Checkpoint, num_classes: int, at_least: int, fabric: Fabric) -> Checkpoint:
    """`checkpoint` with this rank's share of its chains: as many of each class as every other rank has.

    Slot i belongs to class i mod k, of the whole and of a share, because a share is a multiple of k.
    """
    if fabric.world_size == 1 or CHAINS[0] not in checkpoint.tensors:
        return checkpoint
    size = len(checkpoint.tensors[CHAINS[0]])
    share = size // fabric.world_size
    if share * fabric.world_size != size or share % num_classes or share < at_least:
        raise CheckpointError(
            f"The run has {size} chains, which do not divide into {fabric.world_size} shares of a multiple of "
            f"{num_classes} (the classes) and at least {at_least} (real_batch_size) each. Resume on another number of "
            "ranks."
        )
    mine = slice(share * fabric.global_rank, share * (fabric.global_rank + 1))
    cut = {name: checkpoint.tensors[name][mine] for name in CHAINS}
    return Checkpoint({**checkpoint.tensors, **cut}, checkpoint.header)


def _of_torchrun(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise)) if "TORCHELASTIC_RUN_ID" in os.environ else otherwise


def _shares_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meet(device: torch.device, prefix: str) -> None:
    """Make the process group, which Fabric then finds.

    torchrun keeps one store for all attempts, where the ranks of the second would find the addresses of the first.
    """
    timeout = timedelta(seconds=_timeout())
    store, _, _ = next(distributed.rendezvous("env://", rank(), world_size(), timeout=timeout))  # type: ignore[attr-defined]
    on_gpu = device.type == "cuda"
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=distributed.PrefixStore(prefix, store),  # type: ignore[attr-defined]
        rank=rank(),
        world_size=world_size(),
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    # Before the interpreter goes: gloo's threads, too, abort a process that ends under them.
    atexit.register(_part)


def _part() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _timeout() -> float:
    text = os.environ.get("JEMSTONE_TIMEOUT", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"JEMSTONE_TIMEOUT is {text!r}. It is how many seconds ranks wait for each other's step.")
    return seconds


@cache
def _patient() -> distributed.ProcessGroup:
    """All ranks again, waiting longer, as what one does alone may take minutes; a death is noticed at once here too.

    It is bound to the process group of `launch`, of which a process has one.
    """
    group: distributed.ProcessGroup = distributed.new_group(backend="gloo", timeout=timedelta(days=1))
    return group


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"Rank {rank()} of {world_size()} lost the others: one of them has died, or has not come in "
            f"{_timeout():g} s (JEMSTONE_TIMEOUT). Look for its own error. ({str(error).strip().splitlines()[0]})"
        ) from error
