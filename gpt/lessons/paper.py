"""How does a number get from the code into prose, so that nobody types it?

A guide calls these functions where it says a number: they print it, as a table or as a line that a reader can follow
with a pocket calculator, and refuse to print one that another machine might round the other way.
"""

from __future__ import annotations

import re

import numpy as np


def number(value: float, digits: int = 4) -> str:
    """The value, rounded; a zero has no sign.

    Raises ValueError if the value is so near to the edge between two roundings that another machine might print
    the other one.
    """
    scaled = abs(value) * 10**digits
    if not np.isfinite(value) or abs(scaled % 1 - 0.5) < max(1e-9 * 10**digits, 1e-12 * scaled):
        raise ValueError(f"{value!r} cannot be written with {digits} digits: it is not finite or lies at the edge")
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def table(corner: str, values: np.ndarray, rows: list[str], columns: list[str], digits: int = 4) -> None:
    """Print values [rows, columns] as a Markdown table, with a blank line before it. A nan (masked) becomes a dot.

    Raises ValueError for a label with a bar, which would cut its cell in two.
    """
    if any("|" in label for label in (corner, *rows, *columns)):
        raise ValueError(f"labels must not hold a bar |, got {[corner, *rows, *columns]}")
    print(f"\n| {corner} | " + " | ".join(columns) + " |")
    print("|---|" + "--:|" * len(columns))
    for name, row in zip(rows, np.asarray(values, dtype=float).reshape(len(rows), len(columns)), strict=True):
        cells = ["·" if np.isnan(value) else number(value, digits) for value in row]
        print(f"| **{name}** | " + " | ".join(cells) + " |")


def by_hand(where: str, expression: str, value: float, digits: int = 4, within: float | None = None) -> None:
    """Print one entry worked out with a pocket calculator as a paragraph, and hold it against the true value.

    `expression` holds the numbers as the guide prints them, so its value may be off by what their rounding explains:
    `within` (five units of the last digit if not given). Then the line gives both, the calculator's value and the
    table's. Raises AssertionError if it is off by more.
    """
    functions = {"sqrt": np.sqrt, "exp": np.exp, "ln": np.log, "tanh": np.tanh}
    result = float(eval(expression, {"__builtins__": {}}, functions))
    within = 5 * 10.0**-digits if within is None else within
    assert abs(result - value) <= within, f"{where}: {expression} = {result}, but the table's entry is {value}"
    typeset = re.sub(r"sqrt\b", "√", expression.replace("**", "^").replace(" * ", " × ").replace("-", "−"))
    shown, entry = (number(x, digits).replace("-", "−") for x in (result, value))
    print(f"\n✎ {where}: `{typeset} = {shown}`" + ("" if shown == entry else f", in the table {entry}"))


def pocket(value: float) -> str:
    """A number as one types it into a calculator: 4 digits, without needless zeros, a negative one in brackets."""
    text = number(value).rstrip("0").rstrip(".") if abs(value * 100 - round(value * 100)) < 1e-12 else number(value)
    return f"({text})" if text.startswith("-") else text


def dot(one: np.ndarray, other: np.ndarray) -> str:
    """A sum of products as one types it into a calculator; products with a factor 0 are left out."""
    products = [f"{pocket(a)} * {pocket(b)}" for a, b in zip(one, other, strict=True) if abs(a * b) > 1e-12]
    return " + ".join(products) or "0"


def same(one: np.ndarray, other: np.ndarray, tolerance: float = 1e-10) -> None:
    """Raise AssertionError unless two arrays agree everywhere, in shape and to within the tolerance."""
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape, f"shapes {one.shape} and {other.shape} differ"
    assert np.abs(one - other).max() <= tolerance, f"they differ by up to {np.abs(one - other).max()}"
