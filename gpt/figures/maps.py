"""What do the numbers in a table look like? Maps of positions, of small matrices, of heads and of the logit lens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gpt.figures.labels import labels_for, token_labels
from gpt.figures.style import FORBIDDEN, INK, PAPER, checked_array, drawing


def plot_positions(table: ArrayLike, title: str = "What each position adds to a token") -> Figure:
    """A table of position vectors, [position, d_model]: learned or sinusoidal."""
    table = checked_array("table", table, "position", "feature")
    with drawing(7.5, 4.5) as (figure, [[axes]]):
        _draw_signed(figure, axes, table, np.abs(table).max() or 1.0, "value")
        axes.set(xlabel="feature", ylabel="position", title=title)
    return figure


def plot_similarity(table: ArrayLike, title: str = "How alike two positions are") -> Figure:
    """Cosine similarity between all pairs of rows of a table [position, d_model]."""
    table = checked_array("table", table, "position", "feature")
    length = np.linalg.norm(table, axis=1, keepdims=True)
    if not length.all():
        raise ValueError("table must not hold a row of zeros: it points nowhere, so it has no cosine")
    with drawing(5.6, 4.6) as (figure, [[axes]]):
        _draw_signed(figure, axes, (table / length) @ (table / length).T, 1.0, "cosine similarity")
        axes.set(xlabel="position", ylabel="position", title=title, aspect="equal")
    return figure


def _draw_signed(figure: Figure, axes: Axes, values: np.ndarray, highest: float, name: str) -> None:
    """A map on which 0 is white, so that sign and size can both be seen."""
    image = axes.imshow(values, cmap="RdBu_r", vmin=-highest, vmax=highest, aspect="auto")
    figure.colorbar(image, ax=axes, label=name, aspect=30, pad=0.02).outline.set_visible(False)


def plot_matrix(
    values: ArrayLike,
    rows: Sequence[str | bytes],
    columns: Sequence[str | bytes],
    title: str,
    digits: int = 2,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """A small matrix [row, column] with its numbers written out: red above 0, blue below. A nan is drawn as masked."""
    shown = np.ma.masked_invalid(np.asarray(values, dtype=np.float64))
    values = checked_array("values", shown.filled(0), "row", "column")
    highest = np.abs(values).max() or 1.0
    with drawing(1.6 + 0.62 * values.shape[1], 1.3 + 0.42 * values.shape[0]) as (figure, [[axes]]):
        axes.patch.set(facecolor=FORBIDDEN, hatch="////")
        axes.imshow(np.ma.masked_array(values, shown.mask), cmap="RdBu_r", vmin=-highest, vmax=highest, aspect="auto")
        for row, column in zip(*np.nonzero(~np.ma.getmaskarray(shown)), strict=True):
            value = values[row, column]
            color = PAPER if abs(value) > 0.6 * highest else INK
            text = f"{value:.{digits}f}"
            text = text.lstrip("-") if float(text) == 0 else text
            axes.text(column, row, text.replace("-", "−"), ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(values.shape[1]), labels_for(columns, values.shape[1], "columns"))
        axes.set_yticks(range(values.shape[0]), labels_for(rows, values.shape[0], "rows"))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


def plot_lens(
    lens: ArrayLike,
    tokens: Sequence[str | bytes],
    decode: Callable[[list[int]], str],
    title: str = "Logit lens: the best guess for the next token, layer by layer",
) -> Figure:
    """The logit lens of one text, logits [N + 1, T, V]: in each cell the likeliest next token.

    Its colour is that token's probability. `decode` turns ids into text: a tokenizer's own method. Made for a phrase
    of up to about 40 tokens.
    """
    logits = torch.from_numpy(checked_array("lens", lens, "layer", "token", "vocabulary"))
    probability, best = logits.softmax(dim=-1).max(dim=-1)
    guesses = np.array([token_labels([decode([int(i)]) for i in row]) for row in best])
    labels = labels_for(tokens, logits.shape[1], "columns")
    layers = ["embedding"] + [f"after block {i}" for i in range(len(logits) - 1)]
    widest = max(len(text) for text in [*guesses.flat, *labels])
    cell = 0.2 + 0.07 * widest
    with drawing(max(6.5, cell * len(labels) + 2.4), 0.32 * len(logits) + 1.5) as (figure, [[axes]]):
        _draw_cells(figure, axes, probability.numpy(), guesses, "probability of the guess", 1.0, fontsize=8)
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set_yticks(range(len(layers)), layers, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="token just read", title=title)
    return figure


def plot_scores(
    scores: Mapping[str, ArrayLike],
    label: str = "mean attention weight",
    highest: float | None = 1.0,
    title: str = "What each head does",
) -> Figure:
    """Maps of one number per head, each [layer, head], side by side under their names: `vars(head_scores(model))`.

    All share one scale from 0 to `highest`; None takes the largest value (as for entropies, which have no limit).
    """
    maps = {name: checked_array(f"scores[{name!r}]", values, "layer", "head") for name, values in scores.items()}
    if not maps:
        raise ValueError("scores must hold at least one map")
    top = max(values.max() for values in maps.values()) if highest is None else highest
    layers, heads = next(iter(maps.values())).shape
    width, height = max(2.4, 0.36 * heads), max(1.2, 0.36 * layers)
    with drawing(len(maps) * (width + 0.4) + 1.4, height + 1.5, 1, len(maps)) as (figure, [panels]):
        for axes, (name, values) in zip(panels, maps.items(), strict=True):
            written = np.vectorize("{:.2f}".format)(values)
            _draw_cells(figure, axes, values, written, label if axes is panels[-1] else None, top, fontsize=6.5)
            axes.set_title(name.replace("_", " "), fontsize=10)
            axes.set(xlabel="head", ylabel="layer" if axes is panels[0] else "")
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def _draw_cells(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    written: np.ndarray,
    bar_label: str | None,
    highest: float,
    fontsize: float,
) -> None:
    """A heat map with a text in each cell; a colour bar if it has a label."""
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=highest, aspect="auto")
    rows, columns = values.shape
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), text in np.ndenumerate(written):
        color = INK if values[row, column] > 0.5 * highest else PAPER  # from here on viridis is nearer to white
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=fontsize)
    if bar_label is not None:
        bar = figure.colorbar(image, ax=axes, label=bar_label, pad=0.02)
        bar.outline.set_visible(False)
