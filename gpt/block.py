"""What happens to a token between two rounds of attention?

A block reads the residual stream twice and adds to it twice: attention moves information between tokens, the
feed-forward network works on each token by itself. A norm before each keeps the scale of what they read, and the
additions keep a straight path for gradients. DEEP_THEORY_GUIDE.md, Part 4.

Norms and GELU are here as equations, and as modules that call PyTorch's kernel for them; tests hold both equal.

All of them take [..., d_model] and give the same shape back. They raise TypeError or ValueError, naming the argument,
for a vector of another width or type.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpt.attention import CausalSelfAttention, KVCache
from gpt.config import GPTConfig
from gpt.support import kernels
from gpt.support.checks import check_dtype, check_features, check_size


def layer_norm(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, "d_model"],
    bias: Float[Tensor, "d_model"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch d_model"]:
    """Centre and rescale each token's vector: (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016).

    The variance is the biased one (divide by n, not n - 1): at n = 4 the unbiased one would be a third larger.
    """
    check_features("weight", weight, "d_model")
    check_features("x", x, "... d_model", len(weight))
    if bias is not None:
        check_features("bias", bias, "d_model", len(weight))
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    normalized = (x - mean) / torch.sqrt(variance + eps) * weight
    return normalized if bias is None else normalized + bias


def rms_norm(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, "d_model"], eps: float = 1e-5
) -> Float[Tensor, "*batch d_model"]:
    """What is left of LayerNorm without the centring: x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)."""
    check_features("weight", weight, "d_model")
    check_features("x", x, "... d_model", len(weight))
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def gelu(x: Float[Tensor, "*axes"], approximate: str = "tanh") -> Float[Tensor, "*axes"]:
    """x times the chance that a standard normal falls below x (Hendrycks & Gimpel 2016).

    "tanh" is GPT-2's approximation, "none" the exact x Phi(x). They differ by up to 4.7e-4 (guide, Part 4).
    """
    _check_form(approximate)
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _check_form(approximate: str) -> None:
    if approximate not in ("tanh", "none"):
        raise ValueError(f'approximate must be "tanh" or "none", got {approximate!r}')


class LayerNorm(nn.Module):
    """`layer_norm` with a learned gain and, unless bias=False, a learned shift."""

    def __init__(self, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        check_size("d_model", d_model)
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        _check_norm(x, self.weight)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned gain. GPT-2 does not use it; its successors do."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_size("d_model", d_model)
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        _check_norm(x, self.weight)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _check_norm(x: Tensor, weight: Tensor) -> None:
    check_features("x", x, "... d_model", len(weight))
    if x.dtype.itemsize > 2:  # numbers of 16 bits may meet a gain of 32
        check_dtype("x", x, weight)


class GELU(nn.Module):
    """`gelu` as a layer; the default is GPT-2's tanh form."""

    def __init__(self, approximate: str = "tanh") -> None:
        super().__init__()
        _check_form(approximate)
        self.approximate = approximate

    def forward(self, x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return F.gelu(x, approximate=self.approximate)


class FeedForward(nn.Module):
    """Each token by itself: out to d_ff = 4 d_model, GELU, and back."""

    def __init__(self, d_model: int, bias: bool = True) -> None:
        super().__init__()
        check_size("d_model", d_model)
        self.d_model = d_model
        self.expand = kernels.Linear(d_model, 4 * d_model, bias)
        self.activation = GELU()
        self.project = kernels.Linear(4 * d_model, d_model, bias)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        check_features("x", x, "... d_model", self.d_model)
        return self.project(self.activation(self.expand(x)))


class Block(nn.Module):
    """One pre-norm block: x + Attention(Norm(x)), then x + FeedForward(Norm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d_model, bias = config.n_embd, config.bias
        self.attention_norm = LayerNorm(d_model, bias=bias)
        self.attention = CausalSelfAttention(d_model, config.n_head, config.context_size, config.dropout, bias)
        self.feed_forward_norm = LayerNorm(d_model, bias=bias)
        self.feed_forward = FeedForward(d_model, bias)
        self.dropout = kernels.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch T d_model"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch T d_model"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
