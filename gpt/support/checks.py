"""Is this input what the layer was made for? Questions to sizes, shapes and types, with an answer a reader can use.

They ask about the outside of a tensor and never about its numbers, so they cost a microsecond, need not wait for a GPU,
and disappear where `torch.compile` or `torch.export` reads the program. Questions to the numbers themselves (is
each id in the vocabulary?) are asked only where `eager_on_cpu` says that the answer is free.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public way to ask


def eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether these are plain tensors in the CPU's memory, whose numbers a Python program may look at.

    False on accelerators (looking means waiting for them), while `torch.compile` or `torch.export` traces (there are no
    numbers yet), inside `torch.func` transforms (a number is a whole batch of them), and for subclasses of Tensor.
    """
    if torch.compiler.is_compiling():
        return False
    for x in tensors:
        plain = type(x) in (Tensor, nn.Parameter) and not is_functorch_wrapped_tensor(x)
        if not plain or x.device.type != "cpu":
            return False
    return True


def check_size(name: str, value: Any, least: int = 1) -> None:
    """A size or a position: an int (not a bool) of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(name: str, value: Any, least: float = -math.inf) -> None:
    """An int or a float (not a bool) of at least `least`; nan is not."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not value >= least:
        raise ValueError(f"{name} must be a number of at least {least}, got {value}")


def check_seed(name: str, value: Any) -> None:
    """What PyTorch's generators take: an int of at most 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must be in -2**63..2**64 - 1, got {value}")


def check_dropout(name: str, p: Any) -> None:
    """The probability that a value is dropped: a number in [0, 1)."""
    if not isinstance(p, int | float) or isinstance(p, bool):
        raise TypeError(f"{name} must be a number, got {p!r}")
    if not 0 <= p < 1:
        raise ValueError(f"{name} must be in [0, 1), got {p}")


def check_features(name: str, x: Any, axes: str, width: int | None = None) -> None:
    """Floating-point features with these axes, the last one `width` long if that is fixed; "..." means any axes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    named = axes.removeprefix("...").split()
    fits = x.dim() >= len(named) if axes.startswith("...") else x.dim() == len(named)
    if not fits or (width is not None and x.shape[-1] != width):
        allowed = f"[{', '.join(axes.split())}]" + (f" with {named[-1]}={width}" if width else "")
        raise ValueError(f"{name} must be {allowed}, got shape {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {x.dtype}")


def check_dtype(name: str, x: Tensor, like: Tensor) -> None:
    """The same number format as `like`; under autocast, PyTorch converts between them."""
    if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name} must be {like.dtype} like what it meets, got {x.dtype}")


def check_broadcast(name: str, shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    """A shape that broadcasts to `to` without making it larger: axes are equal, 1, or missing in front."""
    fits = len(shape) <= len(to)
    if not fits or any(mine not in (1, theirs) for mine, theirs in zip(reversed(shape), reversed(to), strict=False)):
        raise ValueError(f"{name} must broadcast to {list(to)}, got shape {list(shape)}")


def check_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Queries, keys and values that fit each other, and a boolean mask that leaves every query something to look at."""
    check_features("query", query, "... query d_k")
    check_features("key", key, "... key d_k", query.shape[-1])
    check_features("value", value, "... key d_v")
    check_dtype("key", key, query)
    check_dtype("value", value, query)
    queries, keys = query.shape[-2], key.shape[-2]
    if not keys or value.shape[-2] != keys:
        raise ValueError(f"value must have a row for each key, at least one, got {value.shape[-2]} for {keys} keys")
    leading = [query.shape[:-2], key.shape[:-2], value.shape[:-2]]
    try:
        batch = torch.broadcast_shapes(*leading)
    except RuntimeError:
        sizes = "query {}, key {}, value {}".format(*map(list, leading))
        raise ValueError(f"batch axes of query, key and value must broadcast to each other, got {sizes}") from None
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean tensor, or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean (True = may look), got {mask.dtype}; a 0/1 mask becomes one by .bool()")
    check_broadcast("mask", mask.shape, (*batch, queries, keys))
    if eager_on_cpu(mask) and not mask.any(dim=-1).all():
        raise ValueError("mask must leave every query at least one key, but a row of it is all False")
