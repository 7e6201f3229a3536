"""How far has a learner come? A small file beside the learner's own: the steps that are green, the hints given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpt.lessons.steps import STEPS, step
from gpt.support.files import atomic_file


@dataclass
class Progress:
    """path is the small file: my_gpt.py has my_gpt.progress.json."""

    path: Path
    green: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, file: str | Path) -> Progress:
        """What is known of this file; nothing, if the small file is missing or no longer readable."""
        path = Path(file).with_suffix(".progress.json")
        try:
            kept = json.loads(path.read_text())
            return cls(path, [str(key) for key in kept["green"]], {str(k): int(n) for k, n in kept["hints"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(path)

    def save(self) -> None:
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps({"green": self.green, "hints": self.hints}, indent=1) + "\n")

    def remember(self, status: Mapping[str, str]) -> None:
        """Enter what a check has found, by key; steps that were not checked stay as they are."""
        green = [one.key for one in STEPS if status.get(one.key, "passed" if one.key in self.green else "") == "passed"]
        if green != self.green:
            self.green = green
            self.save()

    def current(self) -> str:
        """The first step that is not green."""
        return next((one.key for one in STEPS if one.key not in self.green), STEPS[-1].key)

    def after(self, key: str) -> str:
        """The step behind this one; behind the last comes the first."""
        keys = [one.key for one in STEPS]
        return keys[(keys.index(key) + 1) % len(keys)]

    def hint(self, key: str) -> str:
        """The next hint for a step, two in all; then where the package has it."""
        given = self.hints.get(key, 0)
        self.hints[key] = given + 1
        self.save()
        one = step(key)
        if given < len(one.hints):
            return f"{one.title}, hint {given + 1} of {len(one.hints)}: {one.hints[given]}"
        return f"{one.title}: read {one.solution}, and the theory in DEEP_THEORY_GUIDE.md, {one.guide}"
