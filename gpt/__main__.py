"""The command line: `python -m gpt --help`.

One function a command. A mistake in what was asked for ends with exit code 2 and one line that says what is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from gpt import figures
from gpt.config import GPTConfig
from gpt.figures.pages.attention import attention_page
from gpt.generation import stream
from gpt.inspection import trace
from gpt.model import GPT
from gpt.scale import flops_per_token, memory_table, parameter_count, parameters_by_component
from gpt.storage.corpora import DOWNLOADS, PYTHON_DOCS, Corpus, RandomWindows, fetch, load_text
from gpt.storage.pretrained import RELEASED, load_pretrained, load_pretrained_tokenizer
from gpt.storage.tokenizer_files import load_tokenizer
from gpt.support.files import atomic_file
from gpt.tokens import END_OF_TEXT, BPETokenizer, CharTokenizer, gpt2_tokenizer
from gpt.training import PRECISIONS, Evaluation, History, adamw, cosine_schedule, evaluate, pick_device, train

PRESETS = ("tiny", "char", "gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl")
BUNDLED = "tinyshakespeare"


def say(text: str = "") -> None:
    """Print, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def heading(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


# --- generate


def write_on(model: GPT, tokenizer, prompt: str, n_tokens: int, seed: int, **sampling) -> str:
    """Print the prompt and its continuation as it is drawn; return all of it."""
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("prompt must not be empty: the model needs a token to start from")
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(seed)
    drawn = stream(model, torch.tensor([ids]), n_tokens, generator=generator, **sampling)
    shown = prompt
    print(prompt, end="", flush=True)
    for token in drawn:
        ids.append(token.item())
        text = tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else half a character: wait for its other bytes
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(flush=True)
    return shown


def run_generate(options: argparse.Namespace) -> None:
    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    model.to(pick_device(options.device))
    special_tokens = getattr(tokenizer, "special_tokens", {})
    eos_token = getattr(tokenizer, "eot_token", special_tokens.get(END_OF_TEXT))  # tiktoken's name, or ours
    for sample in range(options.samples):
        if sample:
            say("-" * 40)
        write_on(
            model,
            tokenizer,
            options.prompt,
            options.tokens,
            options.seed + sample,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            eos_token=eos_token,
        )


# --- attend


def token_texts(tokenizer, ids: list[int]) -> list[str | bytes]:
    """What each token stands for; of a byte-level tokenizer in bytes, as a token may be half a character."""
    decode = getattr(tokenizer, "decode_bytes", tokenizer.decode)
    return [decode([i]) for i in ids]


def draw_attention(
    model: GPT, tokenizer, text: str, out: Path, layers: list[int], head: int | None, kinds: tuple[str, ...] = ("png",)
) -> list[Path]:
    """Heat maps and the page of one real forward pass over the text; returns the files written, the page last."""
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("text must not be empty")
    attention = trace(model, torch.tensor([ids])).attention[:, 0]
    labels, files = token_texts(tokenizer, ids), []

    def write(figure, name: str) -> None:
        files.extend(figures.save(figure, out / f"{name}.{kind}") for kind in kinds)

    if head is None:
        write(figures.plot_attention_grid(attention), "all_heads")
        for layer in layers:
            title = f"Layer {layer}: where each head looks"
            write(figures.plot_layer(attention[layer], labels, title), f"layer_{layer}")
    else:
        for layer in layers:
            title = f"Layer {layer}, head {head}: where each token looks"
            write(figures.plot_head(attention[layer, head], labels, title), f"layer_{layer}_head_{head}")
    try:
        page = attention_page(attention, labels)
    except ValueError as error:  # a long text in a large model: its heat maps are still worth having
        say(f"no attention.html: {error}")
        return files
    with atomic_file(out / "attention.html") as path:
        path.write_text(page, encoding="utf-8")
    return [*files, out / "attention.html"]


def run_attend(options: argparse.Namespace) -> None:
    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    config = model.config
    for name, value, limit in (("layer", options.layer, config.n_layer), ("head", options.head, config.n_head)):
        if value is not None and not 0 <= value < limit:
            raise ValueError(f"--{name} must be in 0..{limit - 1} for this model, got {value}")
    layers = range(config.n_layer) if options.layer is None else [options.layer]
    kinds = ("png", "svg")
    for path in draw_attention(model, tokenizer, options.text, options.out, list(layers), options.head, kinds):
        say(f"wrote {path}")


# --- train and evaluate


def make_tokenizer(name: str, text: str):
    """The tokenizer that --tokenizer names: char, gpt2, bpe:MERGES (learned from the text) or a saved file."""
    if name == "char":
        return CharTokenizer.from_text(text)
    if name == "gpt2":
        return gpt2_tokenizer()
    if name.startswith("bpe:") and name[4:].isdecimal():
        return BPETokenizer.train(text, int(name[4:]))
    if Path(name).is_file():
        return load_tokenizer(name)
    raise ValueError(f"--tokenizer must be char, gpt2, bpe:MERGES (such as bpe:1000) or a tokenizer.json, got {name!r}")


def vocabulary_size(tokenizer) -> int:
    return tokenizer.n_vocab if hasattr(tokenizer, "n_vocab") else tokenizer.vocab_size


def make_model(options: argparse.Namespace, vocab_size: int) -> GPT:
    """A new model of the preset's sizes, or the one that --init names, with what the options change."""
    own = ("context_size", "n_layer", "n_head", "n_embd", "dropout")
    changes = {name: getattr(options, name) for name in own if getattr(options, name) is not None}
    if options.init is None:
        return GPT(replace(getattr(GPTConfig, options.preset or "char")(), vocab_size=vocab_size, **changes))
    if changes.keys() - {"dropout"} or options.preset or options.tokenizer:
        raise ValueError("with --init the sizes and the tokenizer are those of that model; only --dropout can differ")
    start = load_pretrained(options.init)
    model = GPT(replace(start.config, **changes))
    model.load_state_dict(start.state_dict())
    return model


def run_train(options: argparse.Namespace) -> None:
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
        say(f"Stopped early. Nothing is lost: the same command with --resume goes on from {options.out}")
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
    figures.save(figures.plot_training(history.train, history.validation), options.out / "curve.png")
    say(f"best model: {scores(score)}\nwrote {best} (use it with --model {best}) and {options.out / 'curve.png'}")


def held_out_score(model: GPT, corpus: Corpus) -> Evaluation:
    """The whole validation split. Its first token is only read, so its characters are not counted."""
    first = corpus.tokenizer.decode(corpus.validation[:1].tolist())
    return evaluate(model, corpus.validation, corpus.validation_characters - len(first))


def scores(score: Evaluation) -> str:
    return (
        f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_character:.3f} bits per character"
    )


