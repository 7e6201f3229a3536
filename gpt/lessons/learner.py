"""A learner's own file in the place of the package: whatever it defines is used, and one can ask what was.

gpt = Implementation(learners_module("my_gpt.py"))
gpt.LayerNorm             the learner's, if the file defines it, else the package's
gpt.tokens.merge_pair     looked for in the file first, too
gpt.used                  the names that were taken from the file
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import gpt as package

ROOMS = [info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg]


class Implementation:
    """The package's modules and public names, with a learner's names in front of them.

    `gpt.attention` is a module of the package, `gpt.checkpoint` one of its rooms', `gpt.GPT` a public name.
    """

    def __init__(self, own: ModuleType | None = None) -> None:
        self._own = own
        self.written = {} if own is None else written_in(own)
        self.used: set[str] = set()
        self.offered: set[str] | None = None  # of the file, the names that may be taken; None: all

    def has(self, name: str) -> bool:
        """Whether the learner's file defines this name, and it may be taken."""
        return name in self.written and (self.offered is None or name in self.offered)

    def take(self, name: str) -> Any:
        """The learner's function or class of this name. KeyError if the file does not define it."""
        value = self.written[name]
        self.used.add(name)
        return value

    def __getattr__(self, name: str) -> Any:
        if self.has(name):
            return self.take(name)
        found = _find(name)
        if self._own is None or not isinstance(found, ModuleType):
            return found
        return _LookedThrough(self, found)


class _LookedThrough:
    """A module of the package, with the learner's names in front of its own."""

    def __init__(self, implementation: Implementation, module: ModuleType) -> None:
        self._implementation, self._module = implementation, module

    def __getattr__(self, name: str) -> Any:
        if self._implementation.has(name) and hasattr(self._module, name):
            return self._implementation.take(name)
        return getattr(self._module, name)


def _find(name: str) -> Any:
    """A module of the package, a public name, or a module of one of its rooms."""
    if importlib.util.find_spec(f"gpt.{name}"):
        return importlib.import_module(f"gpt.{name}")
    if hasattr(package, name):
        return getattr(package, name)
    for room in ROOMS:
        if importlib.util.find_spec(f"gpt.{room}.{name}"):
            return importlib.import_module(f"gpt.{room}.{name}")
    raise AttributeError(f"the package has no {name!r}: neither a module nor a public name")


def written_in(module: ModuleType) -> dict[str, Any]:
    """The functions and classes whose code stands in this file; neither what it imports nor what is still a stub."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        if not _is_stub(value)
    }


def _is_stub(value: Any) -> bool:
    """Whether the body of a function, or of any of a class's methods, is still `raise NotImplementedError`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, SyntaxError):  # made by exec, or indented in a way of its own
        return False
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return any(ast.unparse(function.body[-1]).startswith("raise NotImplementedError") for function in functions)


def learners_module(path: str | Path) -> ModuleType:
    """Run a learner's file as a module of its own.

    It is entered in `sys.modules`, since dataclasses, type hints and pickle look a class's module up there. Its
    name there begins with `learners_`, so that a file called random.py replaces nothing.
    Raises ValueError if it is no Python file, and whatever the file raises.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"must be a Python file, got {str(path)!r}")
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
