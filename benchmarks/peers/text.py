"""Text: learning merges, encoding, and preparing a file of token ids for training."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Missing, Side, installed, named
from benchmarks.sizes import Places, Sizes

GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # where tiktoken has them from
MERGES = 1000


def text_of(sizes: Sizes) -> str:
    """Tiny Shakespeare, as often as it takes. Repetition helps whoever keeps the words that it has seen."""
    from gpt.storage.corpora import load_text

    try:
        once = load_text("tinyshakespeare")
    except OSError as error:
        raise Missing(f"no text: {error}") from error
    length = sizes.megabytes * 10**6  # it is ASCII: a character is a byte
    return (once * (length // len(once) + 1))[:length]


def our_merges(sizes: Sizes, places: Places) -> Side:
    """BPETokenizer.train, in Python."""
    from gpt.tokens import BPETokenizer

    text = text_of(sizes)
    return Side(lambda: BPETokenizer.train(text, n_merges=MERGES), "Python")


def rust_merges(sizes: Sizes, places: Places) -> Side:
    """The trainer of tokenizers, in Rust."""
    tokenizers = installed("tokenizers")
    text = text_of(sizes)

    def run() -> None:
        tokenizer = tokenizers.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator([text], vocab_size=256 + MERGES, show_progress=False)
        assert tokenizer.get_vocab_size() == 256 + MERGES

    return Side(run, named("tokenizers"))


def our_encoding(sizes: Sizes, places: Places) -> Side:
    """The text as GPT-2's ids."""
    from gpt.tokens import gpt2_tokenizer

    text = text_of(sizes)
    try:
        tokenizer = gpt2_tokenizer()
    except OSError as error:
        raise Missing(str(error)) from error
    return Side(lambda: tokenizer.encode_ordinary(text), named("tiktoken"))


def tiktoken_encoding(sizes: Sizes, places: Places) -> Side:
    """The engine that ours runs on, alone."""
    text = text_of(sizes)
    try:
        engine = installed("tiktoken").get_encoding("gpt2")
    except OSError as error:
        raise Missing(f"tiktoken has no GPT-2 vocabulary: {error}") from error
    return Side(lambda: engine.encode_ordinary(text), named("tiktoken"))


def rust_tokenizer(places: Places) -> Any:
    """GPT-2's tokenizer in tokenizers, from the files that tiktoken has."""
    tokenizers, load = installed("tokenizers"), installed("tiktoken.load")
    with tempfile.TemporaryDirectory(dir=places.work) as folder:
        files = []
        for name in ("encoder.json", "vocab.bpe"):
            files.append(Path(folder) / name)
            try:
                files[-1].write_bytes(load.read_file_cached(GPT2_FILES + name))
            except OSError as error:
                raise Missing(f"tiktoken has no GPT-2 vocabulary: {error}") from error
        return tokenizers.ByteLevelBPETokenizer(*map(str, files))


def rust_encoding(sizes: Sizes, places: Places) -> Side:
    """tokenizers, whole documents at a time: lines, which it encodes in parallel."""
    lines, tokenizer = text_of(sizes).splitlines(keepends=True), rust_tokenizer(places)
    return Side(lambda: tokenizer.encode_batch(lines), named("tokenizers"))


def our_preparation(sizes: Sizes, places: Places, processes: int) -> Side:
    """`python -m gpt data prepare`, in a process of its own."""
    command = [sys.executable, "-m", "gpt", "data", "prepare"]
    known = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False).stdout
    if "--processes" not in known:
        raise Missing("this version has no `gpt data prepare`")
    file = Path(places.work) / f"{sizes.megabytes}-{processes}.txt"
    file.write_text(text_of(sizes), encoding="utf-8")

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=places.work) as folder:
            options = ["--tokenizer", "gpt2", "--out", f"{folder}/tokens", "--processes", str(processes)]
            subprocess.run([*command, str(file), *options], check=True, capture_output=True)

    return Side(run, f"{processes} process{'es' if processes > 1 else ''}")


def rust_preparation(sizes: Sizes, places: Places) -> Side:
    """The loop that is usual around tokenizers: batches of lines, mapped in parallel, ids written as uint16."""
    lines, tokenizer = text_of(sizes).splitlines(keepends=True), rust_tokenizer(places)

    def run() -> None:
        with open(Path(places.work) / "rust.bin", "wb") as file:
            for start in range(0, len(lines), 1000):
                for encoded in tokenizer.encode_batch(lines[start : start + 1000]):
                    file.write(np.array(encoded.ids, np.uint16).tobytes())

    return Side(run, named("tokenizers"))
