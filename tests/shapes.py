"""Are the documented shapes the real ones? In the test run, and only there, every annotated shape is checked.

`def forward(self, x: Float[Tensor, "batch T d_model"])` is documentation that a machine can read. `check_shapes` wraps
each function and method of the package whose signature holds such an annotation. When a call returns, its arguments
and its result must fit: one name means one size. A call that raises is left alone: to refuse a wrong shape is its own
task.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, get_type_hints

import torch
from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped

import gpt


def check_shapes() -> int:
    """Wrap the package's functions in place; how many there were."""
    wrapped = 0
    for module in [importlib.import_module(info.name) for info in pkgutil.walk_packages(gpt.__path__, "gpt.")
                   if not info.name.startswith(("gpt.__main__", "gpt.commands"))]:  # fmt: skip
        for owner in [module, *(kind for _, kind in inspect.getmembers(module, inspect.isclass))]:
            if owner is module or owner.__module__ == module.__name__:
                wrapped += sum(_wrap(owner, name, value) for name, value in list(vars(owner).items()))
    return wrapped


def _wrap(owner: ModuleType | type, name: str, value: Any) -> bool:
    if not inspect.isfunction(value) or not value.__module__.startswith("gpt") or hasattr(value, "__wrapped__"):
        return False
    hints = get_type_hints(value)
    shaped = {argument: hint for argument, hint in hints.items() if _holds_a_shape(hint)}
    if not shaped:
        return False
    checked = _checked(value, shaped)
    setattr(owner, name, checked)
    if inspect.ismodule(owner):  # other modules, and the package's own face, hold the function under its name
        for other in [module for key, module in list(sys.modules.items()) if key.split(".")[0] == "gpt"]:
            for key, held in list(vars(other).items()):
                if held is value:
                    setattr(other, key, checked)
    return True


def _holds_a_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_holds_a_shape(part) for part in getattr(hint, "__args__", ()) if part is not ...)


def _checked(function: Callable, hints: dict[str, Any]) -> Callable:
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if torch.compiler.is_compiling():
            return result
        values = signature.bind(*args, **kwargs).arguments | {"return": result}
        with jaxtyped("context"):
            for name, hint in hints.items():
                if name in values and not is_bearable(values[name], hint):
                    shape = list(getattr(values[name], "shape", ())) or type(values[name]).__name__
                    raise AssertionError(f"{function.__qualname__}: {name} is {shape}, documented as {hint}")
        return result

    return checked
