"""What do all figures share? Colours, type, the frame in which each is drawn, and the file that it becomes.

Colours are safe for colour-blind readers: viridis for magnitudes, a blue-red scale for signed values, Okabe and Ito's
colours for lines and bars. Figures carry their own light background, so they can be read on a dark page. Nothing is
shown or stored by itself, and no window is needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gpt.support.files import atomic_file

FONT = "DejaVu Sans"  # ships inside matplotlib, so labels look the same on every machine
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe & Ito
SKY, PURPLE = "#56B4E9", "#CC79A7"
INK, QUIET, PAPER, FORBIDDEN = "#222222", "#6b6b6b", "#fcfcfa", "#e2e2de"
# Colour and dashes of the first, second, ... curve of a figure; the dashes tell them apart in grey print.
LINES = [(BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (ORANGE, (0, (6, 1.5))), (PURPLE, ":"), (SKY, "-"), (INK, "--")]
STYLE: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "font.family": FONT,
    "font.size": 10,
    "hatch.color": "#cfcfca",
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "gpt",  # otherwise every SVG gets random ids
    "text.color": INK,
    "text.parse_math": False,  # a token may well hold dollar signs
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}


class _Figure(Figure):
    """A figure that belongs to no window: a notebook shows it once, and it is freed when no one holds it."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=100)


@contextmanager
def drawing(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure of a kind that no function here draws, in the house style: `with drawing(7, 4) as (figure, [[axes]])`.

    `width` and `height` are in inches; the panels are an array [rows, columns] of axes.
    """
    with mpl.rc_context(STYLE):
        figure = _Figure((width, height), layout="compressed")
        yield figure, figure.subplots(rows, columns, squeeze=False)
        for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
            if axis.get_scale() == "log":  # its own labels are mathematics, which STYLE does not read
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        figure.draw_without_rendering()  # ticks are made while drawing: make them now, while the style holds


def _rendered(figure: Figure, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None  # only SVG carries one
    with mpl.rc_context(STYLE):
        figure.savefig(content, format=kind, bbox_inches="tight", metadata=metadata, **options)
    return content.getvalue()


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG file's content, `dpi` pixels to the inch."""
    return _rendered(figure, "png", dpi=dpi)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .png or .svg, making its folder. The same figure gives the same bytes, today and tomorrow.

    Raises ValueError for another ending, OSError naming the path if it cannot be written; a file that was there
    before then stays as it was.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"path must end in .png or .svg, got {str(path)!r}")
    content = _rendered(figure, kind)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def checked_array(name: str, values: ArrayLike, *axes: str) -> np.ndarray:
    """The values as float64, if they have the axes that are expected and every number is finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(axes) or not array.size:
        raise ValueError(f"{name} must be [{', '.join(axes)}] and not empty, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but it holds a NaN or an infinity")
    return array
