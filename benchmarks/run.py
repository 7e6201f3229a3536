"""How fast, and how large in memory, is this GPT-2 beside what a reader would pick instead?

    python -m benchmarks.run [--only ROW-OR-GROUP ...] [--rounds 7] [--threads N] [--json FILE]

Every side of a row runs in a process of its own, with the same sizes, threads, precision and dropout. They take turns,
one run each, and each round begins with another side, so that whatever else the machine does disturbs all alike. A
ratio is the median over the rounds of (ours / theirs) in speed; its spread is the smallest and the largest. The
limit, what the machine could do at best, takes turns like a side. The results go to a JSON file, from which
`python -m benchmarks.report` writes docs/BENCHMARKS.md. This fails for no figure: it is a benchmark, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.peers import Missing, generation, named
from benchmarks.rows import Row, chosen
from benchmarks.sizes import Places

RESULTS = Path(__file__).with_name("results.json")
REST = 0.25  # seconds between two turns: a side's threads keep looking for work for a moment after its run


class Measured(Protocol):
    """What takes turns."""

    def measure(self) -> float:
        """One run: seconds, or bytes."""
        ...


class Process:
    """A side in a process of its own: see benchmarks/serve.py. Raises Missing, from `wait`, if it cannot take part."""

    def __init__(self, row: Row, name: str, places: Places) -> None:
        order = {"task": row.task, "side": name, "sizes": asdict(row.sizes), "places": asdict(places)}
        threads = {name: str(places.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until close)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve", json.dumps(order)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip
        self.version, self.parameters = "", None

    def wait(self) -> None:
        """Until it is built and warm."""
        answer = self._answer()
        if "missing" in answer:
            raise Missing(answer["missing"])
        self.version, self.parameters = answer["ready"], answer["parameters"]

    def measure(self) -> float:
        return self._ask("go")

    def profile(self) -> dict[str, float]:
        """Operation -> share of one run's time."""
        return self._ask("profile")

    def _ask(self, order: str) -> Any:
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(order + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says why
        return self._answer()

    def _answer(self) -> Any:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().strip().splitlines() or ["it said nothing"]
            raise Missing(f"it ended with code {self.child.wait()}: {said[-1][:200]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process: of itself, as its input ends, or, if it is still building, at once."""
        try:
            self.child.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.communicate()
        self.log.close()


def take_turns(sides: Mapping[str, Measured], rounds: int, rest: float = REST) -> dict[str, list[float]]:
    """One run of each side in each round; every round begins with another. Side -> what each round measured."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            times[name].append(sides[name].measure())
    return times


def compared(row: Row, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What the rounds say: each side's median figure in the row's unit, ratios to ours, and the share of the limit.

    A ratio is ours / theirs in speed, so above 1 we are ahead; for bytes it is ours / theirs, so below 1 we are.
    """
    scale = {"MB": 1e-6, "ms": 1e3}.get(row.unit, 1.0)
    figures = {
        name: row.work / median(rounds) if row.work else median(rounds) * scale
        for name, rounds in times.items()
        if name != "limit"
    }
    ratios = {}
    for name in figures:
        if name != "ours":
            pairs = zip(times["ours"], times[name], strict=True)
            each = [ours / theirs if row.unit == "MB" else theirs / ours for ours, theirs in pairs]
            ratios[name] = {"median": median(each), "low": min(each), "high": max(each)}
    share = None
    if "limit" in times:
        share = median(limit / ours for ours, limit in zip(times["ours"], times["limit"], strict=True))
    worst = max if row.unit == "MB" else min  # the ratio to the best peer is the one that is hardest to meet
    best = worst(ratios, key=lambda name: ratios[name]["median"], default=None)
    return {"figures": figures, "ratios": ratios, "share": share, "against": row.against or best}


@contextmanager
def one_core_busy(wanted: bool) -> Iterator[None]:
    """Meanwhile another process does nothing, as fast as it can."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burner:
        try:
            yield
        finally:
            burner.kill()


def measure(row: Row, rounds: int, places: Places) -> dict[str, Any]:
    """The row's result, ready for JSON. A side that cannot take part is named with its reason."""
    if row.task in ("generate", "prefill", "load"):
        generation.write_model(replace(row.sizes, device="cpu"), places)
    processes = {name: Process(row, name, places) for name in row.sides}  # they build while the others do
    missing: dict[str, str] = {}
    try:
        for name, process in processes.items():
            try:
                process.wait()
            except Missing as reason:
                missing[name] = str(reason)
        sides = {name: process for name, process in processes.items() if name not in missing}
        result: dict[str, Any] = {"row": row.name, "text": row.text, "unit": row.unit, "missing": missing}
        if "ours" in missing:
            return result
        counts = {side.parameters for side in sides.values() if side.parameters is not None}
        if len(counts) > 1:
            raise ValueError(f"the sides of {row.name} learn different numbers of parameters: {sorted(counts)}")
        with one_core_busy(row.busy):
            times = take_turns(sides, 1 if row.task == "memory" else rounds)
        result |= compared(row, times)
        result |= {"seconds": times, "rounds": len(times["ours"]), "goal": row.goal, "share_goal": row.share}
        result["versions"] = {name: side.version for name, side in sides.items() if name != "limit"}
        if row.task in ("train", "generate", "prefill"):
            result["profile"] = sides["ours"].profile()
        return result
    finally:
        for process in processes.values():
            process.close()


def said(result: Mapping[str, Any]) -> str:
    """The result in a few lines for the terminal."""
    if "figures" not in result:
        return f"{result['row']}: not available: {result['missing']['ours']}"
    lines = [f"{result['row']} ({result['unit']}, {result['rounds']} rounds)"]
    for name, figure in result["figures"].items():
        ratio = result["ratios"].get(name)
        spread = f"   ours / this {ratio['median']:.2f}  ({ratio['low']:.2f} .. {ratio['high']:.2f})" if ratio else ""
        lines.append(f"  {name:<22}{figure:>12,.1f}{spread}")
    if result["share"] is not None:
        lines.append(f"  {result['share']:.0%} of the measured limit")
    lines += [f"  {name} takes no part: {reason}" for name, reason in result["missing"].items()]
    if "profile" in result:
        lines.append("  " + ", ".join(f"{name} {share:.0%}" for name, share in list(result["profile"].items())[:6]))
    return "\n".join(lines)


def machine(threads: int) -> dict[str, str | int]:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "system": platform.system(),
        "Python": platform.python_version(),
        "PyTorch": named("torch"),
        "date": str(date.today()),
    }


def limits_of_the_machine(threads: int) -> dict[str, float]:
    """`limits.rates`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.limits", "--threads", str(threads), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def stored(path: Path) -> dict[str, Any]:
    """What is there already: a run of some rows leaves the others as they are."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"limits": {}, "rows": {}}


def smoke(row: Row) -> Row:
    """The same with a model of a few thousand numbers and little text, to see whether it runs at all."""
    small = replace(row.sizes, model="smoke", batch=min(row.sizes.batch, 2), context=32, prompt=8, megabytes=1)
    return replace(row, sizes=replace(small, new=min(row.sizes.new, 8)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ROW", help="rows or groups of rows (benchmarks/rows.py)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every side")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--nanogpt", default=Places.nanogpt, metavar="DIR", help="nanoGPT's folder, with model.py")
    parser.add_argument("--llmc", default=Places.llmc, metavar="DIR", help="llm.c's folder, with train_gpt2.c")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does every row run? The figures mean nothing")
    options = parser.parse_args(arguments)
    try:
        rows = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.smoke and options.json == RESULTS:
        parser.error("--smoke needs --json FILE: its figures mean nothing")
    results = stored(options.json)
    if not options.smoke:
        results["limits"] = limits_of_the_machine(options.threads)
        print(*(f"{rate:8.1f}  {name}" for name, rate in results["limits"].items()), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as work:
        places = Places(work, options.nanogpt, options.llmc, options.threads)
        for row in rows:
            started = time.perf_counter()
            try:
                result = measure(smoke(row) if options.smoke else row, options.rounds, places)
            except Missing as reason:  # a side ended in the middle: the other rows need not
                result = {"row": row.name, "text": row.text, "unit": row.unit, "missing": {"ours": str(reason)}}
            result |= {"machine": machine(options.threads), "took": round(time.perf_counter() - started, 1)}
            print(said(result), f"  [{result['took']:.0f} s]", flush=True)
            results["rows"][row.name] = result
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
