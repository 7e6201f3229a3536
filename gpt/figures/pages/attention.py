"""How do we look around in a model's attention, head by head and token by token?

`attention_page` makes one HTML page that holds all weights of a forward pass and shows them where the reader points.
It needs no network, no library and no server: a file that any browser opens. What it shows are the numbers of
`gpt.inspection.trace`; DEEP_THEORY_GUIDE.md, Part 9.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import ArrayLike

from gpt.figures.attention import checked_weights, future
from gpt.figures.labels import labels_for

LARGEST = 20_000_000  # bytes: more takes a browser long to open
STEPS = 65535  # a weight is stored as an integer 0..65535, in two bytes
TEMPLATE = Path(__file__).with_suffix(".html")


def attention_page(attention: ArrayLike, tokens: Sequence[str | bytes], title: str = "Where each head looks") -> str:
    """A page of HTML in which the reader points at a token and sees where each head looks.

    attention [layer, head, query, key], causal, one row and one column a token; `tokens` are their texts or bytes.
    The page holds each weight to within 1 / 131070 (0.000008) in 8/3 bytes, so it takes 8/6 N H T (T + 1) bytes: 2 MB
    for the smallest GPT-2 at T = 100. The same arguments give the same page.
    Raises ValueError, naming the argument, for another shape, a number that is no weight, a weight on the future,
    or so many weights that the page would take more than 20 MB.
    """
    weights = checked_weights("attention", attention, "layer", "head", "query", "key")
    layers, heads, queries, keys = weights.shape
    after = future(weights[0, 0])
    if queries != keys or weights[..., after].any():
        raise ValueError(
            f"attention must be causal: as many queries as keys, and no weight on the future; got {queries} queries "
            f"and {keys} keys"
        )
    seen = weights[..., ~after]  # [layer, head, T (T + 1) / 2], row by row
    if (size := seen.size * 8 / 3) > LARGEST:
        raise ValueError(
            f"attention of {layers} layers, {heads} heads and {keys} tokens would make a page of {size / 1e6:,.1f} MB, "
            f"and {LARGEST / 1e6:.0f} MB is the most: take a shorter text"
        )
    data = {
        "layers": layers,
        "heads": heads,
        "tokens": labels_for(tokens, keys, "keys"),
        "weights": _base64(np.rint(seen.clip(max=1) * STEPS).astype("<u2")),
        "palette": _base64(mpl.colormaps["viridis"](np.arange(256), bytes=True)),
    }
    start, end = TEMPLATE.read_text(encoding="utf-8").split("{{data}}")
    written = html.escape(title).encode("ascii", "xmlcharrefreplace").decode()
    # Inside a script "<" could end it or open a comment; the rest json.dumps writes in ASCII.
    return start.replace("{{title}}", written) + json.dumps(data).replace("<", "\\u003c") + end


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
