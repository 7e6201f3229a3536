"""Calls with arguments that no one meant: each is answered, or refused by the package in its own words.

Hypothesis draws the values, since it knows where numbers break: nan, the smallest subnormal, 2**63, -0.0.
"""

from __future__ import annotations

import dis
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import gpt
from tests.faults import Tally
from tests.faults.files import command, make, patience

PACKAGE = str(Path(gpt.__file__).parent)
VOCAB = 19


def model() -> gpt.GPT:
    return gpt.GPT(gpt.GPTConfig(context_size=8, vocab_size=VOCAB, n_layer=1, n_head=2, n_embd=8)).eval()


MODEL = model()
IDS = torch.arange(12) % VOCAB

# Values by what they stand in for. Sizes stay small: memory that a size asks for is another test's matter.
ODD = st.sampled_from([None, True, "3", "", b"x", [1], {}, (2, 3), 1j, np.float32(0.5), torch.tensor(2), ..., math])
SIZE = st.integers(-1, 12) | st.floats() | ODD
NUMBER = st.floats() | st.integers() | ODD
WHOLE = st.integers(-5, 5) | st.integers() | st.floats() | ODD
TENSOR = ODD | st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.sampled_from([0, 1, 2, 4, 5, 8, 12]), max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
PROMPT = TENSOR | st.builds(
    lambda ids, batch: torch.tensor([ids] * batch),
    st.lists(st.integers(-2, VOCAB + 2) | st.sampled_from([2**31, 2**62]), max_size=12),
    st.integers(0, 3),
)
SAMPLING = dict(temperature=NUMBER, top_k=WHOLE, top_p=NUMBER, min_p=NUMBER)


@dataclass(frozen=True)
class Call:
    """A function, arguments that suit it, odd values for some of them, and what must be true of an answer."""

    name: str
    function: Callable[..., Any]
    right: dict[str, Any]
    odd: dict[str, st.SearchStrategy[Any]]
    holds: Callable[[Any], bool] = lambda answer: True


def finite(answer: Any) -> bool:
    return not isinstance(answer, Tensor) or not answer.is_floating_point() or bool(answer.isfinite().all())


def ids_of_the_vocabulary(answer: Tensor) -> bool:
    return answer.numel() == 0 or (int(answer.min()) >= 0 and int(answer.max()) < VOCAB)


def trained(**arguments: Any) -> Any:
    """Two updates of a new model, with some of the arguments replaced."""
    torch.manual_seed(0)
    fresh = model()
    right = dict(dataloader=gpt.RandomWindows(IDS, 4, 2), n_steps=2, optimizer=gpt.adamw(fresh), device="cpu")
    return gpt.train(fresh, **right | arguments)


def layer(make: Callable[..., Any], *sizes: int) -> Callable[..., Any]:
    return lambda **arguments: make(*sizes)(*arguments.values())


