"""Plots: a figure shows the numbers it was given, says what they are, and is the same file every time."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest
import torch

from tests.comparing import close

TOKENS = ["The", " quick", " brown", " fox", "\n"]


def causal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights [..., query, key] of a head that cannot see the future."""
    scores = np.random.default_rng(seed).normal(size=shape)
    weights = np.exp(scores) * np.tri(*shape[-2:], shape[-1] - shape[-2])
    return weights / weights.sum(-1, keepdims=True)


def texts(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# --- token labels


@pytest.mark.parametrize(
    ("token", "label"),
    [
        ("the", "the"),
        (" the", "␣the"),
        ("\n\n", "⏎⏎"),
        ("\t", "⇥"),
        ("\r", "\\r"),
        ("", "∅"),
        ("\x00", "\\x00"),
        ("\x1b", "\\x1b"),
        (b" caf\xc3\xa9", "␣café"),
        (b"\xe4\xbd", "\\xe4\\xbd"),  # two of the three bytes of a Chinese character
        ("\udce4", "\\xe4"),  # the same, as Python carries it in a str
        ("\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}"),
        ("你", "U+4F60"),
        ("\N{ZERO WIDTH SPACE}", "U+200B"),
        ("\N{NO-BREAK SPACE}", "U+00A0"),
        ("\N{COMBINING ACUTE ACCENT}", "U+0301"),
        ("<|endoftext|>", "<|endoftext|>"),
        (" extraordinarily", "␣extraordinar…"),
        ("你好吗", "U+4F60U+597D…"),  # an escape is never cut in two
        ("$x$", "$x$"),
    ],
)
def test_a_token_label_is_visible_and_short(gpt, token, label):
    assert gpt.figures.token_labels([token]) == [label]
    assert len(label) <= 14


def test_labels_of_labels_are_the_same_labels(gpt):
    labels = gpt.figures.token_labels([" a", "\n", "", b"\xff", "你好吗再见", "unbelievably long"])
    assert gpt.figures.token_labels(labels) == labels


def test_a_text_is_the_list_of_its_characters(gpt):
    assert gpt.figures.token_labels("a b") == ["a", "␣", "b"]


def test_ids_are_not_labels(gpt):
    with pytest.raises(TypeError, match="tokens must be strings or bytes, got 464"):
        gpt.figures.token_labels([464])


def test_the_label_of_a_token_of_a_million_letters_takes_no_time(gpt):
    started = time.perf_counter()
    assert gpt.figures.token_labels(["x" * 10**6, b"\xff" * 10**6]) == ["x" * 13 + "…", "\\xff\\xff\\xff…"]
    assert time.perf_counter() - started < 1  # measured: 1 ms; cutting it letter by letter took minutes


# --- attention


def test_a_head_is_drawn_as_it_is(gpt):
    weights = causal(5, 5)
    axes = gpt.figures.plot_head(torch.tensor(weights), TOKENS, "Layer 3, head 1").axes[0]
    drawn = axes.images[0].get_array()
    close(drawn.filled(0), weights)
    close(drawn.mask, ~np.tri(5, dtype=bool))  # the future is blank, not dark
    assert axes.get_title(loc="left") == "Layer 3, head 1"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key: what it looks at", "query: who looks")
    assert texts(axes.xaxis) == texts(axes.yaxis) == ["The", "␣quick", "␣brown", "␣fox", "⏎"]


def test_a_weight_of_zero_is_not_a_masked_one(gpt):
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    drawn = gpt.figures.plot_head(weights, "abc").axes[0].images[0].get_array()
    assert not drawn.mask[2, 1]
    assert drawn.mask[0, 1]


def test_a_head_that_sees_the_future_hides_nothing(gpt):
    weights = np.full((4, 4), 0.25)
    assert not np.any(gpt.figures.plot_head(weights, "abcd").axes[0].images[0].get_array().mask)


def test_the_queries_of_a_cached_pass_are_the_last_tokens(gpt):
    weights = causal(2, 5)
    axes = gpt.figures.plot_head(weights, TOKENS).axes[0]
    assert texts(axes.yaxis) == ["␣fox", "⏎"]
    close(axes.images[0].get_array().mask, [[False] * 4 + [True], [False] * 5])


def test_dollar_signs_in_tokens_are_not_formulas(gpt):
    axes = gpt.figures.plot_head(causal(3, 3), ["$x$", "a", "b"], "$5 and $6").axes[0]
    assert not any(text.get_parse_math() for text in [axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()])


def test_a_layer_shows_each_head_on_one_scale(gpt):
    weights = causal(6, 5, 5)
    figure = gpt.figures.plot_layer(weights, TOKENS)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == [f"head {i}" for i in range(6)]
    for head, axes in enumerate(panels):
        close(axes.images[0].get_array().filled(0), weights[head])
        assert axes.images[0].get_clim() == (0, 1)
    assert texts(panels[0].yaxis) == texts(panels[4].xaxis) == gpt.figures.token_labels(TOKENS)
    assert texts(panels[1].yaxis) == texts(panels[0].xaxis) == []  # only the outer panels are labelled


def test_the_grid_has_every_layer_and_head_in_its_place(gpt):
    attention = causal(3, 4, 12, 12)
    axes = gpt.figures.plot_attention_grid(attention).axes[0]
    mosaic = axes.images[0].get_array()
    for layer in range(3):
        for head in range(4):
            tile = mosaic[layer * 13 : layer * 13 + 12, head * 13 : head * 13 + 12]  # 12 cells and a gap of 1
            close(tile.filled(0), attention[layer, head])
    assert mosaic.count() == 3 * 4 * (12 * 13 // 2)  # nothing else is drawn
    assert texts(axes.xaxis) == ["head 0", "head 1", "head 2", "head 3"]
    assert texts(axes.yaxis) == ["layer 0", "layer 1", "layer 2"]


def test_masked_and_unlooked_at_have_different_colours_in_the_file(gpt, tmp_path):
    """Read back from the pixels: the first row is one yellow cell, then the grey of what it may not see."""
    from PIL import Image

    weights = np.zeros((1, 1, 8, 8))
    weights[..., 0] = 1
    with Image.open(gpt.figures.save(gpt.figures.plot_attention_grid(weights), tmp_path / "grid.png")) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert (226, 226, 222) in colors  # forbidden
    assert (68, 1, 84) in colors  # viridis at 0: allowed, but not looked at
    assert (253, 231, 36) in colors  # viridis at 1


def test_long_texts_keep_every_character_on_one_head_and_positions_on_small_maps(gpt):
    text = "to be, or not to be: " * 6 + "to"
    axes = gpt.figures.plot_head(causal(128, 128), text).axes[0]
    assert texts(axes.xaxis) == gpt.figures.token_labels(text)
    assert min(label.get_fontsize() for label in axes.get_xticklabels()) >= 5
    small = gpt.figures.plot_layer(causal(2, 128, 128), text).axes[0]
    assert texts(small.xaxis) == ["0", "16", "32", "48", "64", "80", "96", "112"]


# --- positions, training, generation


def test_positions_are_drawn_around_zero(gpt):
    table = np.random.default_rng(0).normal(size=(7, 4))
    axes = gpt.figures.plot_positions(table).axes[0]
    close(axes.images[0].get_array(), table)
    low, high = axes.images[0].get_clim()
    assert high == -low == np.abs(table).max()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature", "position")


def test_similarity_is_the_cosine(gpt):
    axes = gpt.figures.plot_similarity([[1, 0], [0, 2], [3, 3], [-1, 0]]).axes[0]
    half = np.sqrt(0.5)
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    close(axes.images[0].get_array(), expected, 1e-15)  # worst 2.2e-16


def test_a_row_of_zeros_has_no_cosine(gpt):
    with pytest.raises(ValueError, match="table must not hold a row of zeros"):
        gpt.figures.plot_similarity([[1, 0], [0, 0]])


def test_training_curves_are_the_points_given_and_the_best_is_named(gpt):
    train, validation = [(0, 4.0), (10, 3.0), (20, 2.0)], [(0, 4.1), (10, 2.5), (20, 2.75)]
    axes = gpt.figures.plot_training(train, validation).axes[0]
    close(axes.lines[0].get_xydata(), train)
    close(axes.lines[1].get_xydata(), validation)
    assert axes.get_title(loc="right") == "lowest on held-out text: 2.500 at step 10"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "loss (nats per token)")


def test_training_without_validation_has_one_curve(gpt):
    assert len(gpt.figures.plot_training([(0, 4.0), (1, 3.0)]).axes[0].lines) == 1


def test_bars_have_the_heights_given_and_a_cross_where_nothing_may_come(gpt):
    bars = {"all": [0.5, 0.3, 0.2], "top-k 2": torch.tensor([0.625, 0.375, 0.0])}
    figure = gpt.figures.plot_distribution("abc", bars)
    axes = figure.axes[0]
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[0.5, 0.3, 0.2], [0.625, 0.375, 0.0]]
    assert [len(crosses.get_xdata()) for crosses in axes.lines] == [0, 1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["all", "top-k 2"]
    assert texts(axes.xaxis) == ["a", "b", "c"]


# --- numbers and curves


def test_curves_are_the_points_given_and_can_be_told_apart_without_colour(gpt):
    x = np.arange(4.0)
    lines = {f"curve {i}": (x, x + i) for i in range(7)}
    (axes,) = gpt.figures.plot_lines(lines, "x", "y", "Seven").axes
    for i, line in enumerate(axes.lines):
        close(line.get_ydata(), x + i)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines}
    assert len(looks) == 7
    assert len({dashes for _, dashes in looks}) >= 5


