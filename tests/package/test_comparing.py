"""The comparison that every test uses must itself be able to fail: tests/comparing.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.comparing import close

LARGE = 2**53
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0, NAN, INF]), torch.tensor([1.0, NAN, INF])),
        (torch.tensor([1.5, 2.0], dtype=torch.bfloat16), [1.5, 2.0]),
        (torch.tensor([1, 2]), np.array([1, 2])),
        (np.float32(0.5), 0.5),
        (torch.tensor([1, 2]).to_sparse(), torch.tensor([1, 2])),
        (torch.empty(0, 3), torch.empty(0, 3)),
        (torch.empty(0, dtype=torch.bool), []),
        (torch.tensor([True, False]), [True, False]),
        (torch.tensor([1 + 2j]).conj(), [1 - 2j]),
        (torch.tensor([LARGE + 1]), [LARGE + 1]),
        (1.0 + 1e-9, 1.0),
        (0.0, -0.0),
    ],
)
def test_what_agrees_passes(actual, expected):
    close(actual, expected, 1e-8)


@pytest.mark.parametrize(
    ("actual", "expected", "said"),
    [
        (torch.zeros(1, 5), torch.zeros(5, 1), r"shape is \[1, 5\], expected \[5, 1\]"),
        (torch.zeros(5), 0.0, r"shape is \[5\], expected \[\]"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "dtype is float32, expected float64"),
        (np.zeros(2, dtype=np.float32), torch.zeros(2, dtype=torch.float64), "dtype is float32, expected float64"),
        (torch.zeros(0), torch.zeros(0, dtype=torch.int64), "dtype is float32, expected int64"),
        (torch.tensor([True]), [1], "dtype is bool, expected int64"),
        (torch.tensor([1.0]), [True], "dtype is float32, expected bool"),
        (torch.tensor([1.0, 2.0, 4.0]), [1.0, 2.0, 3.0], r"1 of 3 .* at \[2\]: 4, expected 3 \(difference 1\)"),
        (torch.tensor([True, False]), [True, True], r"1 of 2 .* at \[1\]: False, expected True \(difference 1\)"),
        (torch.tensor([NAN]), [1.0], r"1 of 1 .*nan, expected 1 \(difference inf"),
        (torch.tensor([INF]), [-INF], "difference inf"),
        (torch.tensor([1 + 2j]), [1 - 2j], r"difference 4"),
        (np.array([3], dtype=np.uint8), np.array([4], dtype=np.uint8), "3, expected 4 .difference 1"),  # not 255
    ],
)
def test_what_differs_is_said(actual, expected, said):
    with pytest.raises(AssertionError, match=said):
        close(actual, expected, 0.5)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([LARGE + 1]), torch.tensor([LARGE])),  # float64 cannot tell them apart
        (np.array([2**64 - 1], dtype=np.uint64), [2**64 - 2]),
        (torch.tensor([1.0 + 2**-52], dtype=torch.float64), [1.0]),
    ],
)
def test_without_a_tolerance_the_last_bit_counts_and_is_shown(actual, expected):
    with pytest.raises(AssertionError, match="1 of 1") as said:
        close(actual, expected)
    shown = str(said.value).split(": ")[1].split(" (")[0].split(", expected ")
    assert shown[0] != shown[1]


def test_the_tolerance_is_the_largest_difference_allowed():
    close([1.0, 2.0], [1.5, 2.0], 0.5)
    with pytest.raises(AssertionError, match=r"more than 0\.25"):
        close([1.0, 2.0], [1.5, 2.0], 0.25)


def test_a_name_says_which_of_many_was_wrong():
    with pytest.raises(AssertionError, match=r"blocks\.0\.weight: 1 of 1"):
        close([1.0], [2.0], name="blocks.0.weight")


@pytest.mark.parametrize("tolerance", [NAN, INF, -1e-9])
def test_a_tolerance_that_lets_everything_pass_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        close(1.0, 2.0, tolerance)


def test_words_are_not_compared():
    with pytest.raises(TypeError, match="expected must be numbers"):
        close([1.0], ["one"])