X3, X2 = torch.zeros(2, 5, 8), torch.zeros(5, 8)
CALLS = (
    Call("Sampling.probabilities", lambda logits, **rest: gpt.Sampling(**rest).probabilities(logits),
         {"logits": torch.arange(5.0)}, {**SAMPLING, "logits": TENSOR, "repetition_penalty": NUMBER}, finite),
    Call("generate", lambda **a: gpt.generate(MODEL, **a), {"tokens": IDS[None, :3], "max_new_tokens": 2},
         {"tokens": PROMPT, "max_new_tokens": st.integers(-5, 5) | st.floats() | ODD, **SAMPLING,
          "repetition_penalty": NUMBER, "eos_token": WHOLE, "generator": ODD}, ids_of_the_vocabulary),
    Call("stream", lambda **a: list(gpt.stream(MODEL, **a)), {"tokens": IDS[None, :3], "max_new_tokens": 1},
         {"tokens": PROMPT, **SAMPLING, "eos_token": WHOLE}),
    Call("GPT", MODEL.__call__, {"tokens": IDS[None, :8]}, {"tokens": PROMPT, "targets": PROMPT}),
    Call("GPT.new_cache", MODEL.new_cache, {"batch": 1}, {"batch": SIZE}),
    Call("GPTConfig", gpt.GPTConfig, {}, {"context_size": WHOLE, "vocab_size": WHOLE, "n_layer": WHOLE,
         "n_head": WHOLE, "n_embd": WHOLE, "dropout": NUMBER, "bias": ODD}),
    Call("evaluate", lambda **a: gpt.evaluate(MODEL, **a).loss, {"tokens": IDS},
         {"tokens": PROMPT, "characters": WHOLE, "batch_size": st.integers(-5, 50) | st.floats() | ODD}),
    Call("train", trained, {}, {"dataloader": ODD, "n_steps": st.integers(-3, 4) | st.floats() | ODD, "optimizer": ODD,
         "device": ODD, "log_interval": WHOLE, "schedule": ODD, "accumulation": st.integers(-3, 3) | st.floats() | ODD,
         "max_grad_norm": NUMBER, "precision": ODD, "average": NUMBER, "validation": PROMPT, "eval_interval": WHOLE,
         "checkpoint_interval": WHOLE, "history": ODD, "report": ODD, "resume": st.booleans()}),
    Call("adamw", lambda **a: gpt.adamw(**{"model": MODEL, **a}), {},
         {"model": ODD, "lr": NUMBER, "weight_decay": NUMBER, "betas": ODD | st.tuples(NUMBER, NUMBER)}),
    Call("cosine_schedule", gpt.cosine_schedule, {"step": 1, "peak": 1e-3, "warmup": 2, "total": 9},
         {"step": WHOLE, "peak": NUMBER, "warmup": WHOLE, "total": WHOLE, "floor": NUMBER}),
    Call("Corpus.from_text", gpt.Corpus.from_text, {"text": "the cat " * 9,
         "tokenizer": gpt.CharTokenizer.from_text("the cat")},
         {"text": st.text() | ODD, "tokenizer": ODD, "validation_fraction": NUMBER}),
    Call("RandomWindows", lambda **a: gpt.RandomWindows(**a).next_batch(),
         {"tokens": IDS, "context_size": 4, "batch_size": 2},
         {"tokens": PROMPT, "context_size": SIZE, "batch_size": SIZE, "seed": WHOLE, "vocab_size": WHOLE}),
    Call("CharTokenizer", lambda characters, text, ids: (
         gpt.CharTokenizer(characters).encode(text), gpt.CharTokenizer(characters).decode(ids)),
         {"characters": "abc", "text": "ab", "ids": [0, 2]},
         {"characters": st.text() | ODD, "text": st.text() | ODD, "ids": st.lists(WHOLE, max_size=4) | ODD}),
    Call("BPETokenizer", lambda text, ids: (BPE.encode(text), BPE.decode(ids)), {"text": "ab", "ids": [0, 2]},
         {"text": st.text() | ODD, "ids": st.lists(WHOLE, max_size=4) | ODD}),
    Call("scaled_dot_product_attention", gpt.scaled_dot_product_attention, {"query": X3, "key": X3, "value": X3},
         {"query": TENSOR, "key": TENSOR, "value": TENSOR, "mask": TENSOR, "dropout": NUMBER}),
    Call("SelfAttention", layer(gpt.SelfAttention, 8, 4), {"x": X3}, {"x": TENSOR}, ),
    Call("CausalAttention", layer(gpt.CausalAttention, 8, 4, 8), {"x": X3}, {"x": TENSOR}),
    Call("CausalSelfAttention", layer(gpt.CausalSelfAttention, 8, 2, 8), {"x": X3}, {"x": TENSOR}),
    Call("CausalSelfAttention, sizes", gpt.CausalSelfAttention, {"d_model": 8, "num_heads": 2, "max_seq_len": 8},
         {"d_model": SIZE, "num_heads": SIZE, "max_seq_len": SIZE, "dropout": NUMBER}),
    Call("MultiHeadAttention", lambda **a: gpt.MultiHeadAttention(8, 2)(**a), {"query": X3, "key": X3, "value": X3},
         {"query": TENSOR, "key": TENSOR, "value": TENSOR, "mask": TENSOR}),
    Call("MultiHeadAttention, sizes", gpt.MultiHeadAttention, {"d_model": 8, "num_heads": 2},
         {"d_model": SIZE, "num_heads": SIZE}),
    Call("Block", layer(gpt.Block, MODEL.config), {"x": X3}, {"x": TENSOR}),
    Call("LearnedPositionalEncoding", lambda **a: gpt.LearnedPositionalEncoding(8, 9)(**a), {"x": X2},
         {"x": TENSOR, "start": WHOLE}),
    Call("PositionalEncoding", lambda **a: gpt.PositionalEncoding(8, 9)(**a), {"x": X2}, {"x": TENSOR, "start": WHOLE}),
)  # fmt: skip
BPE = gpt.BPETokenizer.train("the cat sat on the mat", 5)


