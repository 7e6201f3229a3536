"""Faults that are put in on purpose: kills, full disks, signals, damaged files, nonsense arguments.

Each function takes a seed and a number of tries, and returns a `Tally`. `tests/package/test_faults.py` runs a few of
each, `python -m tests.soak` as many as fit in the time it is given.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What was tried and what came of it.

    tries     how many faults were put in
    outcomes  how often each good end was seen
    failures  one line for each fault that something lost, changed in silence, or answered with a traceback
    """

    tries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def good(self, outcome: str) -> None:
        self.tries += 1
        self.outcomes[outcome] += 1

    def bad(self, what: str) -> None:
        self.tries += 1
        self.failures.append(" ".join(what.split())[:400])

    def __iadd__(self, other: Tally) -> Tally:
        self.tries += other.tries
        self.outcomes += other.outcomes
        self.failures += other.failures
        return self
