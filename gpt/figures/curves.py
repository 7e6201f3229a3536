"""How does one number follow another? Curves, the loss of a training run, and the bars of a distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gpt.figures.labels import labels_for, token_labels
from gpt.figures.style import BLUE, FORBIDDEN, GREEN, LINES, ORANGE, VERMILION, checked_array, drawing


def plot_training(
    train: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]] = (), title: str = "Loss while training"
) -> Figure:
    """Loss over steps from lists of (step, loss), in nats per token; the lowest validation loss is marked."""
    points = checked_array("train", train, "point", "(step, loss)")
    with drawing(7, 4) as (figure, [[axes]]):
        axes.plot(*points.T, color=BLUE, linewidth=1, label="training batch")
        if len(validation):
            held_out = checked_array("validation", validation, "point", "(step, loss)")
            axes.plot(*held_out.T, color=VERMILION, linewidth=2, marker="o", markersize=3.5, label="held-out text")
            step, loss = held_out[held_out[:, 1].argmin()]
            axes.axhline(loss, color=VERMILION, linewidth=0.8, linestyle=":")
            best = f"lowest on held-out text: {loss:.3f} at step {step:.0f}"
            axes.set_title(best, loc="right", fontsize=9, color=VERMILION)
        axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=title)
        axes.grid(axis="y", color=FORBIDDEN, linewidth=0.8)
        axes.legend()
    return figure


def plot_distribution(
    tokens: Sequence[str | bytes],
    probabilities: ArrayLike | Mapping[str, ArrayLike],
    title: str = "What the next token may be",
) -> Figure:
    """Bars of next-token probabilities [token]; or, to compare, several of them under their names.

    A probability of exactly 0 gets a cross: such a token was ruled out, it is not just unlikely.
    """
    several = probabilities if isinstance(probabilities, Mapping) else {"": probabilities}
    labels = token_labels(tokens)
    turned = max(map(len, labels), default=0) > 4
    with drawing(max(5.0, 1.5 + 0.5 * len(labels)), 4.6 if turned else 3.6) as (figure, [[axes]]):
        width = 0.8 / len(several)
        for i, (name, values) in enumerate(several.items()):
            values = checked_array("probabilities", values, "token")
            labels_for(tokens, len(values), "probabilities")
            places = np.arange(len(values)) + (i - (len(several) - 1) / 2) * width
            color = (BLUE, ORANGE, GREEN, VERMILION)[i % 4]
            axes.bar(places, values, width * 0.92, label=name, color=color)
            out = values == 0
            axes.plot(places[out], np.zeros(out.sum()), "x", color=color, markersize=5, clip_on=False, zorder=3)
        axes.set_xticks(range(len(labels)), labels, rotation=90 if turned else 0)
        axes.set(xlabel="next token", ylabel="probability", title=title)
        axes.tick_params(axis="x", length=0, pad=6)
        axes.grid(axis="y", color=FORBIDDEN, linewidth=0.8)
        axes.set_axisbelow(True)
        if len(several) > 1:
            axes.legend()
    return figure


def plot_lines(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
    title: str,
    log: str = "",
    markers: bool = False,
) -> Figure:
    """Curves under their names, each (x, y) with as many x as y: up to seven, told apart by colour and by dashes.

    `log` names the axes with a logarithmic scale: "", "x", "y" or "xy". With `markers` each point is a dot.
    """
    if not 1 <= len(lines) <= len(LINES):
        raise ValueError(f"lines must be 1 to {len(LINES)} curves, got {len(lines)}")
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f"log must be '', 'x', 'y' or 'xy', got {log!r}")
    with drawing(6.8, 4.0) as (figure, [[axes]]):
        for (name, (x, y)), (color, dashes) in zip(lines.items(), LINES, strict=False):
            points = checked_array(f"lines[{name!r}]", np.stack([np.ravel(x), np.ravel(y)]), "x and y", "point")
            axes.plot(*points, color=color, linestyle=dashes, marker="o" if markers else "", markersize=4, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set(**{f"{axis}scale": "log" for axis in log})
        axes.grid(color=FORBIDDEN, linewidth=0.8)
        if len(lines) > 1:
            axes.legend()
    return figure
