"""Same result, faster: where the plain PyTorch call leaves time on the table, mostly on a CPU.

To understand GPT-2, read `Linear`, `Embedding` and `Dropout` as the layers of the same name in `torch.nn`, and
`fused_causal_attention` as the equation of `gpt.attention` with a causal mask; tests/package/test_kernels.py
holds each to that. On an accelerator, and under `torch.compile`, `torch.export` and `torch.func`, they are just these.

Times below: one core, float32, PyTorch 2.13. A kernel may add up in another order with gradients than without,
so that the two results differ in their last bits.
"""

import ctypes
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt.support.checks import check_dropout, check_dtype, eager_on_cpu

FEW_ROWS = 16  # PyTorch's kernel for int8 weights reads them once for every few rows; from here on, widening pays
TWICE_FROM = 2**17  # numbers in a matrix; a smaller one lies in the cache anyway


def linear(
    x: Float[Tensor, "... d_in"],
    weight: Shaped[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"] | None = None,
    scales: Float[Tensor, "d_out 1"] | None = None,
) -> Float[Tensor, "... d_out"]:
    """y = x W^T + b.

    Why: when text is generated, x is one vector and the time goes into reading W. Linear algebra libraries read a large
    W faster for two columns than for one, so the vector goes in twice: GPT-2's head is 1.4 times as fast on one core
    and 2.3 times on two, its widening matrices 1.2 and 2.2 times, the narrowing ones 0.6 and 1.15 times. A small W is
    left to PyTorch: it lies in the cache anyway. Only without gradients: the same layer may give other last bits under
    no_grad than while it trains. `scales` are those of a `narrow` weight.
    """
    if scales is not None:
        return _narrow_linear(x, weight, bias, scales)
    check_dtype("x", x, weight)
    lone_vector = x.numel() == x.shape[-1] and not torch.is_grad_enabled()
    if not (lone_vector and weight.numel() >= TWICE_FROM and eager_on_cpu(x, weight)):
        return F.linear(x, weight, bias)
    twice = x.reshape(1, -1).repeat(2, 1)
    y = (weight @ twice.T)[:, 0].view(*x.shape[:-1], -1)
    return y if bias is None else y + bias.to(y.dtype)  # under autocast, y is the narrower one


def _narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor) -> Tensor:
    """`linear` where each row of W is `scales` times the row that is kept: products in bfloat16, sums in x's format."""
    check_dtype("x", x, scales)
    rows = x.reshape(-1, x.shape[-1]).bfloat16()
    if weight.dtype == torch.int8 and len(rows) <= FEW_ROWS and eager_on_cpu(x, weight):
        y = torch.ops.aten._weight_int8pack_mm(rows, weight, scales.flatten().bfloat16()).to(x.dtype)  # noqa: SLF001
    else:
        y = F.linear(rows, weight.bfloat16()).to(x.dtype) * scales.T
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """A learned `linear`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scales: Tensor | None
        self.register_buffer("scales", None, persistent=False)  # of a weight that `narrow` has made

    def forward(self, input: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return linear(input, self.weight, self.bias, self.scales)


class Embedding(nn.Embedding):
    """A table whose rows are looked up; `weight` is GPT-2's head as well.

    Why: its gradient is the sum of the head's, which is dense, and of the lookup's, a few rows in a table of zeros.
    Where the caller promises with `sparse=True` that the head's gradient comes too, autograd gets these rows alone
    and adds them to the head's in place: 1.26 times as fast for table and head of the 124M model, 256 tokens, forward
    and backward. Without the head the gradient would remain a sparse tensor, which AdamW and
    clipping refuse; so it is dense unless promised.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scales: Tensor | None
        self.register_buffer("scales", None, persistent=False)  # of a table that `narrow` has made

    def forward(self, input: Int[Tensor, "..."], sparse: bool = False) -> Float[Tensor, "... d_model"]:
        if self.scales is not None:
            return F.embedding(input, self.weight) * F.embedding(input, self.scales)
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
    - In bfloat16 on a CPU, PyTorch's kernel is no faster than in float32, but matrix products are: slices again.
      GPT-2's heads, forward and backward: 2.7 times as fast at T = 256, 1.5 at T = 1024; small heads 4.6 times.
    - A lone query, the newest token, may look at everything: no mask. Where all positions are queries, the kernel knows
      the causal mask by name.
    - New tokens after a cache: the kernel's own causal mask counts from the first key, so this one is made by hand.

    PyTorch has no second derivative of this kernel; the readable path (`record_weights`) has all of them.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    narrow = query.dtype == torch.bfloat16 and queries > 1
    if (dropout or narrow) and eager_on_cpu(query, key, value):
        with torch.autocast("cpu", enabled=False):  # it would widen the weights and narrow them again
            return _attention_in_slices(query, key, value, dropout, size=128 if narrow else 64)
    if queries == 1:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    if queries == keys:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)


def _attention_in_slices(query: Tensor, key: Tensor, value: Tensor, dropout: float, size: int) -> Tensor:
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


Model = TypeVar("Model", bound=nn.Module)
WEIGHTS = ("float32", "bfloat16", "int8")


