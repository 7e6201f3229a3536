"""Faults for as long as you like: `make soak`, or `python -m tests.soak --minutes 10 --seed 7`.

Rounds of every kind follow each other, each with a seed of its own, until the time is over. What came of them is
printed and written into docs/RELIABILITY.md; the exit code is 1 if anything failed. The same seed puts in the same
faults, but a kill hits where the machine happens to be.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from tests.faults import Tally, calls, files, many, runs

NOTE = Path(__file__).parent.parent / "docs" / "RELIABILITY.md"
MARKS = ("<!-- soak -->", "<!-- /soak -->")
SHOWN = 40  # failures that are printed


@dataclass(frozen=True)
class Fault:
    """A kind of fault: what puts it in, how often in a round, and its share of the whole."""

    name: str
    put_in: Callable[[int, int, Path], Tally]
    round: int
    share: int


FAULTS = (
    Fault("`kill -9` of `train()`, then resume", runs.kills, 24, 300),
    Fault("`kill -9` of `python -m gpt train`, then `--resume`", runs.command_kills, 16, 100),
    Fault("a disk with too little room, then more", runs.full_disks, 10, 100),
    Fault("SIGINT, SIGTERM, SIGHUP to a command", runs.signals, 16, 100),
    Fault("`kill -9` of a process of `torchrun`, which resumes", many.worker_kills, 1, 4),
    Fault("a damaged file", files.damaged_files, 200, 5000),
    Fault("odd arguments to public functions", lambda seed, tries, _: calls.odd_calls(seed, tries), 400, 8000),
    Fault("odd options on the command line", calls.odd_command_lines, 100, 1000),
)


def soak(seed: int, seconds: float, folder: Path, faults: tuple[Fault, ...] = FAULTS) -> list[Tally]:
    """Rounds until the time is over, at least one of each; next is always the fault that is furthest behind."""
    rng, tallies = random.Random(seed), [Tally() for _ in faults]
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end or not all(tally.tries for tally in tallies):
        i = min(range(len(faults)), key=lambda i: tallies[i].tries / faults[i].share)
        place = folder / f"round-{number}"
        place.mkdir()
        tallies[i] += faults[i].put_in(rng.getrandbits(32), faults[i].round, place)
        number += 1
    return tallies


def table(tallies: list[Tally], faults: tuple[Fault, ...] = FAULTS) -> str:
    rows = ["| fault | tries | what came of it | failures |", "|---|--:|---|--:|"]
    for fault, tally in zip(faults, tallies, strict=True):
        came = "; ".join(f"{outcome} {count:,}" for outcome, count in tally.outcomes.most_common())
        rows.append(f"| {fault.name} | {tally.tries:,} | {came} | {len(tally.failures):,} |")
    return "\n".join(rows)


def store(text: str, note: Path = NOTE, marks: tuple[str, str] = MARKS) -> None:
    """Put the text between two marks of the note. Raises ValueError if they are not there."""
    before, start, rest = note.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"{note} must hold {marks[0]} and {marks[1]}")
    note.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.soak", description="Put in faults and count what comes of them.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        tallies = soak(options.seed, options.minutes * 60, Path(folder))
    machine = (
        f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}"
    )
    text = (
        f"{table(tallies)}\n\n{options.minutes:g} minutes, seed {options.seed}, {date.today()}; {machine}, one thread."
    )
    print(text)
    store(text)
    failures = [failure for tally in tallies for failure in tally.failures]
    print("\n".join(failures[:SHOWN]))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
