"""Same result, faster: where the plain PyTorch call leaves time on the table, mostly on a CPU.

To understand GPT-2, read `Linear`, `Embedding` and `Dropout` as the layers of the same name in `torch.nn`, and
`fused_causal_attention` as the equation of `gpt.attention` with a causal mask; tests/package/test_kernels.py
holds each to that. On an accelerator, and under `torch.compile`, `torch.export` and `torch.func`, they are just these.

Times below: one core, float32, PyTorch 2.13. A kernel may add up in another order with gradients than without,
so that the two results differ in their last bits.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt.support.checks import check_dropout, check_dtype, eager_on_cpu

TWICE_FROM = 2**17  # numbers in a matrix; a smaller one lies in the cache anyway


def linear(
    x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, "d_out"] | None = None
) -> Float[Tensor, "... d_out"]:
    """y = x W^T + b.

    Why: when text is generated, x is one vector and the time goes into reading W. Linear algebra libraries read a large
    W faster for two columns than for one, so the vector goes in twice: GPT-2's head is 1.4 times as fast on one core
    and 2.3 times on two, its widening matrices 1.2 and 2.2 times, the narrowing ones 0.6 and 1.15 times. A small W is
    left to PyTorch: it lies in the cache anyway. Only without gradients: the same layer may give other last bits under
    no_grad than while it trains.
    """
    check_dtype("x", x, weight)
    lone_vector = x.numel() == x.shape[-1] and not torch.is_grad_enabled()
    if not (lone_vector and weight.numel() >= TWICE_FROM and eager_on_cpu(x, weight)):
        return F.linear(x, weight, bias)
    twice = x.reshape(1, -1).repeat(2, 1)
    y = (weight @ twice.T)[:, 0].view(*x.shape[:-1], -1)
    return y if bias is None else y + bias.to(y.dtype)  # under autocast, y is the narrower one


class Linear(nn.Linear):
    """A learned `linear`."""

    def forward(self, input: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return linear(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table whose rows are looked up; `weight` is GPT-2's head as well.

    Why: its gradient is the sum of the head's, which is dense, and of the lookup's, a few rows in a table of zeros.
    Where the caller promises with `sparse=True` that the head's gradient comes too, autograd gets these rows alone
    and adds them to the head's in place: 1.26 times as fast for table and head of the 124M model, 256 tokens, forward
    and backward. Without the head the gradient would remain a sparse tensor, which AdamW and
    clipping refuse; so it is dense unless promised.
    """

    def forward(self, input: Int[Tensor, "..."], sparse: bool = False) -> Float[Tensor, "... d_model"]:
        return F.embedding(input, self.weight, sparse=sparse and eager_on_cpu(input, self.weight))


COINS = 2**16  # A coin of `drop` is one of so many equally likely integers.


def drop(x: Float[Tensor, "*axes"], p: float) -> Float[Tensor, "*axes"]:
    """Dropout: set each value to 0 with probability p and divide the rest by the chance to stay, so the mean stays.

    Why: F.dropout draws a float for each value. Here a coin is a 16-bit integer, and one draw of 64 bits makes
    four: 4.4 times as fast for a million values.
    The probability is then the multiple of 1/65536 next to p, below 1; the mean stays exactly.
    Raises ValueError for a p outside [0, 1).
    """
    check_dropout("p", p)
    if p == 0 or not eager_on_cpu(x):
        return F.dropout(x, p)
    # From the smallest int64 to the largest. Without the two bounds random_() leaves the sign bit 0, and every fourth
    # coin would be one that never falls on the lower half.
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    coins = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -COINS/2 ... COINS/2 - 1
    dropped = min(round(p * COINS), COINS - 1)  # so many of the coins drop their value
    keep = torch.ge(coins, dropped - COINS // 2, out=torch.empty_like(x))  # 0 or 1
    return x * keep.mul_(COINS / (COINS - dropped))


class Dropout(nn.Module):
    """`drop` while training, nothing otherwise."""

    def __init__(self, p: float) -> None:
        super().__init__()
        check_dropout("p", p)
        self.p = p

    def forward(self, x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return drop(x, self.p) if self.training else x


def fused_causal_attention(
    query: Float[Tensor, "batch head T d_head"],
    key: Float[Tensor, "batch head S d_head"],
    value: Float[Tensor, "batch head S d_head"],
    dropout: float = 0.0,
) -> Float[Tensor, "batch head T d_head"]:
    """Causal attention without its weights; the T queries are the last of the S positions.

    Why: PyTorch's kernel never holds the T x S weights in memory. It has three forms here:

    - With dropout on a CPU, PyTorch would compute the weights after all, the forbidden half too: slices of queries,
      each with the keys that it may see, do half the work. 3.0 times as fast at T = 128, 4.7 at T = 1024, forward and
      backward.
    - A lone query, the newest token, may look at everything: no mask. Where all positions are queries, the kernel knows
      the causal mask by name.
    - New tokens after a cache: the kernel's own causal mask counts from the first key, so this one is made by hand.

    PyTorch has no second derivative of this kernel; the readable path (`record_weights`) has all of them.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if dropout and eager_on_cpu(query, key, value):
        return _attention_in_slices(query, key, value, dropout)
    if queries == 1:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    if queries == keys:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)


def _attention_in_slices(query: Tensor, key: Tensor, value: Tensor, dropout: float, size: int = 64) -> Tensor:
    """`size` queries at a time, each slice with the keys that it may see and no later ones."""
    query = query / math.sqrt(query.shape[-1])
    outputs, seen = [], key.shape[-2] - query.shape[-2]
    for part in query.split(size, dim=-2):
        seen += part.shape[-2]
        scores = part @ key[..., :seen, :].mT
        future = torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype, device=scores.device)
        weights = (scores + future.triu(1 + seen - part.shape[-2])).softmax(dim=-1)
        outputs.append(drop(weights, dropout) @ value[..., :seen, :])
    return torch.cat(outputs, dim=-2)
