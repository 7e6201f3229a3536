"""A model that PyTorch can transform: compiled, exported, per-sample gradients, a probe on its stream."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from tests.comparing import close
from tests.models import random_tokens, small_gpt

F64 = torch.float64


@pytest.fixture
def ids() -> torch.Tensor:
    return random_tokens()


def compiled(model: nn.Module) -> nn.Module:
    """The whole model as one graph; "aot_eager" traces forward and backward and leaves out the slow code generation."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_compiled_model_is_the_model_in_value_and_in_gradient(gpt, ids, with_targets, dropout):
    """Dropout is part of the program, but asleep: in training its draws are others than those of the eager kernel."""
    model = small_gpt(gpt, dropout=dropout).eval()
    targets = ids.roll(-1, 1) if with_targets else None
    results = []
    for run in (model, compiled(model)):
        model.zero_grad()
        logits, loss = run(ids, targets)
        (logits.square().mean() if loss is None else loss).backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        close(one, other, 1e-12)


def test_a_compiled_model_trains_with_dropout(gpt, ids):
    """One graph with dropout awake: another draw each time, the same draw for the same seed, and a gradient."""
    model = small_gpt(gpt, dropout=0.3).train()
    run = compiled(model)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(run(ids, ids)[1])
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    asleep = model.eval()(ids, ids)[1].item()
    assert min(losses) != asleep
    assert abs(sum(losses).item() / 3 - asleep) < 2.0


def test_an_exported_model_is_the_model(gpt, ids):
    model = small_gpt(gpt).eval()
    program = torch.export.export(model, (ids,))
    close(program.module()(ids)[0], model(ids)[0], 1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's own loop over its fused kernel
def test_gradients_of_single_samples_are_those_of_a_loop(gpt):
    ids, targets = random_tokens(batch=4), random_tokens(batch=4, seed=2)
    model = small_gpt(gpt)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, tokens, answers):
        return functional_call(model, weights, (tokens[None], answers[None]))[1]

    together = vmap(grad(loss), in_dims=(None, 0, 0))(weights, ids, targets)
    for i in range(len(ids)):
        model.zero_grad()
        model(ids[i : i + 1], targets[i : i + 1])[1].backward()
        for name, parameter in model.named_parameters():
            close(together[name][i], parameter.grad.to_dense(), 1e-12)


def test_a_probe_on_the_stream_is_trained_by_the_packages_own_optimizer(gpt, ids):
    """Without the head in the loss every gradient is dense, so clipping and AdamW take it."""
    model = small_gpt(gpt, std=None, dtype=torch.float32)
    probe = nn.Linear(model.config.n_embd, 3)
    both = nn.ModuleDict({"model": model, "probe": probe})
    optimizer, answers = gpt.adamw(both, lr=0.01), ids % 3
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(probe(model.hidden(ids)).flatten(0, 1), answers.flatten())
        loss.backward()
        assert not model.token_embedding.weight.grad.is_sparse
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_has_the_same_gradient_with_and_without_the_promise(gpt, ids):
    """Rows that autograd adds in place, against a dense table: what the model promises about its loss is true."""
    model = small_gpt(gpt)
    model(ids, ids)[1].backward()
    promised = model.token_embedding.weight.grad.to_dense().clone()
    model.zero_grad()
    logits = model.head(model.hidden(ids))
    nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    close(promised, model.token_embedding.weight.grad, 1e-14)


def test_a_model_works_where_another_device_is_the_default(gpt, ids):
    model = small_gpt(gpt, dropout=0.2)
    with torch.device("meta"):
        close(model.eval()(ids)[0].isfinite().all(), torch.tensor(True, device="cpu"))
        model.train()(ids, ids)[1].backward()
        assert model.generate(ids, 3).device.type == "cpu"


def test_a_model_can_be_copied_and_pickled(gpt, ids):
    model = small_gpt(gpt).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(other(ids)[0], model(ids)[0])


def test_second_derivatives_of_the_readable_path_are_right(gpt):
    """PyTorch has none of its fused kernel; the readable path has all of them."""
    torch.manual_seed(0)
    layer = gpt.CausalSelfAttention(4, 2, 8).to(F64)
    layer.record_weights = True
    x = torch.randn(1, 3, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    norm = gpt.LayerNorm(4).to(F64)
    assert torch.autograd.gradgradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(gpt.FeedForward(4).to(F64), (x,))


def test_an_id_outside_the_vocabulary_is_named_on_the_cpu_and_not_asked_for_in_a_graph(gpt, ids):
    model = small_gpt(gpt)
    for name, arguments in {"tokens": (ids + 7, None), "targets": (ids, ids + 7)}.items():
        with pytest.raises(ValueError, match=rf"{name} must be ids in 0\.\.18"):
            model(*arguments)
    compiled(model)(ids, ids)  # fullgraph: a question to the ids would break the graph
