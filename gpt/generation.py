"""How does a model of the next token write a text?

It reads the prompt, gives a distribution over the next token, one is drawn, appended, and so on. How the
distribution is reshaped before the draw decides between dull and wild; a cache decides between slow and fast.
DEEP_THEORY_GUIDE.md, Part 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gpt.model import GPT, check_ids
from gpt.support.kernels import FasterThreads
from gpt.support.modules import evaluation_mode


@dataclass(frozen=True)
class Sampling:
    """How the distribution of the next token is reshaped before the draw. The settings apply in this order:

    repetition_penalty  divides the positive logits of tokens that have occurred and multiplies their negative ones;
                        above 1 makes them less likely (Keskar et al. 2019, section 4.1; the sign rule is that of
                        transformers)
    temperature         divides the logits; below 1 sharpens, above 1 flattens, 0 puts everything on the largest
    top_k               keeps the k most likely tokens
    top_p               keeps the smallest set of most likely tokens that holds at least probability p (nucleus
                        sampling, Holtzman et al. 2020, equation 2)
    min_p               keeps the tokens that are at least min_p times as likely as the most likely one (Nguyen et al.
                        2024)

    None leaves a step out. Each filter counts in the distribution that the one before it left, renormalised; among
    equals, the smaller id counts as the more likely. Raises TypeError for a setting that is not a number (top_k: an
    int), ValueError for one that is nan or out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is None:
            raise TypeError("temperature must be a number, got None; 1 leaves the distribution as it is")
        if self.top_k is not None and (not isinstance(self.top_k, int) or isinstance(self.top_k, bool)):
            raise TypeError(f"top_k must be an int of at least 1, or None for all tokens, got {self.top_k!r}")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Real) or isinstance(value, bool)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not _is_finite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy) and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be an int of at least 1, or None for all tokens, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], or None for all tokens, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], or None for all tokens, got {self.min_p}")
        if self.repetition_penalty is not None and not (
            _is_finite(self.repetition_penalty) and self.repetition_penalty > 0
        ):
            raise ValueError(f"repetition_penalty must be above 0 and finite, or None, got {self.repetition_penalty}")

    def probabilities(
        self, logits: Float[Tensor, "*batch V"], seen: Int[Tensor, "*batch T"] | None = None
    ) -> Float[Tensor, "*batch V"]:
        """The distribution that the next token is drawn from. Each row sums to 1.

        `seen` holds the ids so far; only the repetition penalty needs them. Computed in float64, as a running sum over
        a large vocabulary must be, and returned in the dtype of the logits.
        Raises TypeError for logits that are not floating-point, ValueError for a row without a finite largest logit
        (one is nan or inf, or all are -inf) and for a penalty without `seen`.
        """
        return self._distribution(logits, seen).to(logits)

    def draw(
        self,
        logits: Float[Tensor, "*batch V"],
        generator: torch.Generator | None = None,
        seen: Int[Tensor, "*batch T"] | None = None,
    ) -> Int[Tensor, "*batch"]:
        """One token for each row, by `inverse_distribution` of one uniform number each; temperature 0 needs none.

        A generator on the CPU (without one: PyTorch's own) draws the same tokens on every device. Errors as above.
        """
        if self.temperature == 0:
            return self._checked(logits, seen).argmax(dim=-1)
        probabilities = self._distribution(logits, seen)
        device = torch.device("cpu") if generator is None else generator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        uniform = torch.rand(logits.shape[:-1], generator=generator, device=device, dtype=dtype)
        return inverse_distribution(probabilities, uniform).to(logits.device)

    def _checked(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """The logits after the repetition penalty, if they are numbers that a distribution can be made of."""
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
        if not logits.is_floating_point():
            raise TypeError(f"logits must be floating-point, got {logits.dtype}")
        if logits.dim() < 1 or logits.shape[-1] == 0:
            raise ValueError(f"logits must have the shape [..., V] with V at least 1, got {list(logits.shape)}")
        if self.repetition_penalty not in (None, 1):
            logits = _penalised(logits, seen, float(self.repetition_penalty))
        if not logits.amax(dim=-1).isfinite().all():
            raise ValueError("logits must have a finite largest value in each row, got nan, inf or only -inf")
        return logits

    def _distribution(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """`probabilities` in float64."""
        logits = self._checked(logits, seen)
        logits = (logits.cpu() if logits.device.type == "mps" else logits).double()
        largest = logits.amax(dim=-1, keepdim=True)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        # The largest logit becomes 0 before the division, so that no temperature, however small, overflows.
        scaled = (logits - largest) / max(float(self.temperature), torch.finfo(logits.dtype).tiny)
        if self.top_k is None and self.top_p in (None, 1) and self.min_p in (None, 0):
            return scaled.softmax(dim=-1)
        order = logits.argsort(dim=-1, descending=True, stable=True)
        p = scaled.gather(-1, order).softmax(dim=-1)
        if self.top_k is not None:
            p = _renormalised(p, torch.arange(p.shape[-1], device=p.device) < min(self.top_k, p.shape[-1]))
        if self.top_p not in (None, 1):
            higher = F.pad(p.cumsum(dim=-1), (1, -1))  # the probability of all that rank higher
            p = _renormalised(p, higher < self.top_p)
        if self.min_p is not None:
            p = _renormalised(p, p >= self.min_p * p[..., :1])
        return torch.zeros_like(p).scatter(-1, order, p)


def _is_finite(value: float) -> bool:
    """Also for an int of hundreds of digits, which no tensor can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _penalised(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """The logits, those of tokens that have occurred moved towards -infinity (for a penalty above 1)."""
    if seen is None or seen.shape[:-1] != logits.shape[:-1]:
        got = None if seen is None else f"shape {list(seen.shape)}"
        raise ValueError(
            f"seen must be the ids so far, {[*logits.shape[:-1], 'T']}, for a repetition_penalty, got {got}"
        )
    seen = seen.to(logits.device, torch.int64)
    theirs = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(theirs > 0, theirs / penalty, theirs * penalty))


def _renormalised(p: Tensor, kept: Tensor) -> Tensor:
    """The distribution p, given that one of the kept is drawn."""
    p = p * kept
    return p / p.sum(dim=-1, keepdim=True)


def inverse_distribution(
    probabilities: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"]
) -> Int[Tensor, "*batch"]:
    """The token on whose share of [0, 1) the uniform number falls, if the shares lie side by side, ordered by id.

    Token i has the share from p_0 + ... + p_{i-1}, included, to p_0 + ... + p_i, excluded: the inverse of the
    distribution function (Devroye 1986, section III.2). A token of probability 0 has no share and is never drawn.
    The sum is taken on the CPU, in float64 and in the order of the ids, so one number gives one token on every build
    of PyTorch, with or without vector instructions.
    """
    ends = probabilities.cpu().double().cumsum(dim=-1)
    places = uniform.cpu().double()[..., None] * ends[..., -1:]  # the last end is 1 but for rounding
    return torch.searchsorted(ends, places, right=True)[..., 0]


def next_token_probabilities(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Float[Tensor, "*batch V"]:
    """The distribution that the next token is drawn from: the short form of `Sampling(...).probabilities(logits)`."""
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
    vocab_size: int | None = None,
) -> Iterator[Int[Tensor, " batch"]]:
    """Continue the prompts: an iterator that yields the next token of each as it is drawn.

    It stops after max_new_tokens, or when every sequence has drawn eos_token; one that is done early is filled up
    with eos_token. `generator` makes the draws repeatable. The other settings are those of `Sampling`; the repetition
    penalty counts the prompt and all that was drawn. Only ids below vocab_size are drawn: give the tokenizer's, if it
    has fewer tokens than the model has ids.

    The model always reads the last context_size tokens, no more. While everything fits, a cache keeps the keys
    and values, and each step computes the newest token alone. Past that the window slides, every token gets
    another position and the cache would be wrong: each step then reads its whole window. use_cache=False does that
    from the start, with the same logits. The model is in evaluation mode only while a token is computed; between two
    tokens it is as the caller has it, and several streams of one model may take turns.

    Raises TypeError or ValueError, before any token is drawn, for a prompt that is empty or has ids outside the
    vocabulary, an eos_token outside it, max_new_tokens that is not an int of at least 0, and what `Sampling` refuses.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens must be a tensor of ids, got {type(tokens).__name__}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, or None, got {type(generator).__name__}")
    rows = model.config.vocab_size
    vocab_size = rows if vocab_size is None else vocab_size
    if not isinstance(vocab_size, int) or not 1 <= vocab_size <= rows:
        raise ValueError(f"vocab_size must be in 1..{rows}, the ids of the model, or None, got {vocab_size}")
    if tokens.dim() != 2 or not tokens.numel():
        raise ValueError(f"tokens must be a prompt [batch, T] with at least one token, got shape {list(tokens.shape)}")
    check_ids("tokens", tokens.cpu(), vocab_size)
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool):
        raise TypeError(f"max_new_tokens must be an int of at least 0, got {max_new_tokens!r}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    if eos_token is not None and (not isinstance(eos_token, int) or isinstance(eos_token, bool)):
        raise TypeError(f"eos_token must be an id in 0..{vocab_size - 1}, or None, got {eos_token!r}")
    if eos_token is not None and not 0 <= eos_token < vocab_size:
        raise ValueError(f"eos_token must be an id in 0..{vocab_size - 1}, or None, got {eos_token}")
    return _stream(model, tokens, max_new_tokens, sampling, eos_token, generator, use_cache, vocab_size)


def _stream(
    model: GPT,
    tokens: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    eos_token: int | None,
    generator: torch.Generator | None,
    use_cache: bool,
    vocab_size: int,
) -> Iterator[Tensor]:
    context_size = model.config.context_size
    seen = tokens.to(model.token_embedding.weight.device, torch.int64)
    unread = seen[:, -context_size:]
    cache = model.new_cache(len(seen)) if use_cache else None
    one_token_each = FasterThreads()
    done = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    for _ in range(max_new_tokens):
        threads = one_token_each.step() if unread.shape[1] == 1 and unread.device.type == "cpu" else nullcontext()
        with torch.no_grad(), evaluation_mode(model), threads:
            logits = model.head(model.hidden(unread, cache)[:, -1])
        next_token = sampling.draw(logits[:, :vocab_size], generator, seen)
        if eos_token is not None:
            next_token = next_token.masked_fill(done, eos_token)
            done |= next_token == eos_token
        yield next_token
        if eos_token is not None and done.all():
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
    vocab_size: int | None = None,
) -> Int[Tensor, "batch T_and_new"]:
    """The prompts and their continuations. All options and errors are those of `stream`."""
    drawn = stream(
        model,
        tokens,
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        eos_token,
        generator,
        use_cache,
        min_p,
        repetition_penalty,
        vocab_size,
    )
    return torch.cat([tokens, *(token[:, None].to(tokens) for token in drawn)], dim=1)
