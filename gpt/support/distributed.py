"""How do several processes train one model?

`torchrun --nproc_per_node=4 -m gpt train ...` starts the same program four times. Each process has a share of every
batch and, by `Run`, a copy of the model (DDP) or, after `shard`, a part of every weight (FSDP2); PyTorch's own engine
adds up the gradients. Whatever is asked here of one process alone is answered without any of that machinery.
DEEP_THEORY_GUIDE.md, Part 10.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gpt.model import GPT
from gpt.support.machine import pick_device

PATIENCE = timedelta(minutes=10)  # how long a process waits for one that is alive but silent; a dead one shows at once
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_together() -> bool:
    """Whether torchrun, or another launcher that sets its variables, has started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether this is a further attempt of `torchrun --max-restarts`, after a process has died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


def rank() -> int:
    """The number of this process in its group, from 0; 0 if it is alone."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes work together; 1 if this one is alone."""
    return dist.get_world_size() if _joined() else 1


def _joined() -> bool:
    return dist.is_initialized()


@contextmanager
def group(device: str | torch.device = "auto") -> Iterator[torch.device]:
    """Within, this process works with the others that torchrun has started. Yields its device.

    On a machine with several GPUs each process has one of its own. Alone, there is no group, and the device is as
    `pick_device` says. The first process to fail says why; the others then end silently, by SystemExit.
    Raises ValueError for variables of torchrun that make no sense, and for a device that cannot be shared; within,
    ConnectionError if another process has died.
    """
    if not started_together():
        yield pick_device(device)
        return
    own, size, local = _place()
    picked = _device_of(local, device)
    store = _store(own, size)
    backend = "cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo"  # small numbers always travel by gloo
    try:
        dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=PATIENCE)
        yield picked
        wait_for_all()
    except Exception as error:
        if not _first_to_fail(store):
            raise SystemExit(2) from error  # what went wrong has been said
        if not _lost_contact(error):
            raise
        raise ConnectionError(
            f"process {own} of {size} has lost another one, which died or was killed; the same command with --resume "
            "continues from the newest checkpoint"
        ) from error
    finally:
        if _joined():
            dist.destroy_process_group()


def _place() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine), as the launcher says."""
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be set where RANK and WORLD_SIZE are: start with torchrun")
    local = os.environ.get("LOCAL_RANK", "0")
    try:
        own, size, on_machine = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(local)
        int(os.environ["MASTER_PORT"])
    except ValueError as error:
        raise ValueError(f"RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers: {error}") from error
    if not 0 <= own < size:
        raise ValueError(f"RANK must be in 0..WORLD_SIZE - 1, got RANK={own} and WORLD_SIZE={size}")
    return own, size, on_machine


def _device_of(local: int, device: str | torch.device) -> torch.device:
    picked = pick_device(device)
    if picked.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda" for several processes, got "{picked}"')
    if picked.type == "cpu":
        return picked
    if local >= torch.cuda.device_count():
        raise ValueError(f"--nproc_per_node must be at most the {torch.cuda.device_count()} GPUs of this machine")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _store(own: int, size: int) -> Store:
    """Where the processes find each other: the table that torchrun keeps, or else one that process 0 keeps.

    A restarted attempt must not read the addresses of processes that are dead, and in PyTorch 2.13 torchrun does not
    keep the attempts apart. So every attempt writes under a prefix of its own.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    table = TCPStore(host, port, size, is_master=own == 0 and not kept_by_torchrun, timeout=PATIENCE)
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT') or 0}", table)


def _first_to_fail(store: Store) -> bool:
    try:
        return store.add("failures", 1) == 1
    except RuntimeError:  # the table has gone with the process that kept it
        return True


