"""What does a trained GPT-2 do inside, and how would we know?

`trace` keeps what one real forward pass computed: who looked at whom, and what was written to the residual stream.
The rest of this module reads such a trace:

    logit_lens             what the model would say if it stopped after a layer
    attention_entropy      whether a head looks at one token or at all of them
    rollout                which input tokens can reach an output through all layers
    head_scores            which heads look at the previous token, the first, or at what followed last time
    ablated                what the model loses without a head

Attention weights say where a head looked, not why the model answered as it did: only an experiment such as `ablated`
can tell. DEEP_THEORY_GUIDE.md, Part 9. Attention is [layer, batch, head, query, key] throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt.block import Block
from gpt.model import GPT


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed.

    tokens            [batch, T]                           the ids that went in
    attention         [layer, batch, head, query, key]     each row sums to 1, the future is exactly 0
    residual          [N + 1, batch, T, d_model]           the stream after the embedding and after each block
    attention_out     [layer, batch, T, d_model]           what each attention layer added to it
    feed_forward_out  [layer, batch, T, d_model]           what each feed-forward network added to it
    logits            [batch, T, V]

    So residual[0] + all of attention_out + all of feed_forward_out = residual[-1].
    """

    tokens: Int[Tensor, "batch T"]
    attention: Float[Tensor, "layer batch head T T"]
    residual: Float[Tensor, "layer+1 batch T d_model"]
    attention_out: Float[Tensor, "layer batch T d_model"]
    feed_forward_out: Float[Tensor, "layer batch T d_model"]
    logits: Float[Tensor, "batch T V"]


