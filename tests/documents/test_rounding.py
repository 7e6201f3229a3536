"""The guard of the chapters' digits: it refuses a number at the edge of two roundings and changes nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from docs.tools import rounding

EDGE = 0.00125 + 1e-17  # as a sum of many numbers may come out


def printed(source: str, capsys: pytest.CaptureFixture, **variables: object) -> str:
    with rounding.arrays_checked():
        exec(rounding.guard(source, variables), variables)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        'print(f"{x:.4f}")',
        'print(f"{x:>9.1%}", f"{x:.1e}")',
        'def show(value, digits):\n    print(f"{value:8.{digits}f}")\nshow(x, 4)',
        'print(*(f"{value:.4f}" for value in [1.0, x]))',
        "print(round(x, 4), round(7.6))",
        "print(array.round(4), np.round(array, 4))",
        "np.set_printoptions(precision=4, floatmode='fixed')\nprint(array)",
    ],
)
def test_a_number_at_the_edge_is_refused_and_others_are_printed_as_ever(source, capsys):
    safe = {"x": 0.001237, "array": np.array([0.3, 0.001237]), "np": np}
    exec(compile(source, "cell", "exec"), dict(safe))
    np.set_printoptions(precision=8, floatmode="maxprec")
    plain = capsys.readouterr().out
    assert printed(source, capsys, **safe) == plain
    with pytest.raises(rounding.EdgeError, match=r"0\.00125"):
        printed(source, capsys, x=EDGE, array=np.array([0.3, EDGE]), np=np)


@pytest.mark.parametrize(
    ("value", "spec", "safe"),
    [
        (0.00125, ".4f", False),
        (0.00125 + 1e-11, ".4f", True),
        (0.0015024999999999995, ".6f", False),  # the mean of chapter 7's schedule, and the same on Python 3.12
        (0.0015025, ".6f", False),
        (0.0015025, ".7f", True),
        (0.99995 + 1e-8, ".4f", True),  # in 64 bits
        (float(np.float32(0.99995 + 1e-8)), ".4f", False),  # in 32 bits, of which the last is worth 6e-8 here
        (-1e-18, ".4f", False),  # minus zero, or zero?
        (1e-18, ".4f", True),
        (0.0, ".4f", True),
        (1e-18, ".2e", True),
        (1.25e-18, ".1e", False),
        (0.1225, ".1%", False),
        (math.inf, ".1f", True),
    ],
)
def test_how_near_is_too_near(value, spec, safe):
    assert rounding.safe(value, spec) is safe


def test_what_has_no_digits_to_choose_is_not_asked():
    for value, spec in [(3, ".1f"), ("words", ">9"), (0.5, ""), (0.5, "5"), (True, ".0f")]:
        assert rounding.checked(value, spec) is value


def test_a_number_of_pytorch_is_checked_too():
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(rounding.EdgeError, match=r"0\.125"):
            rounding.checked(torch.tensor(0.125, dtype=dtype), ".2f")


def test_numpy_prints_as_ever_after_the_guard():
    with rounding.arrays_checked():
        np.set_printoptions(precision=2, floatmode="fixed")
    assert str(np.array([0.125])) == "[0.125]"