def test_labels_of_logarithmic_axes_are_plain_numbers(gpt):
    (axes,) = gpt.figures.plot_lines({"": ([0.1, 1, 100], [1, 2, 3])}, "x", "y", "One", log="x").axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_legend()) == ("log", "linear", None)
    assert {"0.1", "1", "10", "100"} <= set(texts(axes.xaxis))


def test_a_matrix_has_its_numbers_written_and_leaves_out_what_is_masked(gpt):
    values = [[1.0, float("nan")], [-0.001, -2.5]]
    (axes,) = gpt.figures.plot_matrix(values, ["the", "more"], ["the", " more"], "Scores", ylabel="query").axes
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.00", "−2.50"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (0, 1), (1, 1)]
    assert (texts(axes.xaxis), texts(axes.yaxis)) == (["the", "␣more"], ["the", "more"])
    (image,) = axes.images
    assert image.get_clim() == (-2.5, 2.5)
    assert image.get_array().mask.tolist() == [[False, True], [False, False]]


def test_a_drawing_of_ones_own_has_the_house_style(gpt):
    with gpt.figures.drawing(6, 2, rows=1, columns=2) as (figure, [[left, right]]):
        left.plot([1, 2])
    assert list(figure.get_size_inches()) == [6, 2]
    assert left.xaxis.label.get_fontfamily() == [gpt.figures.FONT]
    assert not right.spines["top"].get_visible()


