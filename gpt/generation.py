"""How does a model of the next token write a text?

It reads the prompt, gives a distribution over the next token, one is drawn, appended, and so on. How the
distribution is reshaped before the draw decides between dull and wild; a cache decides between slow and fast.
DEEP_THEORY_GUIDE.md, Part 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt.model import GPT, check_ids
from gpt.support.modules import evaluation_mode


@dataclass(frozen=True)
class Sampling:
    """How the distribution of the next token is reshaped before one is drawn, in this order.

    repetition_penalty  divides the positive logits of tokens that have occurred and multiplies their negative ones;
                        above 1 makes them less likely (Keskar et al. 2019, section 4.1)
    temperature         divides the logits; below 1 sharpens, above 1 flattens, 0 puts everything on the largest
    top_k               keeps the k most likely tokens
    top_p               keeps the smallest set of most likely tokens that holds at least probability p (nucleus
                        sampling, Holtzman et al. 2020, equation 2)
    min_p               keeps the tokens that are at least min_p times as likely as the most likely one (Nguyen et al.
                        2024)

    Each filter counts on what is left by those before it, and what is kept is renormalised. Among equals, the smaller
    id counts as the more likely. Raises TypeError or ValueError, naming the setting, for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if (value is None and name != "temperature") or _is_number(value):
                continue
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k is True or self.top_k < 1):
            raise ValueError(f"top_k must be an int of at least 1, or None for all tokens, got {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], or None for all tokens, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], or None for all tokens, got {self.min_p}")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be above 0, or None for none, got {self.repetition_penalty}")

    def probabilities(
        self, logits: Float[Tensor, "*batch V"], seen: Int[Tensor, "*batch T"] | None = None
    ) -> Float[Tensor, "*batch V"]:
        """The distribution that the next token is drawn from; each row sums to 1.

        `seen` are the tokens so far, which only the repetition penalty asks for.
        Raises ValueError for logits whose largest is not finite: a nan, an infinity, or nothing but -inf.
        """
        logits = self._penalised(_checked(logits), seen)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        # The largest logit becomes 0 before the division, so that no temperature, however small, overflows.
        limits = torch.finfo(logits.dtype)
        temperature = min(max(self.temperature, limits.tiny), limits.max)
        probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
        if self.top_k is None and self.top_p in (None, 1) and not self.min_p:
            return probabilities
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ranked = probabilities.gather(-1, order)
        if self.top_k is not None:
            ranked = _renormalised(ranked, torch.arange(ranked.shape[-1], device=ranked.device) < self.top_k)
        if self.top_p not in (None, 1):
            ranked = _renormalised(ranked, ranked.cumsum(dim=-1) - ranked < self.top_p)  # what ranks higher holds < p
        if self.min_p:
            ranked = _renormalised(ranked, ranked >= self.min_p * ranked[..., :1])
        return torch.zeros_like(probabilities).scatter(-1, order, ranked)

    def draw(
        self,
        logits: Float[Tensor, "batch V"],
        generator: torch.Generator | None = None,
        seen: Int[Tensor, "batch T"] | None = None,
    ) -> Int[Tensor, " batch"]:
        """One token for each row, by `inverse_distribution` of a uniform number each."""
        if self.temperature == 0:
            return self._penalised(_checked(logits), seen).argmax(dim=-1)
        probabilities = self.probabilities(logits.float(), seen)
        device = "cpu" if generator is None else generator.device
        uniform = torch.rand(len(probabilities), generator=generator, device=device)
        return inverse_distribution(probabilities, uniform).to(logits.device)

    def _penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        if self.repetition_penalty in (None, 1) or seen is None:
            return logits
        occurred = logits.gather(-1, seen)
        penalty = self.repetition_penalty
        return logits.scatter(-1, seen, torch.where(occurred > 0, occurred / penalty, occurred * penalty))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(logits: Tensor) -> Tensor:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point, got {logits.dtype}")
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("logits must be numbers with a finite largest one in each row, got nan, inf or only -inf")
    return logits