def run_evaluate(options: argparse.Namespace) -> None:
    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    corpus = Corpus.from_text(load_text(options.text), tokenizer)
    model.to(pick_device(options.device))
    say(f"last tenth of {options.text}: {scores(held_out_score(model, corpus))}")


# --- stats, data, download


def run_stats(options: argparse.Namespace) -> None:
    config = getattr(GPTConfig, options.preset)()
    context = config.context_size if options.context is None else options.context
    total, memory = parameter_count(config), memory_table(config, options.batch_size, context)
    say(f"{options.preset}: {asdict(config)}\n")
    for name, count in parameters_by_component(config).items():
        say(f"  {name:<24}{count:>16,}  {count / total:6.1%}")
    say(f"  {'parameters':<24}{total:>16,}\n")
    say(f"FLOPs per token at context {context}: {flops_per_token(config, context):,} forward, "
        f"{flops_per_token(config, context, training=True):,} in training\n")  # fmt: skip
    say(f"Memory in float32, batch {options.batch_size}, context {context}, without dropout:")
    for name, size in memory.items():
        say(f"  {name:<24}{size / 2**20:>12,.1f} MiB")


def run_data(options: argparse.Namespace) -> None:
    if options.name == PYTHON_DOCS:
        say(f"{PYTHON_DOCS} ships inside Python and needs no download: {len(load_text(PYTHON_DOCS)):,} characters")
    else:
        say(f"{fetch(options.name)}: SHA-256 as expected")