@contextmanager
def _recording(model: GPT) -> Iterator[None]:
    """Evaluation mode, each layer keeping its attention weights. However the pass ends, all is put back."""
    training = {module: module.training for module in model.modules()}
    layers = [block.attention for block in _blocks(model)]
    recorded = [layer.record_weights for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.record_weights = True
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for layer, record in zip(layers, recorded, strict=True):
            layer.record_weights, layer.weights = record, None


def _blocks(model: GPT) -> list[Block]:
    return cast("list[Block]", list(model.blocks))  # a ModuleList does not know what it holds


@torch.no_grad()
def trace(model: GPT, tokens: Int[Tensor, "batch T"]) -> Trace:
    """Run the model once on tokens [batch, T] and keep what it computed on the way.

    Nothing is computed a second time: the layers keep the attention weights that they used, and hooks read
    the outputs of the real modules. Dropout is off. The model is afterwards as it was before, also on an error.
    Attention takes N B H T^2 numbers: 600 MB for the smallest GPT-2 at T = 1024. Raises what the model raises
    for tokens it cannot read.
    """
    residual: list[Tensor] = []
    attention_out: list[Tensor] = []
    feed_forward_out: list[Tensor] = []
    with _recording(model), ExitStack() as hooks:

        def keep(module: nn.Module, outputs: list[Tensor]) -> None:
            def append(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
                outputs.append(output)

            hooks.enter_context(module.register_forward_hook(append))

        keep(model.dropout, residual)  # the embedding's last step; switched off, it passes on what it gets
        for block in _blocks(model):
            keep(block, residual)
            keep(block.attention, attention_out)
            keep(block.feed_forward, feed_forward_out)
        logits, _ = model(tokens)
        attention = [weights for block in _blocks(model) if (weights := block.attention.weights) is not None]
    stack = torch.stack
    return Trace(tokens, stack(attention), stack(residual), stack(attention_out), stack(feed_forward_out), logits)


@torch.no_grad()
def logit_lens(model: GPT, trace: Trace) -> Float[Tensor, "residuals batch T V"]:
    """Read the stream after each block as if it were the last, [N + 1, batch, T, V] (nostalgebraist 2020).

    Final norm and head are applied to every residual. Entry 0 is the embedding alone; entry N is the logits.
    Raises ValueError for the trace of a model of another width or depth.
    """
    depth, width, expected = len(trace.residual) - 1, trace.residual.shape[-1], (len(model.blocks), model.config.n_embd)
    if (depth, width) != expected:
        raise ValueError(
            f"trace must be of this model, with {expected[0]} blocks and d_model = {expected[1]}, "
            f"got one of {depth} blocks and d_model = {width}"
        )
    return model.head(model.final_norm(trace.residual))


def attention_entropy(attention: Float[Tensor, "*queries key"]) -> Float[Tensor, "*queries"]:
    """How widely a query looks, in nats: -sum_key w ln w, with 0 ln 0 = 0. [..., key] -> [...].

    0 means one key has all the weight. With causal attention query i sees i + 1 keys, so at most ln(i + 1):
    see `entropy_bound`, without which late queries look more curious than early ones. Raises ValueError for
    attention that is not floating-point weights with a key axis, or that holds a negative number.
    """
    if attention.dim() < 1 or not attention.is_floating_point():
        raise ValueError(f"attention must be floating-point weights [..., key], got {_described(attention)}")
    if (attention < 0).any():
        raise ValueError(f"attention must be weights of at least 0, got {attention.min():.3g}")
    return torch.special.entr(attention).sum(dim=-1)


def entropy_bound(length: int) -> Float[Tensor, " query"]:
    """The entropy of a causal query that looks at all it may see equally: ln(i + 1), [query].

    Raises ValueError for a length under 1.
    """
    _check_at_least("length", length, 1)
    return torch.arange(1, length + 1).log()


def rollout(attention: Float[Tensor, "layer batch head T T"]) -> Float[Tensor, "layer batch T T"]:
    """How much of each input token can reach each position, [layer, batch, query, key] (Abnar & Zuidema 2020).

    A layer mixes tokens by its attention, averaged over heads, and by the residual path: 0.5 A + 0.5 I, rows
    renormalised. Entry l is the product of these matrices up to layer l. It assumes that all heads and both
    paths weigh the same and ignores what the values hold: a rough map of routes, not of influence.
    """
    _check_attention(attention)
    heads_mean = attention.mean(dim=2)
    mixing = 0.5 * heads_mean + 0.5 * torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    mixing = mixing / mixing.sum(dim=-1, keepdim=True)
    reached = [mixing[0]]
    for layer in mixing[1:]:
        reached.append(layer @ reached[-1])
    return torch.stack(reached)


def previous_token_score(attention: Float[Tensor, "layer batch head T T"]) -> Float[Tensor, "layer head"]:
    """Mean weight from a token to the one just before it, [layer, head]. The first token has none: left out."""
    _check_attention(attention, at_least=2)
    return attention.diagonal(-1, dim1=-2, dim2=-1).mean(dim=(1, 3))


def first_token_score(attention: Float[Tensor, "layer batch head T T"]) -> Float[Tensor, "layer head"]:
    """Mean weight from a token to the first one, [layer, head]. The first token sees only itself: left out.

    Heads that have nothing to say often rest there.
    """
    _check_attention(attention, at_least=2)
    return attention[..., 1:, 0].mean(dim=(1, 3))


def induction_score(attention: Float[Tensor, "layer batch head T T"]) -> Float[Tensor, "layer head"]:
    """Mean weight from a token to what came after it last time, [layer, head] (Olsson et al. 2022).

    `attention` must come from a block of tokens written twice (`repeated_tokens`): A B C A B C. In the second
    copy, A should look at the first B, B at the first C, and the last token at the second copy's first.
    """
    _check_attention(attention, at_least=4)
    length = attention.shape[-1]
    if length % 2:
        raise ValueError(f"attention must come from a block written twice, but its length {length} is odd")
    back = length // 2 - 1  # from a token to the one after its copy
    return attention.diagonal(-back, dim1=-2, dim2=-1)[..., 1:].mean(dim=(1, 3))


def _check_attention(attention: Tensor, at_least: int = 1) -> None:
    fits = attention.dim() == 5 and attention.numel() and attention.shape[-1] == attention.shape[-2] >= at_least
    if not fits or not attention.is_floating_point():
        raise ValueError(
            "attention must be floating-point weights [layer, batch, head, query, key], not empty, with as many keys "
            f"as queries and at least {at_least} of them, got {_described(attention)}"
        )


def _described(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {list(values.shape)}"


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")


@dataclass(frozen=True)
class HeadScores:
    """What each head does on a repeated random sequence: three mean weights in [0, 1], each [layer, head]."""

    previous_token: Float[Tensor, "layer head"]
    first_token: Float[Tensor, "layer head"]
    induction: Float[Tensor, "layer head"]


def repeated_tokens(vocab_size: int, block: int, batch: int = 1, seed: int = 0) -> Int[Tensor, "batch two_blocks"]:
    """A random block of tokens written twice, [batch, 2 block].

    The tokens of a block all differ, so each has exactly one earlier copy; and they are random, so nothing but
    that copy can tell what comes next. Raises ValueError for a block under 2 or longer than the vocabulary.
    """
    for name, value, least in (("vocab_size", vocab_size, 2), ("block", block, 2), ("batch", batch, 1)):
        _check_at_least(name, value, least)
    if block > vocab_size:
        raise ValueError(f"block must be in 2..vocab_size={vocab_size}, got {block}")
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.stack([torch.randperm(vocab_size, generator=generator)[:block] for _ in range(batch)])
    return blocks.repeat(1, 2)


def head_scores(model: GPT, block: int | None = None, batch: int = 8, seed: int = 0) -> HeadScores:
    """The three scores of every head, on `batch` repeated random sequences of length 2 block.

    `block` is 32, or less where the context or the vocabulary is too small. A head that always looks block - 1
    tokens back gets a high induction score as well: score another `block` to tell the two apart.
    Raises ValueError for a block that the model cannot hold.
    """
    longest = min(model.config.context_size // 2, model.config.vocab_size)
    block = min(32, longest) if block is None else block
    if not isinstance(block, int) or not 2 <= block <= longest:
        raise ValueError(f"block must be in 2..{longest} (twice in the context, no token repeated), got {block}")
    tokens = repeated_tokens(model.config.vocab_size, block, batch, seed).to(model.token_embedding.weight.device)
    attention = trace(model, tokens).attention
    return HeadScores(previous_token_score(attention), first_token_score(attention), induction_score(attention))


@contextmanager
def ablated(model: GPT, layer: int, head: int) -> Iterator[GPT]:
    """Silence one head while the context lasts: `with ablated(model, 0, 3): model(tokens)`.

    Its output is set to 0 just before the layer's projection, so it adds nothing to the stream; the other heads,
    and its own attention weights, stay. Nest contexts to silence several. Layers and heads count from 0.
    Raises ValueError for a layer or a head that the model does not have.
    """
    for name, index, count in (("layer", layer, len(model.blocks)), ("head", head, model.config.n_head)):
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise ValueError(f"{name} must be in 0..{count - 1}, an int, got {index!r}")
    d_head = model.config.d_head

    def silence(_projection: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        heads = inputs[0].clone()
        heads[..., head * d_head : (head + 1) * d_head] = 0
        return heads

    with _blocks(model)[layer].attention.projection.register_forward_pre_hook(silence):
        yield model
