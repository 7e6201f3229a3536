"""Each kernel of gpt/support/kernels.py is the plain PyTorch call, or the equation, that it stands in for."""

import math
import platform

import pytest
import torch
import torch.nn.functional as F

from tests.comparing import close

F64 = torch.float64


# linear: a lone vector takes a faster way while no gradient is asked for.


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (2, 1, 6), (3, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_one_vector_goes_through_a_linear_layer_as_many_do(gpt, monkeypatch, shape, bias):
    monkeypatch.setattr(gpt.kernels, "TWICE_FROM", 1)
    torch.manual_seed(19)
    layer, x = gpt.kernels.Linear(6, 4, bias, dtype=F64), torch.randn(shape, dtype=F64)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        close(layer(x), expected, 1e-14)  # worst measured: 1.1e-16
    layer(x).sum().backward()
    close(layer.weight.grad, x.reshape(-1, 6).sum(0).expand(4, 6), 1e-14)


def test_under_autocast_one_vector_gets_the_narrow_type_and_its_bias(gpt, monkeypatch):
    monkeypatch.setattr(gpt.kernels, "TWICE_FROM", 1)
    torch.manual_seed(20)
    layer, x = gpt.kernels.Linear(6, 4), torch.randn(1, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        close(layer(x), F.linear(x, layer.weight, layer.bias), 2e-2)  # two roundings to 8 bits; same dtype


def test_another_type_than_the_weights_is_an_error(gpt):
    with pytest.raises(TypeError, match=r"x.*float32.*float64"):
        gpt.kernels.linear(torch.zeros(2, 6, dtype=F64), torch.zeros(4, 6))


def test_only_a_lone_vector_and_a_large_matrix_take_the_fast_way(gpt, monkeypatch):
    torch.manual_seed(21)
    large, small = gpt.kernels.Linear(512, 512), gpt.kernels.Linear(8, 8)
    plain = []
    monkeypatch.setattr(gpt.kernels.F, "linear", lambda x, *rest: plain.append(tuple(x.shape)) or x)
    with torch.no_grad():
        for layer, x in ((large, torch.zeros(1, 512)), (large, torch.zeros(2, 512)), (small, torch.zeros(1, 8))):
            layer(x)
    large(torch.zeros(1, 512))
    assert plain == [(2, 512), (1, 8), (1, 512)]


# Embedding: its gradient is sparse only where that was promised.


def test_the_gradient_of_a_lookup_is_dense_unless_promised_otherwise(gpt):
    ids, pull = torch.tensor([[3, 1, 3]]), torch.randn(1, 3, 4)
    gradients = []
    for sparse in (False, True):
        table = gpt.kernels.Embedding(5, 4)
        (table(ids, sparse) * pull).sum().backward()
        assert table.weight.grad.is_sparse == sparse
        gradients.append(table.weight.grad)
    close(*gradients, 1e-6)
    close(table(ids), F.embedding(ids, table.weight))


# drop: a coin is one of 65536 integers.


def tossed(p):
    """The chance that 16 bits can toss, next to p."""
    return min(round(p * 65536), 65535) / 65536


def test_dropout_drops_a_fraction_p_and_keeps_the_mean(gpt):
    torch.manual_seed(13)
    n = 400_000
    for p in (0.1, 0.5, 0.9):
        chance = tossed(p)
        dropped = gpt.kernels.drop(torch.full((n,), 3.0, dtype=F64), p)
        sigma = math.sqrt(chance * (1 - chance) / n)
        zeros = dropped == 0
        assert abs(zeros.double().mean() - chance) < 5 * sigma
        kept = dropped[~zeros]
        # Divided by the chance that was tossed, not by 1 - p: p = 0.1 would miss the mean by 7e-6.
        close(kept, torch.full_like(kept, 3 / (1 - chance)), 1e-13)
        assert abs(dropped.mean() - 3) < 5 * 3 * sigma / (1 - chance)
        for lane in range(4):  # four coins come from one draw: each is fair, and neighbours are strangers
            assert abs(zeros[lane::4].double().mean() - chance) < 5 * 2 * sigma
        both = (zeros[1:] & zeros[:-1]).double().mean()
        assert abs(both - chance**2) < 5 * math.sqrt(chance**2 * (1 - chance) * (1 + 3 * chance) / n)


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
    assert kept.max() == rarer_still.max() == 65536


def test_dropout_with_probability_zero_changes_nothing(gpt):
    x = torch.randn(5, 3)
    close(gpt.kernels.drop(x, 0.0), x)


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


def test_dropout_tosses_its_coins_where_its_input_is(gpt):
    with torch.device("meta"):  # another default device
        assert gpt.kernels.drop(torch.ones(8, device="cpu"), 0.5).device.type == "cpu"
    assert gpt.kernels.drop(torch.ones(8, device="meta"), 0.5).device.type == "meta"


@pytest.mark.parametrize(("p", "error"), [(1.0, ValueError), (-0.1, ValueError), ("0.1", TypeError), (True, TypeError)])
def test_a_chance_outside_zero_and_one_is_an_error(gpt, p, error):
    for call in (gpt.kernels.Dropout, lambda p: gpt.kernels.drop(torch.ones(2), p)):
        with pytest.raises(error, match=rf"p must be.*{p}"):
            call(p)


# fused_causal_attention: the equation, whichever form computes it.


@pytest.mark.parametrize("dropout", [0.0, 1e-13], ids=["fused", "in slices"])  # the second is too rare to drop anything
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9), (63, 63), (64, 64), (65, 65), (150, 150), (70, 150)]
)
def test_fused_attention_is_the_equation_in_value_and_gradient(gpt, queries, keys, dropout):
    torch.manual_seed(21)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=F64, requires_grad=True) for n in (queries, keys, keys))
    pull = torch.randn(2, 3, queries, 4, dtype=F64)
    expected, _ = gpt.scaled_dot_product_attention(q, k, v, gpt.causal_mask(queries, keys))
    output = gpt.kernels.fused_causal_attention(q, k, v, dropout)
    close(output, expected, 1e-14)  # worst measured: 8.9e-16
    gradients = (torch.autograd.grad((result * pull).sum(), [q, k, v]) for result in (output, expected))
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(1, 200), (130, 200), (200, 200)])
def test_fused_attention_drops_weights_with_their_probability(gpt, queries, keys):
    # Zero queries weight all visible keys alike, and values of one count those that were kept.
    torch.manual_seed(22)
    p, heads = tossed(0.25), 100
    q, k, v = torch.zeros(1, heads, queries, 2), torch.zeros(1, heads, keys, 2), torch.ones(1, heads, keys, 2)
    kept = gpt.kernels.fused_causal_attention(q, k, v, 0.25)[0, :, -1, 0]
    assert abs(kept.mean() - 1) < 5 * math.sqrt(p / (1 - p) / (heads * keys))  # 0.020
    assert kept.unique().numel() > 5


