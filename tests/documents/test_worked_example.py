"""The worked example: the model on paper is a real GPT-2, and it errs and learns as the guide says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.comparing import close

GUIDE = Path(__file__).parents[2] / "WORKED_EXAMPLE.md"


@pytest.fixture
def passed(gpt):
    """Parameters, logits, loss and gradients of the example, by NumPy."""
    example, backward = gpt.example, gpt.backward
    params = example.example_parameters()
    logits, loss, cache = backward.gpt_forward(params, example.TOKENS, example.N_HEAD, example.TARGETS)
    return params, logits, loss, backward.gpt_backward(cache)


def words(gpt, logits: np.ndarray) -> list[str]:
    """The first choice at each position."""
    return [gpt.example.VOCABULARY[i] for i in logits[0].argmax(axis=-1)]


def test_the_model_of_the_package_gives_the_numbers_on_paper(gpt, passed):
    params, logits, loss, gradients = passed
    model = gpt.example.example_model()
    torch_logits, torch_loss = model(torch.from_numpy(gpt.example.TOKENS), torch.from_numpy(gpt.example.TARGETS))
    torch_loss.backward()
    assert list(params) == list(model.state_dict())
    close(torch_logits.detach().numpy(), logits, 1e-10)  # measured: 9e-16
    close(torch_loss.item(), loss, 1e-10)
    for name, parameter in model.named_parameters():
        close(parameter.grad, gradients[name], 1e-10, name)


def test_every_weight_is_a_small_integer_or_a_half(gpt):
    for name, values in gpt.example.example_parameters().items():
        assert np.isin(values, [-1, -0.5, 0, 0.5, 1]).all(), name


def test_the_parameters_are_fresh_on_each_call(gpt):
    gpt.example.example_parameters()["final_norm.weight"][:] = 7
    close(gpt.example.example_parameters()["final_norm.weight"], np.ones(4))


def test_one_step_teaches_the_second_the_to_say_merrier(gpt, passed):
    params, logits, loss, gradients = passed
    stepped, _ = gpt.backward.adamw_step(params, gradients, lr=0.02, weight_decay=0.1)
    new_logits, new_loss, _ = gpt.backward.gpt_forward(
        stepped, gpt.example.TOKENS, gpt.example.N_HEAD, gpt.example.TARGETS
    )
    assert words(gpt, logits) == ["more", "more", "better"]
    assert words(gpt, new_logits) == ["more", "more", "merrier"]
    assert new_loss < loss - 0.25  # 1.1718 to 0.8949


def test_the_second_the_tells_more_from_fewer(gpt):
    """Without the look back the two proverbs would end alike."""
    example = gpt.example
    the, fewer = example.VOCABULARY.index("the"), example.VOCABULARY.index("fewer")
    more_logits, _, _ = gpt.backward.gpt_forward(example.example_parameters(), example.TOKENS, example.N_HEAD)
    fewer_logits, _, _ = gpt.backward.gpt_forward(
        example.example_parameters(), np.array([[the, fewer, the]]), example.N_HEAD
    )
    close(more_logits[0, 0], fewer_logits[0, 0])
    assert np.abs(more_logits[0, 2] - fewer_logits[0, 2]).max() > 0.1


def test_the_map_names_tables_that_stand_in_their_sections():
    text = GUIDE.read_text("utf-8")
    drawn = re.search(r"\*\*The map\.\*\*.*?```\n(.*?)```", text, re.S)[1]
    sections = dict(re.findall(r"^### (\d+)\. (.*?)(?=^##)", text + "\n##", re.M | re.S))
    edges = re.findall(r"(?<![\w.])(\d+) ((?:[^\W\d][^ ,.\n]*(?:, )?)+)", drawn)
    names = [(number, name) for number, listed in edges for name in re.split(", ?", listed) if name]
    assert len(names) > 35
    for number, name in names:
        tables = [line for line in sections[number].splitlines() if line.startswith("|")]
        words = {word for line in tables for word in re.split(r"[ ,|*]+", line)}
        assert name in words, f"section {number} has no table {name}"
    tags = re.findall(r"\((W\.\d+)\)", drawn)
    assert set(tags) <= set(re.findall(r"\\tag\{(.*?)\}", text))
    for tag, number in re.findall(r"\((W\.\d+)\) +(\d+) ", drawn):
        assert tag in sections[number], f"section {number} does not use ({tag})"
