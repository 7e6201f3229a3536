"""Concept 10, scale: what a GPT-2 costs. Every count is held against the thing it counts.

The oracles: hand numbers, the model's own tensors, PyTorch's FLOP counter, the tensors that autograd saves, a real
optimiser's state, a real KV cache. Times are measured by the package, but no test depends on how fast a machine is.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from tests.comparing import close

PRESETS = ("tiny", "char", "gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl")
ODD_SIZES = {  # No two sizes are equal, so that no formula can mistake one for another.
    "small": {"context_size": 11, "vocab_size": 23, "n_layer": 3, "n_head": 2, "n_embd": 10},
    "one layer": {"context_size": 40, "vocab_size": 7, "n_layer": 1, "n_head": 5, "n_embd": 15},
    "wide": {"context_size": 5, "vocab_size": 31, "n_layer": 2, "n_head": 3, "n_embd": 48},
}


def on_meta(gpt, config):
    """The model without its memory: shapes only."""
    with torch.device("meta"):
        return gpt.GPT(config)


# Parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_closed_form_counts_every_parameter_of_the_model(gpt, preset, bias):
    sizes = vars(getattr(gpt.GPTConfig, preset)())
    config = gpt.GPTConfig(**{**sizes, "bias": bias})
    assert gpt.scale.parameter_count(config) == on_meta(gpt, config).num_parameters()


def test_the_released_sizes_have_their_known_parameter_counts(gpt):
    counts = [gpt.scale.parameter_count(getattr(gpt.GPTConfig, preset)()) for preset in PRESETS[2:]]
    assert counts == [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_each_component_counts_the_parameters_under_its_name(gpt, sizes, bias):
    config = gpt.GPTConfig(**sizes, bias=bias)
    components = gpt.scale.parameters_by_component(config)
    expected = Counter()
    for name, parameter in on_meta(gpt, config).named_parameters():
        (owner,) = [c for c in components if f".{c}." in f".{name}"] or ["norms"]
        expected[owner] += parameter.numel()
    assert components == expected
    assert sum(components.values()) == gpt.scale.parameter_count(config)


# Arithmetic


def counted_flops(gpt, config, batch, context):
    """(forward, backward) as PyTorch counts them while they run.

    Its counter knows matrix products, but not the CPU's fused attention kernel, so the readable path runs.
    """
    torch.manual_seed(0)
    model = gpt.GPT(config)
    for block in model.blocks:
        block.attention.record_weights = True
    tokens = torch.randint(config.vocab_size, (batch, context))
    with FlopCounterMode(display=False) as forward:
        loss = model(tokens, tokens)[1]
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward, backward


@pytest.mark.parametrize("context", [2, 5])
@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_flops_are_exactly_those_of_pytorchs_counter(gpt, sizes, context):
    config, batch = gpt.GPTConfig(**sizes), 3
    forward, backward = counted_flops(gpt, config, batch, context)
    counted, tokens = forward.get_total_flops(), batch * context
    assert gpt.scale.flops_per_token(config, context) * tokens == counted
    assert gpt.scale.flops_per_token(config, context, training=True) * tokens == counted + backward.get_total_flops()


@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_each_component_counts_the_flops_of_its_kind_of_product(gpt, sizes):
    config, batch, context = gpt.GPTConfig(**sizes), 2, 4
    counted = counted_flops(gpt, config, batch, context)[0].get_flop_counts()["Global"]
    flops = gpt.scale.flops_by_component(config, context)
    aten = torch.ops.aten
    weights = [name for name in flops if name.endswith(("qkv", "projection", "expand", "project"))]
    assert len(weights) == 4
    # linear layers with a bias run as addmm, the head without one as mm, what attention does by itself as bmm
    assert sum(flops[name] for name in weights) * batch * context == counted[aten.addmm]
    assert flops["head"] * batch * context == counted[aten.mm]
    assert (flops["attention.scores"] + flops["attention.values"]) * batch * context == counted[aten.bmm]


def test_a_causal_query_needs_the_keys_up_to_itself(gpt):
    config, context = gpt.GPTConfig.tiny(), 9
    full, needed = (gpt.scale.flops_by_component(config, context, causal=causal) for causal in (False, True))
    per_key = 2 * config.n_layer * config.n_embd
    assert full["attention.scores"] * context == per_key * context**2
    assert needed["attention.scores"] * context == per_key * sum(range(1, context + 1))
    assert {name for name in full if full[name] != needed[name]} == {"attention.scores", "attention.values"}


def test_training_flops_of_the_124m_model_by_hand(gpt):
    # 6 (12 N d_model^2 + V d_model) + 12 N T d_model = 6 (84,934,656 + 38,597,376) + 113,246,208
    config = gpt.GPTConfig.gpt2_small()
    assert gpt.scale.flops_per_token(config, 1024, training=True) == 854_438_400
    # nanoGPT's count for it, 855,166,464, takes 6 for biases and norms too: 6 * 121,344 more.
    assert 855_166_464 - 854_438_400 == 6 * (12 * 13 + 2) * 768


def test_six_flops_per_parameter_is_good_while_the_context_is_far_below_6_d_model(gpt):
    config = gpt.GPTConfig.gpt2_xl()
    rule = gpt.scale.approximate_training_flops(config)
    assert rule == 6 * 1_557_611_200
    close(rule / gpt.scale.flops_per_token(config, 64, training=True), 1.0, 0.01)  # T/6d = 0.7 %
    tiny = gpt.GPTConfig.tiny()  # T/6d = 17 %, and mostly lookups
    assert (
        abs(gpt.scale.approximate_training_flops(tiny) / gpt.scale.flops_per_token(tiny, 64, training=True) - 1) > 0.05
    )


# Memory


def storage_bytes(tensors):
    """Bytes behind the tensors; those that share memory count once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_weights_and_gradients_take_their_bytes(gpt, dtype, size):
    model = gpt.GPT(gpt.GPTConfig.tiny()).to(dtype)
    tokens = torch.arange(12).view(2, 6)
    model(tokens, tokens)[1].backward()
    assert storage_bytes(model.parameters()) == gpt.scale.weight_bytes(model.config, size)
    assert storage_bytes(p.grad for p in model.parameters()) == gpt.scale.weight_bytes(model.config, size)


