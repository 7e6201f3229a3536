"""How does the cost of a training step grow with T, B, N and d_model, and does it follow gpt.scale?

    python -m benchmarks.growth [--threads N]

One size changes at a time. Each point is a process of its own, so that its peak of memory is its own. The curves are
the closed forms: tokens/s is the measured matmul rate over `flops_per_token`, memory is the sum of the training rows of
`memory_table` and of what the process held before it had a model. Writes figures/growth.svg and docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.peers import peak_memory
from benchmarks.report import ROOT, store
from gpt import GPT, GPTConfig
from gpt.figures.style import BLUE, FORBIDDEN, VERMILION, drawing, save
from gpt.scale import flops_per_token, measured_peak_flops, memory_table, tokens_per_second

FIGURE = ROOT / "figures" / "growth.svg"
MARKS = ("<!-- growth -->", "<!-- /growth -->")
BASE = {"T": 128, "B": 8, "N": 4, "d_model": 256}
POINTS = {
    "T": (64, 128, 256, 512, 1024),
    "B": (1, 2, 4, 8, 16, 32),
    "N": (1, 2, 4, 8, 16),
    "d_model": (64, 128, 256, 512, 768),
}


def config(sizes: dict[str, int]) -> GPTConfig:
    """A character model of these sizes; a head is 32 wide."""
    width = sizes["d_model"]
    return GPTConfig(context_size=sizes["T"], vocab_size=65, n_layer=sizes["N"], n_head=width // 32, n_embd=width)


def point(sizes: dict[str, int]) -> dict[str, float]:
    """Measured in this process: tokens/s, peak bytes, and the closed forms beside them."""
    before = peak_memory()
    model = GPT(config(sizes))
    speed = tokens_per_second(model, sizes["B"], sizes["T"])
    peak = peak_memory()
    rows = memory_table(model.config, sizes["B"], sizes["T"])
    needed = sum(rows[name] for name in ("weights", "gradients", "optimizer", "activations"))
    rate = measured_peak_flops(size=1024)
    return {
        "speed": speed,
        "speed_formula": rate / flops_per_token(model.config, sizes["T"], training=True),
        "bytes": peak,
        "bytes_formula": before + needed,
    }


def measured_in_a_process(sizes: dict[str, int], threads: int) -> dict[str, float]:
    """`point` in a fresh one."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.growth", "--threads", str(threads), "--point", json.dumps(sizes)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def plot(found: dict[str, dict[int, dict[str, float]]]) -> Figure:
    """One column for each size; tokens/s above, memory below."""
    with drawing(11, 5.6, rows=2, columns=len(found)) as (figure, panels):
        for column, (name, points) in enumerate(found.items()):
            values = list(points)
            for row, (key, unit, scale) in enumerate([("speed", "1,000 tokens/s", 1e-3), ("bytes", "peak MB", 1e-6)]):
                axes = panels[row, column]
                if column:
                    axes.sharey(panels[row, 0])
                formula, measured = ([scale * p[k] for p in points.values()] for k in (f"{key}_formula", key))
                axes.plot(values, formula, color=VERMILION, linestyle="--", label="formula")
                axes.plot(values, measured, "o-", color=BLUE, markersize=4, label="measured")
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
                axes.set(xlabel=name, ylabel=unit if column == 0 else "")
                axes.grid(color=FORBIDDEN, linewidth=0.8)
        panels[0, 0].legend(fontsize=8, loc="lower left")
    return figure


def table(found: dict[str, dict[int, dict[str, float]]]) -> str:
    """Each point: measured, and measured over formula."""
    lines = ["| | tokens/s | of the formula | peak MB | of the formula |", "|---|--:|--:|--:|--:|"]
    for name, points in found.items():
        for value, p in points.items():
            fast, large = p["speed"] / p["speed_formula"], p["bytes"] / p["bytes_formula"]
            lines.append(
                f"| {name} = {value:,} | {p['speed']:,.0f} | {fast:.0%} | {p['bytes'] / 1e6:,.0f} | {large:.0%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description="How the cost of a step grows.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)  # the fresh process
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.point:
        print(json.dumps(point(options.point)))
        return
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, values in POINTS.items():
        for value in values:
            found.setdefault(name, {})[value] = measured_in_a_process({**BASE, name: value}, options.threads)
        print(name, *(f"{value}: {p['speed']:,.0f} tokens/s" for value, p in found[name].items()), flush=True)
    save(plot(found), FIGURE)
    base = ", ".join(f"{name} = {value}" for name, value in BASE.items())
    picture = "![Tokens per second and peak memory against T, B, N and d_model](../figures/growth.svg)"
    store(f"Around {base}, on {options.threads} threads:\n\n{picture}\n\n{table(found)}", marks=MARKS)


if __name__ == "__main__":
    main()
