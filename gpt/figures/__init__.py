"""How do we see what the package computes? `from gpt import figures`, then `figures.plot_head(...)`.

Each `plot_...` draws one kind of figure and returns it; `save` writes it. Arrays may be tensors, NumPy arrays or lists.
`tokens` are the texts (or bytes) of the tokens: `token_labels` makes them legible. Wrong shapes are a ValueError that
names the argument. Used by DEEP_THEORY_GUIDE.md, Parts 2, 3, 7, 8, 9.
"""

from gpt.support.extras import needs

needs("figures", "matplotlib")

from gpt.figures.attention import KEY, QUERY, plot_attention_grid, plot_head, plot_layer
from gpt.figures.curves import plot_distribution, plot_lines, plot_training
from gpt.figures.labels import token_labels
from gpt.figures.maps import plot_lens, plot_matrix, plot_positions, plot_scores, plot_similarity
from gpt.figures.style import (
    BLUE,
    FONT,
    FORBIDDEN,
    GREEN,
    INK,
    LINES,
    ORANGE,
    PAPER,
    PURPLE,
    QUIET,
    SKY,
    VERMILION,
    drawing,
    png,
    save,
)
