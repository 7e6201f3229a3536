"""Concept 2, positions: attention sees a set; a vector per position turns it into a sequence.

gpt/positions.py; DEEP_THEORY_GUIDE.md, Part 2.
"""

import math

import pytest
import torch

from tests.comparing import close


def sinusoidal_table(gpt, max_len, d_model):
    """The vectors that PositionalEncoding adds, in float64."""
    return gpt.PositionalEncoding(d_model, max_len)(torch.zeros(1, max_len, d_model))[0].double()


def test_the_sinusoids_are_those_of_the_formula(gpt):
    d_model = 6
    table = sinusoidal_table(gpt, 5000, d_model)
    for position in (0, 1, 2, 3, 57, 1023, 4999):
        for i in range(d_model // 2):
            angle = position / 10000 ** (2 * i / d_model)
            # worst measured: 2.9e-8, half of float32's last digit; angles computed in float32 would be off by 1e-4
            close(table[position, 2 * i].item(), math.sin(angle), 6e-8)
            close(table[position, 2 * i + 1].item(), math.cos(angle), 6e-8)


def test_position_zero_is_zero_for_every_sine_and_one_for_every_cosine(gpt):
    assert sinusoidal_table(gpt, 1, 8)[0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]


def test_a_step_of_k_positions_is_a_rotation_wherever_it_starts(gpt):
    d_model, max_len = 8, 200
    table = sinusoidal_table(gpt, max_len, d_model)
    for k in (1, 7, 100):
        rotation = torch.zeros(d_model, d_model, dtype=torch.float64)
        for i in range(d_model // 2):
            # sin(a + b) = cos b sin a + sin b cos a;   cos(a + b) = -sin b sin a + cos b cos a
            b = k / 10000 ** (2 * i / d_model)
            pair = slice(2 * i, 2 * i + 2)
            rotation[pair, pair] = torch.tensor([[math.cos(b), math.sin(b)], [-math.sin(b), math.cos(b)]])
        # worst measured: 1.0e-7, the rounding of float32's table
        close(table[k:], table[:-k] @ rotation.T, 2e-7)


def test_the_dot_product_of_two_positions_depends_on_their_distance_alone(gpt):
    d_model = 16
    table = sinusoidal_table(gpt, 300, d_model)
    products = table @ table.T
    for k in (0, 1, 2, 50, 299):
        expected = sum(math.cos(k / 10000 ** (2 * i / d_model)) for i in range(d_model // 2))
        # worst measured: 2.6e-7
        close(products.diagonal(k), torch.full((300 - k,), expected, dtype=torch.float64), 1e-6)


def test_no_two_positions_are_alike(gpt):
    table = sinusoidal_table(gpt, 1024, 64)
    distances = torch.cdist(table, table) + 9 * torch.eye(1024)
    assert distances.min() > 0.5  # measured: 1.5


def test_sinusoids_are_added_and_not_learned(gpt):
    torch.manual_seed(0)
    encoding, x = gpt.PositionalEncoding(4, 10), torch.randn(2, 3, 4)
    close(encoding(x), x + sinusoidal_table(gpt, 10, 4)[:3].float())
    assert not list(encoding.parameters())
    assert not encoding.state_dict()  # it follows from its sizes


@pytest.mark.step("positions")
def test_learned_positions_are_rows_of_a_table(gpt):
    torch.manual_seed(1)
    encoding, x = gpt.LearnedPositionalEncoding(4, 10), torch.randn(2, 3, 4)
    assert encoding.weight.shape == (10, 4)
    close(encoding(x), x + encoding.weight[:3])


@pytest.mark.step("positions")
def test_a_learned_gradient_reaches_only_the_positions_that_were_used(gpt):
    torch.manual_seed(2)
    encoding, x, pull = gpt.LearnedPositionalEncoding(4, 10), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    (encoding(x, start=5) * pull).sum().backward()
    close(encoding.weight.grad[5:8], pull.sum(0))  # a row's gradient sums over the batch
    assert encoding.weight.grad[:5].eq(0).all()
    assert encoding.weight.grad[8:].eq(0).all()


@pytest.mark.parametrize("name", ["PositionalEncoding", "LearnedPositionalEncoding"])
def test_start_is_the_position_of_the_first_token(gpt, name):
    torch.manual_seed(3)
    encoding, x = getattr(gpt, name)(6, 10), torch.randn(2, 10, 6)
    whole = encoding(x)
    for start in range(10):
        close(encoding(x[:, start:], start), whole[:, start:])


def test_attention_without_positions_sees_a_set(gpt):
    torch.manual_seed(4)
    attention, x = gpt.SelfAttention(6, 5).double(), torch.randn(2, 7, 6, dtype=torch.float64)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    # measured: 2.2e-16
    close(attention(x[:, order]), attention(x)[:, order], 1e-14)


@pytest.mark.parametrize("name", ["PositionalEncoding", "LearnedPositionalEncoding"])
def test_attention_with_positions_sees_a_sequence(gpt, name):
    torch.manual_seed(4)
    attention, encoding, x = gpt.SelfAttention(6, 5), getattr(gpt, name)(6, 7), torch.randn(2, 7, 6)
    torch.nn.init.normal_(attention.query.weight)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    # measured: 1.1 for sinusoids, 0.04 for learned positions before any training
    assert (attention(encoding(x[:, order])) - attention(encoding(x))[:, order]).abs().max() > 5e-3


def test_an_odd_width_leaves_a_sine_without_its_cosine(gpt):
    with pytest.raises(ValueError, match=r"d_model.*even.*7"):
        gpt.PositionalEncoding(7, 10)


@pytest.mark.parametrize("name", ["PositionalEncoding", "LearnedPositionalEncoding"])
def test_a_sequence_that_does_not_fit_is_an_error(gpt, name):
    encoding = getattr(gpt, name)(6, 10)
    assert encoding(torch.zeros(1, 10, 6)).shape == (1, 10, 6)
    with pytest.raises(ValueError, match=r"11.*max_len=10"):
        encoding(torch.zeros(1, 11, 6))
    with pytest.raises(ValueError, match=r"11.*max_len=10"):
        encoding(torch.zeros(1, 2, 6), start=9)
    with pytest.raises(ValueError, match=r"x.*d_model=6.*\[1, 5, 1\]"):
        encoding(torch.zeros(1, 5, 1))  # a width of 1 would broadcast in silence
