"""Concept 4, block: what happens to a token between two rounds of attention.

Norms, GELU, the feed-forward network, and the pre-norm block that adds to the residual stream. Judges: hand numbers,
Python's math, gpt.backward (NumPy), PyTorch's own layers. gpt/block.py; DEEP_THEORY_GUIDE.md, Part 4.
"""

import math

import pytest
import torch

from tests.comparing import close
from tests.models import random_block, small_config

F64 = torch.float64


def pull_like(output):
    """Fixed random weights: the sum of the weighted outputs is the number whose gradients are compared."""
    return torch.randn(output.shape, dtype=F64, generator=torch.Generator().manual_seed(99))


def values_and_gradients(function, *inputs):
    output = function(*inputs)
    return [output, *torch.autograd.grad((output * pull_like(output)).sum(), inputs)]


def assert_same(ours, theirs, tolerance):
    for our, their in zip(ours, theirs, strict=True):
        close(our, their, tolerance)


# Norms.


@pytest.mark.step("norm")
def test_layer_norm_divides_by_the_biased_deviation(gpt):
    # mean 1, variance (1 + 1 + 1 + 9) / 4 = 3; with eps = 1 inside the root the deviation is sqrt(3 + 1) = 2.
    # The unbiased variance is 4 and would give sqrt 5; eps outside the root sqrt(3) + 1.
    x = torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=F64)
    expected = torch.tensor([-0.5, -0.5, -0.5, 1.5], dtype=F64)
    close(gpt.LayerNorm(4, eps=1.0).to(F64)(x), expected)
    close(gpt.layer_norm(x, torch.ones(4), eps=1.0), expected)
    gain, shift = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64), torch.tensor([5.0, 6.0, 7.0, 8.0], dtype=F64)
    assert gpt.layer_norm(x, gain, shift, eps=1.0).tolist() == [4.5, 5.0, 5.5, 14.0]


@pytest.mark.step("norm")
def test_the_eps_of_gpt2_is_a_hundred_thousandth(gpt):
    # Scaled so that the variance is 1e-5 = eps: the output is half a root, 1 / sqrt 2, of what it would be without.
    x = math.sqrt(1e-5 / 3) * torch.tensor([-1.0, -1.0, -1.0, 3.0], dtype=F64)
    expected = torch.tensor([-1.0, -1.0, -1.0, 3.0], dtype=F64) / math.sqrt(6)
    close(gpt.LayerNorm(4).to(F64)(x), expected, 1e-14)  # measured: 2.2e-16
    close(gpt.layer_norm(x, torch.ones(4)), expected, 1e-14)


@pytest.mark.step("norm")
def test_a_new_layer_norm_leaves_mean_zero_and_variance_one(gpt):
    torch.manual_seed(0)
    norm = gpt.LayerNorm(64)
    close(norm.weight, torch.ones(64))
    close(norm.bias, torch.zeros(64))
    y = norm(5 + 3 * torch.randn(7, 64))
    close(y.mean(-1), torch.zeros(7), 1e-6)  # measured: 1.9e-7
    close(y.var(-1, unbiased=False), torch.ones(7), 1e-5)  # measured: 1.8e-6, most of it eps / 9


@pytest.mark.parametrize("n", [1, 2, 4, 48])
def test_the_equation_the_layer_pytorch_and_numpy_agree_on_layer_norm(gpt, n):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(2, 5, n, dtype=F64), torch.randn(n, dtype=F64), torch.randn(n, dtype=F64)
    ours, theirs = gpt.LayerNorm(n).to(F64), torch.nn.LayerNorm(n, dtype=F64)
    results = [values_and_gradients(gpt.layer_norm, x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())]
    for layer in (ours, theirs):
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        results.append(values_and_gradients(lambda x, *_, layer=layer: layer(x), x, layer.weight, layer.bias))
    expected, cache = gpt.backward.layer_norm_forward(*(t.detach().numpy() for t in (x, weight, bias)))
    gradients = gpt.backward.layer_norm_backward(pull_like(x).numpy(), cache)
    results.append([torch.tensor(t) for t in (expected, gradients["x"], gradients["weight"], gradients["bias"])])
    for result in results[1:]:
        assert_same(results[0], result, 1e-10)  # worst measured: 7.2e-13