def one_or_two(odd: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for one or two of the arguments: with more, the first mistake hides the others."""
    names = st.lists(st.sampled_from(sorted(odd)), min_size=1, max_size=2, unique=True)
    return names.flatmap(lambda names: st.fixed_dictionaries({name: odd[name] for name in names}))


def quietly(tries: int) -> hypothesis.settings:
    """So many examples, none remembered and none simplified: failures are counted, not raised."""
    return hypothesis.settings(
        max_examples=tries, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip


def odd_calls(seed: int, tries: int, calls: tuple[Call, ...] = CALLS) -> Tally:
    """Each call with one or more of its arguments replaced."""
    tally = Tally()
    plans = st.sampled_from(calls).flatmap(lambda call: st.tuples(st.just(call), one_or_two(call.odd)))

    @quietly(tries)
    @hypothesis.seed(seed)
    @hypothesis.given(plans)
    def one(plan: tuple[Call, dict[str, Any]]) -> None:
        judge(*plan, tally)

    one()
    return tally


WORD = (
    st.integers(-2, 9).map(str)
    | st.integers().map(str)
    | st.text()
    | st.floats().map(str)
    | st.sampled_from(["", "-", "1e400", "9" * 5000, "\x1b[2J", *(str(2**k) for k in (31, 32, 63, 64, 70, 1024))])
)
FEW = st.integers(-1, 5).map(str) | st.floats().map(str) | st.sampled_from(["", "9" * 5000, "x", "0x10"])
OPTIONS = {
    "generate --model DIR/best --tokens 2 --prompt the": {
        "--tokens": FEW, "--temperature": WORD, "--top-k": WORD, "--top-p": WORD, "--min-p": WORD,
        "--repetition-penalty": WORD, "--samples": FEW, "--seed": WORD, "--device": WORD,
        "--prompt": WORD, "--model": WORD},
    "evaluate DIR/text.txt": {"--device": WORD, "--model": WORD},
    "tokenize the": {"--tokenizer": WORD},
    "stats tiny": {"--batch-size": WORD, "--context": WORD},
    "attend --model DIR/best --text no": {"--layer": WORD, "--head": WORD, "--text": WORD, "--model": WORD},
}  # fmt: skip


def odd_command_lines(seed: int, tries: int, folder: Path) -> Tally:
    """`python -m gpt` with odd values for its options: exit code 0, or 2 and one line."""
    tally = Tally()
    make(folder)
    plans = st.sampled_from(list(OPTIONS)).flatmap(lambda line: st.tuples(st.just(line), one_or_two(OPTIONS[line])))

    @quietly(tries)
    @hypothesis.seed(seed)
    @hypothesis.given(plans)
    def one(plan: tuple[str, dict[str, str]]) -> None:
        words = [*plan[0].split(), *(f"{name}={value}" for name, value in plan[1].items()), *OUT.get(plan[0], ())]
        try:
            with mock.patch.object(sys, "stdin", io.StringIO("the")), patience():
                command(*words)(folder)
        except ValueError:
            tally.good("refused in one line")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            tally.bad(f"{' '.join(words)[:200]}: {type(error).__name__}: {error}")
        else:
            tally.good("answered")

    one()
    return tally


OUT = {"attend --model DIR/best --text no": ("--out", "DIR/figures")}


def judge(call: Call, odd: dict[str, Any], tally: Tally) -> None:
    try:
        answer = call.function(**call.right | odd)
    except Exception as error:
        if isinstance(error, ValueError | TypeError) and in_our_words(error) and "\n" not in str(error):
            tally.good("refused in the package's words")
        else:
            tally.bad(f"{call.name}({said(odd)}): {type(error).__name__}: {error}")
    else:
        if call.holds(answer):
            tally.good("answered")
        else:
            tally.bad(f"{call.name}({said(odd)}): answered with nonsense")


def in_our_words(error: BaseException) -> bool:
    """Whether a `raise` of the package made it, and not an operation that failed there or in a library."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def said(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in arguments.items())


def _value(value: Any) -> str:
    if isinstance(value, Tensor) and value.dim():
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return repr(value)[:60]
