"""`python -m gpt download`: fetch released weights."""

from __future__ import annotations

from argparse import ArgumentParser

from gpt.commands.output import say
from gpt.commands.parsing import RELEASED, Options

HELP = "fetch released GPT-2 weights"
EXAMPLES = ("gpt2", "gpt2-xl")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=RELEASED)


def run(options: Options) -> None:
    from gpt.storage.pretrained import load_pretrained

    model = load_pretrained(options.name)
    say(f"{options.name}: {model.num_parameters():,} parameters, kept in the cache of huggingface_hub")