def test_adamw_keeps_two_moments_for_each_parameter(gpt):
    model = gpt.GPT(gpt.GPTConfig.tiny())
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.arange(12).view(2, 6)
    model(tokens, tokens)[1].backward()
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    counters = [t for t in tensors if t.dim() == 0]
    assert len(counters) == len(list(model.parameters()))
    assert storage_bytes(t for t in tensors if t.dim()) == gpt.scale.optimizer_bytes(model.config)


def saved_bytes(model, tokens):
    """What autograd keeps for the backward pass, without the weights."""
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(tokens, tokens.clone())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return storage_bytes(t for t in saved if t.untyped_storage().data_ptr() not in weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_activations_are_what_autograd_saves_to_the_byte(gpt, sizes, bias):
    torch.manual_seed(0)
    config = gpt.GPTConfig(**sizes, bias=bias)
    tokens = torch.randint(config.vocab_size, (3, 5))
    assert saved_bytes(gpt.GPT(config), tokens) == gpt.scale.activation_bytes(config, batch=3, context=5)


def test_the_readable_path_keeps_at_least_the_attention_weights_on_top(gpt):
    torch.manual_seed(0)
    config = gpt.GPTConfig(context_size=32, vocab_size=23, n_layer=2, n_head=4, n_embd=16)
    model, tokens = gpt.GPT(config), torch.randint(23, (2, 32))
    fused = saved_bytes(model, tokens)
    for block in model.blocks:
        block.attention.record_weights = True
    assert saved_bytes(model, tokens) - fused >= 0.9 * 4 * config.n_layer * 2 * config.n_head * 32 * 32


@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES)
def test_the_kv_cache_takes_its_bytes(gpt, sizes):
    config = gpt.GPTConfig(**sizes)
    caches = gpt.GPT(config).new_cache(batch=3)
    held = storage_bytes(t for cache in caches for t in (cache.keys, cache.values))
    assert gpt.scale.kv_cache_bytes(config, batch=3, context=config.context_size) == held
    # 2 (keys, values) * N layers * B * T * d_model values of 2 bytes
    by_hand = 2 * config.n_layer * 3 * 4 * config.n_embd * 2
    assert gpt.scale.kv_cache_bytes(config, batch=3, context=4, bytes_per_value=2) == by_hand


