"""The command line: `python -m gpt --help`. Each command is a file in gpt/commands; this one finds them.

A mistake in what was asked for ends with exit code 2 and one line that says what is wrong, Ctrl-C with 130.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, cast

from gpt.commands.parsing import Options

COMMANDS = ("tour", "train", "evaluate", "generate", "tokenize", "attend", "stats", "data", "download")


class Command(Protocol):
    """What each file in gpt/commands holds."""

    HELP: str
    EXAMPLES: tuple[str, ...]

    def options(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: Options) -> None: ...


def package_version() -> str:
    try:
        return f"gpt-worked-out {version('gpt-worked-out')}"
    except PackageNotFoundError:
        return "gpt-worked-out, from a folder in which it is not installed"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gpt", description="GPT-2: train it, use it, look inside.")
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in COMMANDS:
        command = cast(Command, import_module(f"gpt.commands.{name}"))
        epilog = "examples:\n" + "\n".join(f"  python -m gpt {name} {example}" for example in command.EXAMPLES)
        layout = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(
            name, help=command.HELP, description=command.HELP, epilog=epilog, formatter_class=layout
        )
        command.options(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command line, by default the program's own; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command_line = shlex.join(["python", "-m", "gpt", *arguments])
    options = build_parser().parse_args(arguments, Options(command_line=command_line))
    try:
        options.run(options)
    except BrokenPipeError:  # who reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"python -m gpt {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
