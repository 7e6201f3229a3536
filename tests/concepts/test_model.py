"""Concept 5, model: the whole of GPT-2, from token ids to the logits of the next token.

Its start, its causality, the tied head and its gradient, the loss, the cache. (That every gradient of a small GPT is
the one that gpt.backward derives by hand: tests/concepts/test_backward.py.) gpt/model.py;
DEEP_THEORY_GUIDE.md, Part 5.
"""

import copy
import io
import math

import pytest
import torch

from tests.comparing import close
from tests.models import SIZES, small_gpt

F64 = torch.float64
V, T_MAX = SIZES["vocab_size"], SIZES["context_size"]


def some_tokens(batch=2, length=T_MAX, seed=1):
    # 0..17 only, so that token 18 is never read; with 12 tokens out of 18 some are sure to repeat.
    return torch.randint(V - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def numpy_gradients(gpt, model, tokens, targets):
    params = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    _, _, cache = gpt.backward.gpt_forward(params, tokens.numpy(), model.config.n_head, targets.numpy())
    return gpt.backward.gpt_backward(cache, intermediates=True)


# How it starts.


@pytest.mark.step("loss")
def test_before_training_the_loss_is_that_of_a_uniform_guess(gpt):
    torch.manual_seed(0)
    config = gpt.GPTConfig.tiny()
    tokens, targets = torch.randint(config.vocab_size, (2, 16, config.context_size))
    _, loss = gpt.GPT(config)(tokens, targets)
    # A logit is a sum of d_model = 64 products of a normalized number and a weight of std 0.02, so its std is about
    # s = 0.02 sqrt(64) = 0.16. That costs s^2 / 2 = 0.013 above ln V, and 1024 targets add a noise of s / 32 = 0.005.
    close(loss.item(), math.log(config.vocab_size) + 0.013, 0.03)  # measured: 0.001


@pytest.mark.step("model")
def test_weights_start_with_deviation_0_02_and_those_that_write_to_the_stream_with_less(gpt):
    torch.manual_seed(1)
    config = gpt.GPTConfig(context_size=64, vocab_size=500, n_layer=8, n_head=4, n_embd=64)
    for name, parameter in gpt.GPT(config).named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if "proj" in name else 0.02
            n = parameter.numel()
            # 5 sigma of an estimated deviation and of an estimated mean; measured: at most 2.4
            assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * n), name
            assert abs(parameter.mean()) < 5 * std / math.sqrt(n), name


@pytest.mark.parametrize("bias", [True, False])
def test_the_number_of_parameters_follows_from_the_sizes(gpt, bias):
    d, n_layer = 12, 3
    model = small_gpt(gpt, n_layer=n_layer, bias=bias)
    matrices = V * d + T_MAX * d + n_layer * 12 * d**2
    gains = (2 * n_layer + 1) * d
    biases = (n_layer * 11 + 1) * d  # a block: 3 + 1 + 4 + 1 in its linear layers, 2 in its norms; and the final norm
    assert model.num_parameters() == matrices + gains + biases * bias


@pytest.mark.step("model")
def test_parameters_have_the_names_that_the_guide_uses(gpt):
    block = [
        "attention_norm.weight",
        "attention_norm.bias",
        "attention.qkv.weight",
        "attention.qkv.bias",
        "attention.projection.weight",
        "attention.projection.bias",
        "feed_forward_norm.weight",
        "feed_forward_norm.bias",
        "feed_forward.expand.weight",
        "feed_forward.expand.bias",
        "feed_forward.project.weight",
        "feed_forward.project.bias",
    ]
    names = ["token_embedding.weight", "position_embedding.weight"]
    names += [f"blocks.{i}.{name}" for i in range(2) for name in block]
    names += ["final_norm.weight", "final_norm.bias"]
    assert list(small_gpt(gpt).state_dict()) == names
    assert list(small_gpt(gpt, bias=False).state_dict()) == [name for name in names if name.endswith("weight")]


# What it gives.


def test_logits_have_one_column_for_each_token_and_no_more(gpt):
    # A vocabulary padded to a round size is faster on a GPU, but its last ids stand for nothing and could be drawn.
    for vocab_size in (1, 65, 97):
        model = small_gpt(gpt, vocab_size=vocab_size)
        tokens = torch.zeros(3, 5, dtype=torch.int64)
        logits, loss = model(tokens)
        assert logits.shape == (3, 5, vocab_size)
        assert loss is None
        # Flat logits make every id equally likely: in 500 draws none may lie outside the vocabulary.
        torch.nn.init.zeros_(model.token_embedding.weight)
        drawn = model.generate(tokens[:, :1].repeat(50, 1), max_new_tokens=10)
        assert drawn.max() < vocab_size


