"""The documented shapes are checked in the test run, and the public functions have them: tests/shapes.py."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tests.shapes import CHECKED, check_shapes, holds_a_shape, with_shapes_checked

CONCEPTS = (
    "tokens",
    "positions",
    "attention",
    "block",
    "model",
    "backward",
    "training",
    "generation",
    "inspection",
    "scale",
)
# Modules whose public functions have no shapes yet. A module that has them all must be struck off: the test says so.
NOT_YET = ()
WITHOUT = {  # public functions that take or return a tensor of no fixed shape: why
    "attention.KVCache.__init__": "any tensor that has the device and the type",
}
AT_LEAST = 60  # how many functions the run checks; raise it as more get their shapes


def doubled(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    return 2 * x


def turned(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    return x.T


def picked(x: Float[Tensor, "rows d"], ids: Int[Tensor, " n"] | None = None) -> tuple[Float[Tensor, "n d"], int]:
    if x.dim() != 2:
        raise ValueError("x must be [rows, d]")
    return (x if ids is None else x[ids]), 1


def half(x: Float[np.ndarray, "*axes"], *, scale: float = 1.0) -> Float[np.ndarray, "*axes"]:
    return scale * x / 2


def totals(*parts: Float[Tensor, " n"]) -> Float[Tensor, " total"]:
    return torch.cat(parts)


@dataclass
class Pair:
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (doubled, (torch.zeros(2, 3),)),
        (turned, (torch.zeros(3, 3),)),  # a square hides the mistake
        (picked, (torch.zeros(4, 3), torch.tensor([0, 2]))),
        (picked, (torch.zeros(4, 3), None)),
        (half, (np.zeros((2, 3)),)),
        (totals, (torch.zeros(2), torch.zeros(3))),
        (Pair.__init__, (object.__new__(Pair), torch.zeros(2), torch.zeros(2))),
    ],
)
def test_what_is_documented_passes(function, arguments):
    checked = with_shapes_checked(function)
    assert checked is not function
    checked(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (doubled, (torch.zeros(2, 3, 1),), r"doubled: x is float32 \[2, 3, 1\]"),
        (doubled, (torch.zeros(2, 3, dtype=torch.int64),), r"doubled: x is int64 \[2, 3\]"),
        (turned, (torch.zeros(2, 3),), r"turned: return is float32 \[3, 2\]"),
        (picked, (torch.zeros(4, 3), torch.zeros(1, 2, dtype=torch.int64)), r"picked: ids is int64 \[1, 2\]"),
        (half, (torch.zeros(2),), r"half: x is float32 \[2\]"),
        (Pair.__init__, (object.__new__(Pair), torch.zeros(2), torch.zeros(3)), r"right is float32 \[3\]"),
    ],
)
def test_a_shape_that_is_not_the_documented_one_is_found(function, arguments, said):
    with pytest.raises(AssertionError, match=said):
        with_shapes_checked(function)(*arguments)


def test_a_part_of_a_result_counts():
    def wrong(x: Float[Tensor, "rows d"]) -> tuple[Float[Tensor, " d"], int]:
        return x.sum(1), 0

    with pytest.raises(AssertionError, match=r"return is \(float32 \[2\], int\)"):
        with_shapes_checked(wrong)(torch.zeros(2, 3))


def test_a_call_that_raises_is_left_alone():
    with pytest.raises(ValueError, match="x must be"):
        with_shapes_checked(picked)(torch.zeros(4))


def test_a_function_without_shapes_is_left_as_it_is():
    assert with_shapes_checked(holds_a_shape) is holds_a_shape


def test_the_run_checks_the_package(gpt):
    assert len(CHECKED) >= AT_LEAST, sorted(CHECKED)
    assert "gpt.inspection.trace" in CHECKED  # under a decorator of its own
    assert gpt.trace is gpt.inspection.trace  # the package's own face has the checked one too
    before = gpt.inspection.rollout
    check_shapes()
    assert gpt.inspection.rollout is before  # and once is enough


def test_a_wrong_call_of_the_package_is_found(gpt):
    with pytest.raises(AssertionError, match=r"HeadScores.*induction is float32 \[3, 2\]"):
        gpt.inspection.HeadScores(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 2))


# Every public function that takes or returns a tensor says its shape.


def public_functions(module: Any) -> Iterator[tuple[str, Callable]]:
    """The functions of a module, the methods and properties of its classes, none of them private."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for key, method in vars(value).items():
                method = getattr(method, "fget", None) or getattr(method, "__func__", method)
                if inspect.isfunction(method) and (not key.startswith("_") or key in ("__init__", "__call__")):
                    yield f"{name}.{key}", method


def holds_a_bare_tensor(hint: Any) -> bool:
    if hint is Tensor:
        return True
    return not holds_a_shape(hint) and any(map(holds_a_bare_tensor, getattr(hint, "__args__", ())))


def shapeless(name: str) -> list[str]:
    module = importlib.import_module(f"gpt.{name}")
    return [
        f"{name}.{key}({argument})"
        for key, function in public_functions(module)
        for argument, hint in get_type_hints(function).items()
        if holds_a_bare_tensor(hint) and f"{name}.{key}" not in WITHOUT
    ]


@pytest.mark.parametrize("name", CONCEPTS)
def test_every_public_function_says_the_shapes_of_its_tensors(name):
    found = shapeless(name)
    if name in NOT_YET:
        assert found, f"all of gpt/{name}.py has its shapes now: strike it off NOT_YET"
    else:
        assert not found, f"these tensors have no documented shape: {found}"