@pytest.mark.step("norm")
def test_layer_norm_ignores_shift_and_scale(gpt):
    torch.manual_seed(2)
    norm, x = gpt.LayerNorm(16, eps=0.0).to(F64), torch.randn(3, 16, dtype=F64)
    torch.nn.init.normal_(norm.weight)
    close(norm(x + 100), norm(x), 1e-12)  # measured: 2.5e-14
    close(norm(100 * x), norm(x), 1e-12)  # measured: 4.4e-16
    close(norm(-x), -norm(x), 1e-12)


def test_rms_norm_ignores_scale_but_not_shift(gpt):
    torch.manual_seed(3)
    norm, x = gpt.RMSNorm(16, eps=0.0).to(F64), torch.randn(3, 16, dtype=F64)
    close(norm(100 * x), norm(x), 1e-12)  # measured: 2.2e-16
    assert (norm(x + 100) - norm(x)).abs().max() > 0.5


def test_rms_norm_divides_by_the_root_of_the_mean_square(gpt):
    # mean square (9 + 16 + 0 + 75) / 4 = 25 with the last entry sqrt 75; eps = 11 inside the root makes it 6.
    x = torch.tensor([3.0, -4.0, 0.0, math.sqrt(75)], dtype=F64)
    expected = x / 6
    close(gpt.RMSNorm(4, eps=11.0).to(F64)(x), expected, 1e-15)  # measured: 0
    close(gpt.rms_norm(x, torch.ones(4), eps=11.0), expected, 1e-15)


@pytest.mark.parametrize("n", [1, 4, 48])
def test_the_three_rms_norms_agree_in_value_and_in_every_gradient(gpt, n):
    torch.manual_seed(4)
    x, weight = torch.randn(2, 5, n, dtype=F64), torch.randn(n, dtype=F64)
    ours, theirs = gpt.RMSNorm(n).to(F64), torch.nn.RMSNorm(n, eps=1e-5, dtype=F64)
    results = [values_and_gradients(gpt.rms_norm, x.requires_grad_(), weight.requires_grad_())]
    for layer in (ours, theirs):
        with torch.no_grad():
            layer.weight.copy_(weight)
        results.append(values_and_gradients(lambda x, *_, layer=layer: layer(x), x, layer.weight))
    # worst measured: 8.9e-16
    assert_same(results[0], results[1], 1e-12)
    assert_same(results[0], results[2], 1e-12)


def test_on_centred_vectors_the_two_norms_are_one(gpt):
    torch.manual_seed(5)
    x = torch.randn(3, 16, dtype=F64)
    x = x - x.mean(-1, keepdim=True)
    close(gpt.LayerNorm(16).to(F64)(x), gpt.RMSNorm(16).to(F64)(x), 1e-14)  # measured: 2.2e-16


@pytest.mark.step("norm")
def test_a_layer_norm_without_bias_has_none(gpt):
    norm, x = gpt.LayerNorm(4, bias=False), torch.tensor([0.0, 0.0, 0.0, 4.0])
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    close(norm(x), gpt.LayerNorm(4)(x))


# GELU.


def tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x):
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.step("feed-forward")
def test_gpt2_uses_the_tanh_gelu(gpt):
    # At 2.70 the exact one is 4.7e-4 away; for weights that were trained with the tanh form that is an error.
    points = [-6.0, -2.7, -0.752, -1e-3, 0.0, 0.5, 1.0, 2.7, 6.0]
    x = torch.tensor(points, dtype=F64)
    expected = torch.tensor([tanh_gelu(p) for p in points], dtype=F64)
    close(gpt.GELU()(x), expected, 1e-14)  # measured: 0
    close(gpt.gelu(x), expected, 1e-14)
    layer = gpt.FeedForward(1, bias=False).to(F64)
    with torch.no_grad():  # four copies of x go in, and a quarter of their sum comes out
        layer.expand.weight.fill_(1.0)
        layer.project.weight.fill_(0.25)
    close(layer(x[:, None])[:, 0], expected, 1e-14)


