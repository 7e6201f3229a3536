"""The numbers that define a GPT-2, checked once and frozen.

The field names are those of the released GPT-2; the layers use the papers' words (`d_model`, `num_heads`,
`max_seq_len`). The notation table in DEEP_THEORY_GUIDE.md, Part 0 says which is which.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of one GPT-2 model.

    context_size  T_max, the longest sequence the model can read, in tokens
    vocab_size    V, how many different tokens there are
    n_layer       N, how many blocks are stacked
    n_head        H, attention heads in each block
    n_embd        d_model, the width of the residual stream
    dropout       the probability that a value is dropped in training, in [0, 1)
    bias          whether linear layers and LayerNorms have a bias, as the released models do

    Raises TypeError or ValueError, naming the field, for a value that no model can have.
    """

    context_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("context_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be divisible by n_head, got n_embd={self.n_embd}, n_head={self.n_head}")
        if not isinstance(self.dropout, int | float) or isinstance(self.dropout, bool):
            raise TypeError(f"dropout must be a number, got {self.dropout!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not isinstance(self.bias, bool):
            raise TypeError(f"bias must be True or False, got {self.bias!r}")

    @property
    def d_head(self) -> int:
        """Width of one attention head: d_model / H."""
        return self.n_embd // self.n_head

    @property
    def d_ff(self) -> int:
        """Hidden width of the feed-forward network: 4 d_model."""
        return 4 * self.n_embd

    # The four released sizes: Radford et al. 2019, Table 2; their head counts: transformers' model cards.
    @classmethod
    def gpt2_small(cls) -> GPTConfig:
        return cls()

    @classmethod
    def gpt2_medium(cls) -> GPTConfig:
        return cls(n_layer=24, n_head=16, n_embd=1024)

    @classmethod
    def gpt2_large(cls) -> GPTConfig:
        return cls(n_layer=36, n_head=20, n_embd=1280)

    @classmethod
    def gpt2_xl(cls) -> GPTConfig:
        return cls(n_layer=48, n_head=25, n_embd=1600)

    @classmethod
    def char(cls) -> GPTConfig:
        """The compact Shakespeare model: 65 characters, 1.6 million parameters."""
        return cls(context_size=128, vocab_size=65, n_layer=2, n_head=8, n_embd=256, dropout=0.1)

    @classmethod
    def tiny(cls) -> GPTConfig:
        """For tests and first steps: 256 tokens (bytes), about 100 thousand parameters in its blocks."""
        return cls(context_size=64, vocab_size=256, n_layer=2, n_head=4, n_embd=64)
