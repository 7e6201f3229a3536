"""Which numbers are in the LaTeX documents?

None is typed there: this script asks the package and writes them, so that a diagram cannot disagree with the code.

    python -m docs.latex.numbers FOLDER

writes FOLDER/numbers.tex, and FOLDER/tables.tex with the tables of docs/latex/tables.py. `make diagrams` writes them
beside this file, where they are committed: so LaTeX alone builds every document. In a document,
`\\num{small.parameters}` is one number; a key that is not written here stops LaTeX with an error.
"""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path

import numpy as np
import torch

from docs.latex.tables import blanks, tables
from gpt import GPTConfig, backward, figures, scale, train
from gpt.lessons import example
from gpt.lessons.paper import number
from gpt.training import adamw, cosine_schedule

SIZES = ("small", "medium", "large", "xl")
COLOURS = ("BLUE", "ORANGE", "GREEN", "VERMILION", "SKY", "PURPLE", "INK", "QUIET", "PAPER", "FORBIDDEN")
PROMPT, NEW = 24, 1000  # the text whose work with and without a cache is compared


def sizes() -> dict[str, int]:
    """What a GPTConfig decides, for the four released sizes."""
    numbers = {}
    for name in SIZES:
        config = getattr(GPTConfig, f"gpt2_{name}")()
        parts, layers, d_model = scale.parameters_by_component(config), config.n_layer, config.n_embd
        final_norm = parts["norms"] // (2 * layers + 1)
        blocks = scale.parameter_count(config) - parts["token_embedding"] - parts["position_embedding"] - final_norm
        context = config.context_size
        numbers |= {f"{name}.{key}": value for key, value in {
            "V": config.vocab_size, "Tmax": context, "N": layers, "H": config.n_head, "d": d_model,
            "dhead": config.d_head, "dff": config.d_ff, "dqkv": 3 * d_model,
            "tokens": parts["token_embedding"], "positions": parts["position_embedding"], "norm": final_norm,
            "qkv": parts["attention.qkv"] // layers, "projection": parts["attention.projection"] // layers,
            "expand": parts["feed_forward.expand"] // layers, "project": parts["feed_forward.project"] // layers,
            "block": blocks // layers, "blocks": blocks, "parameters": scale.parameter_count(config),
            "forward": scale.flops_per_token(config, context),
            "training": scale.flops_per_token(config, context, training=True),
            "cache.MiB": scale.kv_cache_bytes(config, 1, context) // 2**20,
            "cache.token": scale.kv_cache_bytes(config, 1, 1),
        }.items()}  # fmt: skip
    return numbers


def constants() -> dict[str, str]:
    """What the package fixes: defaults of functions, formats of numbers, and two formulas at one place."""
    of_adamw, of_train = inspect.signature(adamw).parameters, inspect.signature(train).parameters
    betas, eps = of_adamw["betas"].default, torch.optim.AdamW([torch.zeros(1)]).defaults["eps"]
    without, with_cache = NEW * PROMPT + NEW * (NEW - 1) // 2, PROMPT + NEW - 1  # (8.9)
    half = torch.finfo(torch.float16)
    return {
        "adamw.beta1": f"{betas[0]:g}", "adamw.beta2": f"{betas[1]:g}", "adamw.rate": _power(of_adamw["lr"].default),
        "adamw.decay": f"{of_adamw['weight_decay'].default:g}", "adamw.eps": _power(eps),
        "clip": f"{of_train['max_grad_norm'].default:g}",
        "gelu.cubic": f"{backward.GELU_CUBIC:g}",
        "norm.eps": _power(inspect.signature(backward.layer_norm_forward).parameters["eps"].default),
        "ignored": str(backward.IGNORED),
        "half.max": f"{half.max:.0f}", "half.tiny": f"2^{{{round(math.log2(half.tiny))}}}",
        "prompt": str(PROMPT), "new": _thousands(NEW),
        "rows.without": _thousands(without), "rows.with": _thousands(with_cache),
    }  # fmt: skip


