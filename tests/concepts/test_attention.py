"""Concept 3, attention: how a token takes in what other tokens know.

The equation in numbers, the staircase SelfAttention -> CausalAttention -> MultiHeadAttention, and GPT-2's layer,
whose readable path, fused path and cached path are one function. Judges: hand numbers, gpt.backward (NumPy),
torch.nn.MultiheadAttention. gpt/attention.py; DEEP_THEORY_GUIDE.md, Part 3.
"""

import math

import pytest
import torch

from tests.comparing import close
from tests.models import causal_layer

F64 = torch.float64


def both_paths(layer, x, cache=None):
    """The output of the fused path, then that of the readable one."""
    for record in (False, True):
        layer.record_weights = record
        yield layer(x, cache)


# The equation.


@pytest.mark.step("attention")
def test_the_weights_are_those_a_person_can_check(gpt):
    # scores = (0, sqrt 2) . e_i / sqrt 2 = (0, 1), so the weights are (1, e) / (1 + e)
    query, identity = torch.tensor([[0.0, math.sqrt(2)]], dtype=F64), torch.eye(2, dtype=F64)
    output, weights = gpt.scaled_dot_product_attention(query, identity, identity)
    expected = torch.tensor([[1.0, math.e]], dtype=F64) / (1 + math.e)
    # measured: 5.6e-17
    close(weights, expected, 1e-15)
    close(output, expected, 1e-15)  # the values are e_1 and e_2 too, so the output shows the weights


@pytest.mark.step("attention")
def test_the_scale_keeps_the_variance_of_the_scores_at_one(gpt):
    # q . k is a sum of d_k products of variance 1 each, so its variance is d_k; 1 / sqrt(d_k) takes that out again.
    torch.manual_seed(0)
    for d_k in (16, 64, 1024):
        query, key = torch.randn(2, 512, d_k, dtype=F64)
        _, weights = gpt.scaled_dot_product_attention(query, key, key)
        # log(weights) is the scores but for a constant in each row, and a constant has no variance. The estimate
        # varies by sqrt(2 / (512 d_k)) through the queries and as much through the keys: 0.022 in all at d_k = 16.
        variance = weights.log().var(dim=-1).mean()
        assert abs(variance - 1) < 0.1  # 5 sigma; worst measured: 0.034


@pytest.mark.step("attention")
def test_the_weights_of_each_query_sum_to_one(gpt):
    torch.manual_seed(1)
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    mask = torch.rand(2, 1, 5, 7) < 0.5
    mask[..., 2] = True
    output, weights = gpt.scaled_dot_product_attention(query, key, value, mask)
    assert output.shape == (2, 3, 5, 6)
    assert weights.shape == (2, 3, 5, 7)  # [batch, head, query, key]
    assert weights.min() >= 0
    close(weights.sum(-1), torch.ones(2, 3, 5), 1e-6)  # measured: 1.2e-7
    assert weights.masked_select(~mask).eq(0).all()


@pytest.mark.step("attention")
def test_the_output_is_a_weighted_average_so_it_never_leaves_the_range_of_the_values(gpt):
    torch.manual_seed(2)
    query, key, value = 3 * torch.randn(3, 9, 4, dtype=F64)
    output, weights = gpt.scaled_dot_product_attention(query, key, value)
    close(output, weights @ value, 1e-14)  # measured: 0
    assert (output <= value.max(0).values + 1e-14).all()
    assert (output >= value.min(0).values - 1e-14).all()


@pytest.mark.step("attention")
def test_large_scores_do_not_overflow(gpt):
    query = torch.tensor([[1e4, 0.0]])
    output, weights = gpt.scaled_dot_product_attention(query, 1e4 * torch.eye(2), torch.eye(2))
    assert weights.tolist() == output.tolist() == [[1.0, 0.0]]


