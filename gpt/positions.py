"""How does a model that sees a set of tokens learn their order?

Attention treats its inputs as a set: shuffle the tokens and the outputs are shuffled with them
(DEEP_THEORY_GUIDE.md, Part 2). So a vector that depends on the position alone is added to every token's
vector. The Transformer computes it from sines and cosines; GPT-2 learns it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gpt.support.checks import check_features, check_size


def sinusoids(max_len: int, d_model: int) -> Float[Tensor, "max_len d_model"]:
    """The table of sinusoidal positions (Vaswani et al. 2017, section 3.5).

        PE(pos, 2i)   = sin(pos / 10000^(2i / d_model))
        PE(pos, 2i+1) = cos(pos / 10000^(2i / d_model))

    Each pair of columns is a clock hand that turns at its own speed, so a step of k positions rotates each pair by a
    fixed angle, wherever it starts. Computed in float64 and rounded once. Raises ValueError for an odd d_model.
    """
    check_size("max_len", max_len)
    check_size("d_model", d_model)
    if d_model % 2:
        raise ValueError(f"d_model must be even for sinusoids (each sine needs its cosine), got {d_model}")
    with torch.device("cpu"):  # not every accelerator has float64
        position = torch.arange(max_len, dtype=torch.float64)[:, None]
        frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
        table = torch.empty(max_len, d_model, dtype=torch.float64)
        table[:, 0::2] = torch.sin(position * frequency)
        table[:, 1::2] = torch.cos(position * frequency)
    return table.to(torch.get_default_dtype()).to(torch.get_default_device())


def _rows(
    table: Float[Tensor, "max_len d_model"], x: Float[Tensor, "*batch T d_model"], start: int
) -> Float[Tensor, "T d_model"]:
    """The positions start, ..., start + T - 1 of `table`."""
    max_len, d_model = table.shape
    check_features("x", x, "... T d_model", d_model)
    check_size("start", start, least=0)
    end = start + x.shape[-2]
    if end > max_len:
        raise ValueError(f"the sequence needs {end} positions, but max_len={max_len}")
    return table[start:end]


class PositionalEncoding(nn.Module):
    """Adds sinusoidal positions to x; nothing is learned. `start` and errors: as in `LearnedPositionalEncoding`."""

    table: Tensor

    def __init__(self, d_model: int, max_len: int) -> None:
        super().__init__()
        # A buffer moves with .to(device); it follows from its sizes, so no file needs to hold it.
        self.register_buffer("table", sinusoids(max_len, d_model), persistent=False)

    def forward(self, x: Float[Tensor, "*batch T d_model"], start: int = 0) -> Float[Tensor, "*batch T d_model"]:
        return x + _rows(self.table, x, start)


class LearnedPositionalEncoding(nn.Module):
    """Adds a learned vector per position to x, as GPT-2 does (its `wpe`).

    `start` is the position of x's first token: not 0 when earlier tokens are in a KV cache.
    Raises ValueError where start + T exceeds max_len: there is no vector for a position never trained.
    """

    def __init__(self, d_model: int, max_len: int) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("max_len", max_len)
        self.weight = nn.Parameter(torch.empty(max_len, d_model))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "*batch T d_model"], start: int = 0) -> Float[Tensor, "*batch T d_model"]:
        return x + _rows(self.weight, x, start)
