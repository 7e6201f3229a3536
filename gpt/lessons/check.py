"""Which steps of GPT-2 are written, and are they right? The tests of the concepts, run on a learner's file.

A step of `gpt.lessons.steps` is

    missing   the file does not define all its names
    waiting   a step that it needs is not green
    failed    one of its tests is red; `gpt.lessons.diagnosis` says why, where it can
    passed    all its tests are green, and they have used the file
"""

from __future__ import annotations

import contextlib
import io
import re
import traceback
from collections import defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

import gpt as package
from gpt.lessons.diagnosis import Diagnosis, diagnose
from gpt.lessons.learner import Implementation, learners_module
from gpt.lessons.steps import STEPS, Step

ROOT = Path(package.__file__).parents[1]
IMPLEMENTATION = pytest.StashKey[Implementation]()  # where a test run keeps what it tests
Status = Literal["passed", "failed", "missing", "waiting"]


@dataclass
class Result:
    """What became of one step.

    missing    names that the file does not define
    waits_for  titles of the steps that are not green yet
    tests      how many of its tests were run
    red        the tests that failed, in words, and what they said
    """

    step: Step
    status: Status
    missing: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    tests: int = 0
    red: list[tuple[str, str]] = field(default_factory=list)
    diagnosis: Diagnosis | None = None


@dataclass
class Report:
    """All steps of one file, and the names in it that were really used."""

    file: Path
    results: list[Result]
    used: set[str]

    @property
    def green(self) -> bool:
        """Whether every step that is not optional has passed."""
        return all(result.status == "passed" for result in self.results if not result.step.optional)


def check(file: str | Path, only: Iterable[str] = ()) -> Report:
    """Run the tests of the steps `only` (default: all), and of those they need, on a learner's file.

    Raises ValueError if it is no Python file, cannot be run, or if the tests are not beside the package.
    """
    if not (ROOT / "tests" / "concepts").is_dir():
        raise ValueError("check needs the repository, whose tests it runs; an installed package has none")
    own = Implementation(_run(Path(file)))
    chosen = _with_needs(set(only) or {step.key for step in STEPS})
    results = {step.key: Result(step, "passed", _missing(step, own)) for step in STEPS if step.key in chosen}
    for result in results.values():
        if result.missing:
            result.status = "missing"
    recorder = _Recorder(results)
    arguments = [str(ROOT / "tests" / "concepts"), f"--rootdir={ROOT}", f"--implementation={file}", "-q"]
    arguments += ["-W", "ignore:Module already imported", "-p", "no:cacheprovider", "-p", "no:xdist"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(arguments, plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"the tests could not be run: {said.getvalue()}")
    for result in results.values():
        _settle(result, results, recorder, own)
    return Report(Path(file), list(results.values()), recorder.used)


def _run(file: Path) -> ModuleType:
    try:
        return learners_module(file)
    except ValueError as error:
        if "must be a Python file" in str(error):
            raise ValueError(f"the file {error}") from error
        raise ValueError(_where(file, error)) from error
    except Exception as error:
        raise ValueError(_where(file, error)) from error


def _where(file: Path, error: Exception) -> str:
    """The error of a learner's file, with the line of the file it comes from."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    line = error.lineno if isinstance(error, SyntaxError) else (frames or [None])[-1]
    return f"{file}{f', line {line}' if line else ''}: {type(error).__name__}: {error}"


def _with_needs(keys: set[str]) -> set[str]:
    needs = {need for step in STEPS if step.key in keys for need in step.needs}
    return keys if needs <= keys else _with_needs(keys | needs)


def _missing(step: Step, own: Implementation) -> tuple[str, ...]:
    return tuple(name for name in step.names if name not in own.written)


def _settle(result: Result, results: dict[str, Result], recorder: _Recorder, own: Implementation) -> None:
    step = result.step
    if result.status == "missing":
        return
    result.waits_for = tuple(results[need].step.title for need in step.needs if results[need].status != "passed")
    if result.waits_for:
        result.status = "waiting"
        return
    result.tests, result.red = recorder.tests[step.key], recorder.red[step.key]
    result.diagnosis = diagnose(step.key, own)
    if result.red or result.diagnosis or not result.tests:
        result.status = "failed"


class _Recorder:
    """A plugin of pytest: keeps the tests of the steps that can be checked, in order, and hears what they say."""

    def __init__(self, results: dict[str, Result]) -> None:
        self.results = results
        self.tests: dict[str, int] = defaultdict(int)
        self.red: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.used: set[str] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        order = [key for key, result in self.results.items() if result.status != "missing"]
        items[:] = sorted((i for i in items if _key(i) in order), key=lambda item: order.index(_key(item)))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        needs = self.results[_key(item)].step.needs
        if any(self.results[need].status == "missing" or self.red[need] for need in needs):
            pytest.skip("it waits for a step that it needs")
        # No step is red for the fault of one that it does not need: there the package's own name stands in.
        keys = _with_needs({_key(item)})
        item.config.stash[IMPLEMENTATION].offered = {name for step in STEPS if step.key in keys for name in step.names}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
        report = yield
        if report.when == "call":
            self.tests[_key(item)] += 1
        if report.failed:
            self.red[_key(item)].append((_words(item), _said(report)))
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.used = session.config.stash[IMPLEMENTATION].used


def _key(item: pytest.Item) -> str:
    mark = item.get_closest_marker("step")
    return "" if mark is None else mark.args[0]


def _words(item: pytest.Item) -> str:
    """test_the_rows_sum_to_one[3] -> the rows sum to one [3]"""
    return re.sub(r"^test_", "", item.name).replace("_", " ").replace("[", " [", 1)


def _said(report: pytest.TestReport) -> str:
    """The first line of what a test said."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).strip().splitlines()[0]