# --- inside the model


def test_the_lens_writes_the_likeliest_token_and_colours_by_its_probability(gpt):
    """Logits of ln 3 against 0 and minus infinity's stand-in: the winner has 3/4 of the probability."""
    lens = np.full((2, 3, 4), -200.0)
    winners = np.array([[0, 1, 2], [3, 2, 1]])
    for place, winner in np.ndenumerate(winners):
        lens[place][winner] = np.log(3)
        lens[place][(winner + 1) % 4] = 0
    axes = gpt.figures.plot_lens(lens, "abc", lambda ids: " xyz"[ids[0]]).axes[0]
    drawn = axes.images[0].get_array()
    close(drawn, np.full((2, 3), 0.75), 1e-15)  # worst 1.1e-16
    assert [text.get_text() for text in axes.texts] == ["␣", "x", "y", "z", "y", "x"]
    assert texts(axes.yaxis) == ["embedding", "after block 0"]
    assert texts(axes.xaxis) == ["a", "b", "c"]
    assert axes.get_ylim() == (-0.5, 1.5)  # the embedding is at the bottom, the last layer on top


def test_scores_are_drawn_under_their_names(gpt):
    scores = {"previous_token": np.random.default_rng(0).random((2, 3)), "induction": torch.eye(2, 3)}
    figure = gpt.figures.plot_scores(scores)
    panels = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in panels] == ["previous token", "induction"]
    for axes, values in zip(panels, scores.values(), strict=True):
        close(axes.images[0].get_array(), np.asarray(values, dtype=np.float64))
        assert axes.images[0].get_clim() == (0, 1)
    assert panels[1].texts[0].get_text() == "1.00"


def test_scores_without_a_limit_go_to_the_largest(gpt):
    axes = gpt.figures.plot_scores({"a": [[0.5, 2.0]], "b": [[3.0, 1.0]]}, "nats", highest=None).axes[0]
    assert axes.images[0].get_clim() == (0, 3)


# --- every figure

