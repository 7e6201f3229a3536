"""How does a model that no process holds whole come to the disk, and back into another number of processes?

Each process writes its parts of the tensors into a file of its own, `shard-0000k-...safetensors`, which says where in
the whole they belong; PyTorch's torch.distributed.checkpoint does both. In memory such a tensor is a DTensor: it
knows the shape of the whole and how it is dealt out. A state is a tree of dicts, in which a few leaves are DTensors:
`take_apart` separates them from all that every process has alike, `put_together` puts them back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.support.distributed import is_sharded

SHARDS = "shard-*.safetensors"
BETWEEN = "/"  # the keys on the way to a leaf form its name: optimizer/state/final_norm.gain/exp_avg


def take_apart(tree: dict[str, Any], place: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the tree without its DTensors, {name: DTensor})."""
    from torch.distributed.tensor import DTensor

    rest, parts = {}, {}
    for key, value in tree.items():
        name = f"{place}{key}"
        if isinstance(value, DTensor):
            parts[name] = value
        elif isinstance(value, dict):
            rest[key], below = take_apart(value, name + BETWEEN)
            parts.update(below)
        else:
            rest[key] = value
    return rest, parts


def put_together(tree: dict[str, Any], parts: dict[str, Tensor]) -> dict[str, Any]:
    """The opposite of `take_apart`; changes `tree` in place."""
    for name, part in parts.items():
        *way, last = name.split(BETWEEN)
        place = tree
        for key in way:
            place = place.setdefault(key, {})
        place[last] = part
    return tree


def write_parts(folder: Path, parts: dict[str, Tensor]) -> Callable[[], None]:
    """Begin to write this process's share of each DTensor into a folder that exists; all processes must call it.

    The values are copied before this returns, so training may go on. Returns what waits until all processes have
    written, and raises OSError if one of them could not.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    written = cast("Future[Any]", async_save(parts, storage_writer=writer, process_group=_between(dist.group.WORLD)))

    def wait() -> None:
        try:
            written.result()
        except CheckpointException as error:
            failed, (reason, _) = min(error.failures.items())
            raise OSError(f"process {failed} could not write to {folder} (is the disk full?): {reason}") from error

    return wait


@lru_cache(maxsize=1)
def _between(_everyone: object) -> Any:
    """A group of the same processes for a thread that writes: what it sends must not meet what training sends."""
    return dist.new_group(backend="gloo")


def read_parts(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """{name: tensor} of all shards in a folder: DTensors for a sharded model, of which each process reads its parts
    only, and else whole tensors on the CPU. It does not matter how many processes wrote them."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.tensor import DTensor, Shard, zeros

    reader = HuggingFaceStorageReader(str(folder))
    weight, parts = next(model.parameters()), {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        size, dtype = tuple(cast(Any, stored).size), cast(Any, stored).properties.dtype
        if isinstance(weight, DTensor):
            parts[name] = zeros(size, dtype=dtype, device_mesh=weight.device_mesh, placements=[Shard(0)])
        else:
            parts[name] = torch.zeros(size, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be for a model that is whole
        load(parts, storage_reader=reader, no_dist=not is_sharded(model))
    return parts


def dealt_out(tree: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state with whole tensors, as one machine saves it, for a sharded model: what lies under a weight's name and
    has its shape is dealt out as that weight is. Every process holds the whole, so nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    own = dict(model.named_parameters())

    def walk(value: Any, weight: Tensor | None) -> Any:
        if isinstance(value, dict):
            return {key: walk(below, own.get(str(key).removeprefix("module."), weight)) for key, below in value.items()}
        if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        if isinstance(value, DTensor):
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

    return walk(tree, None)


def with_names(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's state under the names of its weights, in the optimizer's order, instead of numbers."""
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def with_numbers(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The opposite of `with_names`. KeyError for another name."""
    number = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def has_names(state: dict[str, Any]) -> bool:
    """Whether an optimizer's state has names instead of numbers."""
    return any(isinstance(name, str) for group in state["param_groups"] for name in group["params"])
