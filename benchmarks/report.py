"""Write the results into docs/BENCHMARKS.md, between its marks, and draw them: python -m benchmarks.report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.rows import ROWS
from benchmarks.run import RESULTS
from gpt.figures.style import BLUE, FORBIDDEN, INK, QUIET, VERMILION, drawing, save
from gpt.support.files import atomic_file

ROOT = Path(__file__).parent.parent
NOTE, FIGURE = ROOT / "docs" / "BENCHMARKS.md", ROOT / "figures" / "benchmarks.svg"
MARKS = ("<!-- measured -->", "<!-- /measured -->")
Result = Mapping[str, Any]


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def met(result: Result) -> bool:
    """Whether the row reaches what was asked of it: the ratio, and the share of the limit."""
    ratio = result["ratios"].get(result["against"], {}).get("median")
    goal, share = result["goal"], result["share_goal"]
    enough = goal is None or (ratio is not None and (ratio <= goal if result["unit"] == "MB" else ratio >= goal))
    return enough and (share is None or (result["share"] or 0) >= share)


def asked(result: Result) -> str:
    """The goals, in a table's cell."""
    goal, share = result["goal"], result["share_goal"]
    parts = [f"{'≤' if result['unit'] == 'MB' else '≥'} {goal:g}"] if goal is not None else []
    parts += [f"{share:.0%} of the limit"] if share is not None else []
    return f"{', '.join(parts)}: {'yes' if met(result) else '**no**'}" if parts else "stated"


def line(result: Result) -> str:
    """One row of the table."""
    if "figures" not in result:
        return f"| {result['text']} | not run: {result['missing']['ours']} | | | | |"
    peers = [f"{name} {number(figure)}" for name, figure in result["figures"].items() if name != "ours"]
    ratio = result["ratios"].get(result["against"])
    spread = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" if ratio else ""
    share = "" if result["share"] is None else f"{result['share']:.0%}"
    ours = f"{number(result['figures']['ours'])} {result['unit']}"
    return f"| {result['text']} | {ours} | {', '.join(peers)} | {spread} | {share} | {asked(result)} |"


def table(results: Mapping[str, Result]) -> str:
    """All rows, in the order of `ROWS`."""
    lines = [
        "| | ours | peers | ours / best peer (spread) | of the limit | asked for, and met? |",
        "|---|--:|---|--:|--:|---|",
    ]
    return "\n".join(lines + [line(results[name]) for name in ROWS if name in results])


def shortfalls(results: Mapping[str, Result]) -> str:
    """For each row that is not met, where its time goes, by the profile of the same run."""
    lines = []
    for result in (results[name] for name in ROWS if name in results):
        if "figures" in result and not met(result):
            top = [f"`{name}` {share:.0%}" for name, share in list(result.get("profile", {}).items())[:5]]
            lines.append(f"- {result['text']}: {', '.join(top) or 'no profile, it is no run in PyTorch'}.")
    return "\n".join(lines) or "- None."


def absences(results: Mapping[str, Result]) -> str:
    """Sides that took no part, each reason once."""
    reasons = {f"{name}: {why}" for result in results.values() for name, why in result["missing"].items()}
    return "\n".join(f"- {reason}" for reason in sorted(reasons)) or "- None."


def conditions(results: Mapping[str, Result]) -> str:
    """Machine, versions and dates."""
    machines = {}
    for result in results.values():
        m = result["machine"]
        where = f"{m['processor']}, {m['threads']} threads, {m['system']}, Python {m['Python']}, {m['PyTorch']}"
        machines.setdefault(where, set()).add(m["date"])
    versions = {version for result in results.values() for version in result.get("versions", {}).values()}
    lines = [f"- {where}; {', '.join(sorted(dates))}." for where, dates in machines.items()]
    return "\n".join([*lines, f"- Versions: {', '.join(sorted(versions))}."])


def plot(results: Mapping[str, Result]) -> Figure:
    """The ratio to the best peer of each row, with its spread, and what was asked for."""
    rows = [results[name] for name in ROWS if results.get(name, {}).get("against") is not None][::-1]
    with drawing(9, 1.2 + 0.34 * len(rows)) as (figure, [[axes]]):
        for place, result in enumerate(rows):
            ratio = result["ratios"][result["against"]]
            if result["unit"] == "MB":  # so that further right is better in every line
                ratio = {"median": 1 / ratio["median"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}
            color = BLUE if met(result) else VERMILION
            axes.plot([ratio["low"], ratio["high"]], [place, place], color=color, linewidth=2.2)
            axes.plot(ratio["median"], place, "o" if met(result) else "D", color=color, markersize=6)
            goal = result["goal"]
            if goal is not None:
                goal = 1 / goal if result["unit"] == "MB" else goal
                axes.plot([goal, goal], [place - 0.32, place + 0.32], color=INK, linewidth=1.4)
        labels = [f"{result['text']}\n(beside {result['against']})" for result in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=6.5)
        axes.axvline(1, color=QUIET, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([tick for tick in (0.1, 0.2, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5, 10, 20) if low < tick < high])
        axes.set(xlabel="speed, ours / best peer (memory: theirs / ours)", title="Ahead is to the right")
        axes.grid(axis="x", color=FORBIDDEN, linewidth=0.8)
    return figure


def store(text: str, note: Path = NOTE, marks: tuple[str, str] = MARKS) -> None:
    """Put the text between two marks of the note. Raises ValueError if they are not there."""
    before, start, rest = note.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"{note} must hold {marks[0]} and {marks[1]}")
    with atomic_file(note) as temporary:
        temporary.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def limits(rates: Mapping[str, float]) -> str:
    """What the machine could do, a line for each class of shapes."""
    lines = ["| at best, with all the threads | |", "|---|--:|"]
    return "\n".join(lines + [f"| {name} | {number(rate)} |" for name, rate in rates.items()])


def text(results: Mapping[str, Result], rates: Mapping[str, float]) -> str:
    """What stands between the marks."""
    return "\n\n".join([
        conditions(results),
        table(results),
        "![Ratio to the best peer of each row](../figures/benchmarks.svg)",
        "**Where a row falls short, and what its time goes into:**",
        shortfalls(results),
        "**Who took no part:**",
        absences(results),
        "**What the machine can do.** Each product counts with the two of its backward pass.",
        limits(rates),
    ])  # fmt: skip


def main() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    save(plot(found["rows"]), FIGURE)
    store(text(found["rows"], found["limits"]))
    print(f"{NOTE.relative_to(ROOT)} and {FIGURE.relative_to(ROOT)} are written")


if __name__ == "__main__":
    main()
