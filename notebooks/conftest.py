"""`pytest --nbval notebooks` runs every chapter again, with nothing else set. What its kernels need is set here."""

from __future__ import annotations

import os

import pytest

# One thread: matrices of this size gain nothing from more, and two kernels would be in each other's way.
# No progress bars: they are written to stderr, which nbval compares too.
KERNEL = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def pytest_configure(config: pytest.Config) -> None:
    for name, value in KERNEL.items():
        os.environ.setdefault(name, value)
    if getattr(config.option, "nbval_cell_timeout", None) == 2000:  # nbval's own: a dead kernel would hang half an hour
        config.option.nbval_cell_timeout = 120
