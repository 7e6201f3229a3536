"""The tokenizer that --tokenizer names."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_tokenizer(name: str, text: str) -> Any:
    """char, gpt2, bpe:MERGES (learned from the text) or a saved file."""
    from gpt.storage.tokenizer_files import load_tokenizer
    from gpt.tokens import BPETokenizer, CharTokenizer, gpt2_tokenizer

    if name == "char":
        return CharTokenizer.from_text(text)
    if name == "gpt2":
        return gpt2_tokenizer()
    if name.startswith("bpe:") and name[4:].isdecimal():
        return BPETokenizer.train(text, int(name[4:]))
    if Path(name).is_file():
        return load_tokenizer(name)
    raise ValueError(f"--tokenizer must be char, gpt2, bpe:MERGES (such as bpe:1000) or a tokenizer.json, got {name!r}")


def vocabulary_size(tokenizer: Any) -> int:
    return tokenizer.n_vocab if hasattr(tokenizer, "n_vocab") else tokenizer.vocab_size