def test_the_memory_table_gathers_the_rows(gpt):
    config = gpt.GPTConfig.gpt2_small()
    table = gpt.scale.memory_table(config, batch=1, context=256)
    assert table == {
        "weights": 4 * 124_439_808,
        "gradients": 4 * 124_439_808,
        "optimizer": 8 * 124_439_808,
        "activations": gpt.scale.activation_bytes(config, 1, 256),
        "kv_cache": 2 * 12 * 256 * 768 * 4,
    }


# Speed


def test_decoding_shares_a_weight_among_sequences_and_prefill_among_tokens(gpt):
    config = gpt.GPTConfig.gpt2_xl()
    intensity = gpt.scale.arithmetic_intensity
    # Matrices give 2 FLOPs per weight of 4 bytes: close to 1/2 for one token.
    close(intensity(config, batch=1, context=1), 0.5, 0.005)
    close(intensity(config, batch=8, context=1), 8 * 0.5, 0.04)
    prefill, decode = (intensity(config, batch=1, context=512, new_tokens=new) for new in (512, 1))
    close(prefill, 512 * decode, 1e-9 * prefill)


def test_mfu_is_the_share_of_the_peak(gpt):
    config = gpt.GPTConfig.gpt2_small()
    # 100 tokens/s of 854,438,400 FLOPs each on a device that could do 10 times that
    close(gpt.scale.mfu(100, config, context=1024, peak_flops=854_438_400_000), 0.1, 1e-15)


def test_measuring_leaves_the_weights_and_the_mode_alone(gpt):
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig.tiny()).eval()
    before = [p.clone() for p in model.parameters()]
    assert gpt.scale.tokens_per_second(model, batch=2, context=8, steps=2, warm_up=1) > 0
    assert not model.training
    for old, new in zip(before, model.parameters(), strict=True):
        close(new, old)
    assert all(p.grad is None for p in model.parameters())


def test_the_median_step_counts_and_the_warm_up_does_not(gpt, monkeypatch):
    # A clock that gives steps of 50 (warm-up), 2, 100 and 4 seconds: the median of the last three is 4.
    ticks = iter([0, 50, 50, 52, 52, 152, 152, 156])
    monkeypatch.setattr(gpt.scale.time, "perf_counter", lambda: next(ticks))
    model = gpt.GPT(gpt.GPTConfig.tiny())
    assert gpt.scale.tokens_per_second(model, batch=2, context=8, steps=3, warm_up=1) == 2 * 8 / 4


def test_the_measured_peak_is_two_flops_per_multiply_add_in_the_fastest_run(gpt, monkeypatch):
    ticks = iter([0, 9, 10, 12] + [20, 29] * 6)
    monkeypatch.setattr(gpt.scale.time, "perf_counter", lambda: next(ticks))
    assert gpt.scale.measured_peak_flops(torch.bfloat16, "cpu", size=16) == 2 * 16**3 / 2


# Many cards


