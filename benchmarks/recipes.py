"""Which recipe reaches a loss soonest? The char preset on Tiny Shakespeare, one change a row.

    python -m benchmarks.recipes [--rows ours muon ...] [--seeds 0 1 2] [--steps 3000] [--threads 2] [--out FILE]

The first row is the recipe of the well-known trainer's character model: peak rate 1e-3, cosine to a tenth of it, 100
steps of warm-up, beta2 0.99, weight decay 0.1, dropout 0.2. Each later row is ours with one thing changed. A row is
judged on the whole held-out tenth, 20 times in a run; seconds count training alone. Nothing is chosen on that tenth:
"last" is the loss of the last weights, and "best" beside it says what choosing would have been worth.

Results are written after every run, and a run that is in the file with the same steps is not repeated, so a row can be
run today and another tomorrow. The machine should be quiet.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gpt import GPT, CharTokenizer, Corpus, GPTConfig, RandomWindows, adamw, cosine_schedule, evaluate, load_text

TARGETS = (1.60, 1.53, 1.50)
EVALUATIONS = 20


@dataclass(frozen=True)
class Recipe:
    """What can be changed. `average` 0: none; `warm` fractions are the part of the run that grows to full size."""

    lr: float = 2e-3
    floor: float = 0.0  # share of the peak that the schedule ends at
    warmup: int = 150
    schedule: str = "cosine"  # or "linear", or "constant" with a fall over the last fifth
    weight_decay: float = 1.5
    average: float = 0.99
    dropout: float = 0.1
    batch_warm: float = 0.0
    length_warm: float = 0.0
    muon: bool = False


OURS = Recipe()
ROWS = {
    "well-known": Recipe(1e-3, floor=0.1, warmup=100, weight_decay=0.1, average=0.0, dropout=0.2),
    "ours": OURS,
    "linear schedule": replace(OURS, schedule="linear"),
    "constant, then a fall": replace(OURS, schedule="constant"),
    "no weight average": replace(OURS, average=0.0),
    "weight decay 0.1": replace(OURS, weight_decay=0.1),
    "dropout 0": replace(OURS, dropout=0.0),
    "dropout 0.2": replace(OURS, dropout=0.2),
    "batch warm-up": replace(OURS, batch_warm=0.3),
    "length warm-up": replace(OURS, length_warm=0.3),
    "muon": replace(OURS, muon=True),
}


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """The schedule, as a share of the peak."""
    if recipe.schedule == "cosine" or step < recipe.warmup:
        return cosine_schedule(step, 1.0, recipe.warmup, steps, recipe.floor)
    left = (steps - step) / (steps - recipe.warmup)
    return left if recipe.schedule == "linear" else min(1.0, 5 * left)


def optimizers(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the blocks' matrices, with steps scaled to AdamW's, and AdamW for the rest."""
    betas = (0.9, 0.99)
    if not recipe.muon:
        return [adamw(model, recipe.lr, recipe.weight_decay, betas)]
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)]


def part(full: int, warm: float, progress: float, least: int) -> int:
    """How much of a batch or a window is used: from `least` in even steps of it to all, over the first `warm`."""
    if progress >= warm:
        return full
    return max(least, int(full * progress / warm) // least * least)


def run(recipe: Recipe, corpus: Corpus, vocabulary: int, seed: int, steps: int) -> dict[str, Any]:
    """One training run: seconds a step, and (step, seconds, loss) of each evaluation."""
    torch.manual_seed(seed)
    config = replace(GPTConfig.char(), vocab_size=vocabulary, dropout=recipe.dropout)
    model = GPT(config).train()
    averaged, update = copy.deepcopy(model), get_ema_multi_avg_fn(recipe.average)
    loader = RandomWindows(corpus.train, config.context_size, 32, seed, vocab_size=vocabulary)
    opts = optimizers(model, recipe)
    curve, spent = [], 0.0
    for step in range(steps):
        started = time.perf_counter()
        inputs, targets = loader.next_batch()
        rows = part(32, recipe.batch_warm, step / steps, 8)
        length = part(config.context_size, recipe.length_warm, step / steps, 32)
        model(inputs[:rows, :length], targets[:rows, :length])[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rate(recipe, step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if recipe.average:
            with torch.no_grad():
                update(list(averaged.parameters()), list(model.parameters()), step)
        spent += time.perf_counter() - started
        if (step + 1) % max(1, steps // EVALUATIONS) == 0 or step + 1 == steps:
            loss = evaluate(averaged if recipe.average else model, corpus.validation).loss
            curve.append((step + 1, spent, loss))
    return {"seconds_per_step": spent / steps, "curve": curve}


def summary(result: dict[str, Any]) -> dict[str, float | None]:
    """Seconds to each target (None: not reached), the last and the best loss, seconds a step."""
    curve = result["curve"]
    times = {f"to {target:.2f}": next((t for _, t, loss in curve if loss <= target), None) for target in TARGETS}
    losses = [loss for _, _, loss in curve]
    return {**times, "last": losses[-1], "best": min(losses), "s/step": result["seconds_per_step"]}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Mean over the seeds (with the spread of the last loss) of each row."""
    columns = [*(f"to {target:.2f}" for target in TARGETS), "last", "best", "s/step"]
    lines = [f"| recipe | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for row in ROWS:
        runs = [summary(result) for key, result in results.items() if key.split("/")[0] == row]
        if not runs:
            continue
        cells = []
        for column in columns:
            reached = [value for r in runs if (value := r[column]) is not None]
            digits = 1 if column.startswith("to") else 4
            cells.append(
                f"{mean(reached):.{digits}f}" if len(reached) == len(runs) else f"{len(reached)} of {len(runs)}"
            )
        last = [value for r in runs if (value := r["last"]) is not None]
        spread = f" ± {stdev(last):.4f}" if len(last) > 1 else ""
        cells[len(TARGETS)] += spread
        lines.append(f"| {row} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/recipes.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = load_text("tinyshakespeare")
    tokenizer = CharTokenizer.from_text(text)
    corpus = Corpus.from_text(text, tokenizer)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:  # seed by seed: what disturbs the machine for an hour disturbs every row
        for row in options.rows:
            key = f"{row}/{seed}/{options.steps}/{options.threads}"
            if key not in results:
                results[key] = run(ROWS[row], corpus, tokenizer.vocab_size, seed, options.steps)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
                print(key, summary(results[key]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
