"""The tables of WORKED_EXAMPLE.md as LaTeX, for the hand-out worked_example.tex beside this file.

numbers.py writes them.
"""

from __future__ import annotations

import numpy as np

from gpt import backward
from gpt.lessons import example
from gpt.lessons.paper import number

STEP = {"lr": 0.02, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1}  # the step of AdamW in WORKED_EXAMPLE.md


def tables() -> dict[str, str]:
    """The tables of WORKED_EXAMPLE.md, rounded as there, as LaTeX tabulars for the hand-out."""
    params = example.example_parameters()
    _, _, cache = backward.gpt_forward(params, example.TOKENS, example.N_HEAD, example.TARGETS)
    value, gradient = backward.named(cache), backward.gpt_backward(cache, intermediates=True)
    own = {name: gradient[name] for name in params}
    stepped, _ = backward.adamw_step(params, own, **STEP)
    new = backward.named(backward.gpt_forward(stepped, example.TOKENS, example.N_HEAD, example.TARGETS)[2])
    block, heads = "blocks.0.", "blocks.0.attention.heads."
    words, vocabulary = ["the$_1$", "more", "the$_2$"], list(example.VOCABULARY)
    features, entries = [f"f{i}" for i in range(4)], ["0a", "0b", "1a", "1b"]
    keys = [f"{h}: {word}" for h in (0, 1) for word in words]
    positions, units = [f"position {t}" for t in range(4)], [f"unit {i}" for i in range(16)]
    fused = [f"{part} {entry}" for part in ("query", "key", "value") for entry in entries]

    def of(name: str, arrays: dict = value) -> np.ndarray:
        return arrays[block + name][0]

    def side_by_side(name: str, arrays: dict = value) -> np.ndarray:
        return np.concatenate(list(arrays[heads + name][0]), axis=-1)

    def seen(name: str, arrays: dict = value) -> np.ndarray:
        """Entries of the future become dots."""
        return np.concatenate(list(np.where(np.tri(3, dtype=bool), arrays[heads + name][0], np.nan)), axis=-1)

    def both(name: str, arrays: dict) -> np.ndarray:
        """A weight and its bias, side by side."""
        return np.column_stack([arrays[block + name + ".weight"], arrays[block + name + ".bias"]])

    def neurons(arrays: dict) -> np.ndarray:
        """One row a unit: what it reads, its bias, and what it writes."""
        project = arrays[block + "feed_forward.project.weight"]
        return np.column_stack([both("feed_forward.expand", arrays), project.T])

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        mean, r, n = (value[f"{name}.{part}"][0] for part in ("mean", "inverse_std", "normalized"))
        return np.hstack([mean, x.var(axis=1, keepdims=True), r, n])

    def norm_back(name: str) -> np.ndarray:
        """The two means that a norm takes out of the gradient, and the gradient that comes through."""
        dn, n = gradient[name + ".normalized"][0], value[name + ".normalized"][0]
        means = [dn.mean(axis=1, keepdims=True), (dn * n).mean(axis=1, keepdims=True)]
        return np.hstack([*means, gradient[name + ".x"][0]])

    statistics = ["$\\mu$", "$\\sigma^2$", "$\\rho$", *(f"$n$ f{i}" for i in range(4))]
    means = ["mean d$n$", "mean d$n \\odot n$", *(f"d$x$ f{i}" for i in range(4))]
    reads = [*(f"reads {f}" for f in features), "bias", *(f"writes {f}" for f in features)]
    halves = [f"{name} {word}" for name in ("$h$", "GELU") for word in words]
    slopes = [f"{name} {word}" for name in ("d$a$", "slope", "d$h$") for word in words]
    weights = [*(f"d$W_1$ {f}" for f in features), "d$b_1$", *(f"d$W_2$ {f}" for f in features)]
    h, a = of("feed_forward.gelu.x"), of("feed_forward.project.x")
    da, dh = of("feed_forward.project.x", gradient), of("feed_forward.gelu.x", gradient)
    dqkv = np.hstack([side_by_side(name, gradient) for name in "qkv"])
    qkv_columns = [f"${name}$ {entry}" for name in "QKV" for entry in entries]
    dqkv_columns = [f"d${name}$ {entry}" for name in "QKV" for entry in entries]
    logits, probabilities = value["cross_entropy.logits"][0], value["cross_entropy.probabilities"][0]
    table = "token_embedding.weight"
    return {name: _tabular(*parts) for name, parts in {
        "E": ("$E$", params[table], vocabulary, features, 0),
        "P": ("$P$", params["position_embedding.weight"], positions, features, 0),
        "Wqkv": ("$W_{QKV}$", both("attention.qkv", params), fused, [*features, "bias"], 1),
        "WO": ("$W_O$", params[block + "attention.projection.weight"], features, entries, 1),
        "units": ("", neurons(params), units, reads, 1),
        "x": ("$x$", of("x"), words, features),
        "n1": ("first norm", norm(block + "attention_norm", of("x")), words, statistics),
        "qkv": ("", np.hstack([side_by_side(name) for name in "qkv"]), words, qkv_columns),
        "S": ("$S$", side_by_side("scores"), words, keys),
        "A": ("$A$", seen("weights"), words, keys),
        "O": ("$O$", side_by_side("output"), words, entries),
        "r": ("$r$", of("residual"), words, features),
        "n2": ("second norm", norm(block + "feed_forward_norm", of("residual")), words, statistics),
        "h": ("", np.vstack([h, a]).T, units, halves),
        "x2": ("$x'$", of("output"), words, features),
        "n3": ("last norm", norm("final_norm", of("output")), words, statistics),
        "z": ("$z$", logits, words, vocabulary),
        "p": ("$p$", probabilities, words, vocabulary),
        "dz": ("d$z$", gradient["cross_entropy.logits"][0], words, vocabulary),
        "dn3": ("d$n$", gradient["head.x"][0], words, features),
        "dEhead": ("d$E$, head", gradient["head.weight"], vocabulary, features),
        "dx2": ("last norm", norm_back("final_norm"), words, means),
        "dh": ("", np.vstack([da, np.divide(dh, da), dh]).T, units, slopes),
        "dW": ("", neurons(gradient), units, weights),
        "dn2": ("second norm", norm_back(block + "feed_forward_norm"), words, means),
        "dr": ("d$r$", of("residual", gradient), words, features),
        "dO": ("d$O$", side_by_side("output", gradient), words, entries),
        "dWO": ("d$W_O$", both("attention.projection", gradient), features, [*entries, "d$b_O$"]),
        "dA": ("d$A$", side_by_side("weights", gradient), words, keys),
        "dS": ("d$S$", seen("scores", gradient), words, keys),
        "dqkv": ("", dqkv, words, dqkv_columns),
        "dWqkv": ("d$W_{QKV}$", both("attention.qkv", gradient), fused, [*features, "d$b$"]),
        "dn1": ("first norm", norm_back(block + "attention_norm"), words, means),
        "dx": ("d$x$", of("x", gradient), words, features),
        "dP": ("d$P$", gradient["position_embedding.weight"], positions, features),
        "dEin": ("d$E$, entrance", gradient["embed.weight"], vocabulary, features),
        "dE": ("d$E$", gradient[table], vocabulary, features),
        "Enew": ("$E$, new", stepped[table], vocabulary, features),
        "pnew": ("$p$, new", new["cross_entropy.probabilities"][0], words, vocabulary),
        "Anew": ("$A$, new", seen("weights", new), words, keys),
    }.items()}  # fmt: skip


def _tabular(corner: str, values: np.ndarray, rows: list[str], columns: list[str], digits: int = 4) -> str:
    """A booktabs tabular. Columns of four digits are equally wide, unless a heading needs more room."""
    even = digits == 4 and max(map(len, columns)) < 12
    column = "w{r}{10.8mm}" if even else "r"
    head = " & ".join([corner, *columns])
    lines = [f"\\begin{{tabular}}[t]{{@{{}}l*{{{len(columns)}}}{{{column}}}@{{}}}}\\toprule", head + r"\\\midrule"]
    for name, row in zip(rows, values, strict=True):
        cells = [r"$\cdot$" if np.isnan(entry) else f"${number(entry, digits)}$" for entry in row]
        lines.append(" & ".join([name, *cells]) + r"\\")
    return "\n".join([*lines, r"\bottomrule\end{tabular}"])
