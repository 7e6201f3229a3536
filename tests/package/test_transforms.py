"""What PyTorch can do to a model: compile, export, differentiate per sample and twice, copy, move.

The model asks its data nothing, so every transformation of torch reads it whole. Compiling uses the backends that
trace but generate no code ("eager", "aot_eager"): they find the same graph breaks as the default, in seconds.
"""

import copy
import io
import math
import pickle

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests import models
from tests.comparing import close

F64 = torch.float64
# What PyTorch says of its own speed, on the one Python 3.13.0.
pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
V, T_MAX = 19, 80


def small_gpt(gpt, **changes):
    """A fresh model, whose context is longer than one slice of the CPU's attention under dropout."""
    return models.small_gpt(gpt, std=None, context_size=T_MAX, **changes)


def some_tokens(batch=3, length=70):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


def compiled(model, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend)


# torch.compile


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_the_model_in_value_and_gradient(gpt, backend, record):
    model, tokens = small_gpt(gpt), some_tokens()
    for block in model.blocks:
        block.attention.record_weights = record
    fast = compiled(model, backend)
    close(fast(tokens)[0], model(tokens)[0], 1e-12)
    gradients = []
    for run in (fast, model):
        logits, loss = run(tokens, tokens)
        gradients.append([logits, loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 1e-12)


def test_a_compiled_model_drops_while_training_and_not_in_evaluation(gpt):
    model, tokens = small_gpt(gpt, dropout=0.25), some_tokens()
    fast = compiled(model, "aot_eager")
    _, loss = fast(tokens, tokens)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert not torch.equal(fast(tokens)[0], fast(tokens)[0])
    model.eval()
    close(fast(tokens)[0], model(tokens)[0], 1e-12)


def test_compiled_dropout_drops_with_its_probability(gpt):
    torch.manual_seed(3)
    p, n = 0.25, 100_000
    dropped = compiled(gpt.kernels.Dropout(p))(torch.ones(n))
    assert abs(dropped.eq(0).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    kept = dropped[dropped != 0]
    close(kept, torch.full_like(kept, 1 / (1 - p)), 1e-6)
    # Zero queries weight all of 200 keys alike, and values of one count those that were kept.
    q, ones = torch.zeros(1, 50, 200, 2), torch.ones(1, 50, 200, 2)
    counted = compiled(gpt.kernels.fused_causal_attention)(q, q, ones, p)[0, :, -1, 0]
    assert abs(counted.mean() - 1) < 5 * math.sqrt(p / (1 - p) / (50 * 200))
    assert counted.unique().numel() > 5


def test_a_compiled_model_reads_a_cache(gpt):
    model, tokens = small_gpt(gpt), some_tokens(length=8)
    fast, cache = compiled(model), model.new_cache(3)
    with torch.no_grad():
        pieces = [fast(chunk, cache=cache)[0] for chunk in tokens.split([5, 1, 2], dim=1)]
    close(torch.cat(pieces, dim=1), model(tokens)[0], 1e-12)


# torch.export


def test_an_exported_model_is_the_model_at_every_size(gpt):
    model, tokens = small_gpt(gpt).eval(), some_tokens()
    batch, length = torch.export.Dim("B", min=2), torch.export.Dim("T", min=2, max=T_MAX)
    program = torch.export.export(model, (tokens,), dynamic_shapes=({0: batch, 1: length},)).module()
    for other in (tokens, tokens[:2, :33]):
        close(program(other)[0], model(other)[0], 1e-12)


# torch.func


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's kernel has no batched form
def test_gradients_per_sample_are_those_of_a_loop(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, text):
        return functional_call(model, parameters, (text[None], text[None]))[1]

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, tokens)
    for i in range(len(tokens)):
        alone = torch.autograd.grad(model(tokens[i : i + 1], tokens[i : i + 1])[1], list(model.parameters()))
        for name, expected in zip(parameters, alone, strict=True):
            close(together[name][i], expected, 1e-13)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_per_sample_toss_coins_of_their_own(gpt):
    model, tokens = small_gpt(gpt, dropout=0.5), some_tokens(batch=1).expand(2, -1)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    loss = lambda parameters, text: functional_call(model, parameters, (text[None], text[None]))[1]  # noqa: E731
    both = vmap(grad(loss), in_dims=(None, 0), randomness="different")(parameters, tokens)["position_embedding.weight"]
    assert not torch.equal(both[0], both[1])


# Gradients of gradients


@pytest.mark.parametrize("record", [True, False], ids=["readable", "fused"])
def test_second_derivatives_are_those_of_finite_differences(gpt, record):
    torch.manual_seed(2)
    layer, x = gpt.CausalSelfAttention(4, 2, 3).to(F64), torch.randn(1, 3, 4, dtype=F64, requires_grad=True)
    layer.record_weights = record
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's own kernel has first derivatives only
        assert torch.autograd.gradgradcheck(layer, (x,))


def test_second_derivatives_reach_every_parameter(gpt):
    model, tokens = small_gpt(gpt), some_tokens(batch=1, length=5)
    for block in model.blocks:
        block.attention.record_weights = True
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model(tokens, tokens)[1], parameters, create_graph=True)
    curvature = torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters)
    assert all(c.isfinite().all() for c in curvature)
    assert all(c.layout == torch.strided and c.abs().max() > 0 for c in curvature)