@pytest.mark.parametrize(("members", "messages"), [(2, 1), (5, 1), (64, 3)])
def test_the_ring_takes_as_long_as_clocks_that_wait_for_their_left_neighbour(gpt, members, messages):
    """Claim (10.17). Every message is cut into as many chunks as there are members."""
    size, latency, link = 7e9, 1e-4, 3e10
    clocks = [0.0] * members
    for _ in range(2 * (members - 1) * messages):
        chunk = size / messages / members
        clocks = [max(clocks[k], clocks[k - 1]) + latency + chunk / link for k in range(members)]
    close(gpt.scale.ring_seconds(members, size, latency, link, messages), max(clocks), 1e-9)


def test_sharded_state_is_that_of_the_published_example(gpt):
    """Claim (10.15): 120 GB and, on 64 processes, 1.9 (Rajbhandari et al. 2020); GPT-2 1.5B needs at least 24."""
    whole, dealt = (sum(gpt.scale.state_bytes(7.5e9, shard).values()) / 1e9 for shard in (1, 64))
    assert (round(whole), round(dealt, 1)) == (120, 1.9)
    assert sum(gpt.scale.state_bytes(gpt.scale.parameter_count(gpt.GPTConfig.gpt2_xl())).values()) > 24e9


@pytest.mark.parametrize("tensor", [1, 2, 5])
def test_a_card_keeps_its_part_of_a_block_for_the_backward_pass(gpt, tensor):
    """Claims (10.6) and (10.16): what autograd saves of a block of which this card has some heads and hidden units."""
    config = gpt.GPTConfig(context_size=7, vocab_size=9, n_layer=1, n_head=10, n_embd=20)
    d_model, d_head, heads, hidden = 20, 2, 10 // tensor, 80 // tensor
    gain, bias = torch.ones(2, 20, requires_grad=True)
    qkv, expand = (torch.randn(n, d_model, requires_grad=True) for n in (3 * heads * d_head, hidden))
    out, project = (torch.randn(d_model, n, requires_grad=True) for n in (heads * d_head, hidden))
    x, functional = torch.randn(3, 7, d_model, requires_grad=True), torch.nn.functional

    def norm(x):
        return functional.layer_norm(x, (d_model,), gain, bias)

    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        q, k, v = functional.linear(norm(x), qkv).view(3, 7, 3, heads, d_head).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = x + functional.linear(mixed.transpose(1, 2).flatten(2), out)
        up = functional.linear(norm(y), expand)
        _ = y + functional.linear(functional.gelu(up, approximate="tanh"), project)
    weights = {p.untyped_storage().data_ptr() for p in (gain, bias, qkv, expand, out, project)}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    kept = sum(size for pointer, size in storages.items() if pointer not in weights)
    assert kept == 4 * 3 * 7 * gpt.scale.kept_numbers(config, tensor)


def test_a_block_keeps_what_korthikanti_counts(gpt):
    """They give 34 s b h bytes in 16 bits; 2 of them are the masks of dropout, one byte a number."""
    config = gpt.GPTConfig.gpt2_xl()
    close(2 * gpt.scale.kept_numbers(config) / config.n_embd, 34 - 2, 0.05)


def test_heads_that_cannot_be_dealt_out_evenly_are_the_work_of_the_fullest_card(gpt):
    config = gpt.GPTConfig.gpt2_xl()  # 25 heads on 8 cards: 4 on the first one
    close(gpt.scale.largest_share(config, 8), (4 * 4 / 25 + 8 / 8) / 12, 1e-12)
    close(gpt.scale.largest_share(config, 5), 1 / 5, 1e-12)


@pytest.mark.parametrize(("stages", "micro_batches", "runs"), [(4, 8, 1), (4, 8, 2), (8, 64, 4), (1, 3, 1)])
def test_the_bubble_is_what_the_stages_of_a_pipeline_wait(gpt, stages, micro_batches, runs):
    """Claim (10.19), run by run. `micro_batches` is a multiple of `stages`; so many go through each round."""
    free, done = [0.0] * stages, {}
    for first in range(0, micro_batches, stages):
        for run in range(runs * stages):
            for i in range(first, min(first + stages, micro_batches)):
                ready = max(free[run % stages], done.get((i, run - 1), 0.0))
                free[run % stages] = done[i, run] = ready + 1 / runs
    close(gpt.scale.bubble(stages, micro_batches, runs), 1 - micro_batches / max(free), 1e-12)


