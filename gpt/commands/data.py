"""`python -m gpt data`: fetch a text and check it."""

from __future__ import annotations

from argparse import ArgumentParser

from gpt.commands.output import say
from gpt.commands.parsing import PYTHON_DOCS, TEXTS, Options

HELP = "fetch a text and check it"
EXAMPLES = ("tinyshakespeare", "the-verdict")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=TEXTS)


def run(options: Options) -> None:
    from gpt.storage.corpora import fetch, load_text

    if options.name == PYTHON_DOCS:
        say(f"{PYTHON_DOCS} ships inside Python and needs no download: {len(load_text(PYTHON_DOCS)):,} characters")
    else:
        say(f"{fetch(options.name)}: SHA-256 as expected")
