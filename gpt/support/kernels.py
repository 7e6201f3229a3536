"""Three layers that PyTorch has as well, written so that the CPU is not slow at them.

They compute what `torch.nn.Linear`, `torch.nn.Embedding` and `torch.nn.Dropout` compute, and on a GPU they do just
what these do. To understand GPT-2, nothing is lost by reading them as those.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b: x [..., d_in], weight [d_out, d_in] -> [..., d_out].

    When text is generated, x is one vector and the time goes into reading W. Linear algebra libraries read it
    faster for two columns than for one (up to three times, measured), so the vector goes in twice.
    """
    if x.numel() != x.shape[-1] or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    y = (weight @ x.reshape(1, -1).repeat(2, 1).T)[:, 0].view(*x.shape[:-1], -1)
    return y if bias is None else y + bias.to(y.dtype)  # under autocast, y is the narrower one


class Linear(nn.Linear):
    """A learned `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table whose rows are looked up; `weight` is GPT-2's head as well.

    So the table's gradient comes from the head, dense, and from the lookup, a few rows. On the CPU these rows go to
    autograd as a sparse tensor, which it adds in place, not as a second table of zeros: a tenth of a training step of
    the 124M model. Without a head in the loss the gradient stays sparse.
    """

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, sparse=self.weight.device.type == "cpu")


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout: set each value to 0 with probability p and divide the rest by 1 - p, so the mean stays.

    On the CPU the coins are 16-bit integers, four from one 64-bit draw: several times faster than
    F.dropout's float a coin, and p is met to within 1/65536.
    """
    if p == 0 or x.device.type != "cpu":
        return F.dropout(x, p)
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    coins = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -32768..32767
    threshold = min(round(p * 65536), 65535) - 32768
    keep = torch.ge(coins, threshold, out=torch.empty_like(x))  # 0 or 1
    return x * keep.div_(1 - p)


class Dropout(nn.Module):
    """`drop` while training, nothing otherwise."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training else x