def test_an_infinite_score_of_the_future_is_not_seen_in_any_form(gpt):
    q, v = torch.ones(1, 1, 3, 1), torch.tensor([1.0, 3.0, 100.0]).view(1, 1, 3, 1)
    k = torch.tensor([-1e30, -1e30, 1e30]).view(1, 1, 3, 1)
    for dropout in (0.0, 1e-13):
        output = gpt.kernels.fused_causal_attention(q, k, v, dropout)
        assert output.flatten().tolist() == [1.0, 2.0, 100.0]


@pytest.mark.parametrize("queries", [130, 260])
def test_attention_in_bfloat16_is_the_equation_up_to_its_roundings(gpt, queries):
    torch.manual_seed(23)
    q, k, v = (torch.randn(1, 2, n, 4, dtype=F64, requires_grad=True) for n in (queries, 260, 260))
    pull = torch.randn(1, 2, queries, 4, dtype=F64)
    expected, _ = gpt.scaled_dot_product_attention(q, k, v, gpt.causal_mask(queries, 260))
    output = gpt.kernels.fused_causal_attention(*(x.bfloat16() for x in (q, k, v)))
    assert output.dtype == torch.bfloat16
    close(output.double(), expected, 3e-2)
    gradients = (torch.autograd.grad((result * pull).sum(), [q, k, v]) for result in (output, expected))
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 6e-2)


# linear_cross_entropy: the loss without its logits.


@pytest.mark.parametrize("chunk", [1, 4, 9, 512])
def test_the_loss_in_chunks_is_cross_entropy_in_value_and_gradient(gpt, monkeypatch, chunk):
    monkeypatch.setattr(gpt.kernels, "CHUNK", chunk)
    torch.manual_seed(24)
    hidden, table = torch.randn(9, 5, dtype=F64, requires_grad=True), torch.randn(11, 5, dtype=F64, requires_grad=True)
    targets = torch.tensor([3, -100, 0, 10, 7, 7, -100, -100, 1])
    losses = [
        gpt.kernels.linear_cross_entropy(hidden, table, targets),
        F.cross_entropy(F.linear(hidden, table), targets),
        F.linear_cross_entropy(hidden, table, targets, options=torch.nn.LinearCrossEntropyOptions()),
    ]
    assert type(losses[0].grad_fn).__name__ == "_ChunkedLossBackward"
    ours, *theirs = [[loss, *torch.autograd.grad(3 * loss, [hidden, table])] for loss in losses]
    for other in theirs:
        for mine, its in zip(ours, other, strict=True):
            close(mine, its, 1e-14)


