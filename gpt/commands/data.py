"""`python -m gpt data`: fetch a text and check it, or turn it into a file of tokens."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.commands.output import say
from gpt.commands.parsing import PYTHON_DOCS, TEXTS, Options
from gpt.commands.tokenizers import CHOICES, learns, named_tokenizer

if TYPE_CHECKING:
    from gpt.tokens import Tokenizer

HELP = "fetch a text and check it, or write its tokens to a file that `train` reads"
EXAMPLES = (
    "tinyshakespeare",
    f"{PYTHON_DOCS} --tokens docs.tokens --tokenizer char",
    "large.txt --tokens large.tokens --tokenizer gpt2",
)
CHUNK = 2**20  # characters of a file that are read at a time


def options(parser: ArgumentParser) -> None:
    parser.add_argument("text", help=f"{', '.join(TEXTS)} or a file")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="write the text's tokens to this file")
    parser.add_argument("--tokenizer", default="gpt2", help=f"for --tokens: {CHOICES} (default: gpt2)")


def run(options: Options) -> None:
    from gpt.storage.corpora import DOWNLOADS, fetch, load_text

    if options.tokens is not None:
        write(options.text, options.tokens, options.tokenizer)
    elif options.text in DOWNLOADS:
        say(f"{fetch(options.text)}: SHA-256 as expected")
    else:
        where = " ships inside Python and needs no download" if options.text == PYTHON_DOCS else ""
        say(f"{options.text}{where}: {len(load_text(options.text)):,} characters")


def write(text: str, path: Path, name: str) -> None:
    """Write the token file, and beside it the tokenizer if that was learned from the text."""
    from gpt.storage.corpora import load_text
    from gpt.storage.token_file import write_tokens

    tokenizer = named_tokenizer(name, lambda: load_text(text))
    count = write_tokens(path, encoded(tokenizer, chunks(text)), tokenizer.vocab_size)
    if learns(name):
        name = str(path.with_name(f"{path.name}.tokenizer.json"))
        tokenizer.save(name)
        say(f"wrote {name}")
    say(f"wrote {path}: {count:,} tokens. To train on it: python -m gpt train {path} --tokenizer {name}")


def encoded(tokenizer: Tokenizer, text: Iterator[str]) -> Iterator[int]:
    """The ids of a text that comes in pieces. Special tokens in a text to learn from mean what they say."""
    from gpt.tokens import ByteLevelTokenizer

    if isinstance(tokenizer, ByteLevelTokenizer):
        yield from tokenizer.encode_stream(text, allowed_special="all")
    else:
        for chunk in text:
            yield from tokenizer.encode(chunk, allowed_special="all")


def chunks(text: str) -> Iterator[str]:
    """The text of this name, or of a file, of which no more than a chunk is in memory."""
    from gpt.storage.corpora import DOWNLOADS, fetch, load_text

    path = fetch(text) if text in DOWNLOADS else Path(text)
    if text == PYTHON_DOCS or not path.is_file():
        yield load_text(text)  # which says what is wrong, if it is no text
        return
    with open(path, encoding="utf-8-sig") as file:
        try:
            while chunk := file.read(CHUNK):
                yield chunk
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
