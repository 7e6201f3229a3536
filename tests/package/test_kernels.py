"""Each kernel computes what its plain PyTorch call does, only faster: gpt/support/kernels.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.comparing import close
from tests.models import spread

F64 = torch.float64


# Linear


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (2, 1, 6), (3, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_one_vector_goes_through_a_linear_layer_as_many_do(gpt, shape, bias):
    torch.manual_seed(19)
    layer, x = gpt.kernels.Linear(6, 4, bias, dtype=F64), torch.randn(shape, dtype=F64)
    with torch.no_grad():  # a lone vector takes a faster way while no gradient is asked for
        close(layer(x), F.linear(x, layer.weight, layer.bias), 1e-14)  # worst measured: 1.1e-16
    layer(x).sum().backward()
    assert layer.weight.grad is not None


# Embedding


def test_the_gradient_of_a_lookup_is_dense_unless_another_is_promised(gpt):
    torch.manual_seed(20)
    table, ids = gpt.kernels.Embedding(7, 3, dtype=F64), torch.tensor([[1, 4, 1]])
    pull = torch.randn(1, 3, 3, dtype=F64)
    gradients = []
    for sparse in (False, True):
        table.weight.grad = None
        (table(ids, sparse) * pull).sum().backward()
        assert table.weight.grad.is_sparse == sparse
        gradients.append(table.weight.grad)
    close(gradients[1], gradients[0], 1e-15)
    expected = torch.zeros(7, 3, dtype=F64).index_add(0, ids[0], pull[0])
    close(gradients[0], expected, 1e-15)


# Dropout


def test_dropout_drops_a_fraction_p_and_keeps_the_mean(gpt):
    torch.manual_seed(13)
    n = 400_000
    for p in (0.1, 0.5, 0.9):
        dropped = gpt.kernels.drop(torch.full((n,), 3.0, dtype=F64), p)
        tossed = round(p * 65536) / 65536  # the chance that 16-bit coins can give
        sigma = math.sqrt(tossed * (1 - tossed) / n)
        zeros = dropped == 0
        close(dropped[~zeros] * (1 - tossed), torch.full((int((~zeros).sum()),), 3.0, dtype=F64), 1e-12)
        close(zeros.double().mean(), tossed, 5 * sigma)
        close(dropped.mean(), 3.0, 5 * 3 * sigma / (1 - tossed))
        for lane in range(4):  # four coins come from one draw: each is fair, and neighbours are strangers
            close(zeros[lane::4].double().mean(), tossed, 5 * 2 * sigma)
        both = (zeros[1:] & zeros[:-1]).double().mean()
        close(both, tossed**2, 5 * math.sqrt(tossed**2 * (1 - tossed) * (1 + 3 * tossed) / n))


def test_the_mean_of_dropout_is_exact(gpt):
    """Over all 65536 coins, each once: what is kept, times its scale, adds up to what went in."""
    for p in (0.1, 0.3, 1 / 65536, 0.999):
        dropped = round(p * 65536)
        torch.manual_seed(21)
        kept = gpt.kernels.drop(torch.ones(4096, dtype=F64), p)
        scale = kept.max().item()
        assert (65536 - dropped) * scale == pytest.approx(65536, abs=1e-9)


def test_the_rarest_coins_are_counted_right(gpt):
    # At p = 1/65536 a single one of the 65536 coins drops, at 1 - 1/65536 all but one. An off-by-one at the threshold
    # would double that or make it nothing. n = 2^22 tosses: 64 expected, with a standard deviation of 8.
    torch.manual_seed(14)
    ones = torch.ones(2**22)
    rare = (gpt.kernels.drop(ones, 1 / 65536) == 0).sum().item()
    assert 24 <= rare <= 104  # 5 sigma; measured: 64
    kept = gpt.kernels.drop(ones, 1 - 1 / 65536)
    assert 24 <= kept.count_nonzero().item() <= 104  # measured: 64
    rarer_still = gpt.kernels.drop(ones, 1 - 2.0**-20)  # beyond what 16 bits tell apart: the rarest they can
    assert rarer_still.count_nonzero().item() <= 104
    assert kept.max() == 65536


def test_dropout_with_probability_zero_changes_nothing(gpt):
    x = torch.randn(5, 3)
    close(gpt.kernels.drop(x, 0.0), x)


@pytest.mark.parametrize(("p", "error"), [(1.0, ValueError), (-0.1, ValueError), (2, ValueError), ("half", TypeError)])
def test_a_probability_that_is_none_is_an_error(gpt, p, error):
    with pytest.raises(error, match="p must be"):
        gpt.kernels.drop(torch.ones(3), p)
    with pytest.raises(error, match="p must be"):
        gpt.kernels.Dropout(p)


def test_the_gradient_of_dropout_passes_where_the_value_did(gpt):
    torch.manual_seed(15)
    x, pull = torch.randn(7, 11, dtype=F64, requires_grad=True), torch.randn(7, 11, dtype=F64)
    output = gpt.kernels.drop(x, 0.3)
    output.backward(pull)
    scale = (output / x).detach()
    assert set(scale.eq(0).flatten().tolist()) == {True, False}
    close(x.grad, scale * pull, 1e-14)  # measured: 4.4e-16


def test_dropout_repeats_with_its_seed(gpt):
    x = torch.randn(10, 10)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(gpt.kernels.drop(x, 0.5))
    close(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 0, 2), (3, 5, 7), (4, 4)], ids=str)
def test_dropout_takes_any_shape_and_keeps_the_type(gpt, dtype, shape):
    torch.manual_seed(16)
    output = gpt.kernels.drop(torch.full(shape, 3.0, dtype=dtype), 0.5)
    assert (output.shape, output.dtype) == (shape, dtype)
    assert ((output == 0) | (output == 6)).all()


def test_dropout_reads_a_transposed_tensor_in_its_own_order(gpt):
    torch.manual_seed(17)
    x = torch.randn(6, 9).T
    output = gpt.kernels.drop(x, 0.5)
    close(output, torch.where(output == 0, 0.0, 2 * x))


def test_dropout_works_where_another_device_is_the_default(gpt):
    with torch.device("meta"):
        assert gpt.kernels.drop(torch.ones(5, device="cpu"), 0.5).device.type == "cpu"


# Attention


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (9, 9), (4, 9), (130, 150)])
def test_the_fused_attention_is_the_equation_with_a_causal_mask(gpt, queries, keys):
    torch.manual_seed(22)
    parts = [torch.randn(2, 3, n, 5, dtype=F64, requires_grad=True) for n in (queries, keys, keys)]
    pull = torch.randn(2, 3, queries, 5, dtype=F64)
    mask = gpt.causal_mask(queries, keys)
    results = []
    for output in (gpt.kernels.fused_causal_attention(*parts), gpt.scaled_dot_product_attention(*parts, mask)[0]):
        results.append([output, *torch.autograd.grad((output * pull).sum(), parts)])
    for fused, readable in zip(*results, strict=True):
        close(fused, readable, 1e-12)  # worst measured: 3e-15


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (9, 9), (70, 70), (70, 100)])
def test_attention_in_slices_sees_what_the_whole_sees(gpt, monkeypatch, queries, keys):
    """With dropout a CPU works in slices; where nothing is dropped they are the equation, in value and gradient."""
    monkeypatch.setattr(gpt.kernels, "drop", lambda x, p: x)
    torch.manual_seed(23)
    parts = [torch.randn(2, 3, n, 5, dtype=F64, requires_grad=True) for n in (queries, keys, keys)]
    pull = torch.randn(2, 3, queries, 5, dtype=F64)
    sliced = gpt.kernels.fused_causal_attention(*parts, dropout=0.5)
    whole = gpt.scaled_dot_product_attention(*parts, gpt.causal_mask(queries, keys))[0]
    close(sliced, whole, 1e-12)
    gradients = [torch.autograd.grad((output * pull).sum(), parts) for output in (sliced, whole)]
    for one, other in zip(*gradients, strict=True):
        close(one, other, 1e-12)


def test_dropout_of_attention_keeps_the_mean(gpt):
    torch.manual_seed(24)
    q, k, v = torch.randn(3, 1, 1, 6, 4, dtype=F64)
    whole = gpt.kernels.fused_causal_attention(q, k, v)
    draws = torch.stack([gpt.kernels.fused_causal_attention(q, k, v, 0.3) for _ in range(4000)])
    sigma = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - whole).abs() < 5 * sigma + 1e-12).all()
    assert sigma.min() > 0


@pytest.mark.parametrize("name", ["Linear", "Embedding"])
def test_a_kernel_layer_is_saved_and_loaded_as_pytorchs(gpt, name):
    own, plain = (spread(getattr(module, name)(5, 3)) for module in (gpt.kernels, torch.nn))
    own.load_state_dict(plain.state_dict())
    assert isinstance(own, getattr(torch.nn, name))
    x = torch.tensor([1, 3]) if name == "Embedding" else torch.randn(2, 5)
    close(own(x), plain(x))
