"""What a check has found, in words for a learner, and as data for a grader."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from gpt.lessons.check import Report, Result
from gpt.lessons.diagnosis import Diagnosis
from gpt.lessons.progress import Progress
from gpt.lessons.steps import STEPS

LARGEST = 4  # rows and columns of a matrix that are shown
SAID = {"passed": "green", "failed": "RED", "missing": "not written", "waiting": "waits"}


def explain(report: Report) -> str:
    """The table of all steps, then the first red one in detail, then what to do next."""
    lines = [table(report), ""]
    checked = ", ".join(sorted(report.used)) or "nothing yet"
    lines.append(f"checked from {report.file.name}: {checked}")
    red = next((result for result in report.results if result.status == "failed"), None)
    if red is not None:
        lines += ["", details(red)]
    elif (todo := next((r for r in report.results if r.status == "missing" and not r.step.optional), None)) is not None:
        lines += ["", beginning(report, todo)]
    elif report.green:
        lines += ["", "All that was asked for is green."]
    return "\n".join(lines)


def number(result: Result) -> int:
    return STEPS.index(result.step) + 1


def table(report: Report) -> str:
    """One line a step: number, title, where one stands."""
    return "\n".join(f"{number(result):>3}  {result.step.title:<48}{standing(result)}" for result in report.results)


def standing(result: Result) -> str:
    optional = " (optional)" if result.step.optional and result.status != "passed" else ""
    if result.status == "missing":
        return f"not written: {', '.join(result.missing)}{optional}"
    if result.status == "waiting":
        return f"waits for {', '.join(result.waits_for)}{optional}"
    if result.status == "passed":
        return f"green, {result.tests} tests"
    return f"RED, {len(result.red)} of {result.tests} tests{optional}"


def beginning(report: Report, todo: Result) -> str:
    """What to write next. The first time, nothing is broken: it is meant to be so."""
    first = not any(result.status == "passed" for result in report.results)
    calm = "Nothing is broken: every step begins like this. " if first else ""
    return (
        f"{calm}Next is step {number(todo)}, {todo.step.title}: write {', '.join(todo.missing)} in {report.file}.\n"
        f"HOW_TO_CODE_GUIDE.md, step {number(todo)}, says what it must do; --step {number(todo)} --hint helps."
    )


def details(result: Result) -> str:
    """A red step: numbers beside each other, the cause, and what the tests say."""
    lines = [f"Step {number(result)}, {result.step.title}, is red."]
    if result.diagnosis is not None:
        lines += [*numbers(result.diagnosis), *reasons(result.diagnosis)]
    lines += [f"  The tests say: {words}. ({said})" for words, said in result.red[:2]]
    if not result.tests:
        lines.append("  None of its tests was run.")
    lines.append(f"  Why: DEEP_THEORY_GUIDE.md, {result.step.guide}. A hint: --step {number(result)} --hint")
    return "\n".join(lines)


def numbers(found: Diagnosis) -> list[str]:
    """The smallest input on which they differ, with both results."""
    head = f"  {found.name}, {found.case}: the smallest input that shows it."
    if isinstance(found.got, str) or isinstance(found.expected, str):
        return [head, f"    yours: {short(found.got)}", f"    expected: {short(found.expected)}"]
    mine, theirs = block(found.got), block(found.expected)
    width = max(len(line) for line in [*mine, f"your {found.answer}"]) + 4
    rows = [f"your {found.answer}".ljust(width) + "expected"]
    for i in range(max(len(mine), len(theirs))):
        left = mine[i] if i < len(mine) else ""
        rows.append(left.ljust(width) + (theirs[i] if i < len(theirs) else ""))
    return [head, *(f"    {row}" for row in rows)]


def block(x: Tensor) -> list[str]:
    """A tensor as lines of numbers: its last matrix, at most `LARGEST` rows and columns of it."""
    if x.dim() == 0:
        return [f"{x.item():.6g}"]
    while x.dim() > 2:
        x = x[-1]
    rows = x[None] if x.dim() == 1 else x
    return ["  ".join(f"{value:>9.5g}" for value in row[:LARGEST].tolist()) for row in rows[:LARGEST]]


def short(value: Tensor | str) -> str:
    return value if isinstance(value, str) else f"a tensor of shape {list(value.shape)}"


def reasons(found: Diagnosis) -> list[str]:
    """The cause by equality, or what it looks like."""
    if not found.causes:
        return [f"  {found.guess[0].upper()}{found.guess[1:]}."] if found.guess else []
    names = [" and ".join(bug.name for bug in bugs) for bugs in found.causes]
    lines = [f"  Your output is exactly what one gets with {', or '.join(names)}."]
    if len(found.causes) == 1:
        for bug in found.causes[0]:
            for right, wrong in bug.changes.items():
                lines += [f"    right: {right}", f"    wrong: {wrong}"]
            lines.append(f"    ({bug.symptom} DEEP_THEORY_GUIDE.md, {bug.guide})")
    return lines


def step_list(progress: Progress) -> str:
    """All steps, with what is known to be green."""
    return "\n".join(
        f"{i:>3}  {one.title:<48}{'green' if one.key in progress.green else ''}" for i, one in enumerate(STEPS, 1)
    )


def as_dict(report: Report) -> dict[str, Any]:
    """For graders. Each of "steps" has "step", "name", "status", "optional", "cause", "evidence" and more."""
    return {
        "file": str(report.file),
        "green": report.green,
        "used": sorted(report.used),
        "steps": [_step(result) for result in report.results],
    }


def _step(result: Result) -> dict[str, Any]:
    found = result.diagnosis
    return {
        "step": number(result),
        "key": result.step.key,
        "name": result.step.title,
        "status": result.status,
        "optional": result.step.optional,
        "missing": list(result.missing),
        "waits_for": list(result.waits_for),
        "tests": result.tests,
        "red": [{"test": words, "said": said} for words, said in result.red],
        "cause": [] if found is None else [[bug.name for bug in bugs] for bugs in found.causes],
        "evidence": None if found is None else inspect.cleandoc("\n".join([*numbers(found), *reasons(found)])),
    }
