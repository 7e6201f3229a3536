"""Options that several commands share.

The names below are those of gpt.storage.corpora and gpt.storage.pretrained, which need PyTorch; a test compares them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from gpt.config import GPTConfig

PRESETS = tuple(name for name, value in vars(GPTConfig).items() if isinstance(value, classmethod))
PYTHON_DOCS = "python-docs"
TEXTS = (PYTHON_DOCS, "tinyshakespeare", "the-verdict")
RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
DEFAULT_MODEL = "tinyshakespeare"


class Options(argparse.Namespace):
    """What was typed: one attribute an argument of the command, and these two."""

    command: str  # its name
    command_line: str  # all of it, as a shell would read it


def at_least(lowest: int) -> Callable[[str], int]:
    """For argparse: an int that is not smaller."""

    def parse(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}")
        return int(text)

    parse.__name__ = "int"  # the word argparse uses for a text that is no number
    return parse


def seed(text: str) -> int:
    """For argparse: an int that PyTorch's generators take."""
    if not -(2**63) <= int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"must be in -2**63..2**64 - 1, got {text}")
    return int(text)


seed.__name__ = "int"


def add_model(parser: argparse.ArgumentParser) -> None:
    names = ", ".join([DEFAULT_MODEL, *RELEASED])
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{names} or a folder (default: {DEFAULT_MODEL})")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help='"auto" (default), "cpu", "cuda", "mps"')
