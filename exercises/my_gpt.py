"""My GPT-2.

Fill in one step after the other: HOW_TO_CODE_GUIDE.md says what each must do.

    .venv/bin/python -m gpt check              where do I stand, and what is wrong?
    .venv/bin/python -m gpt check --hint       a hint for the step I am at
    .venv/bin/python -m gpt check --watch      check again whenever I save

A function that only raises NotImplementedError is not written yet. Names, arguments and shapes are given, since the
checks call your code; all else is yours. Letters: B batch, T queries, S keys, V vocabulary, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import GPTConfig
from gpt.tokens import GPT2_PATTERN

Pair = tuple[bytes, bytes]

# --- step 1: a tokenizer of characters


class CharTokenizer:
    """A character's id is its place in the sorted alphabet."""

    def __init__(self, characters: Sequence[str]) -> None:
        """characters: a string or list of different characters, whose order is the order of the ids."""
        raise NotImplementedError

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The tokenizer of all characters that occur in the text, sorted."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """str -> list of ids"""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """list of ids -> str"""
        raise NotImplementedError


# --- step 2: byte-pair encoding. A token is a bytes object, a pair is two of them.


def pretokenize(text: str, pattern: str = GPT2_PATTERN) -> list[str]:
    """The pieces of a text inside which pairs may merge. Together they are the text."""
    raise NotImplementedError


def merge_pair(tokens: Sequence[bytes], pair: Pair) -> list[bytes]:
    """Join every occurrence of the pair, from left to right."""
    raise NotImplementedError


def apply_merges(word: bytes, ranks: Mapping[Pair, int]) -> list[bytes]:
    """Cut one piece into tokens. ranks: {pair: 0 for the one that was learned first, 1, ...}"""
    raise NotImplementedError


def learn_merges(word_counts: Mapping[bytes, int]) -> Iterator[tuple[Pair, int]]:
    """Yield (pair, how often it occurs) in the order in which BPE learns them, until no pair is left.

    word_counts: {piece: how often it occurs}. Of equally frequent pairs, the first in byte order.
    """
    raise NotImplementedError


# --- step 3: positions that are learned


class LearnedPositionalEncoding(nn.Module):
    """x [B, T, d_model] -> x plus row t of a table [max_len, d_model] at position t."""

    def __init__(self, d_model: int, max_len: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        raise NotImplementedError


# --- step 4: the attention equation


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d_k)) V

    query [..., T, d_k], key [..., S, d_k], value [..., S, d_v], mask [T, S] of booleans: True where a query may look.
    Returns (output [..., T, d_v], weights [..., T, S]).
    """
    raise NotImplementedError


# --- step 5: the causal mask


def causal_mask(queries: int, keys: int) -> Tensor:
    """Booleans [queries, keys]: True where a query may look. The queries are the last of the keys."""
    raise NotImplementedError


# --- step 6: many heads in one layer


class CausalSelfAttention(nn.Module):
    """x [B, T, d_model] -> [B, T, d_model]

    Has `qkv`, an nn.Linear(d_model, 3 d_model) whose output is q, k and v side by side, and `projection`, an
    nn.Linear(d_model, d_model). The weights [B, H, T, S] of the last pass stay in `weights`.
    """

    def __init__(self, d_model: int, num_heads: int, max_seq_len: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """cache: None, or a KVCache whose append(k, v) returns all keys and values so far (step 19)."""
        raise NotImplementedError


# --- step 7: LayerNorm


class LayerNorm(nn.Module):
    """x [..., d_model] -> the same shape. Parameters `weight` and, unless bias=False, `bias`, both [d_model]."""

    def __init__(self, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


# --- step 8: GELU and the feed-forward network


class GELU(nn.Module):
    """The tanh form."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class FeedForward(nn.Module):
    """x [..., d_model] -> the same shape, by way of 4 d_model. Has `expand` and `project`, two nn.Linear."""

    def __init__(self, d_model: int, bias: bool = True) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


# --- step 9: a block


class Block(nn.Module):
    """x [B, T, d_model] -> the same. Has attention_norm, attention, feed_forward_norm, feed_forward."""

    def __init__(self, config: GPTConfig) -> None:
        """config.n_embd is d_model, config.n_head H, config.context_size the longest T; also .bias and .dropout."""
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        raise NotImplementedError


# --- steps 10 and 11: the whole model, its weights at the start, and the loss


class GPT(nn.Module):
    """tokens [B, T] -> (logits [B, T, V], loss); the loss is None without targets.

    Has token_embedding (an nn.Embedding), position_embedding, blocks (an nn.ModuleList) and final_norm; the head is
    the table of token_embedding itself. `config` is kept as an attribute.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        raise NotImplementedError

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> [B, T, d_model], what the head reads."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """targets [B, T]: ids, or -100 where nothing is to be predicted. The loss is the mean cross-entropy."""
        raise NotImplementedError


# --- step 12: weights from a file in the released layout


def load_pretrained(folder: str | Path) -> GPT:
    """A folder with config.json and model.safetensors, as GPT-2 was released -> your GPT with these weights."""
    raise NotImplementedError


# --- step 13: batches of windows


class RandomWindows:
    """Batches of windows that begin at random places of a text."""

    def __init__(self, tokens: Tensor, context: int, batch_size: int, seed: int = 0) -> None:
        """tokens: ids [n]; context: T."""
        raise NotImplementedError

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """(inputs [B, T], targets [B, T]); each target is the token that follows its input in the text."""
        raise NotImplementedError


# --- step 14: AdamW with two groups


def adamw(
    model: nn.Module, lr: float = 3e-4, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """torch.optim.AdamW on the model's parameters; only what has two axes is decayed."""
    raise NotImplementedError


# --- step 15: warm-up and cosine


def cosine_schedule(step: int, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The rate of update `step` = 0, 1, ...: a line up to peak at step = warmup, half a cosine to floor at total."""
    raise NotImplementedError


# --- step 16: the training loop


def train(
    model: nn.Module,
    dataloader: Any,
    n_steps: int,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float] | None = None,
    max_grad_norm: float = 1.0,
) -> nn.Module:
    """n_steps updates with dataloader.next_batch(); schedule(step) is the rate of each. Returns the model."""
    raise NotImplementedError


def evaluate(model: nn.Module, tokens: Tensor) -> float:
    """The mean loss of a text [n] in windows of context_size that do not overlap; the last may be shorter."""
    raise NotImplementedError


# Step 17 needs no new names: it learns.
# --- step 18: drawing a token


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits [B, V] -> probabilities [B, V]: temperature, then top_k, then top_p of what is left."""
    raise NotImplementedError


def generate(
    model: nn.Module,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """tokens [B, T] -> [B, T + max_new_tokens]; beyond the context the model reads the last tokens alone."""
    raise NotImplementedError


# --- step 19: keys and values that are kept


class KVCache:
    """What one attention layer has computed so far."""

    def __init__(self, batch: int, num_heads: int, max_seq_len: int, d_head: int, like: Tensor) -> None:
        """like: a tensor, whose type and device the stored ones have."""
        raise NotImplementedError

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value [B, H, T, d_head] of the new tokens -> those of all tokens, [B, H, S, d_head]."""
        raise NotImplementedError


# Steps 20 and 21 need no new names: dropout in steps 6, 9 and 10, and errors that say what is wrong.