def test_the_wire_hides_behind_the_tokens_that_take_as_long(gpt):
    """Claim (10.18): 6 P n / pi seconds of work, and a ring of many cards without latency."""
    flops, link, parameters = 1e14, 1e11, 1e9
    for sharded, volume in ((False, 2), (True, 3)):
        n = gpt.scale.tokens_that_hide_the_wire(flops, link, sharded)
        wire = volume / 2 * gpt.scale.ring_seconds(10**9, 2 * parameters, 0, link)
        close(6 * parameters * n / flops, wire, 1e-6)
    config = gpt.GPTConfig.gpt2_xl()
    link = 7 * 2 * flops / (9 * config.n_embd)
    cards = gpt.scale.cards_that_share_a_block(config, flops, link)
    close(cards, 8.0, 1e-12)
    work = 72 * config.n_embd**2 / (8 * flops)  # of a token
    close(work, 4 * gpt.scale.ring_seconds(8, 2 * config.n_embd, 0, link), 1e-20)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("context", lambda s, c: s.flops_per_token(c, c.context_size + 1)),
        ("context", lambda s, c: s.flops_by_component(c, 0)),
        ("context", lambda s, c: s.activation_bytes(c, 1, 0)),
        ("context", lambda s, c: s.kv_cache_bytes(c, 1, c.context_size + 1)),
        ("batch", lambda s, c: s.activation_bytes(c, 0, 8)),
        ("batch", lambda s, c: s.kv_cache_bytes(c, -1, 8)),
        ("bytes_per_value", lambda s, c: s.weight_bytes(c, 0)),
        ("bytes_per_value", lambda s, c: s.kv_cache_bytes(c, 1, 8, 0)),
        ("new_tokens", lambda s, c: s.arithmetic_intensity(c, 1, 8, 0)),
        ("new_tokens", lambda s, c: s.arithmetic_intensity(c, 1, 8, 9)),
        ("tokens_per_second", lambda s, c: s.mfu(0, c, 8, 1e12)),
        ("peak_flops", lambda s, c: s.mfu(1, c, 8, float("nan"))),
        ("size", lambda s, c: s.measured_peak_flops(size=0)),
        ("size", lambda s, c: s.measured_peak_flops(size=2.5)),
        ("batch", lambda s, c: s.activation_bytes(c, 1.5, 8)),
        ("batch", lambda s, c: s.kv_cache_bytes(c, True, 8)),
        ("context", lambda s, c: s.activation_bytes(c, 1, 8.0)),
        ("context", lambda s, c: s.flops_per_token(c, "8")),
        ("context", lambda s, c: s.arithmetic_intensity(c, 1, c.context_size + 1)),
        ("context", lambda s, c: s.mfu(1, c, 0, 1e12)),
        ("bytes_per_value", lambda s, c: s.weight_bytes(c, 2.0)),
        ("new_tokens", lambda s, c: s.arithmetic_intensity(c, 1, 8, 0.5)),
        ("tokens_per_second", lambda s, c: s.mfu("fast", c, 8, 1e12)),
        ("peak_flops", lambda s, c: s.mfu(1, c, 8, float("inf"))),
    ],
)
def test_a_size_no_run_can_have_is_named(gpt, argument, call):
    with pytest.raises(ValueError, match=f"{argument} must be .*got"):
        call(gpt.scale, gpt.GPTConfig.tiny())


@pytest.mark.parametrize("argument", ["batch", "context", "steps", "warm_up"])
def test_a_measurement_that_cannot_run_is_named(gpt, argument):
    model = gpt.GPT(gpt.GPTConfig.tiny())
    with pytest.raises(ValueError, match=f"{argument} must be .*got 0"):
        gpt.scale.tokens_per_second(model, **{"batch": 1, "context": 4, argument: 0})
