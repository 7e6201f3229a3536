"""`python -m gpt tokenize`: which tokens does a text become?"""

from __future__ import annotations

import unicodedata
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from gpt.commands.output import say, spelled
from gpt.commands.parsing import Options
from gpt.commands.tokenizers import CHOICES, given, named_tokenizer

if TYPE_CHECKING:
    from gpt.tokens import Tokenizer

HELP = "show the tokens of a text, their ids and their bytes"
EXAMPLES = (
    '"To be, or not to be" --tokenizer bpe:10',
    '"To be, or not to be" --model tinyshakespeare',
    '"Hello, world"',
    "--file my.txt --tokenizer bpe:100",
)
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "\\r"}


def options(parser: ArgumentParser) -> None:
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("text", nargs="?", help='the text, or "-" to read it from standard input')
    text.add_argument("--file", help="a file that holds the text, or the name of one that `train` takes")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument(
        "--tokenizer", default="gpt2", help=f"{CHOICES} (default: gpt2); char and bpe learn from the text itself"
    )
    tokenizer.add_argument("--model", help="the tokenizer of this model")


def run(options: Options) -> None:
    from gpt.storage.corpora import load_text
    from gpt.storage.pretrained import load_pretrained_tokenizer

    text = given(options.text) if options.file is None else load_text(options.file)
    if options.model is None:
        try:
            tokenizer = named_tokenizer(options.tokenizer, lambda: text)
        except OSError as error:
            if options.tokenizer != "gpt2":
                raise
            raise OSError(
                f"Without a network, choose --model tinyshakespeare or --tokenizer bpe:10. {error}"
            ) from error
    else:
        tokenizer = load_pretrained_tokenizer(options.model)
    for line in table(tokenizer, text):
        say(line)


def table(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """One line a token: its place, its id, its text with visible spaces, its bytes; then the totals."""
    ids = tokenizer.encode(text, allowed_special="all")
    pieces = tokenizer.pieces(ids)
    shown = [visible(piece) for piece in pieces]
    width = max(map(columns, [*shown, "token"]))
    yield f"{'#':>6}{'id':>8}  {'token':<{width}}  bytes"
    for place, i, label, piece in zip(count(), ids, shown, pieces, strict=False):
        yield f"{place:>6}{i:>8}  {label}{' ' * (width - columns(label))}  {piece.hex(' ')}"
    n_bytes, mean = sum(map(len, pieces)), f", {len(text) / len(ids):.2f} characters per token" if ids else ""
    yield f"{len(ids):,} tokens of a vocabulary of {tokenizer.vocab_size:,}"
    yield f"{len(text):,} characters, {n_bytes:,} bytes{mean}"


def visible(piece: bytes) -> str:
    """A token as text: a space is ␣, a line break ⏎, a tab ⇥; a byte that is no text is \\x.., a mark U+...."""
    return "".join(map(_visible, piece.decode("utf-8", "surrogateescape")))


def _visible(character: str) -> str:
    if character in VISIBLE:
        return VISIBLE[character]
    # Letters, numbers, punctuation, symbols; all else is invisible or joins the character before it.
    return character if unicodedata.category(character)[0] in "LNPS" else spelled(character)


def columns(text: str) -> int:
    """How wide a terminal draws it: an East Asian character or an emoji fills two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
