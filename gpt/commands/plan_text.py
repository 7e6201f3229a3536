"""The other half of `python -m gpt plan`: what can this machine learn from this text in so many minutes?

How low the loss gets depends on the text. Two yardsticks, both known within a second, make a scale for it: the loss of
counting pairs of characters, and what bzip2 makes of the text. On this scale, runs of the same size and length come out
nearly alike on different texts. A share of 1 is as good as the pairs, 0 as bzip2, and good runs end below 0:

    expected loss = bzip2 + share * (pairs - bzip2)        nats per character of the held-out tenth

The shares below were measured on Tiny Shakespeare. The rule was then tried on the Python reference, another kind of
text: `ERROR`.
"""

from __future__ import annotations

import bz2
import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gpt.commands.material import Material, from_text
from gpt.commands.output import say
from gpt.commands.tokenizers import named_tokenizer
from gpt.config import GPTConfig

SAMPLE = 2_000_000  # characters that are enough to judge a text
EPOCHS = 25  # as often a small text was read by the longest run behind the shares; more would not help
EVALUATIONS = 10  # of the held-out tenth, in a run


@dataclass(frozen=True)
class Recipe:
    """A size that was tried, and how it was trained.

    options  of `python -m gpt train`, other than the number of steps
    shares   (characters read, share of the scale at the end of a run over so many)
    """

    config: GPTConfig
    batch_size: int
    options: str
    shares: tuple[tuple[float, float], ...]

    @property
    def step_tokens(self) -> int:
        return self.batch_size * self.config.context_size

    def share(self, characters: float) -> float:
        """Between two runs a straight line over log(characters); beyond them, that of the nearest."""
        read, shares = zip(*self.shares, strict=True)
        return float(np.interp(math.log(characters), np.log(read), shares))


RECIPES = {
    "tiny": Recipe(
        GPTConfig.tiny(),
        batch_size=32,
        options="--preset tiny --batch-size 32 --lr 4e-3",
        shares=((250e3, 1.04), (1e6, 0.59), (4e6, 0.17)),
    ),
    "small": Recipe(
        replace(GPTConfig.tiny(), n_embd=128),
        batch_size=32,
        options="--preset tiny --n-embd 128 --batch-size 32 --lr 3e-3",
        shares=((250e3, 0.96), (1e6, 0.41), (4e6, 0.02)),
    ),
    "char": Recipe(  # from 4.1e6 on, points of the run that made the bundled model; one that ends there is better
        GPTConfig.char(),
        batch_size=32,
        options="--preset char --batch-size 32 --lr 2e-3 --weight-decay 1.5 --average 0.99",
        shares=((250e3, 0.97), (1e6, 0.49), (4.1e6, 0.11), (12.3e6, -0.07), (24.6e6, -0.19)),
    ),
}
ERROR = 0.1  # of the loss: nine runs on the Python reference, of 250,000 to 4 million characters, were off by 0 to 8 %
LEAST = 20  # steps that deserve the name of a run


@dataclass(frozen=True)
class Yardsticks:
    """Of a text, in nats per character: its last tenth by pairs of characters, all of it by bzip2."""

    pairs: float
    bzip2: float

    @classmethod
    def of(cls, text: str) -> Yardsticks:
        """Raises ValueError for a text of fewer than 20 characters, of which no tenth can be judged."""
        text = text[:SAMPLE]
        if len(text) < 20:
            raise ValueError(f"the text must have at least 20 characters, got {len(text)}")
        cut = len(text) * 9 // 10
        read, held = text[:cut], text[cut:]
        pairs, first, kinds = Counter(pairwise(read)), Counter(read[:-1]), len(set(text))
        surprise = [math.log((first[a] + kinds) / (pairs[a, b] + 1)) for a, b in pairwise(held)]  # each count plus 1
        return cls(sum(surprise) / len(surprise), 8 * math.log(2) * len(bz2.compress(text.encode())) / len(text))

    def loss(self, share: float) -> float:
        return self.bzip2 + share * (self.pairs - self.bzip2)


