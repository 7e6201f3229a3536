"""`python -m gpt check`: is your own GPT-2 right, and if not, what is wrong with it?"""

from __future__ import annotations

import json
import select
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.commands.output import say
from gpt.commands.parsing import Options

if TYPE_CHECKING:
    from gpt.lessons.check import Report

HELP = "check your own GPT-2, step by step, and name what is wrong"
EXAMPLES = ("", "exercises/my_gpt.py --step 4", "my_gpt.py --step 4 --hint", "my_gpt.py --watch", "my_gpt.py --json")
KEYS = "Return: run again · h: hint · l: list · n: next step · q: quit"


def options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", type=Path, default=Path("exercises/my_gpt.py"), help="default: exercises/my_gpt.py")
    add("--step", metavar="N", help="only this step, by number or key, and those that it needs")
    add("--hint", action="store_true", help="the next hint for the step; after two, where the package has it")
    add("--watch", action="store_true", help="run the step again whenever the file is saved")
    add("--json", action="store_true", help="the result for a program to read")


def run(options: Options) -> None:
    from gpt.lessons.progress import Progress

    progress = Progress.of(options.file)
    key = key_of(options.step)
    if options.hint:
        say(progress.hint(key or progress.current()))
        return
    if options.watch:
        watch(options.file, key)
        return
    report = checked(options.file, key)
    say(as_json(report) if options.json else as_text(report))
    if not report.green:
        raise SystemExit(1)


def key_of(step: str | None) -> str | None:
    """The key of a step that was given by number or key. ValueError for another."""
    from gpt.lessons.steps import STEPS
    from gpt.lessons.steps import step as named

    if step is None:
        return None
    if step.isdigit():
        if not 1 <= int(step) <= len(STEPS):
            raise ValueError(f"--step must be 1..{len(STEPS)}, got {step}")
        return STEPS[int(step) - 1].key
    return named(step).key


def checked(file: Path, key: str | None) -> Report:
    """Check the file, and remember what is green."""
    from gpt.lessons.check import check
    from gpt.lessons.progress import Progress

    report = check(file, [] if key is None else [key])
    Progress.of(file).remember({result.step.key: result.status for result in report.results})
    return report


def as_text(report: Report) -> str:
    from gpt.lessons.explain import explain

    return explain(report)


def as_json(report: Report) -> str:
    from gpt.lessons.explain import as_dict

    return json.dumps(as_dict(report), indent=1)


def watch(file: Path, key: str | None) -> None:
    """Check the current step at once and after each saving, until `q` or Ctrl-C."""
    from gpt.lessons.explain import step_list
    from gpt.lessons.progress import Progress

    while True:
        progress = Progress.of(file)
        key = key or progress.current()
        say("checking ...")
        try:
            say(as_text(checked(file, key)))
        except ValueError as error:  # a slip of the pen in the middle of writing
            say(str(error))
        say(KEYS)
        while (pressed := saved_or_pressed(file)) in ("h", "l"):
            say(Progress.of(file).hint(key) if pressed == "h" else step_list(Progress.of(file)))
        if pressed == "q":
            return
        if pressed == "n":
            key = Progress.of(file).after(key)


def saved_or_pressed(file: Path) -> str:
    """Wait until the file is saved (then "") or a line is typed: its first letter."""
    before = file.stat().st_mtime_ns
    while True:
        if sys.platform == "win32":  # where select does not know the keyboard
            time.sleep(0.3)
        elif select.select([sys.stdin], [], [], 0.3)[0]:
            line = sys.stdin.readline()
            return line.strip()[:1].lower() if line else "q"
        if file.exists() and file.stat().st_mtime_ns != before:
            return ""