@pytest.mark.step("attention")
def test_the_equation_and_all_its_gradients_are_those_of_numpy(gpt):
    torch.manual_seed(3)
    q, k = torch.randn(2, 3, 5, 4, dtype=F64), torch.randn(2, 3, 7, 4, dtype=F64)
    v, pull = torch.randn(2, 3, 7, 6, dtype=F64), torch.randn(2, 3, 5, 6, dtype=F64)
    mask = torch.rand(5, 7) < 0.6
    mask[:, 3] = True
    leaves = [t.requires_grad_() for t in (q, k, v)]
    output, weights = gpt.scaled_dot_product_attention(*leaves, mask)
    (output * pull).sum().backward()
    expected, cache = gpt.backward.attention_forward(*(t.detach().numpy() for t in leaves), mask.numpy())
    gradients = gpt.backward.attention_backward(pull.numpy(), cache)
    # worst measured: 4.4e-16
    close(output, expected, 1e-13)
    close(weights, cache["weights"], 1e-13)
    for name, leaf in zip("qkv", leaves, strict=True):
        close(leaf.grad, gradients[name], 1e-13)


# The mask.


@pytest.mark.step("mask")
def test_the_causal_mask_lets_a_query_look_at_itself_and_at_its_past(gpt):
    assert gpt.causal_mask(3, 3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    # two new tokens after three old ones: the queries are the last two of five positions
    assert gpt.causal_mask(2, 5).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert gpt.causal_mask(1, 4).int().tolist() == [[1, 1, 1, 1]]


@pytest.mark.step("attention")
def test_a_masked_key_has_no_weight_however_large_its_score(gpt):
    # A finite constant in the place of -inf would lose here: the scores that may be seen are far below it, the
    # forbidden one far above.
    query, value = torch.ones(1, 1), torch.tensor([[1.0], [3.0], [100.0]])
    mask = torch.tensor([[True, True, False]])
    for size in (1e9, 1e12, 1e30):
        key = torch.tensor([[-size], [-size], [size]])
        output, weights = gpt.scaled_dot_product_attention(query, key, value, mask)
        assert weights.tolist() == [[0.5, 0.5, 0.0]]
        assert output.tolist() == [[2.0]]


@pytest.mark.step("attention")
def test_the_mask_comes_before_the_softmax(gpt):
    # Masked after the softmax, the weights would still be 0 for forbidden keys but no longer sum to 1.
    torch.manual_seed(4)
    query, key, value = torch.randn(3, 6, 4)
    _, weights = gpt.scaled_dot_product_attention(query, key, value, gpt.causal_mask(6, 6))
    assert weights[0].tolist() == [1, 0, 0, 0, 0, 0]
    close(weights.sum(-1), torch.ones(6), 1e-6)  # measured: 1.2e-7


@pytest.mark.step("errors")
def test_a_mask_of_zeros_and_ones_is_an_error(gpt):
    query = torch.randn(3, 4)
    with pytest.raises(TypeError, match=r"mask.*boolean.*float32.*\.bool\(\)"):
        gpt.scaled_dot_product_attention(query, query, query, torch.ones(3, 3))


@pytest.mark.step("errors")
def test_a_query_that_may_look_at_nothing_is_an_error(gpt):
    query, mask = torch.randn(3, 4), torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    with pytest.raises(ValueError, match=r"mask.*every query"):
        gpt.scaled_dot_product_attention(query, query, query, mask)


# One head.


def test_one_head_is_the_equation_on_three_projections(gpt):
    torch.manual_seed(5)
    layer, x = gpt.SelfAttention(6, 4).to(F64), torch.randn(2, 5, 6, dtype=F64)
    output, weights = layer(x, return_weights=True)
    q, k, v = ((x @ getattr(layer, name).weight.T).detach().numpy() for name in ("query", "key", "value"))
    expected, cache = gpt.backward.attention_forward(q, k, v)
    close(output, expected, 1e-14)  # measured: 1.1e-16
    close(weights, cache["weights"], 1e-14)
    close(layer(x), output)


def test_a_causal_head_is_the_same_head_on_each_prefix(gpt):
    torch.manual_seed(6)
    causal, plain = gpt.CausalAttention(6, 4, max_seq_len=8).to(F64), gpt.SelfAttention(6, 4).to(F64)
    plain.load_state_dict(causal.state_dict())
    x = torch.randn(2, 7, 6, dtype=F64)
    output, weights = causal(x, return_weights=True)
    for t in range(7):
        # the newest token of a prefix sees all of it, so there the mask makes no difference
        close(output[:, t], plain(x[:, : t + 1])[:, t], 1e-14)  # measured: 0
    assert weights.triu(1).eq(0).all()


def test_one_head_is_the_same_layer_as_pytorchs(gpt):
    torch.manual_seed(7)
    d = 6
    ours, causal = gpt.SelfAttention(d, d).to(F64), gpt.CausalAttention(d, d, 5).to(F64)
    causal.load_state_dict(ours.state_dict())
    theirs = torch.nn.MultiheadAttention(d, 1, bias=False, batch_first=True, dtype=F64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(torch.eye(d))
    x = torch.randn(2, 5, d, dtype=F64)
    future = torch.ones(5, 5).triu(1).bool()  # PyTorch's mask says where a query may NOT look
    for layer, mask in ((ours, None), (causal, future)):
        output, weights = theirs(x, x, x, attn_mask=mask)
        our_output, our_weights = layer(x, return_weights=True)
        # worst measured: 3.3e-16
        close(our_output, output, 1e-14)
        close(our_weights, weights, 1e-14)


# Many heads.


def multi_head_pair(gpt, d_model, num_heads, bias=True):
    """Our layer and torch.nn.MultiheadAttention with the same weights."""
    ours = gpt.MultiHeadAttention(d_model, num_heads, bias).to(F64)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    theirs = torch.nn.MultiheadAttention(d_model, num_heads, bias=bias, batch_first=True, dtype=F64)
    state = {"out_proj.weight": ours.projection.weight}
    state["in_proj_weight"] = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    if bias:
        state["out_proj.bias"] = ours.projection.bias
        state["in_proj_bias"] = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias])
    theirs.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize(
    ("d_model", "num_heads", "bias"), [(8, 1, True), (12, 3, True), (12, 12, False), (32, 4, False)]
)
def test_many_heads_are_the_same_layer_as_pytorchs(gpt, d_model, num_heads, bias):
    torch.manual_seed(8)
    ours, theirs = multi_head_pair(gpt, d_model, num_heads, bias)
    query, memory = torch.randn(2, 5, d_model, dtype=F64), torch.randn(2, 7, d_model, dtype=F64)
    mask = torch.rand(2, num_heads, 5, 7) < 0.6
    mask[..., 1] = True
    for our_mask, their_mask in ((None, None), (mask, ~mask.flatten(0, 1)), (mask[0, 0], ~mask[0, 0])):
        leaves = [t.clone().requires_grad_() for t in (query, memory, memory)]
        their_leaves = [t.clone().requires_grad_() for t in (query, memory, memory)]
        output, weights = ours(*leaves, mask=our_mask, return_weights=True)
        expected, expected_weights = theirs(*their_leaves, attn_mask=their_mask, average_attn_weights=False)
        pull = torch.randn(output.shape, dtype=F64)
        (output * pull).sum().backward()
        (expected * pull).sum().backward()
        # worst measured: 9.9e-14, in a gradient
        close(output, expected, 1e-12)
        close(weights, expected_weights, 1e-12)
        for leaf, their_leaf in zip(leaves, their_leaves, strict=True):
            close(leaf.grad, their_leaf.grad, 1e-12)


