"""The tables of WORKED_EXAMPLE.md as LaTeX, for the hand-out worked_example.tex and worksheet.tex beside this file.

numbers.py writes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt import backward
from gpt.lessons import example
from gpt.lessons.paper import number

Arrays = dict[str, np.ndarray]
Table = tuple[str, np.ndarray, list[str], list[str]]  # corner, values [rows, columns], rows, columns
BLOCK = "blocks.0."
HEADS = BLOCK + "attention.heads."

# What rows and columns are called.
WORDS, VOCABULARY = ["the$_1$", "more", "the$_2$"], list(example.VOCABULARY)
FEATURES, ENTRIES = [f"f{i}" for i in range(4)], ["0a", "0b", "1a", "1b"]
KEYS = [f"{head}: {word}" for head in (0, 1) for word in WORDS]
POSITIONS, UNITS = [f"position {t}" for t in range(4)], [f"unit {i}" for i in range(16)]
FUSED = [f"{part} {entry}" for part in ("query", "key", "value") for entry in ENTRIES]
QKV = [f"{name} {entry}" for name in ("$Q$", "$K$", "$V$") for entry in ENTRIES]
NORM = ["$\\mu$", "$\\sigma^2$", "$\\rho$", *(f"$n$ {f}" for f in FEATURES)]
NORM_BACK = ["mean d$n$", "mean d$n \\odot n$", *(f"d$x$ {f}" for f in FEATURES)]


@dataclass(frozen=True)
class Pass:
    """One run of the worked example: its parameters, and everything that was computed from them."""

    params: Arrays
    value: Arrays
    gradient: Arrays

    @classmethod
    def of(cls, params: Arrays) -> Pass:
        _, _, cache = backward.gpt_forward(params, example.TOKENS, example.N_HEAD, example.TARGETS)
        return cls(params, backward.named(cache), backward.gpt_backward(cache, intermediates=True))

    def stepped(self) -> Pass:
        """The same after one step of AdamW."""
        gradients = {name: self.gradient[name] for name in self.params}
        return Pass.of(backward.adamw_step(self.params, gradients, **example.STEP)[0])


def tables() -> dict[str, str]:
    """The tables of WORKED_EXAMPLE.md, rounded as there, as LaTeX tabulars for the hand-out."""
    before = Pass.of(example.example_parameters())
    after = before.stepped()
    whole = {name: _tabular(*table, digits=0) for name, table in _embeddings(before.params).items()}
    halves = {name: _tabular(*table, digits=1) for name, table in _matrices(before.params).items()}
    return whole | halves | {name: _tabular(*table) for name, table in _computed(before, after).items()}


def blanks() -> dict[str, str]:
    """The computed ones for worksheet.tex: blanks to fill in, and the sum of each row to check them by."""
    before = Pass.of(example.example_parameters())
    return {f"blank.{name}": _blank(*table) for name, table in _computed(before, before.stepped()).items()}


def _computed(before: Pass, after: Pass) -> dict[str, Table]:
    return _forward(before.value) | _backward_to_attention(before) | _backward_to_words(before) | _new(after)


# --- each function gives name -> table, in the order of the hand-out


def _embeddings(params: Arrays) -> dict[str, Table]:
    return {
        "E": ("$E$", params["token_embedding.weight"], VOCABULARY, FEATURES),
        "P": ("$P$", params["position_embedding.weight"], POSITIONS, FEATURES),
    }


def _matrices(params: Arrays) -> dict[str, Table]:
    reads = [*(f"reads {f}" for f in FEATURES), "bias", *(f"writes {f}" for f in FEATURES)]
    return {
        "Wqkv": ("$W_{QKV}$", _with_bias(params, "attention.qkv"), FUSED, [*FEATURES, "bias"]),
        "WO": ("$W_O$", params[BLOCK + "attention.projection.weight"], FEATURES, ENTRIES),
        "units": ("", _units(params), UNITS, reads),
    }


def _forward(value: Arrays) -> dict[str, Table]:
    expanded = [value[BLOCK + name][0] for name in ("feed_forward.gelu.x", "feed_forward.project.x")]
    return {
        "x": ("$x$", value[BLOCK + "x"][0], WORDS, FEATURES),
        "n1": ("first norm", _norm(value, BLOCK + "attention_norm", BLOCK + "x"), WORDS, NORM),
        "qkv": ("", np.hstack([_side_by_side(value, name) for name in "qkv"]), WORDS, QKV),
        "S": ("$S$", _side_by_side(value, "scores"), WORDS, KEYS),
        "A": ("$A$", _seen(value, "weights"), WORDS, KEYS),
        "O": ("$O$", _side_by_side(value, "output"), WORDS, ENTRIES),
        "r": ("$r$", value[BLOCK + "residual"][0], WORDS, FEATURES),
        "n2": ("second norm", _norm(value, BLOCK + "feed_forward_norm", BLOCK + "residual"), WORDS, NORM),
        "h": ("", np.vstack(expanded).T, UNITS, [f"{name} {word}" for name in ("$h$", "GELU") for word in WORDS]),
        "x2": ("$x'$", value[BLOCK + "output"][0], WORDS, FEATURES),
        "n3": ("last norm", _norm(value, "final_norm", BLOCK + "output"), WORDS, NORM),
        "z": ("$z$", value["cross_entropy.logits"][0], WORDS, VOCABULARY),
        "p": ("$p$", value["cross_entropy.probabilities"][0], WORDS, VOCABULARY),
    }


def _backward_to_attention(run: Pass) -> dict[str, Table]:
    gradient = run.gradient
    d_a, d_h = (gradient[BLOCK + name][0] for name in ("feed_forward.project.x", "feed_forward.gelu.x"))
    slopes = [f"{name} {word}" for name in ("d$a$", "slope", "d$h$") for word in WORDS]
    weights = [*(f"d$W_1$ {f}" for f in FEATURES), "d$b_1$", *(f"d$W_2$ {f}" for f in FEATURES)]
    return {
        "dz": ("d$z$", gradient["cross_entropy.logits"][0], WORDS, VOCABULARY),
        "dn3": ("d$n$", gradient["head.x"][0], WORDS, FEATURES),
        "dEhead": ("d$E$, head", gradient["head.weight"], VOCABULARY, FEATURES),
        "dx2": ("last norm", _norm_back(run, "final_norm"), WORDS, NORM_BACK),
        "dh": ("", np.vstack([d_a, np.divide(d_h, d_a), d_h]).T, UNITS, slopes),
        "dW": ("", _units(gradient), UNITS, weights),
        "dn2": ("second norm", _norm_back(run, BLOCK + "feed_forward_norm"), WORDS, NORM_BACK),
        "dr": ("d$r$", gradient[BLOCK + "residual"][0], WORDS, FEATURES),
    }


def _backward_to_words(run: Pass) -> dict[str, Table]:
    gradient = run.gradient
    d_qkv = np.hstack([_side_by_side(gradient, name) for name in "qkv"])
    return {
        "dO": ("d$O$", _side_by_side(gradient, "output"), WORDS, ENTRIES),
        "dWO": ("d$W_O$", _with_bias(gradient, "attention.projection"), FEATURES, [*ENTRIES, "d$b_O$"]),
        "dA": ("d$A$", _side_by_side(gradient, "weights"), WORDS, KEYS),
        "dS": ("d$S$", _seen(gradient, "scores"), WORDS, KEYS),
        "dqkv": ("", d_qkv, WORDS, [f"d{column}" for column in QKV]),
        "dWqkv": ("d$W_{QKV}$", _with_bias(gradient, "attention.qkv"), FUSED, [*FEATURES, "d$b$"]),
        "dn1": ("first norm", _norm_back(run, BLOCK + "attention_norm"), WORDS, NORM_BACK),
        "dx": ("d$x$", gradient[BLOCK + "x"][0], WORDS, FEATURES),
        "dP": ("d$P$", gradient["position_embedding.weight"], POSITIONS, FEATURES),
        "dEin": ("d$E$, entrance", gradient["embed.weight"], VOCABULARY, FEATURES),
        "dE": ("d$E$", gradient["token_embedding.weight"], VOCABULARY, FEATURES),
    }


def _new(run: Pass) -> dict[str, Table]:
    return {
        "Enew": ("$E$, new", run.params["token_embedding.weight"], VOCABULARY, FEATURES),
        "pnew": ("$p$, new", run.value["cross_entropy.probabilities"][0], WORDS, VOCABULARY),
        "Anew": ("$A$, new", _seen(run.value, "weights"), WORDS, KEYS),
    }


# --- several arrays in one table


def _side_by_side(arrays: Arrays, name: str) -> np.ndarray:
    """What all heads have under this name: [T, heads * columns]."""
    return np.concatenate(list(arrays[HEADS + name][0]), axis=-1)


def _seen(arrays: Arrays, name: str) -> np.ndarray:
    """The same for scores or weights, where entries of the future become dots."""
    seen = np.tri(len(WORDS), dtype=bool)
    return np.concatenate(list(np.where(seen, arrays[HEADS + name][0], np.nan)), axis=-1)


def _with_bias(arrays: Arrays, name: str) -> np.ndarray:
    """A weight of the block and its bias, side by side."""
    return np.column_stack([arrays[f"{BLOCK}{name}.weight"], arrays[f"{BLOCK}{name}.bias"]])


def _units(arrays: Arrays) -> np.ndarray:
    """One row a hidden unit: what it reads, its bias, and what it writes."""
    written = arrays[BLOCK + "feed_forward.project.weight"].T
    return np.column_stack([_with_bias(arrays, "feed_forward.expand"), written])


def _norm(value: Arrays, name: str, x: str) -> np.ndarray:
    """Mean, variance, inverse deviation and result of a norm that read `x`."""
    mean, inverse_std, normalized = (value[f"{name}.{part}"][0] for part in ("mean", "inverse_std", "normalized"))
    return np.hstack([mean, value[x][0].var(axis=1, keepdims=True), inverse_std, normalized])


def _norm_back(run: Pass, name: str) -> np.ndarray:
    """The two means that a norm takes out of the gradient, and the gradient that comes through."""
    d_n, n = run.gradient[name + ".normalized"][0], run.value[name + ".normalized"][0]
    means = [d_n.mean(axis=1, keepdims=True), (d_n * n).mean(axis=1, keepdims=True)]
    return np.hstack([*means, run.gradient[name + ".x"][0]])


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


def _blank(corner: str, values: np.ndarray, rows: list[str], columns: list[str]) -> str:
    """A tabular with a line to write on for each entry. Three digits of a sum bear the rounding of its terms."""
    head = " & ".join([corner, *columns, r"$\Sigma$"])
    lines = [f"\\begin{{tabular}}[t]{{@{{}}l*{{{len(columns) + 1}}}{{r}}@{{}}}}\\toprule", head + r"\\\midrule"]
    for name, row in zip(rows, values, strict=True):
        cells = [r"$\cdot$" if np.isnan(entry) else r"\blank" for entry in row]
        lines.append(" & ".join([name, *cells, f"${number(np.nansum(row), 3)}$"]) + r"\\")
    return "\n".join([*lines, r"\bottomrule\end{tabular}"])
