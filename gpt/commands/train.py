"""`python -m gpt train`: train a model on a text."""

from __future__ import annotations

import hashlib
import json
import math
import time
from argparse import ArgumentParser
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.commands.evaluate import held_out_score
from gpt.commands.output import say, scores
from gpt.commands.parsing import PRESETS, PYTHON_DOCS, TEXTS, Options, add_device, at_least
from gpt.commands.tokenizers import make_tokenizer, vocabulary_size
from gpt.config import GPTConfig

if TYPE_CHECKING:
    from gpt.model import GPT
    from gpt.training import History

HELP = "train a model on a text"
EXAMPLES = (
    f"{PYTHON_DOCS} --steps 2000 --out runs/docs",
    "my.txt --tokenizer bpe:1000 --preset tiny",
    "my.txt --init gpt2 --lr 1e-4 --steps 200",
    "my.txt --out runs/mine --resume",
)
SIZES = ("context_size", "n_layer", "n_head", "n_embd")


def options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("text", help=f"{', '.join(TEXTS)} or a file; its last tenth is held out")
    add("--out", type=Path, default=Path("runs/model"), help="folder for checkpoints and the best model")
    add("--resume", action="store_true", help="resume from the newest checkpoint in --out")
    add("--init", metavar="MODEL", help="start from this model and its tokenizer, not from random weights")
    add("--preset", choices=PRESETS, help="sizes of the model (default: char)")
    for name in SIZES:
        add(f"--{name.replace('_', '-')}", type=int, help="instead of the preset's")
    add("--dropout", type=float, help="instead of the preset's")
    add("--tokenizer", help="char (default), gpt2, bpe:MERGES or a saved tokenizer.json")
    add("--steps", type=int, default=3000, help="updates (default: 3000)")
    add("--batch-size", type=int, default=32, help="windows per micro-batch (default: 32)")
    add("--accumulation", type=int, default=1, help="micro-batches per update (default: 1)")
    add("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    add("--min-lr", type=float, default=0.0, help="where the cosine ends (default: 0)")
    add("--warmup", type=at_least(0), default=100, help="updates of warm-up (default: 100)")
    add("--weight-decay", type=float, default=0.1)
    add("--beta2", type=float, default=0.99, help="AdamW's memory of squared gradients (default: 0.99)")
    add("--average", type=float, help="decay of a moving average of the weights, such as 0.998")
    add("--precision", default="float32", help='"float32" (default), "bfloat16", "float16" (needs a GPU)')
    add("--seed", type=int, default=0)
    add("--log-interval", type=int, default=50)
    add("--eval-interval", type=int, default=250)
    add("--checkpoint-interval", type=int, default=500)
    add_device(parser)


def run(options: Options) -> None:
    import torch

    from gpt.storage.corpora import Corpus, RandomWindows, load_text
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer
    from gpt.support.files import atomic_file
    from gpt.training import History, adamw, cosine_schedule, pick_device, train

    text = load_text(options.text)
    if options.init is None:
        tokenizer = make_tokenizer(options.tokenizer or "char", text)
    else:
        tokenizer = load_pretrained_tokenizer(options.init)
    corpus = Corpus.from_text(text, tokenizer)
    torch.manual_seed(options.seed)
    model = make_model(options, vocabulary_size(tokenizer))
    config = model.config
    loader = RandomWindows(corpus.train, config.context_size, options.batch_size, options.seed)
    say(f"{model.num_parameters():,} parameters, {len(corpus.train):,} tokens to learn from")
    history, started = History(), time.perf_counter()
    train(
        model,
        loader,
        options.steps,
        adamw(model, options.lr, options.weight_decay, (0.9, options.beta2)),
        options.device,
        options.log_interval,
        schedule=lambda step: cosine_schedule(step, options.lr, options.warmup, options.steps, options.min_lr),
        accumulation=options.accumulation,
        precision=options.precision,
        average=options.average,
        validation=corpus.validation,
        eval_interval=options.eval_interval,
        folder=options.out,
        tokenizer=tokenizer if hasattr(tokenizer, "save") else None,
        checkpoint_interval=options.checkpoint_interval,
        resume=options.resume,
        history=history,
        report=say,
    )
    if history.stopped_early:
        say(f"Stopped early. Nothing is lost: the same command with --resume continues from {options.out}")
    if not history.validation:
        return
    if not math.isfinite(history.best):
        raise ValueError("training diverged: no validation loss was a number; try a lower --lr")
    best = options.out / "best"
    score = held_out_score(load_pretrained(best).to(pick_device(options.device)), corpus)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    record = {
        "command": options.command_line,
        "data": {"name": options.text, "sha256": sha256, "characters": len(text)},
        "seed": options.seed,
        "torch": torch.__version__,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "held_out": asdict(score),
        "curve": {"train": history.train, "validation": history.validation},
    }
    with atomic_file(best / "record.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    draw_curve(history, options.out / "curve.png")
    say(f"best model: {scores(score)}\nwrote {best} (use it with --model {best}) and {options.out / 'curve.png'}")


def make_model(options: Options, vocab_size: int) -> GPT:
    """A new model of the preset's sizes, or the one that --init names, with what the options change."""
    from gpt.model import GPT
    from gpt.storage.pretrained import load_pretrained

    own = (*SIZES, "dropout")
    changes = {name: getattr(options, name) for name in own if getattr(options, name) is not None}
    if options.init is None:
        return GPT(replace(getattr(GPTConfig, options.preset or "char")(), vocab_size=vocab_size, **changes))
    if changes.keys() - {"dropout"} or options.preset or options.tokenizer:
        raise ValueError("with --init the sizes and the tokenizer are those of that model; only --dropout can differ")
    start = load_pretrained(options.init)
    model = GPT(replace(start.config, **changes))
    model.load_state_dict(start.state_dict())
    return model


def draw_curve(history: History, path: Path) -> Path:
    from gpt import figures

    return figures.save(figures.plot_training(history.train, history.validation), path)