def run_download(options: argparse.Namespace) -> None:
    model = load_pretrained(options.name)
    say(f"{options.name}: {model.num_parameters():,} parameters, kept in the cache of huggingface_hub")


# --- tour


def run_tour(options: argparse.Namespace) -> None:
    """What the package does, in about two minutes, without a network."""
    heading("1. A model that has read Shakespeare goes on from your prompt")
    model, tokenizer = load_pretrained(BUNDLED), load_pretrained_tokenizer(BUNDLED)
    text = write_on(model, tokenizer, options.prompt, 400, options.seed, temperature=0.8, top_p=0.95)

    heading("2. Where it looked: attention of every layer and head over the first characters of that text")
    files = draw_attention(model, tokenizer, text[:24], options.out, list(range(model.config.n_layer)), None)
    say(f"{len(files) - 1} heat maps, and a page to point at, drawn from one forward pass")

    heading(f"3. A fresh model learns from the Python reference for about {options.seconds:g} seconds")
    text = load_text(PYTHON_DOCS)
    tokenizer = CharTokenizer.from_text(text)
    corpus = Corpus.from_text(text, tokenizer)
    torch.manual_seed(options.seed)
    config = GPTConfig(context_size=64, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=4, n_embd=128)
    model = GPT(config)
    loader = RandomWindows(corpus.train, config.context_size, 32, options.seed)
    say(f"{model.num_parameters():,} parameters, {len(corpus.train):,} characters to learn from")
    before = held_out_score(model, corpus)
    say(f"before: {scores(before)}")
    n_steps, history = steps_in(options.seconds, config), History()
    train(
        model,
        loader,
        n_steps,
        adamw(model, lr=3e-3),
        "cpu",
        max(1, n_steps // 50),
        schedule=lambda step: cosine_schedule(step, 3e-3, n_steps // 20, n_steps),
        validation=corpus.validation,
        eval_interval=max(1, n_steps // 5),
        history=history,
    )
    say(f"after {history.step} steps: {scores(held_out_score(model, corpus))}")
    files.append(figures.save(figures.plot_training(history.train, history.validation), options.out / "training.png"))
    say("a sample:")
    write_on(model, tokenizer, "The ", 300, options.seed, temperature=0.7)

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


# --- the parser


def at_least(lowest: int) -> Callable[[str], int]:
    """For argparse: an int that is not smaller."""

    def parse(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}")
        return int(text)

    parse.__name__ = "int"  # the word argparse uses for a text that is no number
    return parse


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gpt", description="GPT-2: train it, use it, look inside.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, run: Callable, help: str, *examples: str) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "\n".join(f"  python -m gpt {name} {example}" for example in examples)
        sub = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    def add_model(sub: argparse.ArgumentParser) -> None:
        names = ", ".join([BUNDLED, *RELEASED])
        sub.add_argument("--model", default=BUNDLED, help=f"{names} or a folder (default: {BUNDLED})")

    def add_device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", default="auto", help='"auto" (default), "cpu", "cuda", "mps"')

    sub = command("tour", run_tour, "what this is, in two minutes, without a network", "", '--prompt "JULIET:"')
    sub.add_argument("--prompt", default="ROMEO:", help="what the Shakespeare model goes on from")
    sub.add_argument("--seconds", type=float, default=60, help="how long the fresh model trains (default: 60)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, default=Path("figures/tour"), help="folder for the figures")

    sub = command("train", run_train, "train a model on a text", f"{PYTHON_DOCS} --steps 2000 --out runs/docs",
                  "my.txt --tokenizer bpe:1000 --preset tiny", "my.txt --init gpt2 --lr 1e-4 --steps 200",
                  "my.txt --out runs/mine --resume")  # fmt: skip
    sub.add_argument("text", help=f"{PYTHON_DOCS}, {', '.join(DOWNLOADS)} or a file; its last tenth is held out")
    sub.add_argument("--out", type=Path, default=Path("runs/model"), help="folder for checkpoints and the best model")
    sub.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    sub.add_argument("--init", metavar="MODEL", help="go on from this model and its tokenizer, not from random weights")
    sub.add_argument("--preset", choices=PRESETS, help="sizes of the model (default: char)")
    for name in ("context-size", "n-layer", "n-head", "n-embd"):
        sub.add_argument(f"--{name}", type=int, help="instead of the preset's")
    sub.add_argument("--dropout", type=float, help="instead of the preset's")
    sub.add_argument("--tokenizer", help="char (default), gpt2, bpe:MERGES or a saved tokenizer.json")
    sub.add_argument("--steps", type=int, default=3000, help="updates (default: 3000)")
    sub.add_argument("--batch-size", type=int, default=32, help="windows per micro-batch (default: 32)")
    sub.add_argument("--accumulation", type=int, default=1, help="micro-batches per update (default: 1)")
    sub.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    sub.add_argument("--min-lr", type=float, default=0.0, help="where the cosine ends (default: 0)")
    sub.add_argument("--warmup", type=at_least(0), default=100, help="updates of warm-up (default: 100)")
    sub.add_argument("--weight-decay", type=float, default=0.1)
    sub.add_argument("--beta2", type=float, default=0.99, help="AdamW's memory of squared gradients (default: 0.99)")
    sub.add_argument("--average", type=float, help="decay of a moving average of the weights, such as 0.998")
    sub.add_argument("--precision", choices=PRECISIONS, default="float32")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--log-interval", type=int, default=50)
    sub.add_argument("--eval-interval", type=int, default=250)
    sub.add_argument("--checkpoint-interval", type=int, default=500)
    add_device(sub)

    sub = command("evaluate", run_evaluate, "loss, perplexity and bits per character on the held-out tenth of a text",
                  "tinyshakespeare", "my.txt --model runs/mine/best")  # fmt: skip
    sub.add_argument("text", help=f"{PYTHON_DOCS}, {', '.join(DOWNLOADS)} or a file")
    add_model(sub)
    add_device(sub)

    sub = command("generate", run_generate, "continue a prompt", '--prompt "ROMEO:" --tokens 300',
                  '--model gpt2 --prompt "Hello, world" --top-k 40 --temperature 0.8')  # fmt: skip
    add_model(sub)
    sub.add_argument("--prompt", default="\n", help="what to go on from (default: a line break)")
    sub.add_argument("--tokens", type=int, default=200, help="how many tokens to add (default: 200)")
    sub.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    sub.add_argument("--top-k", type=int)
    sub.add_argument("--top-p", type=float)
    sub.add_argument("--samples", type=at_least(1), default=1)
    sub.add_argument("--seed", type=int, default=0)
    add_device(sub)

    sub = command("attend", run_attend, "draw the attention of a text: heat maps (PNG, SVG) and a page to point at",
                  '--text "To be, or not to be"',
                  '--text "To be, or not to be" --layer 1 --head 5 --out figures/mine')  # fmt: skip
    sub.add_argument("--text", required=True)
    add_model(sub)
    sub.add_argument("--layer", type=int, help="heat maps of one layer (default: all)")
    sub.add_argument("--head", type=int, help="one head, large (default: all heads of a layer in one figure)")
    sub.add_argument("--out", type=Path, default=Path("figures/attention"),
                     help="folder for the figures and attention.html, which any browser opens")  # fmt: skip

    sub = command("stats", run_stats, "parameters, FLOPs and memory of a size", "gpt2_small", "gpt2_xl --batch-size 8")
    sub.add_argument("preset", choices=PRESETS)
    sub.add_argument("--batch-size", type=at_least(1), default=1)
    sub.add_argument("--context", type=at_least(1), help="tokens per sequence (default: the model's context)")

    sub = command("data", run_data, "fetch a text and check it", "tinyshakespeare", "the-verdict")
    sub.add_argument("name", choices=[PYTHON_DOCS, *DOWNLOADS])

    sub = command("download", run_download, "fetch released GPT-2 weights", "gpt2", "gpt2-xl")
    sub.add_argument("name", choices=list(RELEASED))
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    options.command_line = shlex.join(["python", "-m", "gpt", *arguments])
    try:
        options.run(options)
    except BrokenPipeError:  # who reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"python -m gpt {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
