"""What does a GPT-2 cost: how many parameters, how much arithmetic, how many bytes, how much time?

Everything but the time follows from a GPTConfig by counting matrices. The letters are those of the notation table
(DEEP_THEORY_GUIDE.md, Part 0); Part 10 derives the formulas. One rule carries most of them: a matrix [m, n] holds
m n numbers, and taking one token through it costs m n multiplications and m n additions, 2 m n FLOPs. So a
parameter in a matrix costs 2 FLOPs a token forward and, with the two products of the backward pass, 6 in training.

Every function raises ValueError, naming the argument, for a size no run can have.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from gpt.config import GPTConfig
from gpt.model import GPT


def parameter_count(config: GPTConfig) -> int:
    """How many numbers are learned. With biases

        V d_model + T_max d_model + N (12 d_model^2 + 13 d_model) + 2 d_model

    A block's matrices are qkv [3 d_model, d_model], projection [d_model, d_model], expand [4 d_model, d_model] and
    project [d_model, 4 d_model]: 3 + 1 + 4 + 4 = 12 squares. Their biases are 3 + 1 + 4 + 1 = 9 vectors, its two
    norms 2 + 2. The last 2 d_model are the final norm; the head is the token table again. Without biases only the
    norms' gains are left of the vectors: 2 in each block and 1 at the end.
    """
    d_model, layers = config.n_embd, config.n_layer
    vectors = 13 * layers + 2 if config.bias else 2 * layers + 1
    return (config.vocab_size + config.context_size + 12 * layers * d_model + vectors) * d_model


def parameters_by_component(config: GPTConfig) -> dict[str, int]:
    """`parameter_count` by component: component -> parameters, all N layers together. The names are the model's."""
    d_model, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    return {
        "token_embedding": config.vocab_size * d_model,
        "position_embedding": config.context_size * d_model,
        "attention.qkv": layers * 3 * d_model * (d_model + bias),
        "attention.projection": layers * d_model * (d_model + bias),
        "feed_forward.expand": layers * config.d_ff * (d_model + bias),
        "feed_forward.project": layers * d_model * (config.d_ff + bias),
        "norms": (2 * layers + 1) * d_model * (1 + bias),
    }


def flops_by_component(config: GPTConfig, context: int, causal: bool = False) -> dict[str, int]:
    """FLOPs of one token's forward pass in a sequence of T = `context` tokens: component -> FLOPs, all layers.

    Only matrix products count, 2 FLOPs for a multiply-add; norms, GELU and softmax are a percent or less at
    the released sizes, and an embedding is a lookup. Two products have no parameters: a query meets T keys, in all
    heads together 2 T d_model FLOPs, and mixing T values costs as much again.

    A causal query at position t needs only t of the T keys, (T + 1) / 2 on average, but the model computes the full
    square and masks half of it. That is counted here; `causal=True` counts what is needed.
    """
    _check_context(config, context)
    d_model, layers = config.n_embd, config.n_layer
    pairs = d_model * (context + 1) if causal else 2 * d_model * context
    return {
        "attention.qkv": layers * 6 * d_model**2,
        "attention.scores": layers * pairs,
        "attention.values": layers * pairs,
        "attention.projection": layers * 2 * d_model**2,
        "feed_forward.expand": layers * 2 * d_model * config.d_ff,
        "feed_forward.project": layers * 2 * d_model * config.d_ff,
        "head": 2 * d_model * config.vocab_size,
    }


def flops_per_token(config: GPTConfig, context: int, training: bool = False, causal: bool = False) -> int:
    """FLOPs per token in a sequence of T = `context` tokens:

        forward   24 N d_model^2 + 4 N T d_model + 2 V d_model
        training  3 times that

    The backward pass of y = W x is two products of the same size, one for the gradient of W and one for that of x
    (of the scores and the values likewise), so training costs forward + 2 forward.
    """
    forward = sum(flops_by_component(config, context, causal).values())
    return 3 * forward if training else forward


def approximate_training_flops(config: GPTConfig) -> int:
    """The rule of thumb: 6 FLOPs per parameter and token (Kaplan et al. 2020, section 2.1).

    Set beside `flops_per_token(..., training=True)` = 6 (12 N d_model^2 + V d_model) + 12 N T d_model, it counts
    lookups and vectors that cost nothing (few, with a tied head and a large d_model) and leaves out the T^2 of
    attention. That adds T / (6 d_model) to the cost of the blocks, so the rule is good while T is far below 6 d_model.
    """
    return 6 * parameter_count(config)