def test_the_exact_gelu_is_x_times_the_normal_distribution_function(gpt):
    points = [-6.0, -2.7, -0.752, 0.0, 0.5, 2.7, 6.0]
    x = torch.tensor(points, dtype=F64)
    expected = torch.tensor([erf_gelu(p) for p in points], dtype=F64)
    close(gpt.GELU("none")(x), expected, 1e-14)  # measured: 1.6e-17
    close(gpt.gelu(x, "none"), expected, 1e-14)


def test_the_two_gelus_differ_most_at_2_70(gpt):
    x = torch.arange(-600, 601, dtype=F64) / 100
    gap = (gpt.GELU("tanh")(x) - gpt.GELU("none")(x)).abs()
    close(gap.max().item(), 4.73e-4, 0.005e-4)  # measured: 4.7316e-4
    close(abs(x[gap.argmax()].item()), 2.70, 0.011)
    close(gap, gap.flip(0), 1e-14)  # the gap is the same on both sides


def test_gelu_dips_below_zero_before_it_rises(gpt):
    x = torch.arange(-6000, 6001, dtype=F64) / 1000
    for form in ("tanh", "none"):
        y = gpt.GELU(form)(x)
        close(y.min().item(), -0.1700, 5e-5)  # measured: -0.17004 (tanh), -0.16997 (none)
        close(x[y.argmin()].item(), -0.752, 1.5e-3)
        close(y - y.flip(0), x, 1e-14)  # gelu(x) - gelu(-x) = x; measured: 8.9e-16


@pytest.mark.parametrize("form", ["tanh", "none"])
def test_the_three_gelus_agree_in_value_and_gradient(gpt, form):
    torch.manual_seed(6)
    x = (3 * torch.randn(1000, dtype=F64)).requires_grad_()
    results = [
        values_and_gradients(function, x)
        for function in (lambda x: gpt.gelu(x, form), gpt.GELU(form), torch.nn.GELU(approximate=form))
    ]
    # worst measured: 1.3e-15
    assert_same(results[0], results[1], 1e-13)
    assert_same(results[0], results[2], 1e-13)


def test_a_gelu_nobody_knows_is_an_error(gpt):
    for make in (lambda: gpt.gelu(torch.zeros(1), "sigmoid"), lambda: gpt.GELU("sigmoid")):
        with pytest.raises(ValueError, match=r"approximate.*tanh.*none.*sigmoid"):
            make()


# The feed-forward network and the block.


@pytest.mark.step("feed-forward")
def test_the_feed_forward_network_and_all_its_gradients_are_those_of_numpy(gpt):
    for bias in (True, False):
        torch.manual_seed(7)
        layer = gpt.FeedForward(6, bias).to(F64)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        x, pull = torch.randn(2, 2, 5, 6, dtype=F64)
        (layer(x.requires_grad_()) * pull).sum().backward()
        params = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        expected, cache = gpt.backward.feed_forward_forward(x.detach().numpy(), params)
        gradients = gpt.backward.named(gpt.backward.feed_forward_backward(pull.numpy(), cache))
        assert params["expand.weight"].shape == (24, 6)
        # worst measured: 3.4e-14
        close(layer(x), expected, 1e-12)
        close(x.grad, gradients["x"], 1e-12)
        for name, parameter in layer.named_parameters():
            close(parameter.grad, gradients[name], 1e-12)


@pytest.mark.step("feed-forward")
def test_the_feed_forward_network_takes_each_token_by_itself(gpt):
    torch.manual_seed(8)
    layer, x = gpt.FeedForward(6).to(F64), torch.randn(1, 5, 6, dtype=F64)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0]
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3, 4]].max() == 0
    for t in range(5):
        close(layer(x[:, t]), layer(x)[:, t], 1e-14)  # measured: 1.1e-16