def narrow(model: Model, weights: str) -> Model:
    """Give each `Linear` and `Embedding` of the model weights of fewer bits, in place, and return the model.

    weights: "float32" changes nothing; "bfloat16" rounds to 8 significant bits, "int8" to the integers -127...127 times
    a scale for each row (the largest of its magnitudes / 127). The rest, and all that flows between layers, stays as it
    is. For generation: such weights cannot be trained or saved.
    Why: one token reads every weight once, and the time is that of reading. A head of GPT-2's size, one core: 6.4 ms in
    float32, 5.1 in bfloat16, 2.3 in int8.
    Raises ValueError for another name.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    for module in model.modules() if weights != "float32" else ():
        if isinstance(module, Linear | Embedding) and module.scales is None:
            weight = module.weight.detach()
            if weights == "int8":
                scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
                # The kernel takes scales of 8 bits: those, so that the rounding is to multiples of what is used.
                scales = scales.bfloat16().to(weight.dtype)
                kept = (weight / scales).round().clamp(-127, 127).to(torch.int8)
            else:
                scales, kept = weight.new_ones(len(weight), 1), weight.bfloat16()
            module.weight = nn.Parameter(kept, requires_grad=False)
            module.scales = scales
    return model


class FasterThreads:
    """Runs the like steps of a loop with all threads or with one, whichever has been faster of late.

    Why: a matrix product ends when its last thread does. If another program keeps a core busy, that thread waits for
    its turn, milliseconds long, at each of the 50 products of a token, and one thread alone is several times as fast.
    One is faster for small models, too. So both are timed in turn, the slower one at every 32nd step, which costs 2 to
    3 % where nothing disturbs. With another number of threads, float32 may add up in another order.
    """

    RETRY = 32

    def __init__(self) -> None:
        self.seconds = {threads: deque[float](maxlen=3) for threads in (torch.get_num_threads(), 1)}
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within, PyTorch works with the threads picked for this step; afterwards, with as many as before."""
        before = torch.get_num_threads()
        threads = self._pick()
        torch.set_num_threads(threads)
        start = time.perf_counter()
        try:
            yield
            self.seconds[threads].append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(before)

    def _pick(self) -> int:
        """The number that has been faster; the other one if it is untried or its turn has come."""
        self.steps += 1
        ranked = sorted(self.seconds, key=lambda threads: min(self.seconds[threads], default=0.0))
        return ranked[-1] if self.steps % self.RETRY == 0 else ranked[0]


CHUNK = 512  # tokens whose logits exist at the same time


def linear_cross_entropy(
    hidden: Float[Tensor, "tokens d_model"],
    table: Float[Tensor, "V d_model"],
    targets: Int[Tensor, " tokens"],
    ignored: int = -100,
) -> Float[Tensor, ""]:
    """F.cross_entropy(hidden table^T, targets): the mean loss over targets that are not `ignored`, without the logits.

    Why: GPT-2's logits are 50,257 numbers a token, and the loss, its gradient and their roundings are as many again:
    more memory than all blocks take. Yet the gradient at the logits is known as soon as they are (softmax minus the
    target's 1), so a chunk of tokens goes forward and backward at once and is forgotten. What is kept has the size of
    `hidden` and of `table`; where the logits are no larger than that, they are computed whole. PyTorch's
    own F.linear_cross_entropy does the same; in bfloat16 on a CPU it takes five times as long as the plain call.
    """
    large = len(hidden) >= table.shape[1] < table.shape[0] and table.dtype.itemsize > 2
    if not (large and torch.is_grad_enabled() and eager_on_cpu(hidden, table, targets)):
        return F.cross_entropy(F.linear(hidden, table), targets, ignore_index=ignored)
    return cast(Tensor, _ChunkedLoss.apply(hidden, table, targets, ignored))


class _ChunkedLoss(torch.autograd.Function):
    """`linear_cross_entropy` in chunks. Its backward pass only hands out what the forward pass has computed."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, ignored: int) -> Tensor:
        narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else table.dtype
        inputs, weight, count = hidden.to(narrow), table.to(narrow), (targets != ignored).sum()
        d_inputs, d_table, loss = torch.empty_like(inputs), torch.zeros_like(table), table.new_zeros(())
        for x, d_x, target in zip(inputs.split(CHUNK), d_inputs.split(CHUNK), targets.split(CHUNK), strict=True):
            log_p = (x @ weight.T).log_softmax(dim=-1, dtype=table.dtype)
            loss += F.nll_loss(log_p, target, ignore_index=ignored, reduction="sum")
            counts = target != ignored
            d_logits = log_p.exp_()
            d_logits[torch.arange(len(target)), target.where(counts, 0)] -= 1
            d_logits = d_logits.mul_((counts.to(table.dtype) / count)[:, None]).to(narrow)
            torch.mm(d_logits, weight, out=d_x)
            if narrow == table.dtype:
                d_table.addmm_(d_logits.T, x)
            else:
                d_table += d_logits.T @ x
        ctx.gradients = d_inputs.to(hidden.dtype), d_table
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_hidden, d_table = ctx.gradients
        del ctx.gradients  # autograd then owns them alone, and adds the lookup's gradient in place
        return d_hidden.mul_(d_loss), d_table.mul_(d_loss), None, None


@cache
def keep_freed_memory() -> bool:
    """Freed memory stays with this process, for its next use, instead of going back to the system. Whether it does.

    Why: every step of training takes and frees the same hundreds of megabytes. The C library hands large pieces back,
    and each page of 4 KiB then comes anew: a fault, and 4 KiB of zeros to write. For the 124M model, 1,024 tokens, that
    is 0.4 to 1 s of 3.5 s in bfloat16; and none from the second step on where memory is kept. The process does not
    shrink again before it ends. glibc alone (Linux) has the switches; elsewhere, and on musl, nothing changes.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of <malloc.h>: nothing below 2 GiB gets a map of its own,
    # nothing is handed back, and the heap grows with room to spare.
    switches = ((-3, 2**31 - 1), (-1, -1), (-2, 2**26))
    return mallopt is not None and all(mallopt(*switch) == 1 for switch in switches)