def test_the_loss_in_chunks_is_cross_entropy_under_autocast_up_to_its_roundings(gpt):
    torch.manual_seed(25)
    hidden, table = torch.randn(600, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(0, 40, (600,))
    exact = F.cross_entropy(F.linear(hidden, table), targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = gpt.kernels.linear_cross_entropy(hidden, table, targets)
    close(loss, exact, 2e-3)
    for mine, its in zip(*(torch.autograd.grad(each, [hidden, table]) for each in (loss, exact)), strict=True):
        close(mine, its, 1e-3)  # measured: 5e-4 of 0.07


@pytest.mark.parametrize(("tokens", "classes"), [(4, 11), (9, 5)], ids=["few tokens", "few classes"])
def test_a_small_loss_is_computed_whole(gpt, tokens, classes):
    hidden, table = torch.randn(tokens, 5, requires_grad=True), torch.randn(classes, 5)
    loss = gpt.kernels.linear_cross_entropy(hidden, table, torch.zeros(tokens, dtype=torch.long))
    assert type(loss.grad_fn).__name__ == "NllLossBackward0"


def test_a_model_trains_alike_with_and_without_its_logits(gpt):
    torch.manual_seed(26)
    model = gpt.GPT(gpt.GPTConfig(context_size=16, vocab_size=40, n_layer=1, n_head=2, n_embd=8)).double()
    tokens, targets = torch.randint(0, 40, (2, 2, 16))
    targets[0, :5] = -100
    logits, whole = model(tokens, targets)
    none, loss = model(tokens, targets, loss_only=True)
    assert logits is not None
    assert none is None
    close(loss, whole, 1e-14)
    for mine, its in zip(*(torch.autograd.grad(each, list(model.parameters())) for each in (loss, whole)), strict=True):
        close(mine, its, 1e-14)


# keep_freed_memory: the second time, the pages are there.


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switches are glibc's")
def test_memory_that_was_freed_comes_back_without_page_faults(gpt):
    import resource

    assert gpt.kernels.keep_freed_memory()
    for _ in range(20):  # the first few leave small pieces between them
        torch.ones(2**24)  # 64 MiB: 16,384 pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000


# narrow: weights of fewer bits.


def a_model(gpt):
    torch.manual_seed(27)
    return gpt.GPT(gpt.GPTConfig(context_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=32)).eval()


@pytest.mark.parametrize(("weights", "allowed"), [("float32", 0), ("bfloat16", 0.02), ("int8", 0.04)])
@pytest.mark.parametrize("length", [1, 16])
def test_a_model_with_narrow_weights_is_nearly_the_model(gpt, weights, allowed, length):
    model, tokens = a_model(gpt), torch.randint(0, 50, (2, length))
    with torch.no_grad():
        expected, loss = model(tokens, tokens)
        assert gpt.kernels.narrow(model, weights) is model
        logits, narrow_loss = model(tokens, tokens)
        cached = model.head(model.hidden(tokens, model.new_cache(2)))
    assert logits.dtype == torch.float32
    close(logits, expected, allowed * expected.abs().max().item())
    close(cached, logits, allowed * expected.abs().max().item())
    assert abs(narrow_loss - loss) <= allowed


def test_narrow_weights_take_the_bytes_that_their_name_says(gpt):
    for weights, width in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        layer = gpt.kernels.narrow(a_model(gpt), weights).blocks[0].feed_forward.expand
        assert layer.weight.element_size() == width
    with pytest.raises(ValueError, match=r"weights must be one of float32, bfloat16, int8, got 'int4'"):
        gpt.kernels.narrow(a_model(gpt), "int4")


@pytest.mark.parametrize("rows", [1, 16, 17])
def test_an_int8_layer_is_its_integers_times_their_scales(gpt, rows):
    torch.manual_seed(28)
    layer, x = gpt.kernels.Linear(32, 9), torch.randn(rows, 32)
    with torch.no_grad():
        layer.weight[3] = 0  # a row without a largest magnitude
        exact = layer.weight.clone()
        gpt.kernels.narrow(layer, "int8")
        widened = layer.weight * layer.scales
        close(widened, exact, exact.abs().max().item() / 200)  # half a step of 1/127, and a scale of 8 bits
        close(layer(x), F.linear(x, widened, layer.bias), 2e-2)
    assert not layer.weight.requires_grad


def test_narrow_rows_are_looked_up_as_wide_ones(gpt):
    table, ids = gpt.kernels.Embedding(7, 4), torch.tensor([[2, 6]])
    expected = table(ids).detach()
    gpt.kernels.narrow(table, "int8")
    close(table(ids), expected, expected.abs().max().item() / 100)


# FasterThreads: as many as are faster.


def test_steps_take_the_number_of_threads_that_has_been_faster_of_late(gpt, monkeypatch):
    now, cost = [0.0], {2: 1.0, 1: 1.5}
    monkeypatch.setattr(gpt.kernels.time, "perf_counter", lambda: now[0])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps = gpt.kernels.FasterThreads()

        def counts(n):
            taken = []
            for _ in range(n):
                with steps.step():
                    taken.append(torch.get_num_threads())
                    now[0] += cost[taken[-1]]
                assert torch.get_num_threads() == 2
            return taken.count(2), taken.count(1)

        assert counts(64) == (61, 3)  # the first step with one thread, and every 32nd
        cost[2] = 50.0  # another program has taken a core
        assert counts(64)[1] >= 58
        cost[2] = 1.0
        assert counts(64)[0] >= 31  # found out at the next 32nd
    finally:
        torch.set_num_threads(before)


def test_an_error_within_a_step_leaves_the_threads_as_they_were(gpt):
    before = torch.get_num_threads()
    steps = gpt.kernels.FasterThreads()
    torch.set_num_threads(before + 1)  # more than the steps take
    try:
        with pytest.raises(KeyError), steps.step():
            raise KeyError
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