def weight_bytes(config: GPTConfig, bytes_per_value: int = 4) -> int:
    """Bytes of the weights; 4 a value in float32, 2 in bfloat16. The gradients take as much again."""
    _check_count("bytes_per_value", bytes_per_value)
    return bytes_per_value * parameter_count(config)


def optimizer_bytes(config: GPTConfig) -> int:
    """Bytes of AdamW's two moments, in float32: 8 a parameter. (Its step counters, 4 bytes a tensor, are left out.)"""
    return 8 * parameter_count(config)


def activation_bytes(config: GPTConfig, batch: int, context: int) -> int:
    """Bytes that one forward pass with targets keeps for its backward pass, in float32 without dropout:

        4 B T (N (16 d_model + H + 4) + 2 d_model + 2 + V) + 16 B T + 4

    A layer keeps its input if its gradient needs it. In one block, per token:
      the two norms        2 (d_model in + mean and deviation)     2 d_model + 4
      qkv                  its input                                 d_model
      attention            q, k, v, and a log-sum a head           3 d_model + H
      projection           its input, attention's output             d_model
      expand               its input                                 d_model
      GELU and project     their inputs, d_ff each                 8 d_model
    After the blocks: the final norm (d_model + 2), the head's input (d_model), the log-probabilities (V). Then token
    and target ids, 8 bytes each, and one number of the mean loss. The sums x + ... keep nothing.

    The fused kernel never keeps the T x T weights. The readable path, and dropout on the CPU, do: at least H T more
    numbers a token in each layer. The logits and their gradient live beside this for a moment: 8 B T V bytes more.
    """
    _check_count("batch", batch)
    _check_context(config, context)
    d_model = config.n_embd
    block = 16 * d_model + config.n_head + 4
    per_token = config.n_layer * block + 2 * d_model + 2 + config.vocab_size
    return batch * context * (4 * per_token + 16) + 4


def kv_cache_bytes(config: GPTConfig, batch: int, context: int, bytes_per_value: int = 4) -> int:
    """Bytes of the keys and values of `context` tokens: 2 N B T d_model values.

    A model's cache (`GPT.new_cache`) takes the memory for T_max tokens at once: context = config.context_size.
    """
    _check_count("batch", batch)
    _check_count("bytes_per_value", bytes_per_value)
    _check_context(config, context)
    return bytes_per_value * 2 * config.n_layer * batch * context * config.n_embd


def memory_table(config: GPTConfig, batch: int, context: int) -> dict[str, int]:
    """Bytes in float32. Training holds the first four rows at once, generation the weights and the KV cache."""
    return {
        "weights": weight_bytes(config),
        "gradients": weight_bytes(config),
        "optimizer": optimizer_bytes(config),
        "activations": activation_bytes(config, batch, context),
        "kv_cache": kv_cache_bytes(config, batch, context),
    }


def arithmetic_intensity(
    config: GPTConfig, batch: int, context: int, new_tokens: int = 1, bytes_per_value: int = 4
) -> float:
    """FLOPs per byte of memory traffic, for the last `new_tokens` of `context` tokens in each of `batch` sequences.

    All weights are read once, the KV cache is read or written once; what moves between layers is left out. Prefill
    (new_tokens = context) shares each weight among B T tokens, decoding (new_tokens = 1) among B. A device that does
    F FLOPs and moves M bytes a second waits for its memory while the intensity is below F / M.
    """
    _check_context(config, context)
    _check_count("new_tokens", new_tokens)
    if new_tokens > context:
        raise ValueError(f"new_tokens must be at most context={context}, got {new_tokens}")
    traffic = weight_bytes(config, bytes_per_value) + kv_cache_bytes(config, batch, context, bytes_per_value)
    return batch * new_tokens * flops_per_token(config, context) / traffic


