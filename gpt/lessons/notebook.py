"""What do the chapters need that a script does not? A picture with words beside it, and a friendly check of an answer.

    described(figure, "what to see")     as a cell's last line: shows the figure; the words are its description
    check("3.1", answer, is_right, hint) says whether a reader's answer is right

A description is stored with the picture, for readers who cannot see it and as the text that the tests compare.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from gpt import figures

_DPI = 144  # shown at 100 points an inch, so that letters are sharp on a fine screen


class described:
    """A figure with a description of what it shows, as a notebook displays it.

    Raises ValueError for a description of fewer than 20 characters: it would not help anybody.
    """

    def __init__(self, figure: Figure, description: str) -> None:
        if len(description) < 20:
            raise ValueError(f"description must say what the figure shows, got {description!r}")
        self.figure, self.description = figure, " ".join(description.split())

    def _repr_mimebundle_(self, **_options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        picture = figures.png(self.figure, dpi=_DPI)
        size = (pixels * 100 // _DPI for pixels in struct.unpack(">II", picture[16:24]))  # a PNG begins with its size
        shown = {"alt": self.description} | dict(zip(("width", "height"), size, strict=True))
        return {"image/png": picture, "text/plain": self.description}, {"image/png": shown}


def check(exercise: str, answer: Any, is_right: Callable[[Any], Any], hint: str) -> None:
    """Print whether the answer to an exercise is right. Three dots, `...`, are no answer yet."""
    if answer is ...:
        print(f"Exercise {exercise}: put your answer in the place of the dots, run its cell, then this one.")
    elif is_right(answer):
        print(f"Exercise {exercise}: right.")
    else:
        print(f"Exercise {exercise}: not yet. {hint}")
