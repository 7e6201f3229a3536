"""Where does each head look? Heat maps of attention weights, [query, key], for one head, a layer or a whole model.

`tokens` are the texts (or bytes) of the tokens; labels make them legible. DEEP_THEORY_GUIDE.md, Parts 3 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from gpt.figures.labels import labels_for, token_labels
from gpt.figures.style import FORBIDDEN, INK, checked_array, drawing

KEY, QUERY = "key: what it looks at", "query: who looks"


def plot_head(
    weights: ArrayLike, tokens: Sequence[str | bytes], title: str = "Each row shows where one token looks"
) -> Figure:
    """One head's attention, weights [query, key], with every token written out (up to about 130 of them)."""
    weights = checked_weights("weights", weights, "query", "key")
    queries, keys = weights.shape
    cell = 0.2 if max(map(len, token_labels(tokens)), default=1) == 1 else 0.25
    width = np.clip(cell * keys, 3.0, 11.0)
    height = max(1.5, width * queries / keys)
    with drawing(width + 1.8, height + 1.2) as (figure, [[axes]]):
        image = _draw_attention(axes, weights)
        _token_ticks(axes.xaxis, tokens, keys, width)
        _token_ticks(axes.yaxis, tokens[keys - queries :], queries, height)
        axes.set(xlabel=KEY, ylabel=QUERY, title=title, aspect="equal" if queries == keys else "auto")
        if _is_causal(weights) and queries > 5:
            style = {"color": INK, "fontsize": 8, "ha": "right", "va": "top", "transform": axes.transAxes}
            axes.text(0.98, 0.98, "the future: masked", bbox={"color": FORBIDDEN, "pad": 2}, **style)
        _weight_bar(figure, image, axes)
    return figure


def plot_layer(weights: ArrayLike, tokens: Sequence[str | bytes], title: str = "All heads of one layer") -> Figure:
    """All heads of a layer on one colour scale, weights [head, query, key]."""
    weights = checked_weights("weights", weights, "head", "query", "key")
    heads, queries, keys = weights.shape
    columns = min(heads, 4)
    rows = -(-heads // columns)
    side = np.clip(0.16 * keys, 1.8, 3.2)
    with drawing(columns * side + 2, rows * (side + 0.3) + 1.2, rows, columns) as (figure, panels):
        for head, axes in enumerate(panels.flat):
            if head >= heads:
                axes.set_axis_off()
                continue
            _draw_attention(axes, weights[head])
            axes.set_title(f"head {head}", fontsize=9)
            axes.set(xticks=[], yticks=[])
            if head + columns >= heads:  # the lowest panel of its column
                _token_ticks(axes.xaxis, tokens, keys, side)
            if head % columns == 0:
                _token_ticks(axes.yaxis, tokens[keys - queries :], queries, side)
        figure.suptitle(title, x=0.01, ha="left")
        figure.supxlabel(KEY, fontsize=10)
        figure.supylabel(QUERY, fontsize=10)
        _weight_bar(figure, panels.flat[0].images[0], panels)  # all heads have one scale
    return figure


def plot_attention_grid(attention: ArrayLike, title: str = "Attention of every layer and head") -> Figure:
    """The whole model at a glance: a row of small maps per layer, attention [layer, head, query, key].

    All maps are tiles of one image, query downwards and key to the right in each: 144 separate ones take minutes.
    """
    attention = checked_weights("attention", attention, "layer", "head", "query", "key")
    layers, heads, queries, keys = attention.shape
    gap = -(-keys // 12)
    down, across = queries + gap, keys + gap
    mosaic = np.ma.masked_array(np.zeros((layers * down - gap, heads * across - gap)), mask=True)
    side = np.clip(11.0 / heads, 0.8, 2.0)
    with drawing(heads * side + 1.6, layers * side * down / across + 1.2) as (figure, [[axes]]):
        for layer, head in np.ndindex(layers, heads):
            top, left = layer * down, head * across
            mosaic[top : top + queries, left : left + keys] = _seen(attention[layer, head])
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), keys, queries, color=FORBIDDEN, linewidth=0, zorder=-1))
        image = _show(axes, mosaic)
        axes.set_xticks(np.arange(heads) * across + keys / 2, [f"head {i}" for i in range(heads)], fontsize=8)
        axes.set_yticks(np.arange(layers) * down + queries / 2, [f"layer {i}" for i in range(layers)], fontsize=8)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.set(title=title, xlabel=f"in each map, {KEY}", ylabel=f"in each map, {QUERY}")
        _weight_bar(figure, image, axes)
    return figure


def checked_weights(name: str, weights: ArrayLike, *axes: str) -> np.ndarray:
    """Weights with the axes that are expected, all in [0, 1], with at least as many keys as queries."""
    weights = checked_array(name, weights, *axes)
    if weights.min() < 0 or weights.max() > 1.001:
        raise ValueError(f"{name} must be in [0, 1], got {weights.min():.3g}..{weights.max():.3g}")
    if weights.shape[-2] > weights.shape[-1]:
        raise ValueError(f"{name} must have at least as many keys as queries, got shape {list(weights.shape)}")
    return weights


def _is_causal(weights: np.ndarray) -> bool:
    return len(weights) > 1 and not weights[future(weights)].any()


def future(weights: np.ndarray) -> np.ndarray:
    """True where a key comes after its query. The queries are the last of the keys."""
    queries, keys = weights.shape
    return ~np.tri(queries, keys, keys - queries, dtype=bool)


def _seen(weights: np.ndarray) -> np.ma.MaskedArray:
    """The weights without the future, if the head could not see it: "may not look" is not "does not look"."""
    return np.ma.masked_array(weights, future(weights) & _is_causal(weights))


def _draw_attention(axes: Axes, weights: np.ndarray) -> AxesImage:
    axes.patch.set(facecolor=FORBIDDEN, hatch="////")  # shows where nothing is drawn
    return _show(axes, _seen(weights))


def _show(axes: Axes, weights: np.ma.MaskedArray) -> AxesImage:
    # The first query has nothing but itself to look at, so the largest weight is always 1, and a linear scale would
    # leave all the others in the dark: colours follow the square root.
    return axes.imshow(weights, cmap="viridis", norm=PowerNorm(0.5, 0, 1))


def _weight_bar(figure: Figure, image: AxesImage, axes: Axes | np.ndarray) -> None:
    label = "attention weight\n(square-root scale)"
    bar = figure.colorbar(image, ax=axes, label=label, shrink=0.8, aspect=30, pad=0.02)
    bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", "0.01", "0.1", "0.25", "0.5", "1"], fontsize=8)
    bar.outline.set_visible(False)


def _token_ticks(axis: Axis, tokens: Sequence[str | bytes], count: int, length: float) -> None:
    """Write the tokens along an axis of `length` inches, or their positions where letters would be too small."""
    across = isinstance(axis, XAxis)
    labels = labels_for(tokens, count, "keys" if across else "queries")
    size = min(9.0, 0.85 * 72 * length / count)
    if size < 5:
        places = range(0, count, max(1, 2 ** math.ceil(math.log2(count / 8))))
        axis.set_ticks(places, [str(i) for i in places], fontsize=7)
        return
    turned = across and max(map(len, labels)) > 1
    axis.set_ticks(range(count), labels, fontsize=size, rotation=90 if turned else 0)
    axis.set_tick_params(length=0, pad=2)
