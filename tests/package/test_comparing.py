"""The comparison that every test uses must itself be able to fail: tests/comparing.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.comparing import close


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (torch.tensor([1.0, float("nan"), float("inf")]), torch.tensor([1.0, float("nan"), float("inf")])),
        (np.float32(0.5), 0.5),
        (torch.tensor([1, 2]).to_sparse(), torch.tensor([1, 2])),
        (torch.empty(0, 3), torch.empty(0, 3)),
        (1.0 + 1e-9, 1.0),
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
        (torch.tensor([1.0, 2.0, 4.0]), [1.0, 2.0, 3.0], r"1 of 3 .* at \[2\]: 4, expected 3 \(difference 1\)"),
        (torch.tensor([float("nan")]), [1.0], r"1 of 1 .*difference inf"),
        (torch.tensor([float("inf")]), [float("-inf")], "difference inf"),
    ],
)
def test_what_differs_is_said(actual, expected, said):
    with pytest.raises(AssertionError, match=said):
        close(actual, expected, 0.5)