def test_the_heads_are_cut_from_the_features_and_not_from_the_positions(gpt):
    # Two tokens, two heads of two features. Zero queries look at everything alike, so each output is the average of
    # the tokens, feature by feature. A view(batch, head, token, d_head) has the right shape, but its first head would
    # hold (1, 2) and (3, 4), both of them cut from the first token, and average (2, 3).
    x = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]]])
    wrong_head = x.view(1, 2, 2, 2)[0, 0]
    assert wrong_head.mean(0).tolist() == [2, 3]
    several = gpt.MultiHeadAttention(4, 2, bias=False)
    causal = gpt.CausalSelfAttention(4, 2, 8, bias=False)
    with torch.no_grad():
        several.query.weight.zero_()
        several.value.weight.copy_(torch.eye(4))
        several.projection.weight.copy_(torch.eye(4))
        causal.qkv.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
        causal.projection.weight.copy_(torch.eye(4))
    assert several(x, x, x).tolist() == [[[3, 4, 5, 6], [3, 4, 5, 6]]]
    for output in both_paths(causal, x):
        assert output.tolist() == [[[1, 2, 3, 4], [3, 4, 5, 6]]]


def test_many_heads_are_a_sum_over_heads(gpt):
    # MultiHead(X) = sum_h A_h X W_V^h W_O^h: each head reads the stream and adds to it by itself.
    torch.manual_seed(9)
    layer, x = gpt.MultiHeadAttention(12, 3, bias=False).to(F64), torch.randn(2, 5, 12, dtype=F64)
    output, weights = layer(x, x, x, return_weights=True)
    total = torch.zeros_like(output)
    for h in range(3):
        features = slice(4 * h, 4 * h + 4)
        w_value, w_output = layer.value.weight[features].T, layer.projection.weight[:, features].T
        total = total + weights[:, h] @ x @ w_value @ w_output
    close(output, total, 1e-14)  # measured: 1.1e-16


