"""Inspection: what a trace holds is what the model computed, and every measure has the value that theory gives it."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tests.comparing import close
from tests.models import random_tokens, small_gpt

SIZES = {"context_size": 16, "vocab_size": 23, "n_layer": 3, "n_head": 2, "n_embd": 8}


@pytest.fixture
def model(gpt):
    return small_gpt(gpt, std=0.6, dropout=0.5, **SIZES)


@pytest.fixture
def tokens():
    return random_tokens(vocab_size=23, batch=2, length=9)


def harmonic(n: int) -> float:
    return sum(1 / k for k in range(1, n + 1))


def uniform_attention(length: int) -> torch.Tensor:
    """One layer, one head, which looks at all it may see equally: 1 / (i + 1)."""
    weights = torch.ones(length, length, dtype=torch.float64).tril()
    return (weights / weights.sum(-1, keepdim=True))[None, None, None]


def looking(length: int, at) -> torch.Tensor:
    """One layer, one head, in which query i looks at key at(i) alone."""
    weights = torch.zeros(1, 1, 1, length, length)
    for i in range(length):
        weights[..., i, at(i)] = 1
    return weights


# --- trace


def test_shapes_are_as_documented(gpt, model, tokens):
    trace = gpt.inspection.trace(model, tokens)
    assert trace.attention.shape == (3, 2, 2, 9, 9)
    assert trace.residual.shape == (4, 2, 9, 8)
    assert trace.attention_out.shape == trace.feed_forward_out.shape == (3, 2, 9, 8)
    assert trace.logits.shape == (2, 9, 23)
    assert trace.tokens is tokens


def test_attention_rows_sum_to_one_and_the_future_is_exactly_zero(gpt, model, tokens):
    attention = gpt.inspection.trace(model, tokens).attention
    close(attention.sum(-1), torch.ones(3, 2, 2, 9).double(), 1e-14)  # worst 2.2e-16
    close(attention.triu(1), torch.zeros_like(attention))


def test_the_logits_are_those_of_the_fused_path(gpt, model, tokens):
    trace = gpt.inspection.trace(model, tokens)
    logits, _ = model.eval()(tokens)
    close(trace.logits, logits.detach(), 1e-12)  # worst 1.3e-15


def test_the_weights_are_those_that_the_layer_used(gpt, model, tokens):
    """From the weights and the layer's own values, the layer's own output follows."""
    trace = gpt.inspection.trace(model, tokens)
    for layer, block in enumerate(model.blocks):
        read = block.attention_norm(trace.residual[layer])
        value = block.attention.qkv(read)[..., 16:].reshape(2, 9, 2, 4).transpose(1, 2)  # the last third
        heads = (trace.attention[layer] @ value).transpose(1, 2).reshape(2, 9, 8)
        expected = block.attention.projection(heads).detach()
        close(trace.attention_out[layer], expected, 1e-13)  # measured: 0


def test_a_head_that_is_silenced_shows_in_the_trace(gpt, model, tokens):
    """The trace belongs to the pass that ran: change the pass, and it changes."""
    before = gpt.inspection.trace(model, tokens)
    with gpt.inspection.ablated(model, 0, 1):
        silenced = gpt.inspection.trace(model, tokens)
    close(before.attention[0], silenced.attention[0])
    assert not torch.allclose(before.attention[1], silenced.attention[1])


def test_the_model_is_called_exactly_once(gpt, model, tokens):
    calls = []
    model.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    gpt.inspection.trace(model, tokens)
    assert len(calls) == 1


def test_the_stream_is_the_sum_of_what_was_written_to_it(gpt, model, tokens):
    trace = gpt.inspection.trace(model, tokens)
    stream = model.token_embedding(tokens) + model.position_embedding.weight[:9]
    close(trace.residual[0], stream.detach())
    for layer in range(3):
        stream = stream + trace.attention_out[layer] + trace.feed_forward_out[layer]
        # Exact: the same numbers are added in the same order.
        close(trace.residual[layer + 1], stream.detach())


def test_a_case_computed_by_hand(gpt):
    """Two features and one head. A norm of two features is (1, -1) or (-1, 1), so all can be worked out on paper:
    with q = k = c n and c^2 = ln 3 / (2 sqrt 2), a token's score is ln 3 / 2 for its own kind, -ln 3 / 2 for the other,
    and the second token looks at the first with 1 / (1 + 3)."""
    model = gpt.GPT(gpt.GPTConfig(context_size=2, vocab_size=2, n_layer=1, n_head=1, n_embd=2)).double()
    block = model.blocks[0]
    c = math.sqrt(math.log(3) / (2 * math.sqrt(2)))
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.tensor([[100.0, -100.0], [-100.0, 100.0]]))
        model.position_embedding.weight.zero_()
        block.attention.qkv.weight.copy_(torch.cat([c * torch.eye(2), c * torch.eye(2), torch.eye(2)]))
        block.attention.projection.weight.copy_(torch.eye(2))
        block.feed_forward.project.weight.zero_()
        block.feed_forward.project.bias.copy_(torch.tensor([0.125, 0.25]))
    trace = gpt.inspection.trace(model, torch.tensor([[0, 1]]))

    def check(actual, expected):  # worst 9.9e-8: c is rounded to float32, and the norm has its eps
        close(actual.squeeze(), torch.tensor(expected).double(), 1e-6)

    check(trace.attention, [[1.0, 0.0], [0.25, 0.75]])
    check(trace.attention_out, [[1.0, -1.0], [-0.5, 0.5]])
    check(trace.feed_forward_out, [[0.125, 0.25], [0.125, 0.25]])
    check(trace.residual[1], [[101.125, -100.75], [-100.375, 100.75]])
    check(trace.logits, [[200.0, -200.0], [-200.0, 200.0]])


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was(gpt, model, tokens, mode):
    model.train(mode)
    model.blocks[1].eval()  # a part that differs from the whole
    model.blocks[2].attention.record_weights = True
    before = [module.training for module in model.modules()]
    trace = gpt.inspection.trace(model, tokens)
    assert [module.training for module in model.modules()] == before
    assert [block.attention.record_weights for block in model.blocks] == [False, False, True]
    assert all(block.attention.weights is None for block in model.blocks)
    assert not any(module._forward_hooks for module in model.modules())
    assert not trace.logits.requires_grad


def test_the_model_is_left_as_it_was_when_the_pass_fails(gpt, model, tokens):
    model.train()

    def fail(*_):
        raise RuntimeError("in the middle of the pass")

    handle = model.blocks[1].feed_forward.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        gpt.inspection.trace(model, tokens)
    handle.remove()
    assert all(module.training for module in model.modules())
    assert all(block.attention.weights is None and not block.attention.record_weights for block in model.blocks)
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_is_off_in_a_trace_of_a_training_model(gpt, model, tokens):
    first, second = (gpt.inspection.trace(model.train(), tokens) for _ in range(2))
    close(first.logits, second.logits)


def test_tokens_that_the_model_cannot_read_are_refused(gpt, model):
    with pytest.raises(ValueError, match="tokens"):
        gpt.inspection.trace(model, torch.tensor([[23]]))


# --- logit lens


def test_the_lens_at_the_last_layer_is_the_logits(gpt, model, tokens):
    trace = gpt.inspection.trace(model, tokens)
    lens = gpt.inspection.logit_lens(model, trace)
    assert lens.shape == (4, 2, 9, 23)
    close(lens[-1], trace.logits, 1e-12)  # worst 4.4e-16
    assert not torch.allclose(lens[-2], trace.logits)


def test_the_lens_at_the_embedding_needs_no_block(gpt, model, tokens):
    lens = gpt.inspection.logit_lens(model, gpt.inspection.trace(model, tokens))
    embedding = model.token_embedding(tokens) + model.position_embedding.weight[:9]
    expected = (model.final_norm(embedding) @ model.token_embedding.weight.T).detach()
    close(lens[0], expected, 1e-12)  # worst 4.4e-16


# --- entropy


def test_uniform_attention_has_the_largest_entropy(gpt):
    entropy = gpt.inspection.attention_entropy(uniform_attention(10))
    expected = torch.tensor([math.log(i + 1) for i in range(10)], dtype=torch.float64)
    close(entropy[0, 0, 0], expected, 1e-14)  # worst 4.4e-16
    close(gpt.inspection.entropy_bound(10).double(), expected, 1e-6)  # worst 6.6e-8


def test_looking_at_one_token_has_no_entropy(gpt):
    close(gpt.inspection.attention_entropy(looking(6, lambda i: i // 2)), torch.zeros(1, 1, 1, 6))


def test_real_entropies_keep_to_the_bound(gpt, model, tokens):
    entropy = gpt.inspection.attention_entropy(gpt.inspection.trace(model, tokens).attention)
    assert entropy.shape == (3, 2, 2, 9)
    assert torch.all(entropy >= 0)
    assert torch.all(entropy <= gpt.inspection.entropy_bound(9) + 1e-6)


# --- rollout


def test_the_rollout_of_identities_is_the_identity(gpt):
    eye = torch.eye(4).expand(3, 2, 5, 4, 4)
    close(gpt.inspection.rollout(eye), torch.eye(4).expand(3, 2, 4, 4))


def test_a_rollout_by_hand(gpt):
    """Two layers, two tokens; the first row is always (1, 0), so only the second row needs working out.
    Layer 0: the heads' rows (1, 0) and (0.5, 0.5) average to (0.75, 0.25); mixed with the identity (0.375, 0.625).
    Layer 1: both heads have (0.5, 0.5); mixed (0.25, 0.75). The product: 0.25 (1, 0) + 0.75 (0.375, 0.625)."""
    first = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.5, 0.5]]])
    second = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).expand(2, 2, 2)
    result = gpt.inspection.rollout(torch.stack([first, second])[:, None])
    assert result.shape == (2, 1, 2, 2)
    close(result[0, 0], torch.tensor([[1, 0], [0.375, 0.625]]))  # exact in binary
    close(result[1, 0], torch.tensor([[1, 0], [0.53125, 0.46875]]))


def test_a_rollout_follows_a_chain_through_the_layers(gpt):
    """Layer 0 brings token 0 to position 1, layer 1 brings that to position 2: a quarter of token 0 arrives. Were the
    layers multiplied in the other order, nothing would."""
    first, second = torch.eye(3), torch.eye(3)
    first[1], second[2] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    result = gpt.inspection.rollout(torch.stack([first, second])[:, None, None])
    close(result[1, 0, 2], torch.tensor([0.25, 0.25, 0.5]))


def test_rows_of_a_rollout_sum_to_one_and_never_see_the_future(gpt, model, tokens):
    result = gpt.inspection.rollout(gpt.inspection.trace(model, tokens).attention)
    close(result.sum(-1), torch.ones(3, 2, 9).double(), 1e-13)  # worst 2.2e-16
    close(result.triu(1), torch.zeros_like(result))


# --- head scores

BLOCK = 6


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("previous_token_score", lambda i: max(i - 1, 0)),
        ("first_token_score", lambda i: 0),
        ("induction_score", lambda i: max(i - BLOCK + 1, 0)),
    ],
)
def test_a_perfect_pattern_scores_one_and_a_step_beside_it_zero(gpt, name, at):
    score = getattr(gpt.inspection, name)
    close(score(looking(2 * BLOCK, at)), torch.tensor([[1.0]]))
    assert score(looking(2 * BLOCK, lambda i: min(at(i) + 1, i))) < 0.2  # only the rim can still meet the pattern


def test_uniform_attention_scores_the_closed_form(gpt):
    """Weight 1 / (i + 1) everywhere: the mean over queries 1 ... T - 1 is (H_T - 1) / (T - 1), and over the b queries
    of the second half (H_2b - H_b) / b, where H are the harmonic numbers."""
    attention, length = uniform_attention(2 * BLOCK), 2 * BLOCK
    expected = (harmonic(length) - 1) / (length - 1)
    close(gpt.inspection.previous_token_score(attention).item(), expected, 1e-15)
    close(gpt.inspection.first_token_score(attention).item(), expected, 1e-15)
    expected = (harmonic(length) - harmonic(BLOCK)) / BLOCK
    close(gpt.inspection.induction_score(attention).item(), expected, 1e-15)


def test_each_head_gets_its_own_score(gpt):
    """Layers, batch and heads are not mixed up: one of two layers, one of three heads, has the pattern."""
    attention = torch.zeros(2, 4, 3, 12, 12)
    attention[1, :, 2] = looking(12, lambda i: max(i - 1, 0))
    expected = torch.zeros(2, 3)
    expected[1, 2] = 1
    close(gpt.inspection.previous_token_score(attention), expected)


def test_repeated_tokens_repeat_and_differ_within_a_block(gpt):
    tokens = gpt.inspection.repeated_tokens(vocab_size=23, block=8, batch=5, seed=3)
    assert tokens.shape == (5, 16)
    close(tokens[:, :8], tokens[:, 8:])
    assert all(len(set(row.tolist())) == 8 for row in tokens)
    close(tokens, gpt.inspection.repeated_tokens(23, 8, 5, seed=3))
    assert not torch.equal(tokens, gpt.inspection.repeated_tokens(23, 8, 5, seed=4))


def test_head_scores_are_those_of_a_trace_of_repeated_tokens(gpt, model):
    scores = gpt.inspection.head_scores(model, block=7, batch=3, seed=5)
    attention = gpt.inspection.trace(model, gpt.inspection.repeated_tokens(23, 7, 3, seed=5)).attention
    close(scores.previous_token, gpt.inspection.previous_token_score(attention))
    close(scores.first_token, gpt.inspection.first_token_score(attention))
    close(scores.induction, gpt.inspection.induction_score(attention))
    assert scores.induction.shape == (3, 2)


def test_head_scores_fit_themselves_to_small_models(gpt):
    small = gpt.GPT(gpt.GPTConfig(context_size=9, vocab_size=3, n_layer=1, n_head=1, n_embd=4))
    assert gpt.inspection.head_scores(small).induction.shape == (1, 1)


@pytest.mark.parametrize("block", [1, 9, 4.0])
def test_a_block_that_does_not_fit_is_refused(gpt, model, block):
    with pytest.raises(ValueError, match=rf"block must be in 2\.\.8.*got {block}"):
        gpt.inspection.head_scores(model, block=block)


# --- ablation


def test_an_ablated_head_is_one_whose_projection_columns_are_zero(gpt, model, tokens):
    model.eval()
    with torch.no_grad(), gpt.inspection.ablated(model, layer=1, head=1):
        silenced, _ = model(tokens)
    whole, _ = model(tokens)
    assert not torch.allclose(whole, silenced)
    with torch.no_grad():
        model.blocks[1].attention.projection.weight[:, 4:8] = 0  # d_head = 4: the columns that read head 1
    expected, _ = model(tokens)
    close(silenced, expected.detach(), 1e-12)  # measured: 0


def test_ablations_nest(gpt, model, tokens):
    """With all heads of a layer silenced, the projection's bias is all it writes."""
    with gpt.inspection.ablated(model, 0, 0), gpt.inspection.ablated(model, 0, 1):
        trace = gpt.inspection.trace(model, tokens)
    bias = model.blocks[0].attention.projection.bias.detach()
    close(trace.attention_out[0], bias.expand(2, 9, 8))


