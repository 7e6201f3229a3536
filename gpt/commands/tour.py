"""`python -m gpt tour`: what the package does, in about two minutes, without a network."""

from __future__ import annotations

import math
import signal
import time
from argparse import ArgumentParser
from pathlib import Path

from gpt.commands.attend import draw_attention
from gpt.commands.material import from_text
from gpt.commands.output import heading, optional_figures, say, scores, stream_text
from gpt.commands.parsing import DEFAULT_MODEL, PYTHON_DOCS, Options, seed
from gpt.commands.train import draw_curve, windows
from gpt.config import GPTConfig

HELP = "what this is, in two minutes, without a network"
EXAMPLES = ("", '--prompt "JULIET:"')


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--prompt", default="ROMEO:", help="the text that the Shakespeare model continues")
    parser.add_argument("--seconds", type=float, default=60, help="how long the fresh model trains (default: 60)")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--out", type=Path, default=Path("figures/tour"), help="folder for the figures")


def run(options: Options) -> None:
    import torch

    from gpt.generation import Sampling
    from gpt.model import GPT
    from gpt.storage.corpora import load_text
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer
    from gpt.tokens import CharTokenizer
    from gpt.training import History, adamw, cosine_schedule, train

    if not 0 < options.seconds < math.inf:
        raise ValueError(f"--seconds must be above 0 and finite, got {options.seconds:g}")
    heading("1. A model that has read Shakespeare continues your prompt")
    model, tokenizer = load_pretrained(DEFAULT_MODEL), load_pretrained_tokenizer(DEFAULT_MODEL)
    text = stream_text(model, tokenizer, options.prompt, 400, Sampling(0.8, top_p=0.95), options.seed)

    heading("2. Where it looked: attention of every layer and head over the first characters of that text")
    files: list[Path] = []
    with optional_figures("heat maps"):
        files += draw_attention(model, tokenizer, text[:24], options.out, list(range(model.config.n_layer)), None)
        say(f"{len(files) - 1} heat maps, and a page to point at, drawn from one forward pass")

    heading(f"3. A fresh model learns from the Python reference for about {options.seconds:g} seconds")
    text = load_text(PYTHON_DOCS)
    tokenizer = CharTokenizer.from_text(text)
    data = from_text(PYTHON_DOCS, text, tokenizer)
    torch.manual_seed(options.seed)
    config = GPTConfig(context_size=64, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=4, n_embd=128)
    model = GPT(config)
    loader = windows(model, data, 32, options.seed)
    say(f"before: {scores(data.score(model))}")
    n_steps, history = steps_in(options.seconds, config), History()
    train(
        model,
        loader,
        n_steps,
        adamw(model, lr=3e-3),
        "cpu",
        max(1, n_steps // 50),
        schedule=lambda step: cosine_schedule(step, 3e-3, n_steps // 20, n_steps),
        validation=data.validation,
        eval_interval=max(1, n_steps // 5),
        history=history,
    )
    if history.stopped_early:  # nothing is to be saved: a signal ends the tour
        raise KeyboardInterrupt if history.stopped_by == signal.SIGINT else SystemExit(128 + history.stopped_by)
    say(f"after {history.step} steps: {scores(data.score(model))}")
    files.extend(draw_curve(history, options.out / "training.png"))
    say("a sample:")
    stream_text(model, tokenizer, "The ", 300, Sampling(0.7), options.seed)

    heading("Files written")
    for path in files:
        say(f"  {path}")
    heading("What next")
    say(f"  look at the heat maps, and open {options.out / 'attention.html'} in a browser: point at a token")
    say("  read README.md, which leads to the theory behind them")
    say('  python -m gpt attend --text "To be, or not to be" --layer 0 --head 3')
    say(f"  python -m gpt train {PYTHON_DOCS} --steps 2000 --out runs/mine")


def steps_in(seconds: float, config: GPTConfig) -> int:
    """How many updates a model of this config does in so many seconds here, by trying a few on a copy."""
    import torch

    from gpt.model import GPT
    from gpt.storage.corpora import RandomWindows
    from gpt.training import History, adamw, train

    torch.manual_seed(0)
    model, steps = GPT(config), 10
    loader = RandomWindows(torch.randint(config.vocab_size, (10_000,)), config.context_size, 32)
    optimizer = adamw(model)
    train(model, loader, 3, optimizer, "cpu")  # the first steps are slower
    started, history = time.perf_counter(), History()
    train(model, loader, steps, optimizer, "cpu", history=history)
    if history.stopped_early:
        raise KeyboardInterrupt
    return max(20, int(seconds * steps / (time.perf_counter() - started)))
