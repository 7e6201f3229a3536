"""The models that the tests try things on: small enough for a millisecond, uneven enough that nothing hides.

A fresh GPT-2 is a poor subject. Its weights are small, so its attention is nearly uniform and its predictions nearly
equal; its biases are 0 and its gains 1, so a lost one is not missed. Each builder here draws every parameter anew,
from a normal distribution of deviation `std` (None leaves the initialisation as it is), in float64 by default.
The same seed gives the same model. `gpt` is the fixture of that name, so a learner's own classes are built as well.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
SIZES = {"context_size": 12, "vocab_size": 19, "n_layer": 2, "n_head": 2, "n_embd": 12}


def spread(module: Module, std: float = 0.5) -> Module:
    """The module itself, every parameter drawn anew from the global generator: N(0, std)."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def small_config(gpt: Any, **changes: Any) -> Any:
    """A GPTConfig of `SIZES`, with the fields in `changes` set otherwise."""
    return gpt.GPTConfig(**SIZES | changes)


def small_gpt(
    gpt: Any, seed: int = 0, std: float | None = 0.5, dtype: torch.dtype = torch.float64, **changes: Any
) -> Any:
    """A GPT of `SIZES`; `changes` are other fields of its config."""
    torch.manual_seed(seed)
    return _drawn(gpt.GPT(small_config(gpt, **changes)), std, dtype)


def random_block(
    gpt: Any, seed: int = 0, std: float | None = 0.5, dtype: torch.dtype = torch.float64, **changes: Any
) -> Any:
    """One Block of such a GPT."""
    torch.manual_seed(seed)
    return _drawn(gpt.Block(small_config(gpt, **changes)), std, dtype)


def causal_layer(
    gpt: Any,
    d_model: int = 12,
    num_heads: int = 3,
    max_seq_len: int = 16,
    seed: int = 0,
    std: float | None = 0.5,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Any:
    """A CausalSelfAttention; `options` are its other arguments (`dropout`, `bias`)."""
    torch.manual_seed(seed)
    return _drawn(gpt.CausalSelfAttention(d_model, num_heads, max_seq_len, **options), std, dtype)


def random_tokens(
    vocab_size: int = SIZES["vocab_size"], batch: int = 2, length: int = SIZES["context_size"], seed: int = 1
) -> Tensor:
    """Token ids [batch, length] in 0..vocab_size - 1, from a generator of their own."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def _drawn(module: Module, std: float | None, dtype: torch.dtype) -> Module:
    module = module.to(dtype)
    return module if std is None else spread(module, std)