def tokens_per_second(model: GPT, batch: int, context: int, steps: int = 5, warm_up: int = 2) -> float:
    """Measured: tokens per second of a training step (forward, backward, AdamW) on the model's own device.

    The tokens are random and the learning rate is 0, so the weights do not move; the gradients are cleared. The
    first `warm_up` steps, slower ones, are thrown away, and of the rest the median counts.
    """
    _check_count("batch", batch)
    _check_context(model.config, context)
    _check_count("steps", steps)
    _check_count("warm_up", warm_up)
    device = model.token_embedding.weight.device
    tokens = torch.randint(model.config.vocab_size, (batch, context), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    was_training = model.training
    model.train()

    def step() -> None:
        model(tokens, tokens)[1].backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = [_seconds(step, device) for _ in range(warm_up + steps)][warm_up:]
    model.train(was_training)
    return batch * context / statistics.median(seconds)


def measured_peak_flops(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", size: int = 2048
) -> float:
    """Measured: FLOPs per second of the device at its best, multiplying two matrices [size, size].

    The fastest of several runs counts. On a large accelerator take a size of 8192: a small product does not fill it.
    """
    _check_count("size", size)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / min(_seconds(lambda: a @ b, a.device) for _ in range(8))


def mfu(tokens_per_second: float, config: GPTConfig, context: int, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of the device's peak that a training run turns into its own arithmetic.

        MFU = tokens/s * training FLOPs per token / peak FLOPs/s          (Chowdhery et al. 2022, appendix B)

    You give `peak_flops`, per second: the data sheet's for your precision, or `measured_peak_flops`.
    """
    _check_rate("tokens_per_second", tokens_per_second)
    _check_rate("peak_flops", peak_flops)
    return tokens_per_second * flops_per_token(config, context, training=True) / peak_flops


# Many cards


def ring_seconds(members: int, size: float, latency: float, link: float, messages: int = 1) -> float:
    """Claim (10.17): a ring of K members sums `size` bytes that each of them has, in so many messages, in

        2 (K - 1) (messages alpha + size / (K beta_l))    seconds

    A gather, or a sum of which each member gets its share, is half of it.
    """
    return 2 * (members - 1) * (messages * latency + size / (members * link))


def state_bytes(parameters: float, shard: int = 1) -> dict[str, float]:
    """Claim (10.15), first and last stage: 2 bytes a parameter for the weight, 2 for its gradient and 12 for AdamW (a
    copy and two moments in float32), all dealt out to `shard` cards."""
    sizes = {"parameters": 2, "gradients": 2, "optimizer": 12}
    return {name: size * parameters / shard for name, size in sizes.items()}


def kept_numbers(config: GPTConfig, tensor: int = 1) -> float:
    """Claims (10.6) and (10.16): numbers that a block keeps for one token, 4 d + 4 + (12 d + H) / t on each of t cards.

    The norms and what goes into qkv and expand are whole on each card; heads and hidden units are dealt out.
    """
    d_model = config.n_embd
    return 4 * d_model + 4 + (12 * d_model + config.n_head) * largest_share(config, tensor)


def largest_share(config: GPTConfig, tensor: int) -> float:
    """The part of a block that the fullest of `tensor` cards has: 1/t, or more if t does not divide H.

    Attention has 4 of a block's 12 squares and is dealt out by heads; the feed-forward network has 8.
    """
    heads = math.ceil(config.n_head / tensor) / config.n_head
    return (4 * heads + 8 * math.ceil(config.d_ff / tensor) / config.d_ff) / 12


def bubble(stages: int, micro_batches: int, runs: int = 1) -> float:
    """Claim (10.19): the share of its time that a pipeline waits, (K - 1) / (v m + K - 1)."""
    return (stages - 1) / (runs * micro_batches + stages - 1)


def tokens_that_hide_the_wire(flops: float, link: float, sharded: bool = False) -> float:
    """Claim (10.18), 2 bytes a number: from how many tokens at once a card works longer than its gradients travel; or,
    if `sharded`, its gradients and the weights of the others."""
    return 2 * flops / ((2 if sharded else 3) * link)


def cards_that_share_a_block(config: GPTConfig, flops: float, link: float) -> float:
    """Claim (10.18), 2 bytes a number: over how many cards a block may be cut before its sums take longer than it."""
    return 1 + 9 * config.n_embd * link / (2 * flops)


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long one call takes. An accelerator works behind Python's back, so wait for it before and after."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


def _check_rate(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _check_context(config: GPTConfig, context: int) -> None:
    _check_count("context", context)
    if context > config.context_size:
        raise ValueError(f"context must be at most context_size={config.context_size} tokens, got {context}")
