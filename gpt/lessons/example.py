"""Which GPT-2 is small enough for paper?

One for the proverb "the more the merrier": one block, two heads, d_model 4, five words, and weights that are small
integers and halves. WORKED_EXAMPLE.md computes every number inside it and every gradient; the guide and the chapters
use the same example. (The other half of the proverb is "the fewer the better".)

The two "the" ask for different words. The embedding of "the" cannot tell which, so the model has to use the position
and to look back: after "more" comes "merrier", after "fewer" comes "better". It still gets this wrong; one step of
AdamW mends it.
"""

from __future__ import annotations

import numpy as np
import torch

from gpt.config import GPTConfig
from gpt.model import GPT

VOCABULARY = ("the", "more", "fewer", "merrier", "better")
TOKENS = np.array([[0, 1, 0]])  # the more the
TARGETS = np.array([[1, 0, 3]])  # more the merrier: at each position, the next word
CONFIG = GPTConfig(context_size=4, vocab_size=len(VOCABULARY), n_layer=1, n_head=2, n_embd=4)
N_HEAD = CONFIG.n_head
STEP = {"lr": 0.02, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1}  # the one step of AdamW that mends it

# Each word has two of four features. One row a word, in the order of VOCABULARY.
_TOKEN_EMBEDDING = """
    1  1  0  0
    0  1  1  0
    0  0  1  1
    1  0  1  0
    1  0  0  1
"""
_POSITION_EMBEDDING = """
    1  0  0 -1
    0  1  1  0
    1  0  0  1
    0  0  1 -1
"""
# The rows make two queries, keys or values for head 0, then two for head 1. Each reads one feature.
_QUERY = """
    1  0  0    0
    0  0 -0.5  0
    0  0  0    1
    1  0  0    0
"""
_KEY = """
    0  1  0  0
    0  0  1  0
    0  0  1  0
    0 -1  0  0
"""
_VALUE = """
    0  1  0  0
   -1  0  0  0
    0  0  0  1
   -1  0  0  0
"""
_PROJECTION = """
    0    0  0  0.5
    0   -1  0  0
    0    0 -1  0
   -0.5  0  0  0
"""
# Sixteen hidden units: is a feature high? is it low? which of two neighbours is higher? ... and by half?
_EXPAND = """
    1  0  0  0
    0  1  0  0
    0  0  1  0
    0  0  0  1
   -1  0  0  0
    0 -1  0  0
    0  0 -1  0
    0  0  0 -1
    1 -1  0  0
    0  1 -1  0
    0  0  1 -1
   -1  0  0  1
    0.5  0   -0.5  0
    0    0.5  0   -0.5
   -0.5  0    0.5  0
    0   -0.5  0    0.5
"""
# What each hidden unit writes, one row a unit: the matrix is stored the other way round, [d_model, d_ff].
_PROJECT_BY_UNIT = """
    0    0  0   -1
   -1    0  0    0
    0    0  0   -1
    0    0  1    0
    0    1  0    0
    0    0 -0.5  0
    0    0  0    0.5
    0    1  0    0
    0.5  0  0    0
    0    0  0    0.5
    0    0 -1    0
    0    0.5 0   0
    0    0  0    0.5
   -1    0  0    0
    1    0  0    0
    0    0  0    1
"""


def example_parameters() -> dict[str, np.ndarray]:
    """The weights in float64, under the names of `gpt.GPT`'s state dict and in its order."""
    qkv_bias, expand_bias = np.zeros(12), np.zeros(16)
    qkv_bias[[3, 8]] = 0.5, -1  # head 1's second query, head 0's first value
    expand_bias[[10, 13, 15]] = -0.5, 0.5, -0.5
    parameters = {
        "token_embedding.weight": _matrix(_TOKEN_EMBEDDING),
        "position_embedding.weight": _matrix(_POSITION_EMBEDDING),
        "blocks.0.attention_norm.weight": np.ones(4),
        "blocks.0.attention_norm.bias": np.zeros(4),
        "blocks.0.attention.qkv.weight": np.vstack([_matrix(_QUERY), _matrix(_KEY), _matrix(_VALUE)]),
        "blocks.0.attention.qkv.bias": qkv_bias,
        "blocks.0.attention.projection.weight": _matrix(_PROJECTION),
        "blocks.0.attention.projection.bias": np.zeros(4),
        "blocks.0.feed_forward_norm.weight": np.ones(4),
        "blocks.0.feed_forward_norm.bias": np.zeros(4),
        "blocks.0.feed_forward.expand.weight": _matrix(_EXPAND),
        "blocks.0.feed_forward.expand.bias": expand_bias,
        "blocks.0.feed_forward.project.weight": _matrix(_PROJECT_BY_UNIT).T.copy(),
        "blocks.0.feed_forward.project.bias": np.zeros(4),
        "final_norm.weight": np.ones(4),
        "final_norm.bias": np.zeros(4),
    }
    return parameters


def example_model() -> GPT:
    """`gpt.GPT` with these weights, in float64."""
    model = GPT(CONFIG).double()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in example_parameters().items()})
    return model


def _matrix(text: str) -> np.ndarray:
    return np.array([[float(entry) for entry in line.split()] for line in text.strip().splitlines()])