def _lost_contact(error: Exception) -> bool:
    """Whether it comes from the connection to another process; gloo has no type of its own for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


# --- numbers that all processes agree on


def total(number: float) -> float:
    """The sum over all processes."""
    return _reduced(number, dist.ReduceOp.SUM) if world_size() > 1 else number


def largest(number: int) -> int:
    """The largest of all processes."""
    return int(_reduced(number, dist.ReduceOp.MAX)) if world_size() > 1 else number


def _reduced(number: float, operation: Any) -> float:
    on_cpu = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(on_cpu, operation)
    return on_cpu.item()


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    total(0)


def from_first(value: str) -> str:
    """What process 0 calls this with."""
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def own_rows(batch: Tensor) -> Tensor:
    """This process's share of a batch [batch, ...]: shares differ by a row at most. ValueError if it is none."""
    size = world_size()
    if len(batch) < size:
        raise ValueError(f"a batch must have a sequence for each of {size} processes, got {len(batch)}")
    return batch[rank() * len(batch) // size : (rank() + 1) * len(batch) // size]


def seed(base: int, step: int) -> None:
    """Let PyTorch's generators start anew, otherwise for each process and step: dropout must differ between rows.

    So nothing of them needs to be saved, and a resumed run draws what an unbroken one would.
    """
    torch.manual_seed((base + step * 2**20 + rank() + 1) % 2**63)


# --- one model in many processes


def shard(model: GPT, precision: str = "float32", mesh: Any = None) -> GPT:
    """Leave this process only its part of every weight, in place: fully_shard (FSDP2). Before the optimizer is made.

    Each block is gathered when it is needed and let go again. What lies outside the blocks forms the last group, so
    the table stays tied: embedding and head find it whole, within one forward pass. With "bfloat16" weights travel
    in 16 bits and gradients are added up in 32. The model must be on its device, with the same weights everywhere.
    Raises ValueError outside a group, and for float16, whose loss scale would have to be agreed on.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not _joined():
        raise ValueError("shard needs several processes: start with torchrun, for example "
                         "torchrun --nproc_per_node=2 -m gpt train ... --shard")  # fmt: skip
    if precision == "float16":
        raise ValueError('precision must be "float32" or "bfloat16" for a sharded model, got "float16"')
    low = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    mesh = mesh or init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "set_requires_gradient_sync")  # asked so, FSDP need not be imported


def replicated(model: GPT) -> nn.Module:
    """What to call in training: the model itself, or DDP around it, which keeps the copies of all processes equal."""
    if world_size() == 1 or is_sharded(model):
        return model
    copies = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    # After its first backward pass DDP packs the gradients into other buckets, and in another place a sum of three or
    # more is rounded otherwise. That pass is this one, so that a resumed run adds up as the unbroken one does.
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    copies(token, token)[1].backward()
    model.zero_grad()
    return copies


def synchronised(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Within, a backward pass adds up the gradients of all processes only if it is the last of an update."""
    if is_sharded(model):
        cast(Any, model).set_requires_gradient_sync(last)
    elif hasattr(model, "no_sync") and not last:  # DDP, also if it is compiled
        return cast(Any, model).no_sync()
    return nullcontext()


def moving_average(model: GPT, decay: float) -> AveragedModel:
    """An exponential moving average of the weights, sharded as the model is."""
    from torch.distributed.tensor import DTensor

    average = get_ema_multi_avg_fn(decay)
    if not is_sharded(model):
        return AveragedModel(model, multi_avg_fn=average)
    weight = cast(DTensor, next(model.parameters()))
    averaged = AveragedModel(_without_values(model), multi_avg_fn=average)  # a sharded model cannot be copied
    shard(cast(GPT, averaged.module), mesh=weight.device_mesh).to_empty(device=weight.device)
    averaged.module.load_state_dict(model.state_dict())
    return averaged


def whole(model: GPT) -> GPT | None:
    """A sharded model put together again on the CPU of process 0; None in the others. Another model as it is."""
    if not is_sharded(model):
        return model if rank() == 0 else None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank() != 0:
        return None
    together = _without_values(model)
    together.load_state_dict(weights, assign=True)
    return together


def _without_values(model: GPT) -> GPT:
    """A model of the same shapes, which takes no memory yet."""
    with torch.device("meta"):
        return GPT(model.config)
