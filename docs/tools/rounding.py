"""Would another machine print the same digits? A guard for the chapters' code, as `gpt.lessons.paper.number` is one.

A value such as 0.0015025, printed with six digits, lies at the edge between two roundings: its last bit, which differs
from one Python or processor to another, decides the last digit that is shown. `guard(source)` changes a cell's code so
that every value it rounds passes a check, and prints the same as before. It looks at

    f"{x:.4f}", f"{x:8.2e}", f"{x:.1%}"     formats with a number of digits
    round(x, 4), array.round(4)
    print(array)                            NumPy's arrays under `np.set_printoptions(floatmode="fixed")`

A value at the edge is an EdgeError that names it. docs/tools/chapters.py guards each chapter when it is stored, and the
tests guard the cells that they run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy._core import arrayprint
from torch import Tensor

# How far off another machine may be: of the value, and at least. Both are far above what was seen, far below a digit.
SINGLE, DOUBLE = (5e-7, 5e-8), (1e-9, 1e-12)
CHECKED, ROUNDED, ROUND_OF = "_checked", "_rounded", "_round_of"  # what the changed code calls


class EdgeError(ValueError):
    """A number would be printed of which another machine might print another last digit."""


def safe(value: float, spec: str) -> bool:
    """Whether all values that another machine may have in place of this one look the same in this format.

    A value that 32 bits can hold counts as one that was computed in 32 bits.
    """
    value = float(value)
    if not np.isfinite(value) or value == 0:
        return True
    with np.errstate(over="ignore"):
        share, least = SINGLE if float(np.float32(value)) == value else DOUBLE
    off = abs(value) * share if re.search("[eg]", spec) else max(abs(value) * share, least)
    texts = [format(value + change, spec) for change in (-off, 0.0, off)]
    if value > 0:  # a change of sign is not to be feared from what is computed as a positive number
        texts = [re.sub(r"-(?=[0.]+%?$)", "", text) for text in texts]
    return len({text.strip() for text in texts}) == 1


def checked(value: Any, spec: str) -> Any:
    """The value, if its digits are safe in this format."""
    if isinstance(value, float | np.floating | Tensor) and re.search(r"\.\d+[efg%]$", spec, re.IGNORECASE):
        number = value.item() if isinstance(value, Tensor | np.floating) else value
        if isinstance(number, float) and not safe(number, spec):
            raise EdgeError(f"{number!r} lies at the edge of two roundings in the format {spec!r}: print other digits")
    return value


def rounded(value: Any, digits: int | None = None) -> Any:
    """Python's `round`. Whether a zero has a sign is not asked: `+ 0.0` takes it away."""
    checked(abs(value), f".{max(digits or 0, 0)}f")
    return round(value, digits)


def round_of(array: Any, *arguments: Any, **options: Any) -> Any:
    """The method `round` of an array or a tensor, or NumPy's function of this name."""
    digits = [*arguments, *options.values()]
    values, digits = (arguments[0], digits[1:]) if array is np else (array, digits)
    for value in np.asarray(values).flat:
        checked(abs(value), f".{digits[0] if digits else 0}f")
    return array.round(*arguments, **options)


class Guard(ast.NodeTransformer):
    """Puts the checks above around what rounds."""

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        if node.format_spec is not None and node.conversion == -1:
            node.value = _call(CHECKED, [node.value, node.format_spec], node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "round":
            node.func = ast.copy_location(ast.Name(ROUNDED, ast.Load()), node.func)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "round":
            array = node.func.value
            return _call(ROUND_OF, [array, *node.args], node, node.keywords)
        return node


def _call(name: str, arguments: list[ast.expr], at: ast.AST, keywords: list[ast.keyword] | None = None) -> ast.Call:
    call = ast.Call(ast.Name(name, ast.Load()), arguments, keywords or [])
    return ast.fix_missing_locations(ast.copy_location(call, at))


NAMES = {CHECKED: checked, ROUNDED: rounded, ROUND_OF: round_of}


def guard(source: str, variables: dict[str, Any], file: str = "<cell>") -> Any:
    """The code of a cell with its checks; `variables` get the functions that it calls for them."""
    variables.update(NAMES)
    return compile(Guard().visit(ast.parse(source)), file, "exec")


_format_entry = arrayprint.FloatingFormat.__call__


def _check_and_format(self: Any, entry: Any) -> str:
    if self.floatmode == "fixed":
        checked(entry, f".{self.precision}{'e' if self.exp_format else 'f'}")
    return _format_entry(self, entry)


@contextmanager
def arrays_checked() -> Iterator[None]:
    """Within the block, NumPy checks the entries of the arrays that it prints with a fixed number of digits."""
    arrayprint.FloatingFormat.__call__ = _check_and_format
    try:
        with np.printoptions():  # what a chapter sets is its own affair
            yield
    finally:
        arrayprint.FloatingFormat.__call__ = _format_entry


def install(shell: Any) -> None:
    """Guard all cells that an IPython kernel runs from now on."""
    shell.user_ns.update(NAMES)
    shell.ast_transformers.append(Guard())
    arrayprint.FloatingFormat.__call__ = _check_and_format
