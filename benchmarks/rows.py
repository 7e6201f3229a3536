"""What is measured: each row, its sides, and what is expected of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks import limits
from benchmarks.peers import Maker, Side, generation, text, training
from benchmarks.sizes import Places, Sizes


def best_training(sizes: Sizes, places: Places) -> Side:
    """The limit of a training step: its matrix products, in float32 or bfloat16."""
    dtype = getattr(torch, sizes.precision)
    step = partial(limits.step_seconds, sizes.config, sizes.batch, sizes.context, dtype, device=sizes.device)
    return Side(step, "matrix products alone", tells=True)


def best_prefill(sizes: Sizes, places: Places) -> Side:
    """The limit of reading a prompt."""
    step = partial(limits.step_seconds, sizes.config, 1, sizes.prompt, torch.float32, training=False)
    return Side(step, "matrix products alone", tells=True)


def best_generation(sizes: Sizes, places: Places) -> Side:
    """The limit of generation: the weights read once a token, at the speed of a plain sum."""
    volume = sizes.new * limits.bytes_per_token(sizes.config, sizes.weights)
    return Side(lambda: volume / limits.read_bandwidth(device=sizes.device), "reading the weights alone", tells=True)


TRAINING: dict[str, Maker] = {
    "ours": training.ours,
    "transformers": training.hf,
    "nanoGPT": training.nanogpt,
    "llm.c": training.llmc,
    "limit": best_training,
}
GENERATION: dict[str, Maker] = {
    "ours": generation.ours,
    "plain F.linear": generation.ours_plain,
    "transformers": generation.hf,
    "transformers compiled": generation.hf_compiled,
    "ctranslate2": generation.ctranslate2,
    "llama.cpp": generation.llama_cpp,
    "limit": best_generation,
}
TASKS: dict[str, dict[str, Maker]] = {
    "train": TRAINING,
    "memory": {name: partial(training.memory_of, TRAINING[name]) for name in ("ours", "transformers", "nanoGPT")},
    "generate": GENERATION,
    "prefill": {**GENERATION, "limit": best_prefill},
    "load": {"ours": generation.our_loading, "transformers": generation.hf_loading},
    "merges": {"ours": text.our_merges, "tokenizers": text.rust_merges},
    "encode": {"ours": text.our_encoding, "tiktoken": text.tiktoken_encoding, "tokenizers": text.rust_encoding},
    "prepare": {
        "ours": partial(text.our_preparation, processes=2),
        "one process": partial(text.our_preparation, processes=1),
        "tokenizers": text.rust_preparation,
    },
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    work      what one run handles, in the unit; None: the sides' own figures are compared, of which less is better
    goal      the least ratio, ours over the best peer's rate (work=None, seconds: theirs over ours; bytes: the most
              that ours over theirs may be)
    against   the peer that the goal is about, if not the best of all
    share     the least share of the measured limit
    busy      whether another process keeps one core busy meanwhile
    """

    name: str
    text: str
    task: str
    sides: tuple[str, ...]
    sizes: Sizes
    unit: str = "tokens/s"
    work: float | None = None
    goal: float | None = None
    against: str | None = None
    share: float | None = None
    busy: bool = False
    group: str = "training"


def _training() -> list[Row]:
    full = Sizes("124M", batch=4, context=256)
    peers, work = ("ours", "transformers", "nanoGPT", "llm.c", "limit"), 4 * 256
    without_c = tuple(side for side in peers if side != "llm.c")  # it has neither dropout nor 16 bits
    step = "Training step, 124M, B = 4, T = 256"
    return [
        Row("train-124M", f"{step}, float32", "train", peers, full, work=work, goal=1.0, share=0.95),
        Row("train-124M-dropout", f"{step}, float32, dropout 0.1", "train", without_c, replace(full, dropout=0.1),
            work=work, goal=1.0, share=0.95),
        Row("train-124M-bf16", f"{step}, bfloat16", "train", without_c, replace(full, precision="bfloat16"),
            work=work, goal=1.4, share=0.7),
        Row("memory-124M", "Peak memory of the step, 124M, B = 4, T = 256", "memory", without_c[:3], full, "MB",
            goal=0.6, against="transformers"),
    ]  # fmt: skip