def test_each_head_scales_by_the_width_of_a_head(gpt):
    # 1 / sqrt(d_head), not 1 / sqrt(d_model): one feature of each head makes all its scores
    layer = gpt.MultiHeadAttention(8, 2, bias=False).to(F64)
    with torch.no_grad():
        for linear in (layer.query, layer.key, layer.value, layer.projection):
            linear.weight.copy_(torch.eye(8))
    x = torch.zeros(1, 2, 8, dtype=F64)
    x[0, 0, [0, 4]] = 2  # token 0 scores 2 * 2 / sqrt(4) = 2 with itself and 0 with the other
    _, weights = layer(x, x, x, return_weights=True)
    expected = math.exp(2) / (1 + math.exp(2))
    close(weights[0, :, 0, 0].tolist(), [expected, expected], 1e-15)  # measured: 1.1e-16


# GPT-2's layer: three ways to compute it, one result.


@pytest.mark.parametrize(("num_heads", "bias", "length"), [(1, True, 5), (3, True, 16), (6, False, 7), (3, True, 1)])
def test_the_readable_and_the_fused_path_agree_in_value_and_in_every_gradient(gpt, num_heads, bias, length):
    layer = causal_layer(gpt, num_heads=num_heads, bias=bias)
    x, pull = torch.randn(2, 2, length, 12, dtype=F64)
    results = []
    for output in both_paths(layer, x.requires_grad_()):
        gradients = torch.autograd.grad((output * pull).sum(), [x, *layer.parameters()])
        results.append([output, *gradients])
    for fused, readable in zip(*results, strict=True):
        close(fused, readable, 1e-12)  # worst measured: 5.1e-14


@pytest.mark.step("heads")
def test_the_layer_and_all_its_gradients_are_those_of_numpy(gpt):
    for bias in (True, False):
        layer = causal_layer(gpt, bias=bias, seed=1)
        x, pull = torch.randn(2, 2, 7, 12, dtype=F64)
        params = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        expected, cache = gpt.backward.causal_self_attention_forward(x.numpy(), params, 3)
        gradients = gpt.backward.named(gpt.backward.causal_self_attention_backward(pull.numpy(), cache))
        for output in both_paths(layer, x.requires_grad_()):
            layer.zero_grad()
            x.grad = None
            (output * pull).sum().backward()
            # worst measured: 2.6e-14
            close(output, expected, 1e-12)
            close(x.grad, gradients["x"], 1e-12)
            for name, parameter in layer.named_parameters():
                close(parameter.grad, gradients[name], 1e-12)
        close(layer.weights, cache["heads"]["weights"], 1e-12)


