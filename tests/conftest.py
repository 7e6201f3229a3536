"""Every test reaches the code it tests through one fixture, `gpt`.

So a learner's own file can stand in for any part of the package:

    pytest tests/concepts/test_attention.py --implementation my_attention.py

Names that the file defines come from it, all others from the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from tests.shapes import check_shapes

ROOMS = ("support", "storage", "figures", "lessons")


class Implementation:
    """The package's public names and modules, with a learner's names in front of them."""

    def __init__(self, own: ModuleType | None) -> None:
        self._own = own

    def __getattr__(self, name: str):
        own = getattr(self._own, name, None)
        if inspect.isroutine(own) or inspect.isclass(own):  # not a variable that happens to be called `model`
            return own
        for module in (f"gpt.{name}", *(f"gpt.{room}.{name}" for room in ROOMS)):
            if importlib.util.find_spec(module):
                return importlib.import_module(module)
        return getattr(importlib.import_module("gpt"), name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--implementation", metavar="FILE", help="a Python file whose names stand in for the package's")


def pytest_sessionstart() -> None:
    check_shapes()


@pytest.fixture(scope="session")
def gpt(request: pytest.FixtureRequest) -> Implementation:
    path = request.config.getoption("--implementation")
    if path is None:
        return Implementation(None)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    return Implementation(own)
