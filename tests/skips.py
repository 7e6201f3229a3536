"""A test that was skipped has proved nothing: who skips, and who may?

At the end of a run one line says what was skipped and why, which `-q` hides. In CI (the variable CI is set) a skip
fails the run, unless its reason is one of those in `ALLOWED`. A new reason belongs there only if the machine that
runs the tests really cannot have what is missing.
"""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

ALLOWED = {  # what a reason may say in CI: why that is no fault
    r"Tiny Shakespeare is not at hand": "a text to download, which no test does by itself",
    r"GPT-2's vocabulary is not at hand": "a file to download, which no test does by itself",
    r"Skipped$": "a cell of a chapter with the tag nbval-skip, which needs a network or a GPU",
    r"the book needs katex and axe-core from npm, and there is no network": "a machine without a network",
}


def refused(reasons: Counter) -> list[str]:
    """The reasons that no entry of `ALLOWED` covers."""
    return [reason for reason in reasons if not any(re.match(allowed, reason) for allowed in ALLOWED)]


class Skips:
    """A plugin that counts the reasons of one run."""

    def __init__(self, config: pytest.Config) -> None:
        self.reasons: Counter[str] = Counter()
        self.strict = os.environ.get("CI", "").lower() not in ("", "0", "false")
        self.worker = hasattr(config, "workerinput")  # pytest-xdist: the reports of workers reach the first process

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._count(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.reasons[said.removeprefix("Skipped: ")] += 1

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.strict and not self.worker and exitstatus == pytest.ExitCode.OK and refused(self.reasons):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.reasons:
            return
        counted = "; ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common())
        terminalreporter.write_line(f"{self.reasons.total()} skipped: {counted}", yellow=True)
        if self.strict and (wrong := refused(self.reasons)):
            terminalreporter.write_line(f"Not allowed in CI (tests/skips.py): {'; '.join(wrong)}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Skips(config), "skips")