def plan_text(name: str, minutes: float, tokenizer: str, as_json: bool) -> None:
    """Print the size, the steps and the expected loss, and the command that trains it.

    Raises ValueError if the machine cannot do `LEAST` steps of any size in that time, and as `load_text`.
    """
    from gpt.storage.corpora import load_text

    text = load_text(name)
    yardsticks = Yardsticks.of(text)
    data = from_text(name, text, named_tokenizer(tokenizer, lambda: text))
    width = len(text) / (len(data.train) + len(data.validation))  # characters of a token
    sizes = [offer(size, recipe, data, yardsticks, minutes, width) for size, recipe in RECIPES.items()]
    feasible = [plan for plan in sizes if plan["minutes"] <= minutes]
    if not feasible:
        least = min(plan["minutes"] for plan in sizes)
        raise ValueError(f"--minutes must be at least {least:.1f} for this text on this machine, got {minutes:g}")
    best = min(feasible, key=lambda plan: plan["loss"])
    plan = {
        "text": name,
        "characters": len(text),
        "tokens": len(data.train),
        "vocabulary": data.tokenizer.vocab_size,
        "pairs": yardsticks.pairs,
        "bzip2": yardsticks.bzip2,
        "sizes": sizes,
        "best": best,
        "loss_per_token": best["loss"] * width,
        "command": train_command(name, tokenizer, best),
    }
    if as_json:
        say(json.dumps(plan, indent=1))
    else:
        show(plan)


def show(plan: dict[str, Any]) -> None:
    say(f"{plan['text']}: {plan['characters']:,} characters, {plan['tokens']:,} tokens to learn from")
    say(f"nats per character: {plan['pairs']:.2f} by counting pairs, {plan['bzip2']:.2f} by bzip2\n")
    for size in plan["sizes"]:
        say(
            f"  {size['size']:<6}{size['parameters']:>11,} parameters{size['tokens_per_second']:>9,.0f} tokens/s"
            f"{size['steps']:>9,} steps{size['minutes']:>8.1f} minutes{size['epochs']:>6.1f} times the text"
            f"{size['loss']:>7.2f}"
        )
    best = plan["best"]
    low, high = (best["loss"] * (1 + sign * best["error"]) for sign in (-1, 1))
    say(
        f"\n{best['size']}: expected are {best['loss']:.2f} nats per character ({low:.2f} to {high:.2f}), "
        f"{plan['loss_per_token']:.2f} per token"
    )
    if all(size["epochs"] > EPOCHS - 1 for size in plan["sizes"]):
        say(f"All read the text {EPOCHS} times. More minutes would not help, more text would.")
    say(plan["command"])


def offer(
    size: str, recipe: Recipe, data: Material, yardsticks: Yardsticks, minutes: float, width: float
) -> dict[str, Any]:
    """One size in the time there is: its speed here, its steps, its loss."""
    from gpt.model import GPT
    from gpt.scale import tokens_per_second

    config = replace(recipe.config, vocab_size=data.tokenizer.vocab_size)
    model = GPT(config)
    speed = tokens_per_second(model, recipe.batch_size, config.context_size, steps=3, warm_up=1)
    judging = EVALUATIONS * len(data.validation) / (3 * speed)  # seconds; a forward pass is a third of the work
    affordable = max(0.0, 60 * minutes - judging) * speed
    tokens = min(affordable, EPOCHS * len(data.train))
    steps = max(LEAST, int(tokens / recipe.step_tokens))
    tokens = steps * recipe.step_tokens
    return {
        "size": size,
        "parameters": model.num_parameters(),
        "tokens_per_second": speed,
        "steps": steps,
        "epochs": tokens / len(data.train),
        "minutes": (tokens / speed + judging) / 60,
        "loss": yardsticks.loss(recipe.share(tokens * width)),
        "error": ERROR if width == 1 else 2 * ERROR,  # of other tokenizers fewer runs are known
    }


def train_command(name: str, tokenizer: str, plan: dict[str, Any]) -> str:
    """What to type."""
    recipe, steps = RECIPES[plan["size"]], plan["steps"]
    words = f"{recipe.options} --steps {steps} --warmup {min(100, steps // 20)}"
    words += f" --eval-interval {max(1, steps // EVALUATIONS)} --out {shlex.quote(f'runs/{Path(name).stem}')}"
    if tokenizer != "char":
        words = f"--tokenizer {shlex.quote(tokenizer)} {words}"
    return f"python -m gpt train {shlex.quote(name)} {words}"
