"""How do two arrays agree? `close` says where they differ and by how much, and never broadcasts one to the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def close(actual: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Raise AssertionError unless both have the same shape and dtype and differ by at most `tolerance` everywhere.

    Tensors, arrays, numbers and lists; lists and plain numbers have no dtype to compare. Two
    nans, and two infinities of one sign, are equal. With tolerance 0 they must be equal bit for bit.
    """
    one, other = _array(actual), _array(expected)
    __tracebackhide__ = True  # pytest shows the line that compares, not this one
    if one.shape != other.shape:
        raise AssertionError(f"the shape is {list(one.shape)}, expected {list(other.shape)}")
    kinds = [str(x.dtype).removeprefix("torch.") for x in (actual, expected) if hasattr(x, "dtype")]
    if len(set(kinds)) > 1:
        raise AssertionError(f"the dtype is {kinds[0]}, expected {kinds[1]}")
    if not one.size:
        return
    with np.errstate(invalid="ignore"):
        difference = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    difference = np.where(np.isnan(difference), np.inf, difference)
    worst = np.unravel_index(difference.argmax(), difference.shape)
    if difference[worst] > tolerance:
        wrong = int((difference > tolerance).sum())
        raise AssertionError(
            f"{wrong} of {one.size} values differ by more than {tolerance:g}, the most at {list(map(int, worst))}: "
            f"{one[worst]:.10g}, expected {other[worst]:.10g} (difference {difference[worst]:.3g})"
        )


def _array(values: Any) -> np.ndarray:
    """As float64 (integers of up to 53 bits are exact in it)."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().to_dense() if values.is_sparse else values.detach().cpu()
        return values.double().numpy()
    return np.asarray(values, dtype=np.float64)