def _small() -> list[Row]:
    rows = []
    for model, batch, context in (("char", 32, 128), ("toy", 12, 64)):
        for dropout in (0.0, 0.1):
            for compiled in (False, True):
                name = f"train-{model}" + "-dropout" * bool(dropout) + "-compiled" * compiled
                how = f", dropout {dropout:g}" + ", compiled on every side" * compiled
                sides = ("ours", "transformers", "nanoGPT", *(("llm.c",) if not dropout and not compiled else ()))
                sizes = Sizes(model, batch, context, dropout, compiled=compiled)
                title = f"Training step, {model}, B = {batch}, T = {context}{how}"
                rows.append(Row(name, title, "train", (*sides, "limit"), sizes, work=batch * context, goal=1.2,
                                group="compiled" if compiled else "small"))  # fmt: skip
    return rows


def _generation() -> list[Row]:
    rows = []
    peers = {
        "float32": ("transformers", "transformers compiled", "ctranslate2", "llama.cpp"),
        "bfloat16": ("transformers", "ctranslate2", "llama.cpp"),
        "int8": ("ctranslate2", "llama.cpp"),
    }
    for weights, sides in peers.items():
        for new in (64, 256):
            if new == 256 and weights == "float32":
                sides = sides[1:]  # transformers as it is takes its time, and has shown it with 64
            title = f"Generation, 124M, one prompt of 32, {new} new tokens, {weights} weights"
            rows.append(
                Row(f"generate-{weights}-{new}", title, "generate", ("ours", *sides, "limit"),
                    Sizes("124M", new=new, weights=weights), work=new, goal=1.1 if weights == "float32" else 1.0,
                    share=0.8 if weights == "float32" else None, group="generation")
            )  # fmt: skip
    one = Sizes("124M")
    return [
        *rows,
        Row("generate-busy", "The same, 64 tokens, float32, while one core is busy", "generate",
            ("ours", "plain F.linear"), one, work=64, goal=0.95, busy=True, group="generation"),
        Row("generate-batch-8", "Generation, 8 prompts at once, 64 new tokens each", "generate",
            ("ours", "transformers", "limit"), replace(one, batch=8), work=8 * 64, goal=1.2, group="generation"),
        Row("prefill-512", "Prefill: a prompt of 512 to its first new token", "prefill",
            ("ours", "transformers", "limit"), replace(one, prompt=512, new=1), work=512, goal=1.2, group="generation"),
        Row("load", "From a folder on disk to the first token, file in the page cache", "load",
            ("ours", "transformers"), one, "ms", goal=2.0, group="generation"),
    ]  # fmt: skip


def _text() -> list[Row]:
    text = Sizes("124M", megabytes=1)
    return [
        Row("bpe-train", "Learning 1,000 merges from 1 MB", "merges", ("ours", "tokenizers"), text, "MB/s", work=1,
            group="text"),
        Row("bpe-encode", "Encoding 10 MB with GPT-2's vocabulary", "encode", ("ours", "tiktoken", "tokenizers"),
            replace(text, megabytes=10), "MB/s", work=10, group="text"),
        Row("prepare", "Preparing 50 MB of text as a token file: 2 processes", "prepare",
            ("ours", "one process", "tokenizers"), replace(text, megabytes=50), "GB/min", work=0.05 * 60, goal=1.8,
            against="one process", group="text"),
    ]  # fmt: skip


def _gpu() -> list[Row]:
    sizes = Sizes("124M", batch=16, context=1024, precision="bfloat16", compiled=True, device="cuda")
    return [
        Row("gpu-train", "GPU: training step, 124M, B = 16, T = 1,024, bfloat16, compiled", "train",
            ("ours", "transformers", "nanoGPT", "limit"), sizes, work=16 * 1024, goal=1.2, against="transformers",
            share=0.5, group="gpu"),
        Row("gpu-generate", "GPU: generation, 124M, one prompt, 256 new tokens, bfloat16 weights", "generate",
            ("ours", "transformers", "transformers compiled", "limit"),
            Sizes("124M", new=256, weights="bfloat16", device="cuda"), work=256, share=0.6, group="gpu"),
    ]  # fmt: skip


ROWS = {row.name: row for row in (*_training(), *_small(), *_generation(), *_text(), *_gpu())}
GROUPS = list(dict.fromkeys(row.group for row in ROWS.values()))


def chosen(names: list[str]) -> list[Row]:
    """The rows of these names or groups; without any, all that need no GPU. ValueError for a name that is neither."""
    if not names:
        return [row for row in ROWS.values() if row.group != "gpu"]
    for name in names:
        if name not in ROWS and name not in GROUPS:
            raise ValueError(f"--only must name rows or groups ({', '.join(GROUPS)}), got {name!r}")
    return [row for row in ROWS.values() if row.name in names or row.group in names]
