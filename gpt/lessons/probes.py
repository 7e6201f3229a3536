"""Small questions whose answers tell one implementation from another: what `gpt.lessons.diagnosis` compares.

A probe calls what a step asks for and returns named tensors. Its cases are ordered from the smallest to the one that
shows everything, so that the first case in which two implementations differ is the smallest. All numbers are float64
and the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gpt as package
from gpt.lessons.bugs import Change

Answers = dict[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """name: of the function or class it is about. run(implementation, **case) gives the answers."""

    name: str
    run: Callable[..., Answers]
    cases: tuple[dict[str, Any], ...]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed, the same in every run."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(gpt: Any, name: str, *sizes: Any) -> nn.Module:
    """The layer of this name with the weights of the package's, in float64, evaluating.

    Gains and biases get other numbers than a fresh layer has: they show too.
    """
    torch.manual_seed(0)
    reference = getattr(package, name)(*sizes).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    mine = getattr(gpt, name)(*sizes).double()
    mine.load_state_dict(reference.state_dict())
    return mine.eval()


def probe_attention(gpt: Any, T: int, d: int, H: int = 1, masked: bool = True, scale: float = 1.0) -> Answers:
    query, key, value = numbers(3, 1, H, T, d)
    mask = torch.ones(T, T, dtype=torch.bool).tril() if masked else None
    output, weights = gpt.scaled_dot_product_attention(scale * query, key, value, mask)
    return {"weights": weights, "output": output}


def probe_mask(gpt: Any, queries: int, keys: int) -> Answers:
    return {"mask": gpt.causal_mask(queries, keys)}


def probe_heads(gpt: Any, B: int, T: int, H: int, d_head: int) -> Answers:
    sizes = (H * d_head, H, T)
    layer = filled(gpt, "CausalSelfAttention", *sizes)
    return {"output": layer(numbers(B, T, H * d_head))}


def probe_norm(gpt: Any, n: int, scale: float = 1.0) -> Answers:
    layer = filled(gpt, "LayerNorm", n)
    return {"output": layer(scale * numbers(2, n))}


def probe_gelu(gpt: Any, n: int) -> Answers:
    return {"output": gpt.GELU()(3 * numbers(n))}


def probe_feed_forward(gpt: Any, d: int) -> Answers:
    return {"output": filled(gpt, "FeedForward", d)(numbers(1, 2, d))}


def _config(T: int, H: int, d: int, N: int) -> package.GPTConfig:
    return package.GPTConfig(vocab_size=5, context_size=T, n_layer=N, n_head=H, n_embd=d)


def probe_block(gpt: Any, T: int, H: int, d: int) -> Answers:
    config = _config(T, H, d, 1)
    return {"output": filled(gpt, "Block", config)(numbers(2, T, d))}


def probe_positions(gpt: Any, T: int, d: int) -> Answers:
    layer = filled(gpt, "LearnedPositionalEncoding", d, T + 1)
    return {"output": layer(numbers(2, T, d))}


def probe_model(gpt: Any, B: int, T: int, H: int, d: int, N: int) -> Answers:
    config = _config(T + 1, H, d, N)
    layer = filled(gpt, "GPT", config)
    tokens = torch.arange(B * T).view(B, T) * 3 % 5
    return {"logits": layer(tokens)[0]}


def probe_loss(gpt: Any, B: int, T: int, ignore: bool = False) -> Answers:
    config = _config(T, 1, 4, 1)
    layer = filled(gpt, "GPT", config)
    tokens, targets = torch.arange(B * T).view(B, T) * 3 % 5, torch.arange(B * T).view(B, T) * 2 % 5
    if ignore:
        targets[0, 0] = -100
    mean = layer(tokens, targets)[1]
    gradient = torch.autograd.grad(mean, layer.get_parameter("token_embedding.weight"))[0]
    return {"loss": mean.detach(), "gradient of the table": gradient}


def probe_sampling(gpt: Any, **settings: Any) -> Answers:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.5, -1.0]], dtype=torch.float64)
    return {"probabilities": gpt.next_token_probabilities(logits, **settings)}


def probe_schedule(gpt: Any, steps: tuple[int, ...]) -> Answers:
    rates = [gpt.cosine_schedule(step, 1.0, 4, 12, 0.1) for step in steps]
    return {"rates": torch.tensor(rates, dtype=torch.float64)}


def probe_optimizer(gpt: Any) -> Answers:
    layer = nn.Linear(2, 2).double()
    groups = gpt.adamw(layer, lr=0.1, weight_decay=0.5).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = [decay.get(id(p), -1.0) for p in (layer.weight, layer.bias)]
    return {"decay of matrix and bias": torch.tensor(found, dtype=torch.float64)}


# The package's layers call PyTorch's kernels; its bugs are planted in the equations, which give the same numbers.
READABLE = (
    Change("gpt.attention.CausalSelfAttention.forward", {"if self.record_weights:": "if True:"}),
    Change("gpt.block.LayerNorm.forward", {"F.layer_norm(x, self.weight.shape,": "layer_norm(x,"}),
    Change("gpt.block.GELU.forward", {"F.gelu(": "gelu("}),
)

PROBES = {
    "positions": [Probe("LearnedPositionalEncoding", probe_positions, ({"T": 1, "d": 1}, {"T": 2, "d": 2}))],
    "attention": [
        Probe(
            "scaled_dot_product_attention",
            probe_attention,
            (
                {"T": 1, "d": 1},
                {"T": 2, "d": 1, "masked": False},
                {"T": 2, "d": 1},
                {"T": 2, "d": 2, "masked": False},
                {"T": 2, "d": 2},
                {"T": 3, "d": 2, "H": 2},
                {"T": 2, "d": 2, "scale": 1e12},
            ),
        )
    ],
    "mask": [
        Probe(
            "causal_mask",
            probe_mask,
            tuple({"queries": q, "keys": k} for q, k in ((1, 1), (2, 2), (3, 3), (1, 3), (2, 3))),
        )
    ],
    "heads": [
        Probe(
            "CausalSelfAttention",
            probe_heads,
            (
                {"B": 1, "T": 1, "H": 1, "d_head": 1},
                {"B": 1, "T": 2, "H": 1, "d_head": 2},
                {"B": 1, "T": 2, "H": 2, "d_head": 1},
                {"B": 1, "T": 3, "H": 2, "d_head": 2},
                {"B": 2, "T": 4, "H": 2, "d_head": 3},
            ),
        )
    ],
    "norm": [Probe("LayerNorm", probe_norm, ({"n": 1}, {"n": 2}, {"n": 4}, {"n": 4, "scale": 1e-3}))],
    "feed-forward": [
        Probe("GELU", probe_gelu, ({"n": 1}, {"n": 5})),
        Probe("FeedForward", probe_feed_forward, ({"d": 1}, {"d": 2})),
    ],
    "block": [Probe("Block", probe_block, ({"T": 1, "H": 1, "d": 2}, {"T": 3, "H": 2, "d": 4}))],
    "model": [
        Probe(
            "GPT",
            probe_model,
            (
                {"B": 1, "T": 1, "H": 1, "d": 2, "N": 1},
                {"B": 1, "T": 2, "H": 1, "d": 2, "N": 1},
                {"B": 2, "T": 3, "H": 2, "d": 4, "N": 2},
            ),
        )
    ],
    "loss": [
        Probe(
            "GPT", probe_loss, ({"B": 1, "T": 1}, {"B": 1, "T": 2}, {"B": 2, "T": 3}, {"B": 2, "T": 3, "ignore": True})
        )
    ],
    "sampling": [
        Probe(
            "next_token_probabilities",
            probe_sampling,
            (
                {},
                {"temperature": 0.5},
                {"temperature": 0},
                {"temperature": 1e-310},
                {"top_k": 1},
                {"top_k": 3},
                {"top_p": 0.5},
                {"top_p": 0.05},
                {"temperature": 2.0, "top_k": 3, "top_p": 0.8},
            ),
        )
    ],
    "schedule": [
        Probe("cosine_schedule", probe_schedule, ({"steps": (0,)}, {"steps": (0, 3, 4, 5)}, {"steps": (8, 11, 12, 20)}))
    ],
    "optimizer": [Probe("adamw", probe_optimizer, ({},))],
}