@pytest.mark.step("block")
def test_a_block_normalizes_what_each_part_reads_and_adds_what_it_writes(gpt):
    # Pre-norm: the stream itself is never normalized.
    block, x = random_block(gpt), 4 + torch.randn(2, 7, 12, dtype=F64)
    stream = x + block.attention(gpt.layer_norm(x, block.attention_norm.weight, block.attention_norm.bias))
    norm = block.feed_forward_norm
    stream = stream + block.feed_forward(gpt.layer_norm(stream, norm.weight, norm.bias))
    close(block(x), stream, 1e-12)  # measured: 4.4e-15


@pytest.mark.step("block")
@pytest.mark.parametrize("bias", [True, False])
def test_a_block_and_all_its_gradients_are_those_of_numpy(gpt, bias):
    block = random_block(gpt, seed=1, bias=bias)
    x, pull = torch.randn(2, 2, 7, 12, dtype=F64)
    output = block(x.requires_grad_())
    (output * pull).sum().backward()
    params = {name: value.detach().numpy() for name, value in block.named_parameters()}
    expected, cache = gpt.backward.block_forward(x.detach().numpy(), params, 2)
    gradients = gpt.backward.named(gpt.backward.block_backward(pull.numpy(), cache))
    assert len(params) == (12 if bias else 6)
    # worst measured: 3.0e-14
    close(output, expected, 1e-12)
    close(x.grad, gradients["x"], 1e-12)
    for name, parameter in block.named_parameters():
        close(parameter.grad, gradients[name], 1e-12)


@pytest.mark.step("block")
def test_the_residual_path_hands_on_values_and_gradients_unchanged(gpt):
    # With nothing written to the stream, a stack of blocks is the identity, and so is its Jacobian, at any depth.
    blocks = [random_block(gpt, seed) for seed in range(6)]
    with torch.no_grad():
        for block in blocks:
            for writer in (block.attention.projection, block.feed_forward.project):
                writer.weight.zero_()
                writer.bias.zero_()
    x, pull = torch.randn(2, 1, 5, 12, dtype=F64)
    y = x.requires_grad_()
    for block in blocks:
        y = block(y)
    close(y, x)
    (gradient,) = torch.autograd.grad((y * pull).sum(), [x])
    close(gradient, pull)


@pytest.mark.step("block")
def test_a_block_never_looks_ahead(gpt):
    block, x = random_block(gpt, seed=2), torch.randn(2, 8, 12, dtype=F64)
    changed = x.clone()
    changed[:, 4:] = torch.randn(2, 4, 12, dtype=F64)
    close(block(x)[:, :4], block(changed)[:, :4])
    assert not torch.isclose(block(x)[:, 4:], block(changed)[:, 4:]).all(-1).any()


@pytest.mark.step("dropout")
def test_evaluation_has_no_dropout_and_training_has(gpt):
    block, x = random_block(gpt, seed=3, dropout=0.5), torch.randn(2, 7, 12, dtype=F64)
    without = gpt.Block(small_config(gpt)).to(F64)
    without.load_state_dict(block.state_dict())
    assert not torch.isclose(block(x), block(x)).all()
    torch.manual_seed(4)
    first = block(x)
    torch.manual_seed(4)
    close(block(x), first)
    block.eval()
    close(block(x), without(x), 1e-13)  # measured: 0


def test_both_writers_are_dropped_and_the_stream_is_not(gpt):
    # Weights of zero and biases of one: each part writes a 1 everywhere, which dropout makes 0 or 1 / (1 - p).
    p, n = 0.25, 400 * 8 * 12
    block = gpt.Block(small_config(gpt, dropout=p))
    with torch.no_grad():
        for writer in (block.attention.projection, block.feed_forward.project):
            writer.weight.zero_()
            writer.bias.fill_(1.0)
    torch.manual_seed(5)
    x = torch.randn(400, 8, 12)
    written = (1 - p) * (block(x) - x)
    close(written, written.round(), 1e-5)  # measured: 2.4e-7
    for kept, chance in ((0, p**2), (1, 2 * p * (1 - p)), (2, (1 - p) ** 2)):
        frequency = (written.round() == kept).double().mean()
        assert abs(frequency - chance) < 5 * math.sqrt(chance * (1 - chance) / n)  # 0.006; measured: 0.002