@pytest.mark.step("cache")
@pytest.mark.parametrize("chunks", [[16], [1] * 16, [7, 9], [5, 1, 1, 4, 5], [1, 15]], ids=str)
def test_with_a_cache_any_cut_into_chunks_gives_the_same_output(gpt, chunks):
    layer = causal_layer(gpt, seed=2)
    x = torch.randn(2, 16, 12, dtype=F64)
    with torch.no_grad():
        layer.record_weights = True
        expected, expected_weights = layer(x), layer.weights
        for record in (False, True):
            layer.record_weights = record
            cache, start = gpt.KVCache(2, 3, 16, 4, like=x), 0
            for chunk in x.split(chunks, dim=1):
                output, end = layer(chunk, cache), start + chunk.shape[1]
                # worst measured: 4.0e-15
                close(output, expected[:, start:end], 1e-12)
                if record:
                    close(layer.weights, expected_weights[:, :, start:end, :end], 1e-12)
                start = end


def test_with_a_cache_the_gradients_of_new_tokens_agree_too(gpt):
    layer = causal_layer(gpt, seed=3)
    x, pull = torch.randn(2, 2, 9, 12, dtype=F64)
    new = slice(5, 9)
    results = []
    for record in (False, True):
        layer.record_weights = record
        cache, chunk = gpt.KVCache(2, 3, 16, 4, like=x), x[:, new].clone().requires_grad_()
        with torch.no_grad():
            layer(x[:, :5], cache)
        results.append(torch.autograd.grad((layer(chunk, cache) * pull[:, new]).sum(), [chunk, layer.qkv.weight]))
    # Without a cache the new tokens' gradient is the same: no earlier token looks at them.
    whole = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((layer(whole) * pull)[:, new].sum(), [whole])
    for fused, readable in zip(*results, strict=True):
        close(fused, readable, 1e-12)  # worst measured: 3.1e-14
    close(results[0][0], expected[:, new], 1e-12)


@pytest.mark.step("heads")
def test_the_future_does_not_move_the_past(gpt):
    torch.manual_seed(10)
    one = gpt.CausalAttention(12, 12, 16)
    many = gpt.CausalSelfAttention(12, 3, 16)
    x = torch.randn(2, 10, 12)
    for size in (1.0, 1e9):
        for t in (1, 5, 9):
            changed = x.clone()
            changed[:, t:] = size * torch.randn(2, 10 - t, 12)
            pairs = zip([one(x), *both_paths(many, x)], [one(changed), *both_paths(many, changed)], strict=True)
            for before, after in pairs:
                close(before[:, :t], after[:, :t])  # not close: equal
                assert not torch.isclose(before[:, t:], after[:, t:]).any()


@pytest.mark.step("heads")
def test_the_past_does_not_learn_from_the_future(gpt):
    torch.manual_seed(11)
    one = gpt.CausalAttention(12, 12, 16).to(F64)
    many = causal_layer(gpt, seed=11)
    x = torch.randn(2, 10, 12, dtype=F64, requires_grad=True)
    for t in (0, 4, 9):
        for output in (one(x), *both_paths(many, x)):
            (gradient,) = torch.autograd.grad(output[:, t].square().sum(), [x])
            assert gradient[:, t + 1 :].eq(0).all()
            assert gradient[:, : t + 1].abs().amax(-1).min() > 1e-6  # measured: 0.01


def test_the_weights_are_recorded_from_the_pass_that_ran_and_only_on_demand(gpt):
    layer = causal_layer(gpt, d_model=4, num_heads=1, dropout=0.5)
    x, other = torch.randn(2, 1, 5, 4, dtype=F64)
    layer(x)
    assert layer.weights is None  # not even while training with dropout: they would keep the graph's memory
    layer.eval()
    layer.record_weights = True
    output = layer(x)
    value = x @ layer.qkv.weight[8:].T + layer.qkv.bias[8:]
    again = layer.weights[:, 0] @ value @ layer.projection.weight.T + layer.projection.bias
    close(output, again, 1e-13)  # measured: 1.1e-16
    recorded = layer.weights
    layer(other)
    assert (layer.weights - recorded).abs().max() > 1e-3
    layer.record_weights = False
    layer(x)
    assert layer.weights is None  # no weights of an earlier text stay behind


