"""The numbers that define a GPT-2: presets, and a named error for every value that no model can have.

gpt/config.py; DEEP_THEORY_GUIDE.md, Part 5.
"""

import dataclasses

import pytest
import torch

RELEASED = [
    # preset, n_layer, n_head, n_embd, parameters with the tied table counted once
    ("gpt2_small", 12, 12, 768, 124_439_808),
    ("gpt2_medium", 24, 16, 1024, 354_823_168),
    ("gpt2_large", 36, 20, 1280, 774_030_080),
    ("gpt2_xl", 48, 25, 1600, 1_557_611_200),
]


@pytest.mark.parametrize(("preset", "n_layer", "n_head", "n_embd", "parameters"), RELEASED)
def test_the_four_released_sizes_have_the_released_number_of_parameters(
    gpt, preset, n_layer, n_head, n_embd, parameters
):
    config = getattr(gpt.GPTConfig, preset)()
    assert (config.n_layer, config.n_head, config.n_embd) == (n_layer, n_head, n_embd)
    assert (config.context_size, config.vocab_size, config.bias) == (1024, 50257, True)
    assert config.d_head == 64
    with torch.device("meta"):  # shapes without memory: the largest would take 6 GB
        assert gpt.GPT(config).num_parameters() == parameters


def test_the_default_is_the_small_released_model(gpt):
    assert gpt.GPTConfig() == gpt.GPTConfig.gpt2_small()
    assert gpt.GPTConfig().dropout == 0.0  # the released code has none


def test_tiny_has_about_a_hundred_thousand_parameters_in_its_blocks(gpt):
    config = gpt.GPTConfig.tiny()
    assert (config.n_layer, config.n_head, config.n_embd) == (2, 4, 64)
    blocks = gpt.GPT(config).blocks
    assert sum(p.numel() for p in blocks.parameters()) == 2 * (12 * 64**2 + 13 * 64) == 99_968


def test_char_is_the_compact_shakespeare_model(gpt):
    config = gpt.GPTConfig.char()
    assert dataclasses.asdict(config) == {
        "context_size": 128,
        "vocab_size": 65,
        "n_layer": 2,
        "n_head": 8,
        "n_embd": 256,
        "dropout": 0.1,
        "bias": True,
    }
    assert config.d_ff == 1024


def test_derived_widths(gpt):
    config = gpt.GPTConfig(n_embd=48, n_head=3)
    assert (config.d_head, config.d_ff) == (16, 192)


def test_a_config_cannot_be_changed(gpt):
    config = gpt.GPTConfig.tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3


@pytest.mark.parametrize("field", ["context_size", "vocab_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-12, ValueError, "at least 1, got -12"),
        (12.0, TypeError, r"int, got 12\.0"),
        ("12", TypeError, "int, got '12'"),
        (True, TypeError, "int, got True"),
        (None, TypeError, "int, got None"),
    ],
    ids=repr,
)
def test_a_size_must_be_a_positive_integer(gpt, field, value, error, message):
    with pytest.raises(error, match=f"{field}.*{message}"):
        gpt.GPTConfig(**{field: value})


def test_the_heads_must_share_the_width_out_evenly(gpt):
    with pytest.raises(ValueError, match=r"n_embd.*n_head.*768.*5"):
        gpt.GPTConfig(n_head=5)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_must_leave_something(gpt, dropout):
    with pytest.raises(ValueError, match=rf"dropout.*\[0, 1\).*got {dropout}"):
        gpt.GPTConfig(dropout=dropout)


@pytest.mark.parametrize("bias", [1, None, "yes"])
def test_bias_must_be_true_or_false(gpt, bias):
    with pytest.raises(TypeError, match=rf"bias.*got {bias!r}"):
        gpt.GPTConfig(bias=bias)


@pytest.mark.parametrize("dropout", ["0.1", None, True])
def test_dropout_must_be_a_number(gpt, dropout):
    with pytest.raises(TypeError, match=rf"dropout.*number.*got {dropout!r}"):
        gpt.GPTConfig(dropout=dropout)
