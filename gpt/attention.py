"""How does a token take in what other tokens know?

Each token asks a question (its query), offers a label (its key) and holds some content (its value). It then takes
an average of all values, weighted by how well its query matches each key:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V          (Vaswani et al. 2017, equation 1)

The module climbs a staircase: the equation itself, one head, one head that cannot see the future, many heads, and
GPT-2's layer with its key-value cache. DEEP_THEORY_GUIDE.md, Part 3 derives it all. Attention weights are always
[batch, head, query, key] (no head axis for one head). A mask is boolean: True where a query may look at a key.
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from gpt.support.kernels import Linear, drop


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """True where a query may look: at itself and at what came before, [queries, keys].

    The queries are the last of the keys, so with a cache new tokens see all the old ones.
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The equation, one line a step. This is the readable path; tests hold the fused one equal to it.

    query [..., query, d_k], key [..., key, d_k], value [..., key, d_v], mask broadcasts to [..., query, key].
    Returns (output [..., query, d_v], weights [..., query, key]); each row of the weights sums to 1.
    `dropout` drops weights on their way to the values; the returned weights are those before it.
    Raises TypeError for a mask that is not boolean, ValueError where a mask leaves a query nothing to look at.
    """
    query = query / math.sqrt(query.shape[-1])  # Here rather than on the scores: fewer numbers to divide.
    scores = einsum(query, key, "... query d_k, ... key d_k -> ... query key")
    if mask is not None:
        _check_mask(mask)
        # Before the softmax and with -inf: the weight is then exactly 0, however large the score. (Adding 0 or -inf
        # has the gradient of masked_fill, for half the work.)
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    output = einsum(drop(weights, dropout), value, "... query key, ... key d_v -> ... query d_v")
    return output, weights


def attention_in_slices(query: Tensor, key: Tensor, value: Tensor, dropout: float, size: int = 64) -> Tensor:
    """Causal attention for `size` queries at a time, each slice with the keys that it may see and no later ones."""
    outputs, seen = [], key.shape[-2] - query.shape[-2]
    for part in query.split(size, dim=-2):
        seen += part.shape[-2]
        mask = causal_mask(part.shape[-2], seen, query.device)
        outputs.append(scaled_dot_product_attention(part, key[..., :seen, :], value[..., :seen, :], mask, dropout)[0])
    return torch.cat(outputs, dim=-2)


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean (True = may look), got {mask.dtype}; a 0/1 mask becomes one by .bool()")
    if not mask.any(dim=-1).all():
        raise ValueError("mask must leave every query at least one key, but a row of it is all False")


def _d_head(d_model: int, num_heads: int) -> int:
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(f"d_model must be divisible by num_heads, got d_model={d_model}, num_heads={num_heads}")
    return d_model // num_heads


class SelfAttention(nn.Module):
    """First step: one head without a mask. x [batch, T, d_in] -> [batch, T, d_out]."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_in, d_out, bias=False)
        self.key = nn.Linear(d_in, d_out, bias=False)
        self.value = nn.Linear(d_in, d_out, bias=False)

    def mask(self, x: Tensor) -> Tensor | None:
        return None

    def forward(self, x: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        output, weights = scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), self.mask(x))
        return (output, weights) if return_weights else output


class CausalAttention(SelfAttention):
    """Second step: the same head, which cannot look ahead. Raises ValueError for T > max_seq_len."""

    def __init__(self, d_in: int, d_out: int, max_seq_len: int) -> None:
        super().__init__(d_in, d_out)
        self.max_seq_len = max_seq_len

    def mask(self, x: Tensor) -> Tensor:
        return causal_mask(*_checked_length(x, self.max_seq_len), device=x.device)


def _checked_length(x: Tensor, max_seq_len: int, past: int = 0) -> tuple[int, int]:
    """(queries, keys) for x after `past` earlier tokens, if they fit."""
    queries, keys = x.shape[-2], past + x.shape[-2]
    if keys > max_seq_len:
        raise ValueError(f"the sequence must be at most max_seq_len={max_seq_len} tokens long, got {keys}")
    return queries, keys


class MultiHeadAttention(nn.Module):
    """Third step: H heads side by side (Vaswani et al. 2017, section 3.2.2); d_model is shared out among them.

    query [batch, T, d_model], key and value [batch, S, d_model], boolean mask broadcasting to
    [batch, head, query, key] -> [batch, T, d_model], and with return_weights also the weights.
    """

    def __init__(self, d_model: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.d_head = num_heads, _d_head(d_model, num_heads)
        self.query = nn.Linear(d_model, d_model, bias)
        self.key = nn.Linear(d_model, d_model, bias)
        self.value = nn.Linear(d_model, d_model, bias)
        self.projection = nn.Linear(d_model, d_model, bias)

    def _split(self, x: Tensor) -> Tensor:
        # Not view(B, H, T, d_head): that has the same shape, but gives each head pieces of several positions.
        return rearrange(x, "batch token (head d_head) -> batch head token d_head", head=self.num_heads)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        heads, weights = scaled_dot_product_attention(q, k, v, mask)
        output = self.projection(rearrange(heads, "batch head token d_head -> batch token (head d_head)"))
        return (output, weights) if return_weights else output


class KVCache:
    """The keys and values that one attention layer has computed so far (DEEP_THEORY_GUIDE.md, Part 8).

    The memory is taken once: two tensors [batch, head, max_seq_len, d_head]. `length` says how much is filled.
    """

    def __init__(self, batch: int, num_heads: int, max_seq_len: int, d_head: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, num_heads, max_seq_len, d_head)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; hand back all of them, [batch, head, length, d_head].

        Raises ValueError for a batch of another size than the cache was made for.
        """
        if len(key) != len(self.keys):
            raise ValueError(f"the cache was made for a batch of {len(self.keys)}, got {len(key)}")
        start, self.length = self.length, self.length + key.shape[-2]
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class CausalSelfAttention(nn.Module):
    """GPT-2's attention layer. x [batch, T, d_model] -> [batch, T, d_model].

    One matrix makes queries, keys and values at once. PyTorch's fused kernel and, while `record_weights` is True, the
    readable equation give the same result; the latter leaves its weights in `weights`, so a heat map shows the very
    pass that ran. Raises ValueError for more than max_seq_len tokens, cached ones included.
    """

    def __init__(
        self, d_model: int, num_heads: int, max_seq_len: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.d_head, self.max_seq_len = num_heads, _d_head(d_model, num_heads), max_seq_len
        self.dropout = dropout
        self.qkv = Linear(d_model, 3 * d_model, bias)
        self.projection = Linear(d_model, d_model, bias)
        self.record_weights = False
        self.weights: Tensor | None = None

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        queries, keys = _checked_length(x, self.max_seq_len, past=cache.length if cache else 0)
        axes = "batch token (three head d_head) -> three batch head token d_head"
        q, k, v = rearrange(self.qkv(x), axes, three=3, head=self.num_heads)
        if cache is not None:
            k, v = cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        self.weights = None  # those of an earlier pass
        if self.record_weights:
            mask = causal_mask(queries, keys, x.device)
            heads, self.weights = scaled_dot_product_attention(q, k, v, mask, dropout)
        elif dropout and x.device.type == "cpu":  # the kernel would compute all weights, the masked half too
            heads = attention_in_slices(q, k, v, dropout)
        elif queries in (1, keys):  # A lone query, the newest token, may look at everything: no mask.
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=queries > 1)
        else:
            mask = causal_mask(queries, keys, x.device)
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
        return self.projection(rearrange(heads, "batch head token d_head -> batch token (head d_head)"))
