"""Every test reaches the code it tests through one fixture, `gpt`.

So a learner's own file can take the place of any part of the package:

    pytest tests/concepts/test_attention.py --implementation my_attention.py

Names that the file defines come from it, all others from the package (see `gpt.lessons.learner`). At the end a line
says which names of the file these tests have used; a file of which they used none fails the run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt.lessons.check import IMPLEMENTATION
from gpt.lessons.learner import Implementation, learners_module
from tests import skips
from tests.shapes import check_shapes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--implementation", metavar="FILE", help="a Python file whose names replace the package's")


USED = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    skips.pytest_configure(config)
    path = config.getoption("--implementation")
    try:
        config.stash[IMPLEMENTATION] = Implementation(None if path is None else learners_module(path))
    except ValueError as error:
        raise pytest.UsageError(f"--implementation {error}") from error
    config.stash[USED] = set()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """A worker of pytest-xdist is done: what did it use?"""
    node.config.stash[USED].update(getattr(node, "workeroutput", {}).get("used", ()))  # pyright: ignore[reportAttributeAccessIssue]


def pytest_sessionfinish(session: pytest.Session) -> None:
    used = session.config.stash[USED]
    used.update(session.config.stash[IMPLEMENTATION].used)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["used"] = sorted(used)  # pyright: ignore[reportAttributeAccessIssue]
    elif session.config.getoption("--implementation") and not used and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path = config.getoption("--implementation")
    if path is None:
        return
    used, written = config.stash[USED], config.stash[IMPLEMENTATION].written
    checked = ", ".join(sorted(used)) or "NOTHING: all of this tested the package"
    terminalreporter.write_line(f"checked from {Path(path).name}: {checked}")
    if unused := sorted(written.keys() - used):
        terminalreporter.write_line(f"defined there, but asked for by none of these tests: {', '.join(unused)}")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--implementation") is None:  # a learner shall not wait for it
        check_shapes()


@pytest.fixture(scope="session")
def gpt(request: pytest.FixtureRequest) -> Implementation:
    return request.config.stash[IMPLEMENTATION]