def test_an_ablation_writes_into_no_tensor_of_the_reader(gpt, model):
    heads = torch.ones(1, 1, 8).double()
    with gpt.inspection.ablated(model, 0, 0):
        model.blocks[0].attention.projection(heads)
    close(heads, torch.ones_like(heads))


def test_a_head_speaks_again_after_the_context_and_after_an_error(gpt, model, tokens):
    model.eval()
    before, _ = model(tokens)
    with pytest.raises(RuntimeError), gpt.inspection.ablated(model, 2, 0):
        raise RuntimeError
    close(model(tokens)[0], before)


@pytest.mark.parametrize(
    ("layer", "head", "said"),
    [
        (3, 0, r"layer must be in 0\.\.2.*got 3"),
        (-1, 0, r"layer must be in 0\.\.2.*got -1"),
        (0, 2, r"head must be in 0\.\.1.*got 2"),
        (0, -1, r"head must be in 0\.\.1.*got -1"),
        (1.0, 0, r"layer must be .*an int, got 1\.0"),
        (0, True, r"head must be .*an int, got True"),
        ("0", 0, r"layer must be .*an int, got '0'"),
        (0, None, r"head must be .*an int, got None"),
    ],
)
def test_a_layer_or_head_that_does_not_exist_is_named(gpt, model, layer, head, said):
    with pytest.raises(ValueError, match=said), gpt.inspection.ablated(model, layer, head):
        pass


