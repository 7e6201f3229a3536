"""The ten concepts: each has one name, and under that name a part of the guide, a chapter, a module and a test file.

This is the one list; the table of README.md says the same, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One concept; paths count from the root of the repository."""

    number: int
    name: str

    @property
    def part(self) -> str:
        return f"DEEP_THEORY_GUIDE.md#part-{self.number}--{self.name}"

    @property
    def chapter(self) -> str:
        return f"notebooks/{self.number:02}_{self.name}.ipynb"

    @property
    def module(self) -> str:
        return f"gpt/{self.name}.py"

    @property
    def tests(self) -> str:
        return f"tests/concepts/test_{self.name}.py"


_NAMES = ("tokens", "positions", "attention", "block", "model",
          "backward", "training", "generation", "inspection", "scale")  # fmt: skip
CONCEPTS = {name: Concept(number, name) for number, name in enumerate(_NAMES, start=1)}
