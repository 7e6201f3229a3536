"""The tokenizer that --tokenizer names, and the text it is given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt.tokens import Tokenizer

CHOICES = "char, gpt2, bpe:MERGES, a saved tokenizer.json, ENCODER.json+VOCAB.bpe or a folder that holds these"


def named_tokenizer(name: str, text: Callable[[], str]) -> Tokenizer:
    """char and bpe:MERGES learn from the text, gpt2 is GPT-2's own, anything else is read from files.

    Files are what `save` writes, or two in GPT-2's layout, which are named with a "+" between them.
    """
    from gpt.storage.tokenizer_files import load_tokenizer
    from gpt.tokens import BPETokenizer, CharTokenizer, gpt2_tokenizer

    if name == "char":
        return CharTokenizer.from_text(text())
    if name == "gpt2":
        return gpt2_tokenizer()
    if learns(name) and name[4:].isdecimal():
        return BPETokenizer.train(text(), int(name[4:]))
    path = Path(name)
    if (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.is_file():
        return load_tokenizer(path)
    if (path / "encoder.json").is_file():
        return BPETokenizer.from_gpt2_files(path / "encoder.json", path / "vocab.bpe")
    encoder, plus, vocabulary = name.partition("+")
    if plus:
        return BPETokenizer.from_gpt2_files(encoder, vocabulary)
    raise ValueError(f"--tokenizer must be {CHOICES}, got {name!r}")


def learns(name: str) -> bool:
    """Whether the tokenizer of this name is made from a text."""
    return name == "char" or name.startswith("bpe:")


def given(text: str) -> str:
    """The text of an argument; of "-", what standard input holds. Raises ValueError if that is no text."""
    if text != "-":
        return text
    if sys.stdin is None:  # `<&-`
        raise ValueError('standard input is closed, and "-" reads it')
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from error