def curves() -> dict[str, str]:
    """The curves of the diagrams as lists of TikZ points, x and y from 0 to 1: the schedule, and GELU on -3 ... 3."""
    rates = [cosine_schedule(k, peak=1.0, warmup=12, total=100, floor=0.1) for k in range(101)]
    inputs = np.linspace(-3, 3, 49)
    gelu = backward.gelu_forward(inputs)[0]
    return {
        "curve.schedule": " ".join(f"({k / 100:.2f},{rate:.3f})" for k, rate in enumerate(rates)),
        "curve.gelu": " ".join(f"({(x + 3) / 6:.3f},{y / 3:.3f})" for x, y in zip(inputs, gelu, strict=True)),
    }


def worked_example() -> dict[str, str]:
    """The entries of the worked example that the diagrams show."""
    params = example.example_parameters()
    _, loss, cache = backward.gpt_forward(params, example.TOKENS, example.N_HEAD, example.TARGETS)
    value, gradients = backward.named(cache), backward.gpt_backward(cache)
    stepped, _ = backward.adamw_step(params, gradients, **example.STEP)
    new_loss = backward.gpt_forward(stepped, example.TOKENS, example.N_HEAD, example.TARGETS)[1]
    table, positions = params["token_embedding.weight"], params["position_embedding.weight"]
    scores, weights = (value[f"blocks.0.attention.heads.{name}"][0] for name in ("scores", "weights"))
    probabilities = value["cross_entropy.probabilities"][0]
    entries = {
        "example.loss": number(loss), "example.loss.new": number(new_loss),
        "example.parameters": str(sum(p.size for p in params.values())),
        "example.V": str(len(table)), "example.d": str(table.shape[1]), "example.T": str(example.TOKENS.shape[1]),
    }  # fmt: skip
    entries |= {f"step.{name.removeprefix('weight_')}": f"{value:g}" for name, value in example.STEP.items()}
    for name, array, digits in [
        ("E", table, 0), ("P", positions, 0), ("X", value["blocks.0.x"][0], 0), ("p", probabilities, 2),
        ("R", scores, 2), ("A", weights, 2),
    ]:  # fmt: skip
        entries |= {f"example.{name}.{_path(at)}": number(entry, digits) for at, entry in np.ndenumerate(array)}
    for name, array in [("p", probabilities), ("A", weights)]:  # in percent, for lengths of bars and depths of colour
        entries |= {f"percent.{name}.{_path(at)}": f"{100 * entry:.0f}" for at, entry in np.ndenumerate(array)}
    for kind, ids in [("in", example.TOKENS[0]), ("out", example.TARGETS[0])]:
        entries |= {f"example.{kind}.{t}": str(i) for t, i in enumerate(ids)}
        entries |= {f"word.{kind}.{t}": example.VOCABULARY[i] for t, i in enumerate(ids)}
    return entries | {f"word.{i}": word for i, word in enumerate(example.VOCABULARY)}


def _path(at: tuple[int, ...]) -> str:
    return ".".join(map(str, at))


def _thousands(value: int) -> str:
    return f"{value:,}".replace(",", "{,}")  # the braces keep a formula from adding a space


def _power(value: float) -> str:
    """1e-05 as 10^{-5}, 0.0003 as 3 \\cdot 10^{-4}."""
    factor, exponent = f"{value:e}".split("e")
    factor = f"{float(factor):g}"
    return (f"{factor} \\cdot " if factor != "1" else "") + f"10^{{{int(exponent)}}}"


def numbers() -> dict[str, str]:
    """Every key that a document may ask for, and what LaTeX gets for it."""
    of_sizes = {key: _thousands(value) for key, value in sizes().items()}
    return of_sizes | constants() | curves() | worked_example()


def main(folder: str) -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lines = ["% Written by docs/latex/numbers.py: do not edit."]
    lines += [f"\\definecolor{{{name.lower()}}}{{HTML}}{{{getattr(figures, name)[1:]}}}" for name in COLOURS]
    lines += [f"\\setnum{{{key}}}{{{value}}}" for key, value in numbers().items()]
    (path / "numbers.tex").write_text("\n".join(lines) + "\n")
    lines = [lines[0], *(f"\\settable{{{name}}}{{{text}}}" for name, text in (tables() | blanks()).items())]
    (path / "tables.tex").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