# --- bad input

READERS = ["rollout", "previous_token_score", "first_token_score", "induction_score"]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 1, 3, 4), (1, 1, 1, 0, 0), (1, 1, 0, 4, 4), (4,)])
def test_attention_of_another_shape_is_refused(gpt, name, shape):
    with pytest.raises(ValueError, match="attention must be .*" + re.escape(f"got float32 of shape {list(shape)}")):
        getattr(gpt.inspection, name)(torch.zeros(shape))


@pytest.mark.parametrize("name", [*READERS, "attention_entropy"])
def test_weights_that_are_integers_are_refused(gpt, name):
    with pytest.raises(ValueError, match=r"attention must be .*got int64"):
        getattr(gpt.inspection, name)(torch.zeros(1, 1, 1, 4, 4, dtype=torch.int64))


def test_entropy_needs_a_key_axis_and_no_negative_weight(gpt):
    with pytest.raises(ValueError, match=r"attention must be .*got float32 of shape \[\]"):
        gpt.inspection.attention_entropy(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"attention must be .*at least 0, got -0\.5"):
        gpt.inspection.attention_entropy(torch.tensor([[1.5, -0.5]]))


@pytest.mark.parametrize("length", [0, -3, 2.5, "4"])
def test_a_bound_needs_a_length(gpt, length):
    with pytest.raises(ValueError, match=f"length must be .*at least 1, got {length!r}"):
        gpt.inspection.entropy_bound(length)


