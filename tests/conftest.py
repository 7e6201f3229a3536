"""Every test reaches the code it tests through one fixture, `gpt`.

So a learner's own file can take the place of any part of the package:

    pytest tests/concepts/test_attention.py --implementation my_attention.py

Names that the file defines come from it, all others from the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gpt as package
from tests import skips
from tests.shapes import check_shapes

ROOMS = [info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg]


class Implementation:
    """The package's modules and public names, with a learner's names in front of them.

    `gpt.attention` is a module of the package, `gpt.checkpoint` one of its rooms', `gpt.GPT` a public name.
    """

    def __init__(self, own: ModuleType | None = None) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._own, name, None)
        if inspect.isroutine(own) or inspect.isclass(own):  # not a variable that happens to be called `model`
            return own
        if importlib.util.find_spec(f"gpt.{name}"):
            return importlib.import_module(f"gpt.{name}")
        if hasattr(package, name):
            return getattr(package, name)
        for room in ROOMS:
            if importlib.util.find_spec(f"gpt.{room}.{name}"):
                return importlib.import_module(f"gpt.{room}.{name}")
        raise AttributeError(f"the package has no {name!r}: neither a module nor a public name")


def learners_module(path: str | Path) -> ModuleType:
    """Run a learner's file as a module of its own.

    It is entered in `sys.modules`, since dataclasses, type hints and pickle look a class's module up there. Its
    name there begins with `learners_`, so that a file called random.py replaces nothing.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise pytest.UsageError(f"--implementation must be a Python file, got {str(path)!r}")
    name = f"learners_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--implementation", metavar="FILE", help="a Python file whose names replace the package's")


def pytest_configure(config: pytest.Config) -> None:
    skips.pytest_configure(config)


def pytest_sessionstart() -> None:
    check_shapes()


@pytest.fixture(scope="session")
def gpt(request: pytest.FixtureRequest) -> Implementation:
    path = request.config.getoption("--implementation")
    return Implementation(None if path is None else learners_module(path))
