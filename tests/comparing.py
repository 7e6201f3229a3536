"""How do two arrays agree? `close` says where they differ and by how much, and never broadcasts one to the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

EXACT = 2**53  # float64 holds every integer up to here


def close(actual: Any, expected: Any, tolerance: float = 0.0, name: str = "") -> None:
    """Raise AssertionError unless both have the same shape and dtype and differ by at most `tolerance` everywhere.

    Tensors, arrays, numbers and lists; lists and plain numbers have no dtype to compare, but truth values are no
    numbers. Two nans, and two infinities of one sign, are equal. With tolerance 0 they must be equal bit for bit
    (but for the sign of a zero), integers of any size. `name` says in the message what was compared, in a loop.
    """
    __tracebackhide__ = True  # pytest shows the line that compares, not this one
    if not 0 <= tolerance < math.inf:  # with a nan every comparison would pass
        raise ValueError(f"tolerance must be a finite number of at least 0, got {tolerance}")
    about = f"{name}: " if name else ""
    one, other = _array("actual", actual), _array("expected", expected)
    if one.shape != other.shape:
        raise AssertionError(f"{about}the shape is {list(one.shape)}, expected {list(other.shape)}")
    dtypes = [_dtype(actual, one), _dtype(expected, other)]
    typed = hasattr(actual, "dtype") and hasattr(expected, "dtype")
    if dtypes[0] != dtypes[1] and (typed or (one.size and "bool" in dtypes)):
        raise AssertionError(f"{about}the dtype is {dtypes[0]}, expected {dtypes[1]}")
    difference = _difference(one, other)
    wrong = difference > tolerance
    if wrong.any():
        worst = np.unravel_index(difference.argmax(), difference.shape)
        raise AssertionError(
            f"{about}{wrong.sum()} of {one.size} values differ by more than {tolerance:g}, the most at "
            f"{list(map(int, worst))}: {_pair(one[worst], other[worst])} (difference {float(difference[worst]):.3g})"
        )


def _array(argument: str, values: Any) -> np.ndarray:
    """Every float as float64, every complex number as complex128; integers and truth values stay what they are."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.to_dense() if values.layout is not torch.strided else values
        if values.is_complex() or values.is_floating_point():
            values = values.to(torch.complex128 if values.is_complex() else torch.float64)
        array = values.resolve_conj().resolve_neg().numpy()
    else:
        array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{argument} must be numbers, got {values!r}")
    if array.dtype.kind in "fc":
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return array


def _dtype(values: Any, array: np.ndarray) -> str:
    """The name of its dtype, or of the one that NumPy gives to a list."""
    return str(getattr(values, "dtype", array.dtype)).removeprefix("torch.")


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance at each place; 0 where both are nan or the same infinity, inf where only one of them is."""
    if any(array.dtype.kind in "iu" and (np.abs(array.astype(float)) >= EXACT).any() for array in (one, other)):
        one, other = one.astype(object), other.astype(object)  # Python's own integers, which never round
    same = (one == other) | ((one != one) & (other != other))
    with np.errstate(invalid="ignore"):
        apart = np.abs(_signed(one) - _signed(other))
    return np.where(same, 0.0, np.where(apart == apart, apart, np.inf))


def _signed(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "Oc" else array.astype(np.float64)


def _pair(actual: Any, expected: Any) -> str:
    """Both numbers, with as many digits as it takes to tell them apart."""
    if all(isinstance(x, int | np.integer | np.bool_) for x in (actual, expected)):
        return f"{actual}, expected {expected}"
    digits = next((d for d in (10, 14) if f"{actual:.{d}g}" != f"{expected:.{d}g}"), 17)
    return f"{actual:.{digits}g}, expected {expected:.{digits}g}"
