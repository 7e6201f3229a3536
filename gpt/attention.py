"""How does a token take in what other tokens know?

Each token asks a question (its query), offers a label (its key) and holds some content (its value). It then takes
an average of all values, weighted by how well its query matches each key:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V          (Vaswani et al. 2017, equation 1)

The module climbs a staircase: the equation itself, one head, one head that cannot see the future, many heads, and
GPT-2's layer with its key-value cache. DEEP_THEORY_GUIDE.md, Part 3 derives it all. Attention weights are always
[batch, head, query, key] (no head axis for one head). A mask is boolean: True where a query may look at a key.

Every layer raises TypeError or ValueError, naming the argument, for input of another shape or type than its own.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gpt.support import kernels
from gpt.support.checks import check_attention, check_dropout, check_dtype, check_features, check_size


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "queries keys"]:
    """True where a query may look: at itself and at what came before.

    The queries are the last of the keys, so with a cache new tokens see all the old ones.
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def scaled_dot_product_attention(
    query: Float[Tensor, "... query d_k"],
    key: Float[Tensor, "... key d_k"],
    value: Float[Tensor, "... key d_v"],
    mask: Bool[Tensor, "..."] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "... query d_v"], Float[Tensor, "... query key"]]:
    """The equation. Returns (output, weights); each row of the weights sums to 1.

    The mask broadcasts to [..., query, key]. `dropout` drops weights on their way to the values; the returned weights
    are those before it. Raises TypeError for a mask that is not boolean, ValueError for shapes that do not fit each
    other and where a mask leaves a query nothing to look at.
    """
    check_attention(query, key, value, mask)
    check_dropout("dropout", dropout)
    return _attention(query, key, value, mask, dropout)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The equation, one line a step. This is the readable path; tests hold the fused one equal to it."""
    query = query / math.sqrt(query.shape[-1])  # Here rather than on the scores: fewer numbers to divide.
    scores = einsum(query, key, "... query d_k, ... key d_k -> ... query key")
    if mask is not None:
        # Before the softmax and with -inf: the weight is then exactly 0, however large the score.
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    output = einsum(kernels.drop(weights, dropout), value, "... query key, ... key d_v -> ... query d_v")
    return output, weights


class SelfAttention(nn.Module):
    """First step: one head without a mask."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        check_size("d_in", d_in)
        check_size("d_out", d_out)
        self.d_in = d_in
        self.query = nn.Linear(d_in, d_out, bias=False)
        self.key = nn.Linear(d_in, d_out, bias=False)
        self.value = nn.Linear(d_in, d_out, bias=False)

    def mask(self, x: Float[Tensor, "*batch T d_in"]) -> Bool[Tensor, "T T"] | None:
        return None

    def forward(
        self, x: Float[Tensor, "*batch T d_in"], return_weights: bool = False
    ) -> Float[Tensor, "*batch T d_out"] | tuple[Float[Tensor, "*batch T d_out"], Float[Tensor, "*batch T T"]]:
        check_features("x", x, "... T d_in", self.d_in)
        check_dtype("x", x, self.query.weight)
        output, weights = _attention(self.query(x), self.key(x), self.value(x), self.mask(x))
        return (output, weights) if return_weights else output


class CausalAttention(SelfAttention):
    """Second step: the same head, which cannot look ahead. Raises ValueError for T > max_seq_len."""

    def __init__(self, d_in: int, d_out: int, max_seq_len: int) -> None:
        super().__init__(d_in, d_out)
        check_size("max_seq_len", max_seq_len)
        self.max_seq_len = max_seq_len

    def mask(self, x: Float[Tensor, "*batch T d_in"]) -> Bool[Tensor, "T T"]:
        _check_length(x.shape[-2], self.max_seq_len)
        return causal_mask(x.shape[-2], x.shape[-2], device=x.device)


def _check_length(length: int, max_seq_len: int) -> None:
    if length > max_seq_len:
        raise ValueError(f"the sequence must be at most max_seq_len={max_seq_len} tokens long, got {length}")


def _d_head(d_model: int, num_heads: int) -> int:
    check_size("d_model", d_model)
    check_size("num_heads", num_heads)
    if d_model % num_heads:
        raise ValueError(f"d_model must be divisible by num_heads, got d_model={d_model}, num_heads={num_heads}")
    return d_model // num_heads


