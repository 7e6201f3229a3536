"""How does a model of the next token write a text?

It reads the prompt, gives a distribution over the next token, one is drawn, appended, and so on. How the
distribution is reshaped before the draw decides between dull and wild; a cache decides between slow and fast.
DEEP_THEORY_GUIDE.md, Part 8.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gpt.model import GPT


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The distribution that the next token is drawn from, [..., V] -> [..., V]. Each row sums to 1.

    temperature  divides the logits; below 1 sharpens, above 1 flattens, 0 puts everything on the largest
    top_k        keeps the k most likely tokens
    top_p        keeps the smallest set of most likely tokens that holds at least probability p (nucleus sampling,
                 Holtzman et al. 2020, equation 2), counted after temperature and top_k
    What is kept is renormalised; among equals, the smaller id counts as the more likely.
    Raises ValueError for temperature < 0, top_k < 1 or top_p outside (0, 1].
    """
    _check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # The largest logit becomes 0 before the division, so that no temperature, however small, overflows.
    temperature = max(temperature, torch.finfo(logits.dtype).tiny)
    probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    if top_k is None and top_p in (None, 1):
        return probabilities
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[..., top_k:] = 0
        ranked /= ranked.sum(dim=-1, keepdim=True)
    if top_p not in (None, 1):
        likelier = ranked.cumsum(dim=-1).roll(1, dims=-1)  # the probability of all that ranks higher
        likelier[..., 0] = 0
        ranked[likelier >= top_p] = 0
        ranked /= ranked.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, order, ranked)


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0 (0 is greedy), got {temperature}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be an int of at least 1, or None for all tokens, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], or None for all tokens, got {top_p}")


def stream(
    model: GPT,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Continue the prompts tokens [batch, T]: an iterator that yields the next token of each, [batch], as it is drawn.

    It stops after max_new_tokens, or when every sequence has drawn eos_token; one that is done early is filled up
    with eos_token. `generator`, on the model's device, makes the draws repeatable.

    The model always reads the last context_size tokens, no more. While everything fits, a cache keeps the keys
    and values, and each step computes the newest token alone. Past that the window slides, every token gets
    another position and the cache would be wrong: each step then reads its whole window. use_cache=False does that
    from the start, with the same logits.

    Raises ValueError for an empty prompt, max_new_tokens < 0, and what `next_token_probabilities` raises.
    """
    _check_sampling(temperature, top_k, top_p)
    if tokens.dim() != 2 or not tokens.numel():
        raise ValueError(f"tokens must be a prompt [batch, T] with at least one token, got shape {list(tokens.shape)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    return _stream(model, tokens, max_new_tokens, (temperature, top_k, top_p, generator), eos_token, use_cache)


@torch.no_grad()
def _stream(
    model: GPT, tokens: Tensor, max_new_tokens: int, sampling: tuple, eos_token: int | None, use_cache: bool
) -> Iterator[Tensor]:
    context_size, was_training = model.config.context_size, model.training
    window = tokens.to(model.token_embedding.weight.device)[:, -context_size:]
    cache = model.new_cache(len(window)) if use_cache else None
    done = torch.zeros(len(window), dtype=torch.bool, device=window.device)
    model.eval()
    try:
        unread = window
        for _ in range(max_new_tokens):
            logits = model.head(model.hidden(unread, cache)[:, -1])
            next_token = _draw(logits, *sampling)
            if eos_token is not None:
                next_token = next_token.masked_fill(done, eos_token)
                done |= next_token == eos_token
            yield next_token
            if done.all():
                return
            if cache is not None and window.shape[1] == context_size:
                cache = None  # full: from here on the window slides
            window = torch.cat([window, next_token[:, None]], dim=1)[:, -context_size:]
            unread = window if cache is None else next_token[:, None]
    finally:
        model.train(was_training)


def _draw(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = next_token_probabilities(logits.float(), temperature, top_k, top_p)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def generate(model: GPT, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, **options) -> Tensor:
    """The prompts and their continuations, [batch, T + new]. All options and errors are those of `stream`."""
    drawn = list(stream(model, tokens, max_new_tokens, temperature, **options))
    return torch.cat([tokens, *(token[:, None].to(tokens) for token in drawn)], dim=1)
