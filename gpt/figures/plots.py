"""How do we see what the package computes?

Each function draws one kind of figure and returns it; `save` writes it. Nothing is shown or stored by itself, and
no window is needed. Colours are safe for colour-blind readers: viridis for magnitudes, a blue-red scale for signed
values, Okabe and Ito's colours for lines and bars. Figures carry their own light background, so they can be
read on a dark page.

Arrays may be tensors, NumPy arrays or lists. `tokens` are the texts (or bytes) of the tokens: `token_labels` makes
them legible. Wrong shapes are a ValueError that names the argument. Used by DEEP_THEORY_GUIDE.md, Parts 2, 3, 7, 8, 9.
"""

from __future__ import annotations

import errno
import io
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

FONT = "DejaVu Sans"  # ships inside matplotlib, so labels look the same on every machine
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe & Ito
SKY, PURPLE = "#56B4E9", "#CC79A7"
INK, QUIET, PAPER, FORBIDDEN = "#222222", "#6b6b6b", "#fcfcfa", "#e2e2de"
# Colour and dashes of the first, second, ... curve of a figure; the dashes tell them apart in grey print.
LINES = [(BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (ORANGE, (0, (6, 1.5))), (PURPLE, ":"), (SKY, "-"), (INK, "--")]
STYLE = {
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
KEY, QUERY = "key: what it looks at", "query: who looks"


# --- labels

_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "\\r"}
_LONGEST = 14  # just enough for <|endoftext|>


def token_labels(tokens: Sequence[str | bytes]) -> list[str]:
    """What to write for each token: one short, visible label without surprises.

    A space is ␣, a line break ⏎, a tab ⇥, nothing at all ∅. Control characters and bytes that are no text are \\x...,
    characters without a glyph in the figures' font are U+.... Labels over 14 signs end in an ellipsis.
    Labels of labels are the same labels.
    """
    return [_label(token) for token in tokens]


def _label(token: str | bytes) -> str:
    if not isinstance(token, str | bytes):
        raise TypeError(f"tokens must be strings or bytes, got {token!r}")
    text = token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token
    signs = [_sign(character) for character in text]
    if sum(map(len, signs)) > _LONGEST:
        while sum(map(len, signs)) >= _LONGEST:
            signs.pop()
        signs.append("…")
    return "".join(signs) or "∅"


def _sign(character: str) -> str:
    code = ord(character)
    if character in _SIGNS:
        return _SIGNS[character]
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or 0x7F <= code < 0xA0:
        return f"\\x{code:02x}"
    visible = unicodedata.category(character)[0] in "LNPS"  # letters, numbers, punctuation, symbols
    return character if visible and code in _glyphs() else f"U+{code:04X}"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


# --- attention


def plot_head(
    weights: ArrayLike, tokens: Sequence[str | bytes], title: str = "Each row shows where one token looks"
) -> Figure:
    """One head's attention, weights [query, key], with every token written out (up to about 130 of them)."""
    weights = _attention("weights", weights, "query", "key")
    queries, keys = weights.shape
    with mpl.rc_context(STYLE):
        cell = 0.2 if max(map(len, token_labels(tokens)), default=1) == 1 else 0.25
        width = np.clip(cell * keys, 3.0, 11.0)
        height = max(1.5, width * queries / keys)
        figure, [[axes]] = _figure(width + 1.8, height + 1.2)
        image = _draw_attention(axes, weights)
        _token_ticks(axes.xaxis, tokens, keys, width)
        _token_ticks(axes.yaxis, tokens[keys - queries :], queries, height)
        axes.set(xlabel=KEY, ylabel=QUERY, title=title, aspect="equal" if queries == keys else "auto")
        if _is_causal(weights) and queries > 5:
            style = {"color": INK, "fontsize": 8, "ha": "right", "va": "top", "transform": axes.transAxes}
            axes.text(0.98, 0.98, "the future: masked", bbox={"color": FORBIDDEN, "pad": 2}, **style)
        _weight_bar(figure, image, axes)
        return _finished(figure)


def plot_layer(weights: ArrayLike, tokens: Sequence[str | bytes], title: str = "All heads of one layer") -> Figure:
    """All heads of a layer on one colour scale, weights [head, query, key]."""
    weights = _attention("weights", weights, "head", "query", "key")
    heads, queries, keys = weights.shape
    with mpl.rc_context(STYLE):
        columns = min(heads, 4)
        rows = -(-heads // columns)
        side = np.clip(0.16 * keys, 1.8, 3.2)
        figure, panels = _figure(columns * side + 2, rows * (side + 0.3) + 1.2, rows, columns)
        for head, axes in enumerate(panels.flat):
            if head >= heads:
                axes.set_axis_off()
                continue
            image = _draw_attention(axes, weights[head])
            axes.set_title(f"head {head}", fontsize=9)
            axes.set(xticks=[], yticks=[])
            if head + columns >= heads:  # the lowest panel of its column
                _token_ticks(axes.xaxis, tokens, keys, side)
            if head % columns == 0:
                _token_ticks(axes.yaxis, tokens[keys - queries :], queries, side)
        figure.suptitle(title, x=0.01, ha="left")
        figure.supxlabel(KEY, fontsize=10)
        figure.supylabel(QUERY, fontsize=10)
        _weight_bar(figure, image, panels)
        return _finished(figure)


def plot_attention_grid(attention: ArrayLike, title: str = "Attention of every layer and head") -> Figure:
    """The whole model at a glance: a row of small maps per layer, attention [layer, head, query, key].

    All maps are tiles of one image, query downwards and key to the right in each: 144 separate ones take minutes.
    """
    attention = _attention("attention", attention, "layer", "head", "query", "key")
    layers, heads, queries, keys = attention.shape
    gap = -(-keys // 12)
    down, across = queries + gap, keys + gap
    mosaic = np.ma.masked_array(np.zeros((layers * down - gap, heads * across - gap)), mask=True)
    with mpl.rc_context(STYLE):
        side = np.clip(11.0 / heads, 0.8, 2.0)
        figure, [[axes]] = _figure(heads * side + 1.6, layers * side * down / across + 1.2)
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
        return _finished(figure)


def _attention(name: str, weights: ArrayLike, *axes: str) -> np.ndarray:
    weights = _array(name, weights, *axes)
    if weights.min() < 0 or weights.max() > 1.001:
        raise ValueError(f"{name} must be in [0, 1], got {weights.min():.3g}..{weights.max():.3g}")
    if weights.shape[-2] > weights.shape[-1]:
        raise ValueError(f"{name} must have at least as many keys as queries, got shape {list(weights.shape)}")
    return weights


def _is_causal(weights: np.ndarray) -> bool:
    return len(weights) > 1 and not weights[_future(weights)].any()


def _future(weights: np.ndarray) -> np.ndarray:
    """True where a key comes after its query. The queries are the last of the keys."""
    queries, keys = weights.shape
    return ~np.tri(queries, keys, keys - queries, dtype=bool)


def _seen(weights: np.ndarray) -> np.ma.MaskedArray:
    """The weights without the future, if the head could not see it: "may not look" is not "does not look"."""
    return np.ma.masked_array(weights, _future(weights) & _is_causal(weights))


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
    labels = _labels(tokens, count, f"{axis.axis_name} positions")
    size = min(9.0, 0.85 * 72 * length / count)
    if size < 5:
        places = range(0, count, max(1, 2 ** math.ceil(math.log2(count / 8))))
        axis.set_ticks(places, [str(i) for i in places], fontsize=7)
        return
    turned = axis.axis_name == "x" and max(map(len, labels)) > 1
    axis.set_ticks(range(count), labels, fontsize=size, rotation=90 if turned else 0)
    axis.set_tick_params(length=0, pad=2)


# --- positions


def plot_positions(table: ArrayLike, title: str = "What each position adds to a token") -> Figure:
    """A table of position vectors, [position, d_model]: learned or sinusoidal."""
    table = _array("table", table, "position", "feature")
    with mpl.rc_context(STYLE):
        figure, [[axes]] = _figure(7.5, 4.5)
        _draw_signed(figure, axes, table, np.abs(table).max() or 1.0, "value")
        axes.set(xlabel="feature", ylabel="position", title=title)
        return _finished(figure)


def plot_similarity(table: ArrayLike, title: str = "How alike two positions are") -> Figure:
    """Cosine similarity between all pairs of rows of a table [position, d_model]."""
    table = _array("table", table, "position", "feature")
    length = np.linalg.norm(table, axis=1, keepdims=True)
    if not length.all():
        raise ValueError("table must not hold a row of zeros: it points nowhere, so it has no cosine")
    with mpl.rc_context(STYLE):
        figure, [[axes]] = _figure(5.6, 4.6)
        _draw_signed(figure, axes, (table / length) @ (table / length).T, 1.0, "cosine similarity")
        axes.set(xlabel="position", ylabel="position", title=title, aspect="equal")
        return _finished(figure)


def _draw_signed(figure: Figure, axes: Axes, values: np.ndarray, highest: float, name: str) -> None:
    """A map on which 0 is white, so that sign and size can both be seen."""
    image = axes.imshow(values, cmap="RdBu_r", vmin=-highest, vmax=highest, aspect="auto")
    figure.colorbar(image, ax=axes, label=name, aspect=30, pad=0.02).outline.set_visible(False)


# --- training and generation


def plot_training(
    train: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]] = (), title: str = "Loss while training"
) -> Figure:
    """Loss over steps from lists of (step, loss), in nats per token; the lowest validation loss is marked."""
    train = _array("train", train, "point", "(step, loss)")
    with mpl.rc_context(STYLE):
        figure, [[axes]] = _figure(7, 4)
        axes.plot(*train.T, color=BLUE, linewidth=1, label="training batch")
        if len(validation):
            validation = _array("validation", validation, "point", "(step, loss)")
            axes.plot(*validation.T, color=VERMILION, linewidth=2, marker="o", markersize=3.5, label="held-out text")
            step, loss = validation[validation[:, 1].argmin()]
            axes.axhline(loss, color=VERMILION, linewidth=0.8, linestyle=":")
            best = f"lowest on held-out text: {loss:.3f} at step {step:.0f}"
            axes.set_title(best, loc="right", fontsize=9, color=VERMILION)
        axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=title)
        axes.grid(axis="y", color=FORBIDDEN, linewidth=0.8)
        axes.legend()
        return _finished(figure)


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
    with mpl.rc_context(STYLE):
        turned = max(map(len, labels), default=0) > 4
        figure, [[axes]] = _figure(max(5.0, 1.5 + 0.5 * len(labels)), 4.6 if turned else 3.6)
        width = 0.8 / len(several)
        for i, (name, values) in enumerate(several.items()):
            values = _array("probabilities", values, "token")
            _labels(tokens, len(values), "probabilities")
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
        return _finished(figure)


