"""The whole of GPT-2: from token ids to the logits of the next token.

    ids -> token + position embedding -> N blocks -> final norm -> logits against the embedding table

Radford et al. 2019, section 2.3. DEEP_THEORY_GUIDE.md, Part 5 counts its parameters and lists where the paper,
the released code and this module differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt.attention import KVCache
from gpt.block import Block, LayerNorm
from gpt.config import GPTConfig
from gpt.positions import LearnedPositionalEncoding
from gpt.support import kernels
from gpt.support.checks import check_features, eager_on_cpu

IGNORED = -100  # A target with this value is not counted in the loss: PyTorch's own convention.


def check_ids(name: str, ids: Int[Tensor, "..."], vocab_size: int, ignored: int | None = None) -> None:
    """Token ids are int64 or int32, in 0..vocab_size - 1 or equal to `ignored`. Raises TypeError or ValueError.

    Ids are looked at where that is free: in eager mode on the CPU. So whoever takes ids in checks them there, before
    they move to an accelerator; a forward pass has no questions to them.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor of token ids, got {type(ids).__name__}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integer token ids, int64 or int32, got {ids.dtype}")
    if not eager_on_cpu(ids):
        return
    read = ids if ignored is None else ids[ids != ignored]
    low, high = read.aminmax() if read.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name} must be ids in 0..{vocab_size - 1}, got {int(low)}..{int(high)}")


class GPT(nn.Module):
    """GPT-2. `model(tokens)` gives (logits, None), `model(tokens, targets)` gives (logits, loss)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = kernels.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = LearnedPositionalEncoding(config.n_embd, config.context_size)
        self.dropout = kernels.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = LayerNorm(config.n_embd, bias=config.bias)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        """N(0, 0.02), biases 0. The 2N layers that write to the residual stream get 1/sqrt(2N) of that, so that
        the stream's variance does not grow with depth (Radford et al. 2019, section 2.3; guide, Part 4)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for writer in (module.attention.projection, module.feed_forward.project):
                nn.init.normal_(writer.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(
        self,
        tokens: Int[Tensor, "batch T"],
        targets: Int[Tensor, "batch T"] | None = None,
        cache: list[KVCache] | None = None,
        loss_only: bool = False,
    ) -> tuple[Float[Tensor, "batch T V"] | None, Float[Tensor, ""] | None]:
        """Token ids -> logits, and the loss if targets are given; with loss_only, the logits are None, which saves
        the memory for them.

        The loss is the mean cross-entropy, in nats per token, over targets that are not IGNORED (-100); nan if all are.
        With a cache (`new_cache`), tokens are those that follow what the cache already holds.
        Raises TypeError for ids that are not integers, ValueError for targets of another shape, for more than
        context_size tokens, for a cache of another model or batch, and, on the CPU, for ids outside 0..V-1.
        """
        if targets is None:
            return self.head(self.hidden(tokens, cache)), None
        check_ids("targets", targets, self.config.vocab_size, IGNORED)
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens must be a tensor of ids, got {type(tokens).__name__}")
        if targets.shape != tokens.shape:
            raise ValueError(f"targets must have the shape of tokens {list(tokens.shape)}, got {list(targets.shape)}")
        # The loss reads the table in the head as well, whose gradient is dense: the promise that `sparse` asks for.
        hidden = self._hidden(tokens, cache, sparse=True)
        if loss_only:
            table, flat = self.token_embedding.weight, targets.flatten().long()
            return None, kernels.linear_cross_entropy(hidden.flatten(0, 1), table, flat, IGNORED)
        logits = self.head(hidden)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED)

    def hidden(
        self, tokens: Int[Tensor, "batch T"], cache: list[KVCache] | None = None
    ) -> Float[Tensor, "batch T d_model"]:
        """The residual stream after the last block and the final norm."""
        return self._hidden(tokens, cache)

    def _hidden(self, tokens: Tensor, cache: list[KVCache] | None, sparse: bool = False) -> Tensor:
        """`hidden`; `sparse` is for `Embedding`, which says what it promises."""
        if isinstance(tokens, Tensor) and (tokens.dim() != 2 or not tokens.numel()):
            raise ValueError(f"tokens must be [batch, T] with at least one token, got shape {list(tokens.shape)}")
        check_ids("tokens", tokens, self.config.vocab_size)
        pasts = self._pasts(cache)
        start = cache[0].length if cache else 0
        length, limit = start + tokens.shape[1], self.config.context_size
        if length > limit:
            raise ValueError(f"tokens must be at most context_size={limit} long, got {length}")
        x = self.dropout(self.position_embedding(self.token_embedding(tokens, sparse), start))
        for block, past in zip(self.blocks, pasts, strict=True):
            x = block(x, past)
        return self.final_norm(x)

    def _pasts(self, cache: list[KVCache] | None) -> Sequence[KVCache | None]:
        """What each block remembers."""
        if cache is None:
            return [None] * len(self.blocks)
        if not isinstance(cache, list | tuple) or not all(isinstance(past, KVCache) for past in cache):
            raise TypeError(f"cache must be a list of KVCache, as new_cache makes it, got {type(cache).__name__}")
        if len(cache) != len(self.blocks):
            raise ValueError(f"cache must have one KVCache for each of {len(self.blocks)} blocks, got {len(cache)}")
        return cache

    def head(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch V"]:
        """Logits: how well the stream matches each token's embedding. There is no second matrix: the head is tied to
        the embedding because it is the same tensor (Press & Wolf 2017)."""
        check_features("hidden", hidden, "... d_model", self.config.n_embd)
        return kernels.linear(hidden, self.token_embedding.weight, scales=self.token_embedding.scales)

    def new_cache(self, batch: int) -> list[KVCache]:
        """An empty key-value cache for `batch` sequences: one per block."""
        c, like = self.config, self.final_norm.weight
        return [KVCache(batch, c.n_head, c.context_size, c.d_head, like) for _ in self.blocks]

    def num_parameters(self) -> int:
        """How many numbers are learned; the tied table is counted once."""
        return sum(p.numel() for p in self.parameters())

    def generate(
        self,
        tokens: Int[Tensor, "batch T"],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
    ) -> Int[Tensor, "batch T_and_new"]:
        """The prompts and their continuations. What the options mean and which errors they raise:
        `gpt.generation.stream`."""
        from gpt.generation import generate

        return generate(
            self, tokens, max_new_tokens, temperature, top_k, top_p, eos_token, generator, use_cache, min_p,
            repetition_penalty,
        )  # fmt: skip

    @classmethod
    def from_pretrained(cls, name: str) -> GPT:
        """A released model, the bundled one or a local folder: see `gpt.storage.pretrained.load_pretrained`."""
        from gpt.storage.pretrained import load_pretrained

        return load_pretrained(name)

    def save_pretrained(self, folder: str) -> None:
        """Write config.json and model.safetensors in the released layout, which transformers loads too."""
        from gpt.storage.pretrained import save_pretrained

        save_pretrained(self, folder)
