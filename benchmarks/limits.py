"""How fast could this machine be? Measured in the same run as what is held against it, never taken from a data sheet.

    python -m benchmarks.limits [--threads 2]

A training step is held against the time of its matrix products alone, each class of shapes at its own rate; generation
against the time to read the weights once for each token. Neither can be beaten by code around them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch

from gpt import GPTConfig
from gpt.scale import parameter_count

# The classes of matrices: each layer has one of each, and the model one head.
SHAPES = ("qkv", "projection", "expand", "project", "head")
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def shape(name: str, config: GPTConfig) -> tuple[int, int]:
    """(d_out, d_in) of the matrix of that name."""
    width = config.n_embd
    return {
        "qkv": (3 * width, width),
        "projection": (width, width),
        "expand": (4 * width, width),
        "project": (width, 4 * width),
        "head": (config.vocab_size, width),
    }[name]


def seconds(work: Callable[[], object], repeats: int = 3, device: str = "cpu") -> float:
    """The median time of one call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def matmul_seconds(
    rows: int, d_out: int, d_in: int, dtype: torch.dtype, training: bool = True, device: str = "cpu", repeats: int = 3
) -> float:
    """Of y = x W^T for x [rows, d_in]; in training with the two products of the backward pass, for x and for W."""
    x, weight = (torch.randn(n, d_in, device=device).to(dtype) for n in (rows, d_out))
    gradient = torch.randn(rows, d_out, device=device).to(dtype)

    products = [lambda: x @ weight.T, lambda: gradient @ weight, lambda: gradient.T @ x]
    return sum(seconds(product, repeats, device) for product in products[: 3 if training else 1])


def step_seconds(
    config: GPTConfig, batch: int, context: int, dtype: torch.dtype, training: bool = True, device: str = "cpu"
) -> float:
    """Of all matrix products of one step, and of nothing else: no norm, no GELU, no softmax, no optimizer.

    Attention's two products, a few percent at T = 256, are counted as causal and at the rate of the narrowing matrix.
    Without training it is a prefill, whose head reads the last position alone.
    """
    total, rate = 0.0, 0.0
    for name in SHAPES:
        d_out, d_in = shape(name, config)
        rows = batch if name == "head" and not training else batch * context
        time_of_one = matmul_seconds(rows, d_out, d_in, dtype, training, device, repeats=1)
        total += time_of_one * (1 if name == "head" else config.n_layer)
        if name == "project":
            rate = (3 if training else 1) * 2 * rows * d_out * d_in / time_of_one
    attention = (3 if training else 1) * 2 * batch * context * (context + 1) * config.n_embd * config.n_layer
    return total + attention / rate


def read_bandwidth(megabytes: int = 512, device: str = "cpu") -> float:
    """Bytes per second at which the machine reads memory: the median of a few sums over numbers that fit no cache."""
    numbers = torch.ones(megabytes * 10**6 // 4, device=device)
    return 4 * numbers.numel() / seconds(numbers.sum, 5, device)


def bytes_per_token(config: GPTConfig, weights: str = "float32") -> int:
    """Bytes of weights read for each new token: all but the table of positions, of which one row is looked up."""
    return BYTES[weights] * (parameter_count(config) - config.context_size * config.n_embd)


def rates(device: str = "cpu") -> dict[str, float]:
    """The table of limits: GFLOP/s of each class of shapes, three products together, and GB/s of reading."""
    sizes = {
        "124M": (GPTConfig.gpt2_small(), 1024, SHAPES),
        "char": (GPTConfig.char(), 4096, SHAPES[:4]),
    }
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for size, (config, rows, names) in sizes.items():
            for name in names:
                d_out, d_in = shape(name, config)
                time_of_one = matmul_seconds(rows, d_out, d_in, dtype, device=device)
                label = f"{size} {name} [{d_out}, {d_in}], {rows} rows, {str(dtype).removeprefix('torch.')}"
                found[f"{label}, GFLOP/s"] = 6 * rows * d_out * d_in / time_of_one / 1e9
    found["read, GB/s"] = read_bandwidth(device=device) / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.limits", description="What this machine can do.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="for a program to read")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = rates()
    print(json.dumps(found) if options.json else "\n".join(f"{rate:8.1f}  {name}" for name, rate in found.items()))


if __name__ == "__main__":
    main()