# --- numbers and curves


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
            points = _array(f"lines[{name!r}]", np.stack([np.ravel(x), np.ravel(y)]), "x and y", "point")
            axes.plot(*points, color=color, linestyle=dashes, marker="o" if markers else "", markersize=4, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set(**{f"{axis}scale": "log" for axis in log})
        axes.grid(color=FORBIDDEN, linewidth=0.8)
        if len(lines) > 1:
            axes.legend()
    return figure


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
    values = _array("values", shown.filled(0), "row", "column")
    highest = np.abs(values).max() or 1.0
    with drawing(1.6 + 0.62 * values.shape[1], 1.3 + 0.42 * values.shape[0]) as (_, [[axes]]):
        axes.patch.set(facecolor=FORBIDDEN, hatch="////")
        axes.imshow(np.ma.masked_array(values, shown.mask), cmap="RdBu_r", vmin=-highest, vmax=highest, aspect="auto")
        for row, column in zip(*np.nonzero(~np.ma.getmaskarray(shown)), strict=True):
            value = values[row, column]
            color = PAPER if abs(value) > 0.6 * highest else INK
            text = f"{value:.{digits}f}"
            text = text.lstrip("-") if float(text) == 0 else text
            axes.text(column, row, text.replace("-", "−"), ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(values.shape[1]), _labels(columns, values.shape[1], "columns"))
        axes.set_yticks(range(values.shape[0]), _labels(rows, values.shape[0], "rows"))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return axes.figure


# --- inside the model


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
    lens = torch.from_numpy(_array("lens", lens, "layer", "token", "vocabulary"))
    probability, best = lens.softmax(dim=-1).max(dim=-1)
    guesses = np.array([token_labels([decode([int(i)]) for i in row]) for row in best])
    labels = _labels(tokens, lens.shape[1], "columns")
    layers = ["embedding"] + [f"after block {i}" for i in range(len(lens) - 1)]
    widest = max(len(text) for text in [*guesses.flat, *labels])
    with mpl.rc_context(STYLE):
        cell = 0.2 + 0.07 * widest
        figure, [[axes]] = _figure(max(6.5, cell * len(labels) + 2.4), 0.32 * len(lens) + 1.5)
        _draw_cells(axes, probability.numpy(), guesses, "probability of the guess", 1.0, fontsize=8)
        axes.set_xticks(axes.get_xticks(), labels, rotation=0, fontsize=8)
        axes.set_yticks(axes.get_yticks(), layers, rotation=0, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="token just read", title=title)
        return _finished(figure)


def plot_scores(
    scores: Mapping[str, ArrayLike],
    label: str = "mean attention weight",
    highest: float | None = 1.0,
    title: str = "What each head does",
) -> Figure:
    """Maps of one number per head, each [layer, head], side by side under their names: `vars(head_scores(model))`.

    All share one scale from 0 to `highest`; None takes the largest value (as for entropies, which have no limit).
    """
    maps = {name: _array(f"scores[{name!r}]", values, "layer", "head") for name, values in scores.items()}
    if not maps:
        raise ValueError("scores must hold at least one map")
    highest = max(values.max() for values in maps.values()) if highest is None else highest
    layers, heads = next(iter(maps.values())).shape
    with mpl.rc_context(STYLE):
        width, height = max(2.4, 0.36 * heads), max(1.2, 0.36 * layers)
        figure, [panels] = _figure(len(maps) * (width + 0.4) + 1.4, height + 1.5, 1, len(maps))
        for axes, (name, values) in zip(panels, maps.items(), strict=True):
            written = np.vectorize("{:.2f}".format)(values)
            _draw_cells(axes, values, written, label if axes is panels[-1] else None, highest, fontsize=6.5)
            axes.set_title(name.replace("_", " "), fontsize=10)
            axes.set(xlabel="head", ylabel="layer" if axes is panels[0] else "")
        figure.suptitle(title, x=0.01, ha="left")
        return _finished(figure)


def _draw_cells(
    axes: Axes, values: np.ndarray, written: np.ndarray, bar_label: str | None, highest: float, fontsize: float
) -> None:
    """A heat map with a text in each cell; a colour bar if it has a label."""
    sns.heatmap(
        values, ax=axes, cmap="viridis", vmin=0, vmax=highest, linewidths=0.5, linecolor=PAPER,
        annot=written, fmt="", annot_kws={"fontsize": fontsize},
        cbar=bar_label is not None, cbar_kws={"label": bar_label, "pad": 0.02},
    )  # fmt: skip
    axes.tick_params(length=0, rotation=0)


# --- figures and files


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
        figure, panels = _figure(width, height, rows, columns)
        yield figure, panels
        _finished(figure)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    figure = _Figure((width, height), layout="compressed")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _finished(figure: Figure) -> Figure:
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        if axis.get_scale() == "log":  # its own labels are mathematics, which STYLE does not read
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    figure.draw_without_rendering()  # ticks are made while drawing: make them now, while the style holds
    return figure


def _rendered(figure: Figure, kind: str, **options) -> bytes:
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
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:  # a full disk's error, for one, does not say which file
        raise OSError(error.errno or errno.EIO, f"cannot write the figure: {error.strerror}", str(path)) from error
    finally:
        if part.is_file():
            part.unlink()
    return path


# --- checks


def _array(name: str, values: ArrayLike, *axes: str) -> np.ndarray:
    """The values as float64, if they have the axes that are expected and every number is finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(axes) or not array.size:
        raise ValueError(f"{name} must be [{', '.join(axes)}] and not empty, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but it holds a NaN or an infinity")
    return array


def _labels(tokens: Sequence[str | bytes], count: int, what: str) -> list[str]:
    if len(tokens) != count:
        raise ValueError(f"tokens must be as many as the {what}, {count}, got {len(tokens)}")
    return token_labels(tokens)