class MultiHeadAttention(nn.Module):
    """Third step: H heads side by side (Vaswani et al. 2017, section 3.2.2); d_model is shared out among them.

    The mask broadcasts to [batch, head, query, key]. With return_weights also the weights.
    """

    def __init__(self, d_model: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.d_model, self.num_heads, self.d_head = d_model, num_heads, _d_head(d_model, num_heads)
        self.query = nn.Linear(d_model, d_model, bias)
        self.key = nn.Linear(d_model, d_model, bias)
        self.value = nn.Linear(d_model, d_model, bias)
        self.projection = nn.Linear(d_model, d_model, bias)

    def _split(self, x: Float[Tensor, "batch T d_model"]) -> Float[Tensor, "batch head T d_head"]:
        # Not view(B, H, T, d_head): that has the same shape, but gives each head pieces of several positions.
        return rearrange(x, "batch token (head d_head) -> batch head token d_head", head=self.num_heads)

    def forward(
        self,
        query: Float[Tensor, "batch T d_model"],
        key: Float[Tensor, "batch S d_model"],
        value: Float[Tensor, "batch S d_model"],
        mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch T d_model"] | tuple[Float[Tensor, "batch T d_model"], Float[Tensor, "batch head T S"]]:
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_features(name, x, "batch token d_model", self.d_model)
            check_dtype(name, x, self.projection.weight)
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        heads, weights = scaled_dot_product_attention(q, k, v, mask)
        output = self.projection(rearrange(heads, "batch head token d_head -> batch token (head d_head)"))
        return (output, weights) if return_weights else output


class KVCache:
    """The keys and values that one attention layer has computed so far (DEEP_THEORY_GUIDE.md, Part 8).

    The memory is taken once: two tensors [batch, head, max_seq_len, d_head]. `length` says how much is filled.
    """

    def __init__(self, batch: int, num_heads: int, max_seq_len: int, d_head: int, like: Tensor) -> None:
        sizes = {"batch": batch, "num_heads": num_heads, "max_seq_len": max_seq_len, "d_head": d_head}
        for name, size in sizes.items():
            check_size(name, size)
        self.keys = like.new_empty(*sizes.values())
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(
        self, key: Float[Tensor, "batch head T d_head"], value: Float[Tensor, "batch head T d_head"]
    ) -> tuple[Float[Tensor, "batch head length d_head"], Float[Tensor, "batch head length d_head"]]:
        """Store the new tokens' keys and values; give back all of them.

        Raises ValueError for other sizes than the cache was made for and for more tokens than it has room for,
        TypeError for another number format. The cache is then as it was.
        """
        batch, heads, room, d_head = self.keys.shape
        for name, new in (("key", key), ("value", value)):
            check_features(name, new, "batch head T d_head", d_head)
            check_dtype(name, new, self.keys)
            if new.shape != (batch, heads, key.shape[-2], d_head):
                made_for = f"the cache was made for a batch of {batch} and {heads} heads"
                raise ValueError(f"{made_for}, got {name} of shape {list(new.shape)}")
        start, length = self.length, self.length + key.shape[-2]
        _check_length(length, room)
        self.length = length
        self.keys[:, :, start:length] = key
        self.values[:, :, start:length] = value
        return self.keys[:, :, :length], self.values[:, :, :length]


class CausalSelfAttention(nn.Module):
    """GPT-2's attention layer.

    One matrix makes queries, keys and values at once. PyTorch's fused kernel and, while `record_weights` is True, the
    readable equation give the same result; the latter leaves its weights in `weights`, so a heat map shows the very
    pass that ran. Raises ValueError for more than max_seq_len tokens, cached ones included.
    """

    def __init__(self, d_model: int, num_heads: int, max_seq_len: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.d_model, self.num_heads, self.d_head = d_model, num_heads, _d_head(d_model, num_heads)
        check_size("max_seq_len", max_seq_len)
        check_dropout("dropout", dropout)
        self.max_seq_len, self.dropout = max_seq_len, dropout
        self.qkv = kernels.Linear(d_model, 3 * d_model, bias)
        self.projection = kernels.Linear(d_model, d_model, bias)
        self.record_weights = False
        self.weights: Tensor | None = None

    def forward(
        self, x: Float[Tensor, "batch T d_model"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch T d_model"]:
        check_features("x", x, "batch T d_model", self.d_model)
        queries = x.shape[1]
        keys = queries if cache is None else cache.length + queries
        _check_length(keys, self.max_seq_len)
        axes = "batch token (three head d_head) -> three batch head token d_head"
        q, k, v = rearrange(self.qkv(x), axes, three=3, head=self.num_heads)
        if cache is not None:
            k, v = cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        if self.record_weights:
            heads, self.weights = _attention(q, k, v, causal_mask(queries, keys, x.device), dropout)
        else:
            heads, self.weights = kernels.fused_causal_attention(q, k, v, dropout), None  # none of an earlier pass
        return self.projection(rearrange(heads, "batch head token d_head -> batch token (head d_head)"))

    def __getstate__(self) -> dict:
        """What a copy or a pickle holds: recorded weights belong to a pass and its graph, not to the layer."""
        return self.__dict__ | {"weights": None}