def test_a_model_without_biases_has_none_and_learns(gpt):
    model, tokens = small_gpt(gpt, bias=False), some_tokens()
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    _, loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.step("model")
def test_the_model_is_its_parts_in_order(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    x = model.token_embedding.weight[tokens] + model.position_embedding.weight[: tokens.shape[1]]
    for block in model.blocks:
        x = block(x)
    hidden = gpt.layer_norm(x, model.final_norm.weight, model.final_norm.bias)
    logits, _ = model(tokens)
    # worst measured: 8.9e-16
    close(model.hidden(tokens), hidden, 1e-12)
    close(logits, hidden @ model.token_embedding.weight.T, 1e-12)


def test_a_model_whose_blocks_were_taken_away_is_its_embedding_and_head(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    model.blocks = model.blocks[:0]
    x = model.token_embedding.weight[tokens] + model.position_embedding.weight[: tokens.shape[1]]
    close(model(tokens)[0], model.head(model.final_norm(x)), 1e-12)


def test_ids_of_32_bits_are_ids_too(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    close(model(tokens.int(), tokens.int())[1], model(tokens, tokens)[1])


@pytest.mark.step("dropout")
def test_evaluation_has_no_dropout_and_training_has(gpt):
    model, tokens = small_gpt(gpt, dropout=0.5), some_tokens()
    assert not torch.isclose(model(tokens)[0], model(tokens)[0]).all()
    without = small_gpt(gpt)
    without.load_state_dict(model.state_dict())
    model.eval()
    close(model(tokens)[0], without(tokens)[0], 1e-12)  # measured: 0


@pytest.mark.step("dropout")
def test_the_embeddings_are_dropped_too(gpt):
    model = small_gpt(gpt, dropout=0.25)
    embedded = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
    model(some_tokens(batch=100))
    zeros = embedded[0] == 0
    assert abs(zeros.double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / zeros.numel())  # 0.018


# Nothing looks ahead.


@pytest.mark.step("model")
def test_the_future_does_not_move_the_past(gpt):
    for bias in (True, False):
        model, tokens = small_gpt(gpt, bias=bias), some_tokens()
        for t in (1, 6, T_MAX - 1):
            changed = tokens.clone()
            changed[:, t:] = (changed[:, t:] + 1) % V
            for record in (False, True):
                for block in model.blocks:
                    block.attention.record_weights = record
                before, after = model(tokens)[0], model(changed)[0]
                close(before[:, :t], after[:, :t])  # not close: equal
                assert (before[:, t:] - after[:, t:]).abs().amax(-1).min() > 1e-3


def test_the_past_does_not_learn_from_the_future(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    embedded = model.token_embedding.weight.detach()[tokens].requires_grad_()
    model.token_embedding.register_forward_hook(lambda *_: embedded)
    for t in range(T_MAX):
        (gradient,) = torch.autograd.grad(model(tokens)[0][:, t].square().sum(), [embedded])
        assert gradient[:, t + 1 :].eq(0).all()
        assert gradient[:, : t + 1].abs().amax(-1).min() > 1e-6


# The loss.


@pytest.mark.step("loss")
def test_the_loss_is_the_mean_surprise_at_the_targets(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    logits, loss = model(tokens[:, :-1], tokens[:, 1:])
    surprises = [
        math.log(sum(math.exp(z) for z in row)) - row[target]
        for row, target in zip(logits.flatten(0, 1).tolist(), tokens[:, 1:].flatten().tolist(), strict=True)
    ]
    close(loss.item(), sum(surprises) / len(surprises), 1e-12)  # measured: 8.9e-16


@pytest.mark.step("loss")
def test_ignored_targets_count_neither_in_the_mean_nor_in_the_gradient(gpt):
    model, tokens, targets = small_gpt(gpt), some_tokens(), some_tokens(seed=2)
    targets[0, 5:] = -100  # a text that ended early
    logits, loss = model(tokens, targets)
    kept = targets != -100
    expected = torch.nn.functional.cross_entropy(logits[kept], targets[kept])
    close(loss, expected, 1e-12)  # measured: 8.9e-16
    # What comes after the last counted target is read by nobody: other tokens there change neither loss nor gradient.
    other = tokens.clone()
    other[0, 5:] = (tokens[0, 5:] + 1) % V
    results = [torch.autograd.grad(model(t, targets)[1], list(model.blocks.parameters())) for t in (tokens, other)]
    for first, second in zip(*results, strict=True):
        close(first, second, 1e-13)  # measured: 0


# The tied head: one table, two uses.


@pytest.mark.step("loss")
def test_the_table_learns_from_both_of_its_uses(gpt):
    model, tokens, targets = small_gpt(gpt), some_tokens(), some_tokens(seed=2)
    expected = numpy_gradients(gpt, model, tokens, targets)
    model(tokens, targets)[1].backward()
    gradient = model.token_embedding.weight.grad
    # The lookup adds few rows to the head's dense gradient; the sum must be dense, for any optimizer.
    assert gradient.layout == torch.strided
    close(gradient, expected["token_embedding.weight"], 1e-12)  # measured: 1.1e-16
    # Either use alone would be another gradient.
    assert abs(gradient.numpy() - expected["embed.weight"]).max() > 1e-3
    assert abs(gradient.numpy() - expected["head.weight"]).max() > 1e-3
    # A token that was never read still learns: from not being the next one.
    assert (expected["embed.weight"][V - 1] == 0).all()
    assert gradient[V - 1].abs().min() > 0


def test_the_table_adds_up_the_gradients_of_several_batches(gpt):
    model = small_gpt(gpt)
    batches = [(some_tokens(seed=s), some_tokens(seed=s + 10)) for s in (3, 4, 5)]
    expected = sum(numpy_gradients(gpt, model, *batch)["token_embedding.weight"] for batch in batches)
    for tokens, targets in batches:
        model(tokens, targets)[1].backward()
    gradient = model.token_embedding.weight.grad
    assert gradient.layout == torch.strided
    close(gradient, expected, 1e-12)  # measured: 1.4e-16


def test_in_float32_the_gradient_of_the_table_is_the_same_bit_for_bit_in_every_run(gpt):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = small_gpt(gpt, vocab_size=100, n_layer=1, n_embd=64, context_size=128).float()
        tokens, targets = torch.randint(100, (2, 4, 128), generator=torch.Generator().manual_seed(6))
        tokens[:, ::2] = 7  # one row is read 256 times: added up in another order, it would round differently
        runs = []
        for _ in range(3):
            model.zero_grad()
            model(tokens, targets)[1].backward()
            runs.append(model.token_embedding.weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(run, runs[0]) for run in runs)


def assert_tied(model):
    """The table is one tensor: what is written to a row shows in the lookup and in the head."""
    assert "lm_head.weight" not in dict(model.named_parameters())
    hidden = torch.ones(1, model.config.n_embd, dtype=model.token_embedding.weight.dtype)
    tokens = torch.tensor([[3]])
    for value in (0.5, -2.0):
        with torch.no_grad():
            model.token_embedding.weight[3] = value
            assert model.token_embedding(tokens).unique().tolist() == [value]
            assert model.head(hidden)[0, 3] == value * model.config.n_embd
    model.zero_grad()
    _, loss = model(tokens.repeat(1, 4), torch.tensor([[1, 2, 4, 5]]))
    loss.backward()
    assert model.token_embedding.weight.grad[3].abs().min() > 0  # read, and competing in the head


def test_the_head_stays_tied_whatever_happens_to_the_model(gpt):
    model = small_gpt(gpt)
    assert_tied(model)
    assert_tied(model.to(torch.float32))
    assert_tied(model.to(F64))
    assert_tied(copy.deepcopy(model))
    other = small_gpt(gpt, seed=1)
    other.load_state_dict(model.state_dict())
    assert_tied(other)
    close(other.head(torch.ones(1, 12, dtype=F64)), model.head(torch.ones(1, 12, dtype=F64)))
    other.load_state_dict(small_gpt(gpt, seed=2).state_dict(), assign=True)  # new tensors in the place of the old
    assert_tied(other)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = small_gpt(gpt, seed=3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert_tied(loaded)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_tied(torch.load(file, weights_only=False))
    with torch.device("meta"):
        empty = gpt.GPT(model.config)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(small_gpt(gpt, seed=4).float().state_dict())
    assert_tied(empty)


def test_the_optimizer_sees_the_table_once_and_moves_both_uses(gpt):
    model, tokens, targets = small_gpt(gpt), some_tokens(), some_tokens(seed=2)
    parameters = list(model.parameters())
    assert len({id(p) for p in parameters}) == len(parameters) == 28
    assert sum(p.numel() for p in parameters) == model.num_parameters()
    assert [p.shape for p in parameters].count((V, 12)) == 1
    gradient = numpy_gradients(gpt, model, tokens, targets)["token_embedding.weight"]
    before = model.token_embedding.weight.detach().clone()
    model(tokens, targets)[1].backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    close(before - model.token_embedding.weight, 0.1 * gradient, 1e-12)
    assert_tied(model)


def test_a_model_can_be_copied_in_the_middle_of_training(gpt):
    model, tokens = small_gpt(gpt, dropout=0.1), some_tokens()
    _, loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    twin = copy.deepcopy(model)
    for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        close(mine, theirs)


# The cache.


@pytest.mark.step("cache")
def test_cached_and_uncached_logits_are_the_same_for_any_cut_into_chunks(gpt):
    for batch in (1, 2):
        model, tokens = small_gpt(gpt), some_tokens(batch)
        expected, _ = model(tokens)
        for chunks in ([12], [1] * 12, [5, 7], [6, 1, 1, 1, 1, 1, 1], [1, 3, 4, 4], [2, 10]):
            for record in (False, True):
                for block in model.blocks:
                    block.attention.record_weights = record
                with torch.no_grad():
                    cache = model.new_cache(batch)
                    logits = torch.cat([model(chunk, cache=cache)[0] for chunk in tokens.split(chunks, dim=1)], dim=1)
                close(logits, expected, 1e-11)  # worst measured: 2.2e-15
                assert [layer.length for layer in cache] == [12, 12]


def test_a_new_cache_is_empty_and_has_room_for_the_context(gpt):
    cache = small_gpt(gpt).new_cache(batch=3)
    assert [layer.length for layer in cache] == [0, 0]
    assert all(layer.keys.shape == layer.values.shape == (3, 2, T_MAX, 6) for layer in cache)
    assert all(layer.keys.dtype == layer.values.dtype == F64 for layer in cache)


# Bad input.


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([[0, V]], ValueError, rf"tokens.*0\.\.{V - 1}.*0\.\.{V}"),
        ([[-1, 3]], ValueError, rf"tokens.*0\.\.{V - 1}.*-1\.\.3"),
        ([[0.0, 1.0]], TypeError, r"tokens.*integer.*float32"),
        ([[True, False]], TypeError, r"tokens.*integer.*bool"),
        ([0, 1], ValueError, r"tokens.*\[batch, T\].*\[2\]"),
        ([[], []], ValueError, r"tokens.*\[batch, T\].*\[2, 0\]"),
        ([[0] * 13], ValueError, r"tokens.*context_size=12.*13"),
    ],
)
def test_tokens_that_cannot_be_read_are_named(gpt, tokens, error, message):
    with pytest.raises(error, match=message):
        small_gpt(gpt)(torch.tensor(tokens))


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([[0, V]], ValueError, rf"targets.*0\.\.{V - 1}.*0\.\.{V}"),
        ([[-100, -1]], ValueError, rf"targets.*0\.\.{V - 1}.*-1\.\.-1"),
        ([[0.0, 1.0]], TypeError, r"targets.*integer.*float32"),
        ([[0]], ValueError, r"targets.*\[1, 2\].*\[1, 1\]"),
        ([0, 1], ValueError, r"targets.*\[1, 2\].*\[2\]"),
    ],
)
def test_targets_that_cannot_be_scored_are_named(gpt, targets, error, message):
    with pytest.raises(error, match=message):
        small_gpt(gpt)(torch.tensor([[0, 1]]), torch.tensor(targets))


def test_a_full_cache_is_an_error_that_leaves_it_as_it_was(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    cache = model.new_cache(batch=2)
    with torch.no_grad():
        model(tokens[:, :10], cache=cache)
        with pytest.raises(ValueError, match=r"tokens.*context_size=12.*13"):
            model(tokens[:, :3], cache=cache)
        logits, _ = model(tokens[:, 10:], cache=cache)
    close(logits, model(tokens)[0][:, 10:], 1e-11)


def test_the_model_trains_in_parallel_processes_as_alone(gpt, tmp_path):
    """PyTorch's DistributedDataParallel, here in a world of one process, must find the gradients it expects."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, tokens = small_gpt(gpt), some_tokens()
        alone = torch.autograd.grad(model(tokens, tokens)[1], list(model.parameters()))
        torch.nn.parallel.DistributedDataParallel(model)(tokens, tokens)[1].backward()
        for parameter, expected in zip(model.parameters(), alone, strict=True):
            close(parameter.grad, expected, 1e-12)
    finally:
        torch.distributed.destroy_process_group()
