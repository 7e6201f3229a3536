"""Concept 6, backward: every gradient of GPT-2 by hand, in NumPy, without autograd.

Each `<op>_backward` has two judges in float64: central finite differences, which know no
derivation, and PyTorch's autograd on torch.nn.functional. Then the whole model, every parameter, every
intermediate value. DEEP_THEORY_GUIDE.md, Part 6.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.comparing import close
from tests.models import small_gpt

V, D_MODEL, D_FF, T_MAX, H = 7, 4, 16, 5, 2
# Token 1 appears twice in one sequence and once in the other, so that its gradients add up. Token 4 is never read.
TOKENS = np.array([[3, 1, 1, 6], [0, 2, 5, 1]])
TARGETS = np.array([[1, 1, 6, -100], [2, 5, 1, 4]])  # one position does not count


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def agree(actual, expected, tolerance, name=""):
    """`close`, with the tolerance measured against the largest expected number."""
    close(actual, expected, tolerance * np.abs(expected).max(), name)


def block_params(seed, bias=True, prefix=""):
    shapes = {
        "attention_norm.weight": (D_MODEL,),
        "attention_norm.bias": (D_MODEL,),
        "attention.qkv.weight": (3 * D_MODEL, D_MODEL),
        "attention.qkv.bias": (3 * D_MODEL,),
        "attention.projection.weight": (D_MODEL, D_MODEL),
        "attention.projection.bias": (D_MODEL,),
        "feed_forward_norm.weight": (D_MODEL,),
        "feed_forward_norm.bias": (D_MODEL,),
        "feed_forward.expand.weight": (D_FF, D_MODEL),
        "feed_forward.expand.bias": (D_FF,),
        "feed_forward.project.weight": (D_MODEL, D_FF),
        "feed_forward.project.bias": (D_MODEL,),
    }
    return {
        prefix + name: 0.7 * normal([seed, i], *shape)
        for i, (name, shape) in enumerate(shapes.items())
        if bias or name.endswith("weight")
    }


def gpt_params(seed, n_layer=2, bias=True):
    params = {
        "token_embedding.weight": normal([seed, 0], V, D_MODEL),
        "position_embedding.weight": normal([seed, 1], T_MAX, D_MODEL),
    }
    for i in range(n_layer):
        params |= block_params(100 * seed + i, bias, f"blocks.{i}.")
    params["final_norm.weight"] = normal([seed, 2], D_MODEL)
    if bias:
        params["final_norm.bias"] = normal([seed, 3], D_MODEL)
    return params


def under(values, prefix):
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


# The same operations in PyTorch. `keep` may hold intermediate tensors by the names of gpt.backward's cache.


def torch_attention(x, p, n_head, keep=lambda name, value: value):
    time, d_model = x.shape[1:]
    qkv = F.linear(x, p["qkv.weight"], p.get("qkv.bias"))
    q, k, v = (
        keep(f"heads.{name}", part.unflatten(-1, (n_head, d_model // n_head)).transpose(1, 2))
        for name, part in zip("qkv", qkv.chunk(3, dim=-1), strict=True)
    )
    scores = keep("heads.scores", torch.einsum("bhqd,bhkd->bhqk", q, k) * (d_model // n_head) ** -0.5)
    future = torch.ones(time, time, dtype=torch.bool).triu(1)
    weights = keep("heads.weights", scores.masked_fill(future, -torch.inf).softmax(dim=-1))
    output = keep("heads.output", torch.einsum("bhqk,bhkd->bhqd", weights, v))
    return F.linear(output.transpose(1, 2).flatten(2), p["projection.weight"], p.get("projection.bias"))


def torch_norm(x, p, name):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p.get(f"{name}.bias"), eps=1e-5)


def torch_feed_forward(x, p):
    hidden = F.gelu(F.linear(x, p["expand.weight"], p.get("expand.bias")), approximate="tanh")
    return F.linear(hidden, p["project.weight"], p.get("project.bias"))


def torch_block(x, p, n_head, keep=lambda name, value: value):
    attention = torch_attention(
        torch_norm(x, p, "attention_norm"), under(p, "attention."), n_head, lambda n, v: keep(f"attention.{n}", v)
    )
    residual = keep("residual", x + attention)
    feed_forward = torch_feed_forward(torch_norm(residual, p, "feed_forward_norm"), under(p, "feed_forward."))
    return keep("output", residual + feed_forward)


def torch_gpt_loss(p, head_weight, tokens, targets, n_layer, keep=lambda name, value: value):
    """The table that looks tokens up and the one that makes logits may differ here: that unties them."""
    x = F.embedding(tokens, p["token_embedding.weight"]) + p["position_embedding.weight"][: tokens.shape[1]]
    keep("blocks.0.x", x)
    for i in range(n_layer):
        x = torch_block(x, under(p, f"blocks.{i}."), H, lambda n, v, i=i: keep(f"blocks.{i}.{n}", v))
    logits = keep("cross_entropy.logits", F.linear(keep("head.x", torch_norm(x, p, "final_norm")), head_weight))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def leaves(arrays):
    return {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}


# One operation at a time.


@dataclass
class Case:
    """One operation on one input, here and in PyTorch. Each input bears the name of its gradient."""

    op: str
    inputs: dict[str, np.ndarray]
    torch: Any  # tensors by name -> output
    fixed: tuple = ()  # what no gradient flows into: ids, targets, a mask, the number of heads
    grouped: bool = False  # x by itself and the rest as a dictionary of parameters

    def __str__(self):
        return f"{self.op} {' '.join(str(list(value.shape)) for value in list(self.inputs.values())[:2])}"

    def forward(self, gpt, inputs):
        function = getattr(gpt.backward, f"{self.op}_forward")
        if self.grouped:
            return function(inputs["x"], {name: value for name, value in inputs.items() if name != "x"}, *self.fixed)
        if self.op == "embedding":
            return function(*self.fixed, **inputs)
        return function(*inputs.values(), *self.fixed)


def qkv(seed, *shapes):
    return {name: normal([seed, i], *shape) for i, (name, shape) in enumerate(zip("qkv", shapes, strict=True))}


def attention_case(inputs, mask):
    tensor_mask = None if mask is None else torch.tensor(mask)
    return Case("attention", inputs, lambda t: F.scaled_dot_product_attention(*t.values(), tensor_mask), (mask,))


IDS = np.array([[3, 0, 3], [3, 1, 0]])
PAST = np.tri(4, dtype=bool)
ANY_MASK = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)
PER_BATCH_MASK = np.stack([ANY_MASK, ~ANY_MASK | (np.arange(5) == 2)])[:, None]

CASES = [
    Case("embedding", {"weight": normal(0, 5, 3)}, lambda t: F.embedding(torch.tensor(IDS), t["weight"]), (IDS,)),
    *(
        Case("linear", {"x": normal(1, *x), "weight": normal(2, 5, x[-1])} | bias, lambda t: F.linear(*t.values()))
        for x, bias in [((2, 3, 4), {"bias": normal(3, 5)}), ((6, 2), {}), ((3,), {"bias": normal(4, 5)})]
    ),
    *(
        Case(
            "layer_norm",
            {"x": 2 + normal(5, *x), "weight": normal(6, x[-1])} | bias,
            lambda t: F.layer_norm(t["x"], t["x"].shape[-1:], t["weight"], t.get("bias"), eps=1e-5),
        )
        for x, bias in [((2, 3, 4), {"bias": normal(7, 4)}), ((5, 9), {}), ((2, 3), {"bias": normal(8, 3)})]
    ),
    *(Case("gelu", {"x": 2 * normal(9, *x)}, lambda t: F.gelu(t["x"], approximate="tanh")) for x in [(2, 3, 4), (50,)]),
    *(Case("softmax", {"x": 3 * normal(10, *x)}, lambda t: t["x"].softmax(-1)) for x in [(2, 3, 4), (7,), (3, 2)]),
    *(
        Case(
            "cross_entropy",
            {"logits": 2 * normal(11, *targets.shape, 6)},
            lambda t, y=targets: F.cross_entropy(t["logits"].reshape(-1, 6), torch.tensor(y).flatten()),
            (targets,),
        )
        for targets in [np.array([[1, 5, -100], [0, 0, -100]]), np.array([4, 2, 3, 0]), np.array([-100, 5])]
    ),
    attention_case(qkv(12, (3, 2), (3, 2), (3, 2)), None),
    attention_case(qkv(13, (2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)), PAST),
    attention_case(qkv(14, (2, 3, 4), (2, 5, 4), (2, 5, 6)), ANY_MASK),
    attention_case(qkv(15, (2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 2)), PER_BATCH_MASK),
    *(
        Case(
            "causal_self_attention",
            {"x": normal(16, 2, time, D_MODEL)} | under(block_params(17, bias), "attention."),
            lambda t, n_head=n_head: torch_attention(t["x"], t, n_head),
            (n_head,),
            grouped=True,
        )
        for time, n_head, bias in [(4, 2, True), (3, 1, False), (5, 4, True)]
    ),
    *(
        Case(
            "feed_forward",
            {"x": normal(18, 2, 3, D_MODEL)} | under(block_params(19, bias), "feed_forward."),
            lambda t: torch_feed_forward(t["x"], t),
            grouped=True,
        )
        for bias in [True, False]
    ),
    *(
        Case(
            "block",
            {"x": normal(20, 2, time, D_MODEL)} | block_params(21, bias),
            lambda t: torch_block(t["x"], t, H),
            (H,),
            grouped=True,
        )
        for time, bias in [(3, True), (4, False)]
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_backward_is_what_finite_differences_measure(gpt, case):
    output, cache = case.forward(gpt, case.inputs)
    d_output = normal(99, *np.shape(output))  # L = sum(output * d_output), so that dL/d(output) = d_output
    gradients = gpt.backward.named(getattr(gpt.backward, f"{case.op}_backward")(d_output, cache))
    for name, value in case.inputs.items():

        def loss(moved, name=name):
            return np.sum(case.forward(gpt, case.inputs | {name: moved})[0] * d_output)

        measured = gpt.backward.finite_difference(loss, value)
        # worst measured: 5.5e-10, in a block
        agree(gradients[name], measured, 1e-8, name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_pair_is_what_autograd_finds(gpt, case):
    output, cache = case.forward(gpt, case.inputs)
    d_output = normal(98, *np.shape(output))
    gradients = gpt.backward.named(getattr(gpt.backward, f"{case.op}_backward")(d_output, cache))
    tensors = leaves(case.inputs)
    expected = case.torch(tensors)
    expected.backward(torch.tensor(d_output))
    # worst measured: 6.1e-16
    agree(np.array(output), expected.detach().numpy(), 1e-13)
    for name, tensor in tensors.items():
        # worst measured: 1.7e-15
        agree(gradients[name], tensor.grad.numpy(), 1e-12, name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_pair_changes_its_inputs_or_its_cache(gpt, case):
    inputs = {name: value.copy() for name, value in case.inputs.items()}
    output, cache = case.forward(gpt, inputs)
    d_output = normal(97, *np.shape(output))
    before = {name: value.copy() for name, value in gpt.backward.named(cache).items()}
    d_before = np.copy(d_output)
    getattr(gpt.backward, f"{case.op}_backward")(d_output, cache)
    for name, value in case.inputs.items():
        close(inputs[name], value, name=name)
    for name, value in gpt.backward.named(cache).items():
        close(value, before[name], name=name)
    close(d_output, d_before)


def test_finite_differences_find_the_gradient_of_a_known_function(gpt):
    x = normal(22, 2, 3)
    before = x.copy()
    measured = gpt.backward.finite_difference(lambda z: np.sum(np.sin(z) * z[::-1]), x)
    # measured: 2.0e-11
    agree(measured, np.cos(x) * x[::-1] + np.sin(x)[::-1], 1e-9)
    close(x, before)


def test_finite_differences_err_by_the_square_of_the_step(gpt):
    # f = x^3: (f(x+h) - f(x-h)) / 2h = 3 x^2 + h^2
    measured = gpt.backward.finite_difference(lambda z: (z**3).sum(), np.array([2.0]), h=0.1)
    close(measured[0], 12.01, 1e-12)


# What each derivation promises.


def test_the_embedding_gradient_adds_up_over_repeated_tokens(gpt):
    weight = normal(23, 4, 2)
    output, cache = gpt.backward.embedding_forward(np.array([1, 3, 1]), weight)
    close(output, weight[[1, 3, 1]])
    gradient = gpt.backward.embedding_backward(np.array([[1.0, 2.0], [5.0, 7.0], [10.0, 20.0]]), cache)["weight"]
    close(gradient, [[0, 0], [11, 22], [0, 0], [5, 7]])


def test_layer_norm_divides_by_the_biased_deviation(gpt):
    # mean 2.5, variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25
    output, cache = gpt.backward.layer_norm_forward(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 1.0, 1.0]))
    close(cache["mean"], [2.5])
    close(output, np.array([-1.5, -1.0, 0.5, 1.5]) / np.sqrt(1.25 + 1e-5), 1e-15)


def test_no_gradient_passes_layer_norm_along_shift_and_scale(gpt):
    d_output = normal(24, 5, 6)
    _, cache = gpt.backward.layer_norm_forward(3 * normal(25, 5, 6) + 1, np.ones(6), eps=0)
    gradient = gpt.backward.layer_norm_backward(d_output, cache)["x"]
    assert np.abs(gradient).max() > 0.1
    # measured: 6.7e-16
    close(gradient.sum(axis=-1), np.zeros(5), 1e-14)
    # measured: 5.0e-16
    close((gradient * cache["normalized"]).sum(axis=-1), np.zeros(5), 1e-14)


def test_eps_lets_a_known_trickle_pass_along_scale(gpt):
    # d_x . n = inverse_std (d_n . n) eps / (variance + eps): noticeable only where the variance is near eps
    x, d_output, eps = 0.01 * normal(26, 5, 6), normal(27, 5, 6), 1e-5
    _, cache = gpt.backward.layer_norm_forward(x, np.ones(6), eps=eps)
    gradient, n = gpt.backward.layer_norm_backward(d_output, cache)["x"], cache["normalized"]
    trickle = (d_output * n).sum(axis=-1) * eps * cache["inverse_std"][:, 0] ** 3
    assert np.abs(trickle).max() > 1
    # measured: 2.8e-15
    agree((gradient * n).sum(axis=-1), trickle, 1e-12)


def test_gelu_is_the_tanh_form_and_not_the_exact_one(gpt):
    x = np.linspace(-6, 6, 2001)
    output, cache = gpt.backward.gelu_forward(x)
    exact = F.gelu(torch.tensor(x)).numpy()
    close(np.abs(output - exact).max(), 4.73e-4, 1e-6)  # the known gap, near |x| = 2.70
    slope = gpt.backward.gelu_backward(np.ones_like(x), cache)["x"]
    close(slope[[0, 1000, 2000]], np.array([0, 0.5, 1]), 1e-6)


def test_softmax_rows_are_distributions_that_ignore_a_shift(gpt):
    x = 5 * normal(28, 4, 3, 6)
    p, _ = gpt.backward.softmax_forward(x)
    shifted, _ = gpt.backward.softmax_forward(x + 1000 * normal(29, 4, 3, 1))
    assert p.min() > 0
    # measured: 2.2e-16
    close(p.sum(axis=-1), np.ones((4, 3)), 4e-15)
    # measured: 2.9e-15, the rounding of x + 1000
    close(p, shifted, 1e-12)


def test_softmax_neither_overflows_nor_looks_at_minus_infinity(gpt):
    p, cache = gpt.backward.softmax_forward(np.array([1e4, -np.inf, 1e4, 0.0]))
    close(p, [0.5, 0, 0.5, 0])
    close(gpt.backward.softmax_backward(np.array([1.0, 9, 3, 9]), cache)["x"], [-0.5, 0, 0.5, 0])


def test_the_softmax_jacobian_is_diag_p_minus_p_pt(gpt):
    p, cache = gpt.backward.softmax_forward(normal(30, 5))
    rows = [gpt.backward.softmax_backward(row, cache)["x"] for row in np.eye(5)]
    # measured: 2.8e-17
    close(np.array(rows), np.diag(p) - np.outer(p, p), 1e-15)
    close(np.sum(rows, axis=1), np.zeros(5), 1e-15)


def test_equal_logits_cost_ln_v_and_huge_logits_stay_finite(gpt):
    loss, _ = gpt.backward.cross_entropy_forward(np.full((2, 3, 11), 0.7), np.array([[0, 5, 10], [1, 1, 1]]))
    close(loss, np.log(11), 1e-15)
    loss, cache = gpt.backward.cross_entropy_forward(np.array([[1e4, -1e4]]), np.array([1]))
    close(loss, 2e4)
    close(gpt.backward.cross_entropy_backward(1.0, cache)["logits"], [[1, -1]])


def test_ignored_targets_count_neither_in_the_mean_nor_in_the_gradient(gpt):
    logits, targets = normal(31, 6, 5), np.array([2, -100, 0, -100, -100, 4])
    loss, cache = gpt.backward.cross_entropy_forward(logits, targets)
    gradient = gpt.backward.cross_entropy_backward(1.0, cache)["logits"]
    kept = targets != -100
    loss_kept, cache_kept = gpt.backward.cross_entropy_forward(logits[kept], targets[kept])
    close(loss, loss_kept, 1e-14 * loss_kept)
    gradient_kept = gpt.backward.cross_entropy_backward(1.0, cache_kept)["logits"]
    agree(gradient[kept], gradient_kept, 1e-14)  # measured: 0
    close(gradient[~kept], np.zeros((3, 5)))


def test_attention_in_numbers_a_person_can_check(gpt):
    # scores = (0, sqrt 2) . (e_1, e_2) / sqrt 2 = (0, 1), so the weights are (1, e) / (1 + e). The values are
    # e_1 and e_2 too, so the output shows the weights.
    q, identity = np.array([[0, np.sqrt(2)]]), np.eye(2)
    output, cache = gpt.backward.attention_forward(q, identity, identity)
    close(cache["scores"], np.array([[0.0, 1.0]]), 1e-15)
    close(cache["weights"], np.array([[1, np.e]]) / (1 + np.e), 1e-15)
    close(output, cache["weights"], 1e-15)
    # L = second number of the output: d_A = (0, 1), and d_S = p (1 - p) (-1, 1) with p = e / (1 + e)
    gradients = gpt.backward.attention_backward(np.array([[0.0, 1.0]]), cache)
    slope = np.e / (1 + np.e) ** 2
    close(gradients["weights"], [[0, 1]])
    close(gradients["scores"], slope * np.array([[-1, 1]]), 1e-15)
    close(gradients["q"], slope / np.sqrt(2) * np.array([[-1, 1]]), 1e-15)
    close(gradients["k"], slope * np.array([[0, -1], [0, 1]]), 1e-15)
    close(gradients["v"], np.array([[0, 1], [0, np.e]]) / (1 + np.e), 1e-15)


def test_what_the_mask_hides_has_no_weight_and_no_gradient(gpt):
    inputs = qkv(32, (2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4))
    output, cache = gpt.backward.attention_forward(**inputs, mask=ANY_MASK)
    gradients = gpt.backward.attention_backward(normal(33, *output.shape), cache)
    for name in ("weights", "scores"):
        values = cache["weights"] if name == "weights" else gradients["scores"]
        close(values[..., ~ANY_MASK], np.zeros((2, 2, (~ANY_MASK).sum())))
    close(cache["weights"].sum(axis=-1), np.ones((2, 2, 3)), 4e-15)  # measured: 2.2e-16
    # the second query may look at the last key alone
    close(output[:, :, 1], inputs["v"][:, :, 4])


def test_no_score_is_loud_enough_to_get_past_the_mask(gpt):
    # the hidden key scores 1e12; a mask that only subtracted 1e10 would let it win
    q, k, v = np.array([[1e6]]), np.array([[0.0], [1e6]]), np.array([[3.0], [5.0]])
    output, cache = gpt.backward.attention_forward(q, k, v, np.array([[True, False]]))
    close(cache["weights"], [[1, 0]])
    close(output, [[3.0]])


def test_the_causal_mask_shows_each_query_itself_and_its_past(gpt):
    close(gpt.backward.causal_mask(3), [[True, False, False], [True, True, False], [True, True, True]])


@pytest.mark.parametrize("t", range(4))
def test_no_gradient_flows_from_the_present_to_the_future(gpt, t):
    x = normal(34, 2, 4, D_MODEL)
    _, cache = gpt.backward.block_forward(x, block_params(35), H)
    d_output = np.zeros_like(x)
    d_output[:, t] = normal(36, D_MODEL)
    gradient = gpt.backward.block_backward(d_output, cache)["x"]
    close(gradient[:, t + 1 :], np.zeros((2, 3 - t, D_MODEL)))
    assert (np.abs(gradient[:, : t + 1]).max(axis=-1) > 1e-6).all()


def test_the_future_does_not_move_the_past(gpt):
    params = gpt_params(37)
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % V
    logits, _, _ = gpt.backward.gpt_forward(params, TOKENS, H)
    moved, _, _ = gpt.backward.gpt_forward(params, changed, H)
    # measured: 0
    close(logits[:, :2], moved[:, :2], 1e-14)
    assert (np.abs(logits[:, 2:] - moved[:, 2:]).max(axis=-1) > 1e-3).all()


# The whole model.


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_every_parameter_is_what_finite_differences_measure(gpt, bias):
    params = gpt_params(38, bias=bias)
    _, _, cache = gpt.backward.gpt_forward(params, TOKENS, H, TARGETS)
    gradients = gpt.backward.gpt_backward(cache)
    assert list(gradients) == list(params)
    for name, value in params.items():
        measured = gpt.backward.finite_difference(
            lambda moved, name=name: gpt.backward.gpt_forward(params | {name: moved}, TOKENS, H, TARGETS)[1], value
        )
        # worst measured: 1.8e-9
        agree(gradients[name], measured, 1e-7, name)


@pytest.mark.parametrize(("n_layer", "bias"), [(1, True), (2, True), (3, False)])
def test_every_intermediate_gradient_is_what_autograd_finds(gpt, n_layer, bias):
    params = gpt_params(39, n_layer, bias)
    _, loss, cache = gpt.backward.gpt_forward(params, TOKENS, H, TARGETS)
    values, gradients = gpt.backward.named(cache), gpt.backward.gpt_backward(cache, intermediates=True)
    kept = {}

    def keep(name, value):
        value.retain_grad()
        kept[name] = value
        return value

    p = leaves(params)
    expected = torch_gpt_loss(
        p, p["token_embedding.weight"], torch.tensor(TOKENS), torch.tensor(TARGETS), n_layer, keep
    )
    expected.backward()
    close(loss, expected.item(), 1e-13)
    assert len(kept) == 8 * n_layer + 3
    for name, tensor in (kept | p).items():
        # worst measured: value 2.0e-15, gradient 8.8e-15
        agree(values[name], tensor.detach().numpy(), 1e-12, name)
        agree(gradients[name], tensor.grad.numpy(), 1e-12, name)


def test_a_value_and_its_gradient_have_one_name_and_one_shape(gpt):
    _, _, cache = gpt.backward.gpt_forward(gpt_params(40), TOKENS, H, TARGETS)
    values, gradients = gpt.backward.named(cache), gpt.backward.gpt_backward(cache, intermediates=True)
    assert {name: array.shape for name, array in gradients.items()} == {name: values[name].shape for name in gradients}
    for name in ("blocks.1.attention.heads.scores", "blocks.0.output", "final_norm.x", "cross_entropy.logits"):
        assert name in gradients


def test_the_tied_gradient_is_the_sum_of_its_two_paths(gpt):
    params = gpt_params(41)
    _, _, cache = gpt.backward.gpt_forward(params, TOKENS, H, TARGETS)
    gradients = gpt.backward.gpt_backward(cache, intermediates=True)
    p, untied = leaves(params), torch.tensor(params["token_embedding.weight"], requires_grad=True)
    torch_gpt_loss(p, untied, torch.tensor(TOKENS), torch.tensor(TARGETS), 2).backward()
    lookup, head = p["token_embedding.weight"].grad.numpy(), untied.grad.numpy()
    # worst measured: 6.8e-16
    agree(gradients["embed.weight"], lookup, 1e-12)
    agree(gradients["head.weight"], head, 1e-12)
    agree(gradients["token_embedding.weight"], lookup + head, 1e-12)
    # token 4 is never read, only scored
    close(lookup[4], np.zeros(D_MODEL))
    assert np.abs(head[4]).min() > 0


def test_the_bias_of_the_keys_gets_no_gradient(gpt):
    # it adds the same number, q . bias, to all scores of a query, and softmax ignores a shift
    _, _, cache = gpt.backward.gpt_forward(gpt_params(52), TOKENS, H, TARGETS)
    query, key, value = np.split(gpt.backward.gpt_backward(cache)["blocks.0.attention.qkv.bias"], 3)
    close(key, np.zeros(D_MODEL), 1e-14)  # measured: 9.5e-18
    assert np.abs(query).min() > 1e-4
    assert np.abs(value).min() > 1e-4


@pytest.mark.parametrize(
    ("sizes", "batch", "time"),
    [
        ({"n_layer": 1, "n_head": 1, "n_embd": 4, "context_size": 4, "vocab_size": 5}, 1, 4),
        ({"n_layer": 2, "n_head": 4, "n_embd": 16, "context_size": 9, "vocab_size": 23}, 3, 7),
        ({"n_layer": 3, "n_head": 2, "n_embd": 12, "context_size": 6, "vocab_size": 11, "bias": False}, 2, 6),
        ({"n_layer": 2, "n_head": 3, "n_embd": 24, "context_size": 16, "vocab_size": 50}, 2, 1),
    ],
    ids=str,
)
def test_the_package_has_the_same_logits_loss_and_gradients(gpt, sizes, batch, time):
    model = small_gpt(gpt, seed=42, **sizes)
    random = np.random.default_rng(43)
    tokens, targets = random.integers(sizes["vocab_size"], size=(2, batch, time))
    targets[0, time // 2] = -100 if batch * time > 1 else targets[0, time // 2]
    logits, loss = model(torch.tensor(tokens), torch.tensor(targets))
    loss.backward()
    params = {name: value.detach().numpy() for name, value in model.named_parameters()}
    our_logits, our_loss, cache = gpt.backward.gpt_forward(params, tokens, sizes["n_head"], targets)
    gradients = gpt.backward.gpt_backward(cache)
    # worst measured: 6.1e-16
    agree(our_logits, logits.detach().numpy(), 1e-10)
    close(our_loss, loss.item(), 1e-10 * loss.item())
    assert set(gradients) == set(params)
    for name, parameter in model.named_parameters():
        # worst measured: 8.9e-16
        close(gradients[name], parameter.grad.numpy(), 1e-10, name)


def test_without_targets_there_are_the_same_logits_and_no_loss(gpt):
    params = gpt_params(44)
    logits, loss, _ = gpt.backward.gpt_forward(params, TOKENS, H)
    with_targets, _, _ = gpt.backward.gpt_forward(params, TOKENS, H, TARGETS)
    assert loss is None
    agree(logits, with_targets, 1e-14)  # measured: 0


def test_the_model_changes_none_of_its_inputs(gpt):
    params = gpt_params(45)
    for array in (*params.values(), inputs := TOKENS.copy(), targets := TARGETS.copy()):
        array.setflags(write=False)  # from here on, writing into one of them is an error
    _, _, cache = gpt.backward.gpt_forward(params, inputs, H, targets)
    gradients = gpt.backward.gpt_backward(cache)
    for array in gradients.values():
        array.setflags(write=False)
    _, state = gpt.backward.adamw_step(params, gradients)
    for array in gpt.backward.named(state).values():
        array.setflags(write=False)
    _, later = gpt.backward.adamw_step(params, gradients, state)
    assert (state["step"], later["step"]) == (1, 2)


# One step of the optimiser.


def test_adamw_takes_the_steps_of_pytorch(gpt):
    options = {"lr": 0.03, "weight_decay": 0.2, "eps": 1e-7}
    params, state = gpt_params(46), None
    tensors = leaves(params)
    groups = [
        {"params": [t for t in tensors.values() if t.ndim >= 2]},
        {"params": [t for t in tensors.values() if t.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), **options)
    for step in range(6):
        gradients = {name: normal([47, step, i], *value.shape) for i, (name, value) in enumerate(params.items())}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        optimizer.step()
        params, state = gpt.backward.adamw_step(params, gradients, state, beta1=0.8, beta2=0.95, **options)
        for name, tensor in tensors.items():
            # worst measured: 1.1e-16
            close(params[name], tensor.detach().numpy(), 1e-12, name)


def test_the_first_adamw_step_has_the_size_of_the_learning_rate(gpt):
    # m / (1 - beta1) = g and v / (1 - beta2) = g^2, so the step is lr sign(g); a matrix also shrinks.
    params = {"bias": np.array([1.0, -2.0]), "weight": np.array([[3.0]])}
    gradients = {"bias": np.array([0.001, -50.0]), "weight": np.array([[0.0]])}
    new, _ = gpt.backward.adamw_step(params, gradients, lr=0.1, eps=1e-300, weight_decay=0.5)
    close(new["bias"], [0.9, -1.9], 1e-14)
    close(new["weight"], np.array([[3.0 * 0.95]]), 1e-14)


def test_one_adamw_step_lowers_the_loss(gpt):
    params = gpt_params(48)
    _, before, cache = gpt.backward.gpt_forward(params, TOKENS, H, TARGETS)
    params, _ = gpt.backward.adamw_step(params, gpt.backward.gpt_backward(cache), lr=0.01)
    _, after, _ = gpt.backward.gpt_forward(params, TOKENS, H, TARGETS)
    assert after < before - 0.1  # measured: from 2.606 to 2.232


# Bad input.


@pytest.mark.parametrize(
    ("tokens", "n_head", "targets", "error", "message"),
    [
        ([[0, 7]], 2, None, ValueError, r"tokens must be in 0\.\.6, got 0\.\.7"),
        ([[-1, 3]], 2, None, ValueError, r"tokens must be in 0\.\.6, got -1\.\.3"),
        ([[0.0, 1.0]], 2, None, TypeError, "tokens must be integers, got float64"),
        ([0, 1], 2, None, ValueError, r"tokens must be \[batch, T\].*got shape \(2,\)"),
        ([[]], 2, None, ValueError, r"tokens must be .*at least one token.*got shape \(1, 0\)"),
        ([[0] * 6], 2, None, ValueError, r"tokens must be .*T_max = 5, got shape \(1, 6\)"),
        ([[0, 1]], 3, None, ValueError, "n_head must divide d_model = 4, got 3"),
        ([[0, 1]], 0, None, ValueError, "n_head must divide d_model = 4, got 0"),
        ([[0, 1]], 2, [[1]], ValueError, r"targets must have the shape \(1, 2\).*got \(1, 1\)"),
        ([[0, 1]], 2, [[1, 7]], ValueError, r"targets must be in 0\.\.6, got 1\.\.7"),
        ([[0, 1]], 2, [[1, -1]], ValueError, r"targets must be in 0\.\.6, got -1\.\.1"),
        ([[0, 1]], 2, [[1.0, 2.0]], TypeError, "targets must be integers"),
        ([[0, 1]], 2, [[-100, -100]], ValueError, "targets must hold at least one position that is not -100"),
    ],
)
def test_bad_input_is_named(gpt, tokens, n_head, targets, error, message):
    with pytest.raises(error, match=message):
        gpt.backward.gpt_forward(gpt_params(49), tokens, n_head, targets)


def test_a_cache_without_a_loss_has_no_gradient(gpt):
    _, _, cache = gpt.backward.gpt_forward(gpt_params(50), TOKENS, H)
    with pytest.raises(ValueError, match="call gpt_forward with targets"):
        gpt.backward.gpt_backward(cache)


def test_bad_attention_input_is_named(gpt):
    q, k, v = qkv(51, (2, 3, 4), (2, 5, 4), (2, 5, 4)).values()
    with pytest.raises(ValueError, match=r"must fit together, got \(2, 3, 4\), \(2, 5, 3\), \(2, 5, 4\)"):
        gpt.backward.attention_forward(q, k[..., :3], v)
    with pytest.raises(ValueError, match="must fit together"):
        gpt.backward.attention_forward(q, k, v[:, :4])
    with pytest.raises(TypeError, match=r"mask must be boolean .*got float64"):
        gpt.backward.attention_forward(q, k, v, np.ones((3, 5)))
    with pytest.raises(ValueError, match="mask must let every query look at one key"):
        gpt.backward.attention_forward(q, k, v, np.arange(3)[:, None] > np.zeros(5))
