"""The sides: this package and what a reader would pick instead, each brought to do the same piece of work.

A maker gets `Sizes` and `Places` and gives a `Side`: a function that does the work once. It raises `Missing` with the
reason where the peer is not installed; the row then says so and goes on without it. Peers are imported where they are
used, so that none is needed by the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sizes import Places, Sizes


class Missing(Exception):
    """The side cannot take part; the message says why."""


@dataclass
class Side:
    """run() does the work once.

    version     what is measured, for the table
    parameters  how many numbers the model learns, where that can be asked; the sides of a row must agree
    tells       whether run() returns the figure itself, a float, in place of the seconds it takes
    """

    run: Callable[[], object]
    version: str
    parameters: int | None = None
    tells: bool = False


Maker = Callable[[Sizes, Places], Side]


def installed(package: str) -> Any:
    """The imported package."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Missing(f"{package} is not installed") from error


def named(package: str, distribution: str = "") -> str:
    """Its name and version, for example "torch 2.13.0"."""
    distribution = distribution or package
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


def from_source(name: str, file: Path, option: str) -> str:
    """The version of a peer that is a single file: the beginning of its checksum."""
    if not file.is_file():
        raise Missing(f"{name} is not there: no file {file} ({option} DIR)")
    return f"{name} {sha256(file.read_bytes()).hexdigest()[:8]}"


def random_tokens(sizes: Sizes, batch: int, length: int) -> Tensor:
    """Ids [batch, length], the same for every side."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(sizes.config.vocab_size, (batch, length), generator=generator).to(sizes.device)


def count(model: nn.Module) -> int:
    """Numbers learned; a tied table counts once."""
    return sum(p.numel() for p in model.parameters())


def peak_memory() -> float:
    """Bytes: the most that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage knows better of a child: it counts what the parent held
        return 1024.0 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[0])
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS counts in bytes


# --- the models


def our_model(sizes: Sizes) -> Any:
    """The GPT of this package, with random weights."""
    from gpt import GPT

    return GPT(sizes.config).to(sizes.device)


def hf_model(sizes: Sizes) -> Any:
    """GPT2LMHeadModel of the same sizes. Its default attention, PyTorch's fused kernel, is its fastest."""
    transformers = installed("transformers")
    transformers.logging.set_verbosity_error()
    c = sizes.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.context_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.dropout, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).to(sizes.device)


def nanogpt_model(sizes: Sizes, places: Places) -> Any:
    """The GPT of nanoGPT's model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(places.nanogpt) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    c = sizes.config
    config = module.GPTConfig(c.context_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, c.dropout, True)
    return module.GPT(config).to(sizes.device)
