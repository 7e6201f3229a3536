"""The command line: `python -m gpt --help`. Each command is a file in gpt/commands; this one finds them.

A mistake in what was asked for, a damaged file, a full disk and too little memory end with exit code 2 and one line
that says what is wrong. Ctrl-C ends with 130, SIGTERM with 143, SIGHUP with 129; `train` saves first.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from gpt.commands.output import shown, standard_output
from gpt.commands.parsing import Options

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = ("tour", "train", "evaluate", "generate", "tokenize", "attend", "stats", "plan", "check", "data", "download")


LONGEST = 600  # characters of an error
NO_MEMORY = ("not enough memory", "DefaultCPUAllocator")  # how PyTorch says it on the CPU, where it has no class for it


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line and not the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        with standard_output():  # of --help and --version: argparse would keep a full disk to itself
            print(message, end="", file=file or sys.stdout)
            sys.stdout.flush()


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


def build_parser() -> Parser:
    parser = Parser("python -m gpt", description="GPT-2: train it, use it, look inside.")
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
    """Run one command line, by default the program's own; returns the exit code.

    Raises SystemExit after --help and --version, and on SIGTERM and SIGHUP, with 128 + the signal's number.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = Options(command="", command_line=shlex.join(["python", "-m", "gpt", *arguments]))
    _open_missing_streams()
    try:
        with signals_end_the_command():
            build_parser().parse_args(arguments, options)
            options.run(options)
            with standard_output():
                sys.stdout.flush()
    except BrokenPipeError:  # who reads our output, `head` say, has seen enough
        _drop_output()
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        if not is_foreseen(error):
            raise
        if not _output_can_be_written():
            _drop_output()
        with suppress(OSError):
            print(one_line(f"python -m gpt {options.command}".rstrip(), error), file=sys.stderr, flush=True)
        return 2
    return 0


def is_foreseen(error: BaseException) -> bool:
    """Whether it says what was wrong with the command or the machine. Any other error is a fault of this package."""
    if isinstance(error, ValueError | OSError | ModuleNotFoundError | FloatingPointError):
        return True
    return out_of_memory(error) or is_panic(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or PyTorch, on the CPU or a GPU, asked for more memory than there is."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up; its errors are no Exceptions."""
    return type(error).__module__ == "pyo3_runtime"


def one_line(name: str, error: BaseException) -> str:
    """The error as a line of the terminal, at most `LONGEST` characters of it."""
    said = str(error) or type(error).__name__
    if out_of_memory(error):
        said = f"out of memory: choose smaller sizes or another device ({said})"
    if is_panic(error):
        said = f"a library gave up on this input ({said})"
    line = shown(" ".join(said.split()))
    if len(line) > LONGEST:  # the start names what is wrong, the end says what to do
        line = f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"
    return f"{name}: {line}"


@contextmanager
def signals_end_the_command() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed on the way out.

    One that is ignored (nohup) stays so. `train` has handlers of its own while it trains.
    """

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        numbers = []
    previous = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number, handler in previous.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _open_missing_streams() -> None:
    """A stream that the shell closed (`>&-`) is None in Python; what is printed to it shall vanish."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it stays open as long as the program)


def _output_can_be_written() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """Let what is still to be printed vanish. Python would complain about it at the very end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
