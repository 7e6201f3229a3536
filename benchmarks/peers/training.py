"""Training: the gradient of one batch of random ids and an update by AdamW, fused where PyTorch does it."""

from __future__ import annotations

import atexit
import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import (
    Maker,
    Missing,
    Side,
    count,
    from_source,
    hf_model,
    named,
    nanogpt_model,
    our_model,
    peak_memory,
    random_tokens,
)
from benchmarks.sizes import Places, Sizes


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same for every side that runs in PyTorch."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


class SameBatch:
    """Batches for a `Run`: the same one again and again."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs, and the same as targets."""
        return self.tokens, self.tokens


def ours(sizes: Sizes, places: Places) -> Side:
    """The step of `gpt.training.Run`, without clipping, in the precision that a user would ask for."""
    from gpt.training import Run

    model = our_model(sizes)
    if sizes.compiled:
        model.compile()
    run = Run(
        model,
        SameBatch(random_tokens(sizes, sizes.batch, sizes.context)),
        optimizer(model),
        device=sizes.device,
        precision=our_precision(sizes.precision),
        max_grad_norm=None,
    )
    chose = f", computing in {run.precision}" if sizes.precision != "float32" else ""
    return Side(run.step, named("torch") + chose, count(model))


def our_precision(wanted: str) -> str:
    """For 16 bits "auto", which measures what pays on this machine, where this version of the package has it."""
    has_auto = importlib.util.find_spec("gpt.support.precision") is not None
    return "auto" if wanted == "bfloat16" and has_auto else wanted


def their_training(sizes: Sizes, model: Any, loss: Callable[[Any, Tensor], Tensor], version: str) -> Side:
    """The usual loop around somebody else's model."""
    model.train()
    if sizes.compiled:
        model.compile()
    update, tokens = optimizer(model), random_tokens(sizes, sizes.batch, sizes.context)

    def step() -> None:
        update.zero_grad()
        with torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.precision == "bfloat16"):
            mean_loss = loss(model, tokens)
        mean_loss.backward()
        update.step()

    return Side(step, version, count(model))


def hf(sizes: Sizes, places: Places) -> Side:
    """transformers. Without use_cache=False it would copy all keys and values into a cache that nobody reads."""
    model = hf_model(sizes)
    return their_training(
        sizes, model, lambda m, tokens: m(tokens, labels=tokens, use_cache=False).loss, named("transformers")
    )


def nanogpt(sizes: Sizes, places: Places) -> Side:
    """The well-known trainer of 330 lines."""
    version = from_source("nanoGPT", Path(places.nanogpt) / "model.py", "--nanogpt")
    return their_training(sizes, nanogpt_model(sizes, places), lambda m, tokens: m(tokens, tokens)[1], version)


def memory_of(training: Maker, sizes: Sizes, places: Places) -> Side:
    """Two steps, then the most memory that this process has held, in bytes. Every side has imported transformers."""
    importlib.import_module("transformers")
    side = training(sizes, places)

    def run() -> float:
        for _ in range(2):
            side.run()
        return peak_memory()

    return Side(run, side.version, side.parameters, tells=True)


def llmc(sizes: Sizes, places: Places) -> Side:
    """llm.c's CPU trainer, compiled as its Makefile does, with random weights. It steps when it gets a line."""
    source = Path(places.llmc) / "train_gpt2.c"
    version = from_source("llm.c", source, "--llmc")
    program, checkpoint = Path(places.work) / "llmc_step", Path(places.work) / f"llmc-{sizes.model}.bin"
    flags = ["-Ofast", "-march=native", "-fopenmp", "-DOMP", "-DTESTING", "-w", "-I", str(source.parent)]
    step_file = Path(__file__).with_name("llmc_step.c")
    command = ["cc", *flags, str(step_file), "-o", str(program), "-lm"]
    try:
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Missing(f"llm.c needs a C compiler: {error}") from error
    if compiled.returncode:
        raise Missing(f"llm.c does not compile: {compiled.stderr.strip().splitlines()[0]}")
    write_llmc_checkpoint(checkpoint, sizes)
    command = [str(program), str(checkpoint), str(sizes.batch), str(sizes.context)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(child.kill)

    def step() -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        for line in child.stdout:  # before its first step it tells about itself
            if line == "done\n":
                return
        raise RuntimeError("llm.c's step has ended")

    return Side(step, version)


def write_llmc_checkpoint(path: Path, sizes: Sizes) -> None:
    """Magic number, version and sizes in 256 int32, then all weights in float32: token table first."""
    c = sizes.config
    rows = -(-c.vocab_size // 128) * 128  # it wants a padded table
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, 3, c.context_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, rows
    width = c.n_embd
    numbers = (rows + c.context_size + 12 * c.n_layer * width + 13 * c.n_layer + 2) * width
    weights = np.random.default_rng(0).normal(scale=0.02, size=numbers).astype(np.float32)
    path.write_bytes(header.tobytes() + weights.tobytes())