def _renormalised(ranked: Tensor, kept: Tensor) -> Tensor:
    """The distribution over what is kept, which always includes the most likely token."""
    first = torch.arange(ranked.shape[-1], device=ranked.device) == 0
    ranked = ranked * (kept | first)
    return ranked / ranked.sum(dim=-1, keepdim=True)


def inverse_distribution(
    probabilities: Float[Tensor, "batch V"], uniform: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """The token whose share of [0, 1) holds the uniform number; shares lie side by side in the order of the ids.

    So one number decides, and the same number gives the same token on every build of PyTorch. A token of probability 0
    has no share. Computed on the CPU in float64, where the sum of a vocabulary's probabilities is exact enough.
    """
    ends = probabilities.cpu().double().cumsum(dim=-1)
    places = uniform.cpu().double()[:, None] * ends[:, -1:]  # the last end is 1 up to rounding
    return torch.searchsorted(ends, places, right=True)[:, 0]


def next_token_probabilities(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Float[Tensor, "*batch V"]:
    """The distribution that the next token is drawn from: `Sampling(...).probabilities(logits)`."""
    return Sampling(temperature, top_k, top_p, min_p).probabilities(logits)


def stream(
    model: GPT,
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
) -> Iterator[Int[Tensor, " batch"]]:
    """Continue the prompts: an iterator that yields the next token of each, [batch], as it is drawn.

    It stops after max_new_tokens, or when every sequence has drawn eos_token; one that is done early is filled up
    with eos_token. The settings in between are those of `Sampling`. `generator` makes the draws repeatable.

    The model always reads the last context_size tokens, no more. While everything fits, a cache keeps the keys
    and values, and each step computes the newest token alone. Past that the window slides, every token gets
    another position and the cache would be wrong: each step then reads its whole window. use_cache=False does that
    from the start, with the same logits. Between two tokens the model is as the caller left it.

    Raises TypeError or ValueError for an empty prompt, ids or an eos_token outside the vocabulary, max_new_tokens < 0,
    and what `Sampling` raises.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    vocab_size = model.config.vocab_size
    if tokens.dim() != 2 or not tokens.numel():
        raise ValueError(f"tokens must be a prompt [batch, T] with at least one token, got shape {list(tokens.shape)}")
    check_ids("tokens", tokens.cpu(), vocab_size)
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool):
        raise TypeError(f"max_new_tokens must be an int, got {max_new_tokens!r}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    if eos_token is not None and (not isinstance(eos_token, int) or not 0 <= eos_token < vocab_size):
        raise ValueError(f"eos_token must be an id in 0..{vocab_size - 1}, or None, got {eos_token!r}")
    return _stream(model, tokens, max_new_tokens, sampling, eos_token, generator, use_cache)


def _stream(
    model: GPT,
    tokens: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    eos_token: int | None,
    generator: torch.Generator | None,
    use_cache: bool,
) -> Iterator[Tensor]:
    context_size = model.config.context_size
    seen = tokens.to(model.token_embedding.weight.device, torch.int64)
    unread, cache = seen[:, -context_size:], model.new_cache(len(seen)) if use_cache else None
    done = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    for _ in range(max_new_tokens):
        with torch.no_grad(), evaluation_mode(model):
            logits = model.head(model.hidden(unread, cache)[:, -1])
        next_token = sampling.draw(logits, generator, seen)
        if eos_token is not None:
            next_token = next_token.masked_fill(done, eos_token)
            done |= next_token == eos_token
        yield next_token
        if done.all():
            return
        if seen.shape[1] >= context_size:
            cache = None  # full: from here on the window slides
        seen = torch.cat([seen, next_token[:, None]], dim=1)
        unread = seen[:, -context_size:] if cache is None else next_token[:, None]


def generate(
    model: GPT,
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
    """The prompts and their continuations. All options and errors are those of `stream`."""
    drawn = stream(
        model, tokens, max_new_tokens, temperature, top_k, top_p, eos_token, generator, use_cache, min_p,
        repetition_penalty,
    )  # fmt: skip
    return torch.cat([tokens, *(token[:, None].to(tokens) for token in drawn)], dim=1)