# Training on hidden states


def test_a_probe_on_hidden_states_trains_the_model_too(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    labels = tokens[:, 0] % 2
    classifier = torch.nn.ModuleDict({"gpt": model, "probe": torch.nn.Linear(12, 2, dtype=F64)})
    optimizer, losses = gpt.adamw(classifier, lr=1e-2), []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(classifier["probe"](model.hidden(tokens)[:, 0]), labels)
        optimizer.zero_grad()
        loss.backward()
        assert model.token_embedding.weight.grad.layout == torch.strided
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_logits_without_targets_have_dense_gradients(gpt):
    model, tokens = small_gpt(gpt), some_tokens()
    model(tokens)[0].square().sum().backward()
    assert model.token_embedding.weight.grad.layout == torch.strided


# Devices and copies


def test_a_model_lives_where_it_is_made_whatever_the_default_device(gpt):
    model, tokens = small_gpt(gpt, dropout=0.1), some_tokens()
    encoding = gpt.PositionalEncoding(12, T_MAX)
    with torch.device("meta"):  # from here on, a tensor that names no device has no numbers
        for block in model.blocks:
            for record in (False, True):
                block.attention.record_weights = record
                _, loss = model(tokens, tokens)
                assert loss.isfinite()
        cache = model.new_cache(3)
        for block in model.blocks:
            block.attention.record_weights = False
        model.eval()
        for chunk in tokens.split([60, 1, 9], dim=1):
            assert model(chunk, cache=cache)[0].isfinite().all()
        assert encoding(torch.zeros(1, 3, 12, device="cpu")).isfinite().all()
        assert gpt.PositionalEncoding(12, T_MAX).table.device.type == "meta"
        shapeless = gpt.GPT(model.config)
        logits, loss = shapeless(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))
        assert (logits.shape, logits.device.type, loss.device.type) == ((2, 5, V), "meta", "meta")


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "save"])
def test_a_copy_of_a_model_that_recorded_is_the_model(gpt, way):
    model, tokens = small_gpt(gpt), some_tokens()
    for block in model.blocks:
        block.attention.record_weights = True
    logits, _ = model(tokens)  # with gradients: the recorded weights belong to this pass and its graph
    if way == "save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = way(model)
    assert [block.attention.weights for block in twin.blocks] == [None, None]
    assert model.blocks[0].attention.weights is not None
    close(twin(tokens)[0], logits)


# Ids are looked at where that is free, and nowhere else.


def test_a_wrong_id_is_named_in_eager_mode_on_the_cpu_only(gpt):
    model = small_gpt(gpt).to("meta")
    model(torch.full((1, 2), V, device="meta"))  # nothing to look at, and nothing is asked
    with pytest.raises(ValueError, match=rf"tokens.*0\.\.{V - 1}.*{V}"):
        small_gpt(gpt)(torch.full((1, 2), V))
    with pytest.raises(TypeError, match=r"tokens.*integer.*float32"):
        model(torch.zeros(1, 2, device="meta"))


def test_ids_can_be_checked_at_the_door(gpt):
    gpt.model.check_ids("prompt", torch.tensor([[0, V - 1]]), V)
    gpt.model.check_ids("targets", torch.tensor([-100, 3]), V, ignored=-100)
    gpt.model.check_ids("targets", torch.tensor([-100]), V, ignored=-100)
    for ids in ([[0, V]], [[-1, 2]], [[-100, 2]]):
        with pytest.raises(ValueError, match=rf"prompt.*0\.\.{V - 1}"):
            gpt.model.check_ids("prompt", torch.tensor(ids), V)