FIGURES = {
    "plot_head": (causal(5, 5), ["$x$", "你", "", b"\xff", "\t"]),
    "plot_layer": (causal(3, 5, 5), TOKENS),
    "plot_attention_grid": (causal(2, 3, 5, 5),),
    "plot_positions": (np.eye(4),),
    "plot_similarity": (np.eye(4),),
    "plot_training": ([(0, 4.0), (1, 3.0)], [(1, 3.5)]),
    "plot_distribution": (TOKENS, [0.5, 0.5, 0.0, 0.0, 0.0]),
    "plot_lens": (np.random.default_rng(0).normal(size=(3, 5, 7)), TOKENS, str),
    "plot_scores": ({"induction": np.eye(3)},),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_figure_is_the_same_file(gpt, tmp_path, name):
    """Also: none warns (pytest makes warnings errors), so no label lacks its glyph; and none opens a window."""
    import matplotlib.pyplot as plt

    first, second = (getattr(gpt.figures, name)(*FIGURES[name]) for _ in range(2))
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        content = gpt.figures.save(first, tmp_path / f"1.{kind}").read_bytes()
        assert content.startswith(start)
        assert content == gpt.figures.save(second, tmp_path / f"2.{kind}").read_bytes()
    assert b"<dc:date>" not in content
    assert plt.get_fignums() == []


def test_figures_have_a_light_opaque_background(gpt, tmp_path):
    """So that they can be read on a dark page."""
    from PIL import Image

    figure = gpt.figures.plot_training([(0, 4.0), (1, 3.0)])
    with Image.open(gpt.figures.save(figure, tmp_path / "curve.png")) as image:
        *color, alpha = image.convert("RGBA").getpixel((0, 0))
    assert min(color) > 240
    assert alpha == 255


def test_plots_leave_the_readers_own_style_alone(gpt):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    gpt.figures.plot_layer(causal(2, 5, 5), TOKENS)
    assert dict(mpl.rcParams) == before


def test_a_notebook_shows_the_figure(gpt):
    assert gpt.figures.plot_positions(np.eye(4))._repr_png_().startswith(b"\x89PNG")


# --- files


def test_save_makes_the_folder_and_returns_the_path(gpt, tmp_path):
    path = gpt.figures.save(gpt.figures.plot_positions(np.eye(4)), tmp_path / "new" / "folder" / "positions.png")
    assert path == tmp_path / "new" / "folder" / "positions.png"
    assert os.listdir(path.parent) == ["positions.png"]


def test_a_path_that_cannot_be_written_is_named(gpt, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="write") as caught:
        gpt.figures.save(gpt.figures.plot_positions(np.eye(4)), tmp_path / "file" / "positions.png")
    assert str(tmp_path / "file" / "positions.png") in str(caught.value)


def test_a_full_disk_leaves_the_old_file(gpt, tmp_path, monkeypatch):
    path = tmp_path / "positions.png"
    path.write_bytes(b"old")

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        gpt.figures.save(gpt.figures.plot_positions(np.eye(4)), path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["positions.png"]


def test_another_file_type_is_refused(gpt, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in .png or .svg"):
        gpt.figures.save(gpt.figures.plot_positions(np.eye(4)), tmp_path / "positions.jpg")


# --- bad input


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("plot_head", (causal(2, 3, 3), "abc"), r"weights must be \[query, key\]"),
        ("plot_head", (causal(3, 3), "ab"), "tokens must be as many as"),
        ("plot_head", (causal(3, 3), "abcd"), "tokens must be as many as"),
        ("plot_head", (causal(3, 3) * 2, "abc"), r"weights must be in \[0, 1\]"),
        ("plot_head", (causal(3, 3).T[:, :2], "ab"), "weights must have at least as many keys as queries"),
        ("plot_head", (np.full((2, 2), np.nan), "ab"), "weights must be finite"),
        ("plot_layer", (causal(3, 3), "abc"), r"weights must be \[head, query, key\]"),
        ("plot_attention_grid", (causal(2, 3, 3),), r"attention must be \[layer, head, query, key\]"),
        ("plot_positions", ([1.0, 2.0],), r"table must be \[position, feature\]"),
        ("plot_similarity", (np.zeros((0, 3)),), r"table must be \[position, feature\] and not empty"),
        ("plot_training", ([],), r"train must be \[point, \(step, loss\)\] and not empty"),
        ("plot_training", ([4.0, 3.0],), "train must be"),
        ("plot_training", ([(0, 4.0)], [1.0]), "validation must be"),
        ("plot_distribution", ("ab", [1.0]), "tokens must be as many as the probabilities"),
        ("plot_lens", (np.zeros((2, 3)), "abc", str), r"lens must be \[layer, token, vocabulary\]"),
        ("plot_lens", (np.zeros((2, 3, 4)), "ab", str), "tokens must be as many as"),
        ("plot_scores", ({"induction": [1.0]},), r"scores\['induction'\] must be \[layer, head\]"),
        ("plot_scores", ({},), "scores must hold at least one map"),
        ("plot_lines", ({}, "x", "y", "No line"), "lines must be 1 to 7 curves, got 0"),
        ("plot_lines", ({"a": ([1], [np.inf])}, "x", "y", "One"), r"lines\['a'\] must be finite"),
        ("plot_lines", ({"a": ([1], [2])}, "x", "y", "One", "z"), "log must be"),
        ("plot_matrix", ([1.0], "a", "b", "One"), r"values must be \[row, column\]"),
        ("plot_matrix", ([[1.0]], "ab", "c", "One"), "tokens must be as many as the rows"),
    ],
)
def test_wrong_arguments_are_named(gpt, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(gpt.figures, name)(*arguments)
