"""Are the documented shapes the real ones? In the test run, and only there, every annotated shape is checked.

`def forward(self, x: Float[Tensor, "batch T d_model"])` is documentation that a machine can read. `check_shapes` wraps
each function and method of the package whose signature holds such an annotation, and the constructors of dataclasses
with such fields. When a call returns, its arguments and its result must fit: within one call, one name means one
size. A call that raises is left alone: to refuse a wrong shape is the function's own task.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any, get_type_hints

import torch
from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped

import gpt

CHECKED: set[str] = set()  # the dotted names of all that `check_shapes` has wrapped


def check_shapes() -> None:
    """Wrap the package's functions in place, each once."""
    names = [info.name for info in pkgutil.walk_packages(gpt.__path__, "gpt.")]
    modules = [name for name in names if not name.startswith(("gpt.__main__", "gpt.commands"))]  # they import late
    for module in map(importlib.import_module, modules):
        for owner in [module, *(value for value in vars(module).values() if inspect.isclass(value))]:
            if owner.__name__ == module.__name__ or owner.__module__ == module.__name__:
                for name, value in list(vars(owner).items()):
                    _wrap(owner, name, value)


def with_shapes_checked(function: Callable) -> Callable:
    """The function itself if its signature holds no shape, else one that checks them after each call."""
    hints = {name: hint for name, hint in get_type_hints(function).items() if holds_a_shape(hint)}
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            hints.pop(parameter.name, None)  # its annotation is that of one value, and it holds several
    if not hints:
        return function

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if torch.compiler.is_compiling():
            return result
        values = signature.bind(*args, **kwargs).arguments | {"return": result}
        with jaxtyped("context"):
            for name, hint in hints.items():
                if name in values and not is_bearable(values[name], hint):
                    raise AssertionError(f"{function.__qualname__}: {name} is {_said(values[name])}, not {hint}")
        return result

    return checked


def holds_a_shape(hint: Any) -> bool:
    """Whether a type is an array with its axes named, or is made of one: `tuple[Float[Tensor, "T"], int]`."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(holds_a_shape(part) for part in getattr(hint, "__args__", ()) if part is not ...)


def _wrap(owner: ModuleType | type, name: str, value: Any) -> None:
    if isinstance(value, property):
        checked = property(*(_checked(part) for part in (value.fget, value.fset, value.fdel)), value.__doc__)
        changed = any(getattr(checked, part) is not getattr(value, part) for part in ("fget", "fset", "fdel"))
    elif isinstance(value, classmethod | staticmethod):
        checked = type(value)(_checked(value.__func__))
        changed = checked.__func__ is not value.__func__
    else:
        checked = _checked(value)
        changed = checked is not value
    if not changed:
        return
    setattr(owner, name, checked)
    for other, key in _holders(value) if inspect.ismodule(owner) else ():
        setattr(other, key, checked)


def _checked(value: Any) -> Any:
    """With its shapes checked if it is a function of the package; anything else as it is."""
    if not inspect.isfunction(value) or value.__module__.split(".")[0] != "gpt":
        return value
    name = f"{value.__module__}.{value.__qualname__}"
    checked = value if name in CHECKED else with_shapes_checked(value)
    if checked is not value:
        CHECKED.add(name)
    return checked


def _holders(function: Callable) -> Iterator[tuple[ModuleType, str]]:
    """Every module of the package that holds the function, and under which name: imports make copies of it."""
    for module in [module for key, module in list(sys.modules.items()) if key.split(".")[0] == "gpt"]:
        for key, held in list(vars(module).items()):
            if held is function:
                yield module, key


def _said(value: Any) -> str:
    """The type of a value; for an array its dtype and shape."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_said, value))})"
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
