"""`python -m gpt train`: train a model on a text."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.commands.material import Material, default_tokenizer, holds_tokens, material
from gpt.commands.output import optional_figures, say, scores
from gpt.commands.parsing import PRESETS, PYTHON_DOCS, TEXTS, Options, add_device, at_least, seed
from gpt.commands.tokenizers import CHOICES, learns, named_tokenizer
from gpt.config import GPTConfig

if TYPE_CHECKING:
    import torch

    from gpt.model import GPT
    from gpt.storage.corpora import RandomWindows
    from gpt.tokens import Tokenizer
    from gpt.training import History

HELP = "train a model on a text, a token file or a folder of shards"
EXAMPLES = (
    f"{PYTHON_DOCS} --steps 2000 --out runs/docs",
    "my.txt --tokenizer bpe:1000 --preset tiny",
    "my.txt --init gpt2 --lr 1e-4 --steps 200",
    "my.txt --out runs/mine --resume",
)
SIZES = ("context_size", "n_layer", "n_head", "n_embd")


def options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("text", help=f"{', '.join(TEXTS)}, a file of text or tokens, or a folder of shards; its last tenth is held out")
    add("--out", type=Path, default=Path("runs/model"), help="folder for checkpoints and the best model")
    add("--resume", action="store_true", help="resume from the newest checkpoint in --out, with the same options")
    add("--allow-changes", action="store_true", help="with --resume: continue with other options or another text")
    add("--init", metavar="MODEL", help="start from this model and its tokenizer, not from random weights")
    add("--preset", choices=PRESETS, help="sizes of the model (default: char)")
    for name in SIZES:
        add(f"--{name.replace('_', '-')}", type=int, help="instead of the preset's")
    add("--dropout", type=float, help="instead of the preset's")
    add("--tokenizer", help=f"{CHOICES} (default: char; of a token file gpt2; of a folder its own)")
    add("--steps", type=int, default=3000, help="updates (default: 3000)")
    add("--batch-size", type=int, default=32, help="windows per micro-batch, of all processes together (default: 32)")
    add("--accumulation", type=int, default=1, help="micro-batches per update (default: 1)")
    add("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    add("--min-lr", type=float, default=0.0, help="where the cosine ends (default: 0)")
    add("--warmup", type=at_least(0), default=100, help="updates of warm-up (default: 100)")
    add("--weight-decay", type=float, default=0.1)
    add("--beta2", type=float, default=0.99, help="AdamW's memory of squared gradients (default: 0.99)")
    add("--average", type=float, help="decay of a moving average of the weights, such as 0.998")
    add("--precision", default="float32", help='"float32" (default), "bfloat16", "float16" (needs a GPU), "auto"')
    add("--seed", type=seed, default=0)
    add("--log-interval", type=int, default=50)
    add("--eval-interval", type=int, default=250)
    add("--checkpoint-interval", type=int, default=500)
    add("--shard", action="store_true", help="under torchrun: each process keeps only a part of every weight (FSDP)")
    add("--compile", action="store_true", help="train through torch.compile: slow to start, then often faster")
    add_device(parser)


def run(options: Options) -> None:
    """Learn, alone or as one of the processes that torchrun has started."""
    from gpt.support.distributed import group, started_together

    if options.shard and not started_together():
        raise ValueError("--shard needs several processes: torchrun --nproc_per_node=2 -m gpt train ... --shard")
    with group(options.device) as device:
        learn(options, device)


def learn(options: Options, device: torch.device) -> None:
    import torch

    from gpt.support import distributed
    from gpt.training import History, adamw, cosine_schedule, train

    if options.batch_size < distributed.world_size():
        least = f"{distributed.world_size()}, a window for each process"
        raise ValueError(f"--batch-size must be at least {least}, got {options.batch_size}")
    data = material(options.text, tokenizer_of(options))
    torch.manual_seed(options.seed)
    model = make_model(options, data.tokenizer.vocab_size)
    loader = windows(model, data, options.batch_size, options.seed)
    if options.shard:
        distributed.shard(model.to(device), options.precision)
    if options.resume and not (options.out / "checkpoints").is_dir():
        tell(f"no checkpoint in {options.out}: starting from the beginning")
    history, started = History(), time.perf_counter()
    train(
        model,
        loader,
        options.steps,
        adamw(model, options.lr, options.weight_decay, (0.9, options.beta2)),
        device,
        options.log_interval,
        schedule=lambda step: cosine_schedule(step, options.lr, options.warmup, options.steps, options.min_lr),
        accumulation=options.accumulation,
        precision=options.precision,
        average=options.average,
        compile=options.compile,
        validation=data.validation,
        eval_interval=options.eval_interval,
        folder=options.out,
        tokenizer=data.tokenizer,
        checkpoint_interval=options.checkpoint_interval,
        resume=options.resume,
        allow_changes=options.allow_changes,
        settings={
            "text": data.source["sha256"],
            **{name: getattr(options, name) for name in ("seed", "batch_size", "steps", "warmup", "min_lr")},
        },
        history=history,
        report=tell,
    )
    if history.stopped_early:
        tell(f"Stopped early. Nothing is lost: the same command with --resume continues from {options.out}")
    if history.validation and distributed.rank() == 0:
        write_record(options, data, model, history, started, device)
    if history.stopped_early:
        raise KeyboardInterrupt if history.stopped_by == signal.SIGINT else SystemExit(128 + history.stopped_by)


def write_record(
    options: Options, data: Material, model: GPT, history: History, started: float, device: torch.device
) -> None:
    """Score the best model, and leave beside it how it was made."""
    import torch

    from gpt.storage.pretrained import load_pretrained
    from gpt.support.files import atomic_file

    best = options.out / "best"
    score = data.score(load_pretrained(best).to(device))
    record = {
        "command": options.command_line,
        "data": data.source,
        "seed": options.seed,
        "torch": torch.__version__,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "config": asdict(model.config),
        "parameters": model.num_parameters(),
        "held_out": asdict(score),
        "curve": {"train": history.train, "validation": history.validation},
    }
    with atomic_file(best / "record.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    tell(f"best model: {scores(score)}\nwrote {best} (use it with --model {best})")
    for path in draw_curve(history, options.out / "curve.png"):
        tell(f"wrote {path}")


def tell(line: str) -> None:
    """Print a line, once for all processes.

    If nobody reads it any more (`| head`, a closed terminal, a full disk), training continues.
    """
    from gpt.support.distributed import rank

    if rank() != 0:
        return
    try:
        say(line)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"{error}; training continues", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tokenizer_of(options: Options) -> Tokenizer:
    """That of the model that --init names, the one that --tokenizer names, or the default."""
    from gpt.storage.corpora import load_text
    from gpt.storage.pretrained import load_pretrained_tokenizer

    if options.init is not None:
        return load_pretrained_tokenizer(options.init)
    name = options.tokenizer or default_tokenizer(options.text)
    if learns(name) and holds_tokens(options.text):
        raise ValueError(f"--tokenizer must be the one that made the tokens of {options.text}, got {name!r}")
    return named_tokenizer(name, lambda: load_text(options.text))


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


def windows(model: GPT, data: Material, batch_size: int, seed: int) -> RandomWindows:
    """The batches that the model learns from; says how large both are."""
    from gpt.storage.corpora import RandomWindows

    config = model.config
    loader = RandomWindows(data.train, config.context_size, batch_size, seed, vocab_size=config.vocab_size)
    tell(f"{model.num_parameters():,} parameters, {len(data.train):,} tokens to learn from")
    return loader


def draw_curve(history: History, path: Path) -> list[Path]:
    """Draw the losses; the files written, none if matplotlib is missing."""
    with optional_figures(path.name):
        from gpt import figures

        return [figures.save(figures.plot_training(history.train, history.validation), path)]
    return []