@pytest.mark.parametrize("shape", [(9,), (1, 2, 9)])
def test_tokens_without_a_batch_axis_are_refused(gpt, model, shape):
    with pytest.raises(ValueError, match=r"tokens must be \[batch, T\].*" + re.escape(str(list(shape)))):
        gpt.inspection.trace(model, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(("changes", "said"), [({"n_layer": 2}, "2 blocks"), ({"n_embd": 12}, "d_model = 12")])
def test_the_trace_of_another_model_is_refused(gpt, model, tokens, changes, said):
    other = gpt.inspection.trace(small_gpt(gpt, **SIZES | changes), tokens)
    with pytest.raises(ValueError, match=f"trace must be of this model, with 3 blocks.*got .*{said}"):
        gpt.inspection.logit_lens(model, other)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((23, 1), "block must be .*at least 2, got 1"),
        ((23, 4.0), r"block must be .*int.*got 4\.0"),
        ((5, 6), r"block must be in 2\.\.vocab_size=5, got 6"),
        ((23, 4, 0), "batch must be .*at least 1, got 0"),
        (("23", 4), "vocab_size must be an int .*got '23'"),
    ],
)
def test_a_block_that_cannot_be_repeated_is_refused(gpt, arguments, said):
    with pytest.raises(ValueError, match=said):
        gpt.inspection.repeated_tokens(*arguments)


def test_a_sequence_of_odd_length_has_no_second_half(gpt):
    with pytest.raises(ValueError, match=r"attention .*7 is odd"):
        gpt.inspection.induction_score(torch.zeros(1, 1, 1, 7, 7))
