"""gpt/support/precision.py: the faster number format, whatever the machine says it can do."""

import pytest
import torch

from gpt.support import precision
from tests.comparing import close


@pytest.fixture
def model(gpt):
    torch.manual_seed(3)
    return gpt.GPT(gpt.GPTConfig(context_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, dropout=0.1))


@pytest.mark.parametrize(
    ("narrow", "wide", "picked"), [(1.0, 2.0, "bfloat16"), (2.0, 1.0, "float32"), (1.0, 1.05, "float32")]
)
def test_the_faster_format_is_picked_if_it_is_worth_its_roundings(monkeypatch, model, narrow, wide, picked):
    first = {True: 100.0, False: 0.0}  # the first round warms up and does not count
    monkeypatch.setattr(precision, "_seconds", lambda _, format: first.pop(format, narrow if format else wide))
    assert precision.fastest_precision(model) == picked


def test_the_measurement_leaves_no_trace(model):
    state = torch.get_rng_state()
    assert precision.fastest_precision(model) in ("float32", "bfloat16")
    close(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_run_keeps_the_format_that_auto_picked(gpt, monkeypatch, model):
    monkeypatch.setattr(gpt.training, "fastest_precision", lambda _: "bfloat16")
    batches = gpt.RandomWindows(torch.arange(40) % 11, 8, 2)
    run = gpt.Run(model, batches, gpt.adamw(model), device="cpu", precision="auto")
    assert run.precision == run.settings["precision"] == "bfloat16"
    assert run.step() > 0
