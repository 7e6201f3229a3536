"""How is a tokenizer kept in a file? As our JSON, as GPT-2's two files, or as an object of tiktoken's.

Our file is one JSON object; its "type" says which tokenizer it holds:

    {"type": "char", "characters": [...]}                                              CharTokenizer
    {"type": "bpe", "pattern": ..., "special_tokens": [...], "merges": ["a b", ...],
     "vocabulary": {token: id}}                                                        BPETokenizer
    {"type": "gpt2"}                                                                   GPT2Tokenizer

Bytes are spelled as in GPT-2's files, `encoder.json` and `vocab.bpe` (released code, encoder.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import tiktoken

from gpt.support.files import atomic_file, read_json, shortened
from gpt.tokens import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    gpt2_tokenizer,
    ordinary_tokens,
)

# --- our JSON


def load_tokenizer(path: str | Path) -> CharTokenizer | BPETokenizer | GPT2Tokenizer:
    """Read what the `save` of any tokenizer wrote. A damaged or foreign file is a ValueError.

    Raises OSError if it names GPT-2's vocabulary and that cannot be downloaded.
    """
    data = read_json(path)
    reader = READERS.get(str(data.get("type")))
    if reader is None:
        allowed = ", ".join(f'"{kind}"' for kind in READERS)
        raise ValueError(
            f'{path} is no tokenizer: its "type" must be one of {allowed}, got {shortened(repr(data.get("type")))}'
        )
    try:
        return reader(data)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {shortened(str(error))}") from error


def save_characters(tokenizer: CharTokenizer, path: str | Path) -> None:
    """Write the file of a CharTokenizer. On an error (a full disk, say) a file that was there stays as it was."""
    _write(path, {"type": "char", "characters": list(tokenizer.stoi)})


def save_merges(tokenizer: BPETokenizer, path: str | Path) -> None:
    """Write the file of a BPETokenizer. On an error (a full disk, say) a file that was there stays as it was."""
    vocabulary = {spell(token): tokenizer.vocab[token] for token in ordinary_tokens(tokenizer.merges)}
    data = {
        "type": "bpe",
        "pattern": tokenizer.pattern,
        "special_tokens": list(tokenizer.special_tokens),
        "merges": [f"{spell(left)} {spell(right)}" for left, right in tokenizer.merges],
        "vocabulary": vocabulary | tokenizer.special_tokens,
    }
    _write(path, data)


def save_name(path: str | Path) -> None:
    """Write the file of a GPT2Tokenizer: it says that the vocabulary is GPT-2's, which tiktoken keeps."""
    _write(path, {"type": "gpt2"})


def _write(path: str | Path, data: dict[str, Any]) -> None:
    content = json.dumps(data, ensure_ascii=False, indent=1).encode()
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def _read_bpe(data: dict[str, Any]) -> BPETokenizer:
    special = data["special_tokens"]
    names = set(special)
    vocabulary = {token.encode() if token in names else unspell(token): i for token, i in data["vocabulary"].items()}
    pairs = [line.split(" ") for line in data["merges"]]
    return BPETokenizer(
        [(unspell(left), unspell(right)) for left, right in pairs], vocabulary, special, data["pattern"]
    )


READERS: dict[str, Callable[[dict[str, Any]], CharTokenizer | BPETokenizer | GPT2Tokenizer]] = {
    "char": lambda data: CharTokenizer(data["characters"]),
    "bpe": _read_bpe,
    "gpt2": lambda data: gpt2_tokenizer(),
}


# --- GPT-2's files


def read_gpt2_files(
    encoder_json: str | Path, vocab_bpe: str | Path, special_tokens: Collection[str] = (END_OF_TEXT,)
) -> BPETokenizer:
    """The tokenizer of two files in GPT-2's layout: `encoder.json` (token -> id) and `vocab.bpe` (merges in order).

    special_tokens names those of encoder.json that are not made by merges; one that is not in it gets the next id.
    Raises ValueError, naming the files, if they do not fit each other.
    """
    lines = Path(vocab_bpe).read_text(encoding="utf-8").split("\n")
    data = {
        "pattern": GPT2_PATTERN,
        "special_tokens": special_tokens,
        "merges": [line for line in lines if line and not line.startswith("#version")],
        "vocabulary": read_json(encoder_json),
    }
    try:
        return _read_bpe(data)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{encoder_json} and {vocab_bpe} are not files of one tokenizer with the special_tokens "
            f"{list(special_tokens)}: {type(error).__name__}: {shortened(str(error))}"
        ) from error


def byte_alphabet() -> dict[int, str]:
    """Byte -> the character that represents it in GPT-2's files.

    `vocab.bpe` is a text file with a space between the parts of a merge, so every byte needs a visible spelling.
    Bytes that are visible characters of Latin-1 represent themselves. The 68 others are given the characters from
    256 on, in order: the space (32) becomes "Ġ", the newline (10) "Ċ".
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


CHARACTER_OF = byte_alphabet()
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}


def spell(token: bytes) -> str:
    """A token as GPT-2's files write it: b" the" -> "Ġthe"."""
    return "".join(CHARACTER_OF[byte] for byte in token)


def unspell(spelling: str) -> bytes:
    """The token of a spelling: "Ġthe" -> b" the". A KeyError for a character outside the alphabet."""
    return bytes(BYTE_OF[character] for character in spelling)


# --- tiktoken


def to_tiktoken(tokenizer: BPETokenizer, name: str) -> tiktoken.Encoding:
    """The same tokenizer as a `tiktoken.Encoding`. A ValueError if the ids do not follow the merges."""
    ids = {token: tokenizer.vocab[token] for token in ordinary_tokens(tokenizer.merges)}
    merged = list(ids.values())[256:]
    if merged != sorted(merged):
        raise ValueError("tiktoken merges in the order of the ids, and these ids do not follow the merges")
    return tiktoken.Encoding(
        name, pat_str=tokenizer.pattern, mergeable_ranks=ids, special_tokens=tokenizer.special_tokens
    )
