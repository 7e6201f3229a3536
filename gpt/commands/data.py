"""`python -m gpt data`: fetch a text and check it, or turn texts into tokens on the disk."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

from gpt.commands.output import say
from gpt.commands.parsing import PYTHON_DOCS, TEXTS, Options, at_least
from gpt.commands.tokenizers import CHOICES, learns, named_tokenizer

HELP = "fetch a text and check it, or write tokens that `train` reads: to a file, or (prepare) to a folder of shards"
PREPARE = "prepare"
EXAMPLES = (
    "tinyshakespeare",
    f"{PYTHON_DOCS} --tokens docs.tokens --tokenizer char",
    "large.txt --tokens large.tokens --tokenizer gpt2",
    f"{PREPARE} *.txt --tokenizer gpt2 --out corpus --processes 8",
)


def options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="+", help=f'{", ".join(TEXTS)} or a file; or "{PREPARE}" and any number of files, of any size')
    add("--tokens", type=Path, metavar="FILE", help="write the text's tokens to this file")
    add(
        "--tokenizer",
        default="gpt2",
        help=f"{CHOICES} (default: gpt2); {PREPARE} takes none that it would have to learn",
    )
    group = parser.add_argument_group(
        PREPARE,
        "write the tokens of text larger than memory to a folder, in parallel; the same command again continues a run "
        "that was cut off. Each file ends with the end-of-text token.",
    )
    group.add_argument("--out", type=Path, metavar="FOLDER", help="the folder to write")
    group.add_argument(
        "--processes", type=at_least(1), metavar="N", help="how many work side by side (default: one a core)"
    )
    group.add_argument("--separator", metavar="LINE", help="a line that is exactly this ends a document")


def run(options: Options) -> None:
    from gpt.storage.corpora import DOWNLOADS, fetch, load_text

    text, *others = options.text
    if text == PREPARE:
        prepare_folder(others, options)
    elif others:
        raise ValueError(
            f"data takes one text, got {len(others) + 1}; many go to a folder: data {PREPARE} FILE ... --out F"
        )
    elif wrong := [name for name in ("out", "processes", "separator") if getattr(options, name) is not None]:
        raise ValueError(f"--{wrong[0]} goes with `data {PREPARE} FILE ...`")
    elif options.tokens is not None:
        write(text, options.tokens, options.tokenizer)
    elif text in DOWNLOADS:
        say(f"{fetch(text)}: SHA-256 as expected")
    else:
        where = " ships inside Python and needs no download" if text == PYTHON_DOCS else ""
        say(f"{text}{where}: {len(load_text(text)):,} characters")


def prepare_folder(files: list[str], options: Options) -> None:
    """Write the folder, or what is missing of it."""
    from gpt.storage.corpora import DOWNLOADS, fetch
    from gpt.storage.preparation import prepare

    if options.tokens is not None:
        raise ValueError(f"`data {PREPARE}` writes a folder, which --out names; --tokens is for one text")
    if options.out is None or not files:
        raise ValueError(f"`data {PREPARE}` needs files and the folder to write: data {PREPARE} FILE ... --out FOLDER")
    if learns(options.tokenizer):
        raise ValueError(
            f"`data {PREPARE}` learns no tokenizer, got {options.tokenizer!r}: learn it from a part of the text, "
            "data PART --tokens F --tokenizer bpe:1000, and give F.tokenizer.json"
        )
    tokenizer = named_tokenizer(options.tokenizer, str)
    sources = [fetch(name) if name in DOWNLOADS else Path(name) for name in files]
    manifest = prepare(sources, tokenizer, options.out, options.processes or os.cpu_count() or 1, options.separator)
    size = sum(source["bytes"] for source in manifest["sources"])
    say(
        f"wrote {options.out}: {manifest['tokens']:,} tokens of {size:,} bytes in {len(manifest['shards'])} shards. "
        f"To train on it: python -m gpt train {options.out}"
    )


def write(text: str, path: Path, name: str) -> None:
    """Write the token file, and beside it the tokenizer if that was learned from the text."""
    from gpt.storage.corpora import load_text
    from gpt.storage.preparation import encoded
    from gpt.storage.token_file import write_tokens

    tokenizer = named_tokenizer(name, lambda: load_text(text))
    count = write_tokens(path, encoded(tokenizer, chunks(text)), tokenizer.vocab_size)
    if learns(name):
        name = str(path.with_name(f"{path.name}.tokenizer.json"))
        tokenizer.save(name)
        say(f"wrote {name}")
    say(f"wrote {path}: {count:,} tokens. To train on it: python -m gpt train {path} --tokenizer {name}")


def chunks(text: str) -> Iterator[str]:
    """The text of this name, or of a file, of which no more than a chunk is in memory."""
    from gpt.storage.corpora import DOWNLOADS, fetch, load_text
    from gpt.storage.preparation import read_text

    path = fetch(text) if text in DOWNLOADS else Path(text)
    if text == PYTHON_DOCS or not path.is_file():
        yield load_text(text)  # which says what is wrong, if it is no text
    else:
        yield from read_text(path)
