"""How fast, and how large in memory, is this GPT-2 beside the one in transformers?

    python -m benchmarks.compare [--threads 2] [--rounds 5] [--only train-124M train-char generate-124M]

Both sides run in one process with the same sizes, thread count, precision (float32), dropout and optimiser (fused
AdamW). They take turns, round by round, so that whatever else the machine does disturbs both alike. A ratio is the
median over rounds of (theirs / ours) in time. Peak memory is that of a fresh process for each side, which has imported
both libraries. This prints figures and never fails: it is a benchmark, not a test.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal, get_args

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Both models are made from a config: nothing is downloaded.

import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gpt import GPT, GPTConfig

Side = Literal["ours", "theirs"]
Step = Callable[[], None]

PROMPT, NEW_TOKENS = 32, 64
GOALS = {"train-124M": 1.1, "train-char": 1.4, "generate-124M": 1.2}  # tokens/s, ours / theirs
MEMORY_GOAL = 1.0  # peak memory, ours / theirs, at most


def build(side: Side, config: GPTConfig) -> Any:
    """The GPT or GPT2LMHeadModel of one side, with random weights. Both have the same sizes and the same dropout."""
    torch.manual_seed(0)
    if side == "ours":
        return GPT(config)
    p = config.dropout
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
    }
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p))


def training_step(side: Side, config: GPTConfig, batch: int, context: int) -> Step:
    """Gradients and one update on random ids."""
    model = build(side, config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(config.vocab_size, (batch, context))

    def loss() -> Tensor:
        if side == "ours":
            return model(tokens, tokens)[1]
        # Without use_cache=False it would copy all keys and values into a cache that training never reads.
        return model(tokens, labels=tokens, use_cache=False).loss

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def generation(side: Side, config: GPTConfig) -> Step:
    """Greedy, with each side's own KV cache."""
    model = build(side, config).eval()
    prompt = torch.randint(config.vocab_size, (1, PROMPT))
    exactly = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}

    def run() -> None:
        if side == "ours":
            tokens = model.generate(prompt, NEW_TOKENS, temperature=0)
        else:
            mask = torch.ones_like(prompt)
            tokens = model.generate(prompt, attention_mask=mask, do_sample=False, pad_token_id=0, **exactly)
        assert tokens.shape == (1, PROMPT + NEW_TOKENS)

    return run


def case(name: str, side: Side) -> tuple[Step, int]:
    """(what to time, how many tokens it handles)."""
    small, char = GPTConfig.gpt2_small(), GPTConfig.char()
    match name:
        case "train-124M":
            return training_step(side, small, batch=1, context=256), 256
        case "train-char":
            return training_step(side, char, batch=32, context=128), 32 * 128
        case "generate-124M":
            return generation(side, small), NEW_TOKENS
    raise ValueError(name)


def check_equal_sizes() -> None:
    for config in (GPTConfig.gpt2_small(), GPTConfig.char()):
        with torch.device("meta"):
            ours, theirs = (sum(p.numel() for p in build(side, config).parameters()) for side in get_args(Side))
        assert ours == theirs, f"parameter counts differ: {ours} and {theirs}"


def seconds(run: Step) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def speed(name: str, rounds: int) -> str:
    (ours, tokens), (theirs, _) = case(name, "ours"), case(name, "theirs")
    repeats = 5 if name == "train-char" else 1  # A short step is timed five at a time.
    times: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pair: dict[Step, float] = {}
        for run in (ours, theirs) if number % 2 else (theirs, ours):  # Who comes first alternates.
            pair[run] = median(seconds(run) for _ in range(repeats))
        times.append((pair[ours], pair[theirs]))
    times = times[1:]  # The first round warms up.
    a, b = (tokens / median(column) for column in zip(*times, strict=True))
    ratios = [theirs / ours for ours, theirs in times]
    return (
        f"{name:<14} {a:>10,.1f} {b:>10,.1f}  tokens/s {median(ratios):>6.2f} {f'>= {GOALS[name]}':>8}"
        f"   {min(ratios):.2f} .. {max(ratios):.2f}"
    )


def peak_megabytes() -> float:
    """The most memory this process has held. Linux counts in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def memory(name: str, threads: int) -> str:
    def measure(side: Side) -> float:
        command = [sys.executable, "-m", "benchmarks.compare", "--threads", str(threads), "--peak", name, side]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    a, b = measure("ours"), measure("theirs")
    return f"{name:<14} {a:>10,.0f} {b:>10,.0f}  MB peak  {a / b:>6.2f} {f'<= {MEMORY_GOAL}':>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of both sides")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each case")
    parser.add_argument("--only", nargs="+", choices=GOALS, default=list(GOALS), metavar="CASE", help="cases to run")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)  # the fresh process
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.peak:
        name, side = options.peak
        run, _ = case(name, side)
        run()
        run()
        print(peak_megabytes())
        return
    check_equal_sizes()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}")
    print(f"{options.threads} threads, float32, {options.rounds} rounds; medians\n")
    print(f"{'case':<14} {'ours':>10} {'theirs':>10}  {'unit':<8} {'ratio':>6} {'goal':>8}   ratio from .. to")
    # Memory first: on Linux a process starts with its parent's peak, so the parent must still be small.
    for name in options.only:
        print(memory(name, options.threads), flush=True)
    for name in options.only:
        print(speed(name, options.rounds), flush=True)


if __name__ == "__main__":
    main()