def test_attention_dropout_drops_weights_while_training_only(gpt):
    # Zero queries: each of 200 keys has weight 1/200. Values of one: the output counts the weights that were kept.
    p, length = 0.25, 200
    layer = gpt.CausalSelfAttention(4, 2, length, dropout=p, bias=False)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
        layer.projection.weight.copy_(torch.eye(4))
    x = torch.ones(50, length, 4)
    torch.manual_seed(12)
    kept = (1 - p) * length * layer(x)[:, -1, ::2]  # [batch, head]: out of 200
    close(kept, kept.round(), 1e-2)  # measured: 1.2e-4
    drawn = kept.numel() * length
    assert abs(kept.sum() / drawn - (1 - p)) < 5 * math.sqrt(p * (1 - p) / drawn)  # 0.0153; measured: 0.002
    assert kept.unique().numel() > 5  # each head and each sequence tosses its own coins
    layer.eval()
    close(layer(x), x, 1e-5)  # measured: 6.0e-8


def test_the_returned_weights_are_those_before_dropout(gpt):
    torch.manual_seed(18)
    query, key, value = torch.randn(3, 20, 4)
    expected_output, expected = gpt.scaled_dot_product_attention(query, key, value)
    output, weights = gpt.scaled_dot_product_attention(query, key, value, dropout=0.5)
    close(weights, expected)
    assert not torch.isclose(output, expected_output).all(-1).any()


@pytest.mark.step("cache")
def test_the_cache_holds_the_keys_and_values_of_all_tokens_so_far(gpt):
    layer = causal_layer(gpt, seed=4)
    x = torch.randn(2, 6, 12, dtype=F64)
    cache = gpt.KVCache(2, 3, 16, 4, like=x)
    assert cache.length == 0
    assert cache.keys.shape == cache.values.shape == (2, 3, 16, 4)
    assert cache.keys.dtype == F64
    memory = cache.keys.data_ptr()
    with torch.no_grad():
        layer(x[:, :4], cache)
        layer(x[:, 4:], cache)
        _, key, value = (x @ layer.qkv.weight.T + layer.qkv.bias).split(12, dim=-1)
    assert cache.length == 6
    assert cache.keys.data_ptr() == memory  # taken once
    for h in range(3):
        features = slice(4 * h, 4 * h + 4)
        # measured: 0
        close(cache.keys[:, h, :6], key[..., features], 1e-13)
        close(cache.values[:, h, :6], value[..., features], 1e-13)


@pytest.mark.step("errors")
@pytest.mark.parametrize("num_heads", [5, 0, -3, 24])
def test_heads_that_do_not_share_the_width_out_evenly_are_an_error(gpt, num_heads):
    message = f"num_heads.*{num_heads}"
    with pytest.raises(ValueError, match=message):
        gpt.MultiHeadAttention(12, num_heads)
    with pytest.raises(ValueError, match=message):
        gpt.CausalSelfAttention(12, num_heads, 16)


def test_too_long_a_sequence_is_an_error_that_leaves_the_cache_as_it_was(gpt):
    message = "max_seq_len=8.*9"
    with pytest.raises(ValueError, match=message):
        gpt.CausalAttention(4, 4, 8)(torch.zeros(1, 9, 4))
    layer = gpt.CausalSelfAttention(4, 2, 8)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(1, 9, 4))
    cache = gpt.KVCache(1, 2, 8, 2, like=torch.zeros(1))
    with torch.no_grad():
        layer(torch.zeros(1, 6, 4), cache)
        with pytest.raises(ValueError, match=message):
            layer(torch.zeros(1, 3, 4), cache)
        assert cache.length == 6
        layer(torch.zeros(1, 2, 4), cache)
