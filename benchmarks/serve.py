"""One side of a row in a process of its own, which its parent tells when to work: python -m benchmarks.serve JSON.

It builds what it needs, works once without the clock, and says {"ready": version, ...} or {"missing": reason}. Then
each line on its standard input is an order: "go" is answered with how long one run took (or with the side's own
figure), "profile" with the operations that took most of a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from statistics import median
from typing import Any

import torch

from benchmarks.peers import Missing, Side
from benchmarks.rows import TASKS
from benchmarks.sizes import Places, Sizes


def once(side: Side, device: str, at_least: float = 0.5) -> float:
    """The seconds of one run, or the figure that it tells. Of short runs, the median of half a second."""
    results: list[Any] = []
    began = time.perf_counter()
    while not results or time.perf_counter() - began < at_least:
        start = time.perf_counter()
        result = side.run()
        if device != "cpu":
            torch.accelerator.synchronize()
        results.append(result if side.tells else time.perf_counter() - start)
    return median(results)


def profile(side: Side, top: int = 8) -> dict[str, float]:
    """The operations of some runs in PyTorch: name -> its share of the time, largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as record:
        began = time.perf_counter()
        for _ in range(20):  # or a second: enough that a hiccup is no finding; to count the events takes longer still
            side.run()
            if time.perf_counter() - began > 1:
                break
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events) or 1
    return {event.key: round(event.self_cpu_time_total / total, 4) for event in events[:top]}


def make(task: str, name: str, sizes: Sizes, places: Places) -> Side:
    """The side, ready to run and warm."""
    if sizes.device != "cpu" and not torch.accelerator.is_available():
        raise Missing("no GPU here")
    torch.set_num_threads(places.threads)
    torch.manual_seed(0)
    side = TASKS[task][name](sizes, places)
    if task != "memory":  # whose one run is the whole of it
        side.run()
    return side


def main() -> None:
    order: dict[str, Any] = json.loads(sys.argv[1])
    sizes, places = Sizes(**order["sizes"]), Places(**order["places"])
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    try:
        side = make(order["task"], order["side"], sizes, places)
    except Missing as reason:
        print(json.dumps({"missing": str(reason)}), file=answers)
        return
    print(json.dumps({"ready": side.version, "parameters": side.parameters}), file=answers)
    with contextlib.suppress(KeyboardInterrupt):  # the parent gets it too, and says what there is to say
        for line in sys.stdin:
            answer = profile(side) if line.strip() == "profile" else once(side, sizes.device)
            print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
