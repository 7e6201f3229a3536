"""Input that no layer was made for is an error that names the argument, what was given and what is allowed."""

import pytest
import torch

F32, F64, INT = torch.float32, torch.float64, torch.int64


def features(*shape, dtype=F32):
    return torch.zeros(shape, dtype=dtype)


# layer -> (how to make it, the axes it reads); each reads width 12
LAYERS = {
    "SelfAttention": (lambda gpt: gpt.SelfAttention(12, 4), 2),
    "CausalAttention": (lambda gpt: gpt.CausalAttention(12, 4, 8), 2),
    "CausalSelfAttention": (lambda gpt: gpt.CausalSelfAttention(12, 3, 8), 3),
    "LayerNorm": (lambda gpt: gpt.LayerNorm(12), 1),
    "RMSNorm": (lambda gpt: gpt.RMSNorm(12), 1),
    "layer_norm": (lambda gpt: lambda x: gpt.layer_norm(x, torch.ones(12)), 1),
    "rms_norm": (lambda gpt: lambda x: gpt.rms_norm(x, torch.ones(12)), 1),
    "FeedForward": (lambda gpt: gpt.FeedForward(12), 1),
    "Block": (lambda gpt: gpt.Block(gpt.GPTConfig(8, 19, 1, 3, 12)), 3),
    "PositionalEncoding": (lambda gpt: gpt.PositionalEncoding(12, 8), 2),
    "LearnedPositionalEncoding": (lambda gpt: gpt.LearnedPositionalEncoding(12, 8), 2),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_features_of_another_width_rank_or_type_are_named(gpt, layer):
    make, rank = LAYERS[layer]
    call = make(gpt)
    right = (2, 5, 12)[-rank:]
    call(features(*right))
    for wrong in (features(*right[:-1], 7), features(*right[:-1], 1), features(*right[1:])):
        with pytest.raises(ValueError, match=rf"x must be.*12.*\[{', '.join(map(str, wrong.shape))}\]"):
            call(wrong)
    with pytest.raises(TypeError, match=r"x must be.*floating.*int64"):
        call(features(*right, dtype=INT))
    with pytest.raises(TypeError, match=r"x must be a tensor.*list"):
        call([0.0] * 12)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # PyTorch: RMSNorm is then slower
@pytest.mark.parametrize(
    "layer", ["SelfAttention", "CausalSelfAttention", "LayerNorm", "RMSNorm", "FeedForward", "Block"]
)
def test_features_of_another_precision_are_named_unless_autocast_converts_them(gpt, layer):
    make, rank = LAYERS[layer]
    x = features(*(2, 5, 12)[-rank:], dtype=F64)
    with pytest.raises(TypeError, match=r"x must be.*float32.*float64"):
        make(gpt)(x)
    with torch.autocast("cpu", torch.bfloat16):
        make(gpt)(x.bfloat16())


def test_the_gain_and_shift_of_a_norm_are_as_wide_as_its_input(gpt):
    x = features(2, 12)
    for wrong in (features(1), features(7)):  # a gain of width 1 would broadcast in silence
        with pytest.raises(ValueError, match=rf"x must be.*{len(wrong)}.*\[2, 12\]"):
            gpt.layer_norm(x, wrong)
        with pytest.raises(ValueError, match=rf"x must be.*{len(wrong)}.*\[2, 12\]"):
            gpt.rms_norm(x, wrong)
        with pytest.raises(ValueError, match=rf"bias must be.*12.*\[{len(wrong)}\]"):
            gpt.layer_norm(x, features(12), wrong)
    with pytest.raises(ValueError, match=r"weight must be.*\[12, 12\]"):
        gpt.layer_norm(x, features(12, 12))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_many_heads_name_the_input_that_does_not_fit(gpt, name):
    layer = gpt.MultiHeadAttention(12, 3)
    right = {"query": features(2, 5, 12), "key": features(2, 7, 12), "value": features(2, 7, 12)}
    layer(**right)
    for wrong in (features(2, 7, 11), features(7, 12)):
        with pytest.raises(ValueError, match=rf"{name} must be.*12.*\[{', '.join(map(str, wrong.shape))}\]"):
            layer(**right | {name: wrong})
    with pytest.raises(TypeError, match=rf"{name} must be.*int64"):
        layer(**right | {name: features(2, 7, 12, dtype=INT)})
    with pytest.raises(TypeError, match=rf"{name} must be.*float32.*float64"):
        layer(**right | {name: right[name].double()})
    if name != "query":
        with pytest.raises(ValueError, match=r"batch.*2.*3"):
            layer(**right | {name: features(3, 7, 12)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": features(7, 3)}, ValueError, r"key must be.*4.*\[7, 3\]"),
        ({"value": features(6, 4)}, ValueError, r"value must.*6.*7"),
        ({"key": features(0, 4), "value": features(0, 4)}, ValueError, r"value must.*at least one.*0"),
        ({"query": features(4)}, ValueError, r"query must be.*\[4\]"),
        ({"key": features(7, 4, dtype=F64)}, TypeError, r"key must be.*float32.*float64"),
        ({"value": features(7, 4, dtype=F64)}, TypeError, r"value must be.*float32.*float64"),
        ({"query": features(5, 4, dtype=INT)}, TypeError, r"query must be.*int64"),
        ({"mask": torch.ones(7, 5).bool()}, ValueError, r"mask must.*\[5, 7\].*\[7, 5\]"),
        ({"mask": torch.ones(2, 5, 7).bool()}, ValueError, r"mask must.*\[5, 7\].*\[2, 5, 7\]"),
        ({"dropout": 1.0}, ValueError, r"dropout must be.*1\.0"),
        ({"query": features(2, 5, 4), "key": features(3, 7, 4)}, ValueError, r"query.*\[2\].*key.*\[3\]"),
    ],
)
def test_the_equation_names_the_input_that_does_not_fit(gpt, change, error, message):
    right = {"query": features(5, 4), "key": features(7, 4), "value": features(7, 4)}
    gpt.scaled_dot_product_attention(**right)
    with pytest.raises(error, match=message):
        gpt.scaled_dot_product_attention(**right | change)


# Sizes.

SIZES = {
    "SelfAttention": {"d_in": 4, "d_out": 4},
    "CausalAttention": {"d_in": 4, "d_out": 4, "max_seq_len": 8},
    "MultiHeadAttention": {"d_model": 4, "num_heads": 2},
    "CausalSelfAttention": {"d_model": 4, "num_heads": 2, "max_seq_len": 8},
    "LayerNorm": {"d_model": 4},
    "RMSNorm": {"d_model": 4},
    "FeedForward": {"d_model": 4},
    "PositionalEncoding": {"d_model": 4, "max_len": 8},
    "LearnedPositionalEncoding": {"d_model": 4, "max_len": 8},
    "sinusoids": {"d_model": 4, "max_len": 8},
    "KVCache": {"batch": 1, "num_heads": 2, "max_seq_len": 8, "d_head": 2},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, sizes in SIZES.items() for name in sizes])
def test_sizes_are_whole_numbers_of_at_least_one(gpt, kind, name):
    more = {"like": features(1)} if kind == "KVCache" else {}
    for wrong, error in ((0, ValueError), (-2, ValueError), (2.0, TypeError), ("4", TypeError), (True, TypeError)):
        with pytest.raises(error, match=rf"{name} must be.*{wrong}"):
            getattr(gpt, kind)(**SIZES[kind] | more | {name: wrong})


@pytest.mark.parametrize(("p", "error"), [(1.0, ValueError), (-0.1, ValueError), ("0.1", TypeError)])
def test_dropout_is_a_probability_below_one(gpt, p, error):
    with pytest.raises(error, match=rf"dropout must be.*{p}"):
        gpt.CausalSelfAttention(4, 2, 8, dropout=p)


@pytest.mark.parametrize("kind", ["PositionalEncoding", "LearnedPositionalEncoding"])
def test_a_start_before_the_first_position_is_named(gpt, kind):
    encoding = getattr(gpt, kind)(4, 8)
    for start, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=rf"start must be.*{start}"):
            encoding(features(1, 2, 4), start)


# The cache and the model.


def small_model(gpt, **changes):
    return gpt.GPT(
        gpt.GPTConfig(**{"context_size": 8, "vocab_size": 19, "n_layer": 2, "n_head": 3, "n_embd": 12} | changes)
    )


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (features(1, 3, 2, 4), features(1, 3, 2, 4), ValueError, r"batch of 2.*key.*\[1, 3, 2, 4\]"),
        (features(2, 2, 2, 4), features(2, 2, 2, 4), ValueError, r"3 heads.*key.*\[2, 2, 2, 4\]"),
        (features(2, 3, 2, 5), features(2, 3, 2, 5), ValueError, r"key must be.*4.*\[2, 3, 2, 5\]"),
        (features(2, 3, 2, 4), features(2, 3, 1, 4), ValueError, r"value.*\[2, 3, 1, 4\]"),
        (features(2, 3, 9, 4), features(2, 3, 9, 4), ValueError, r"max_seq_len=8.*9"),
        (features(2, 3, 2, 4, dtype=F64), features(2, 3, 2, 4), TypeError, r"key must be.*float32.*float64"),
        (features(3, 2, 4), features(3, 2, 4), ValueError, r"key must be.*\[3, 2, 4\]"),
    ],
)
def test_a_cache_takes_what_it_was_made_for_and_is_else_as_it_was(gpt, key, value, error, message):
    cache = gpt.KVCache(2, 3, 8, 4, like=features(1))
    with pytest.raises(error, match=message):
        cache.append(key, value)
    assert cache.length == 0


def test_a_cache_of_another_model_or_batch_is_named(gpt):
    model, tokens = small_model(gpt), torch.zeros(2, 3, dtype=INT)
    caches = {
        r"cache must have.*2 blocks.*3": small_model(gpt, n_layer=3).new_cache(2),
        r"cache must have.*2 blocks.*0": [],
        r"batch of 1.*\[2, 3, 3, 4\]": model.new_cache(1),
        r"key must be.*6.*\[2, 3, 3, 4\]": small_model(gpt, n_head=2).new_cache(2),
        r"max_seq_len=2.*3": small_model(gpt, context_size=2).new_cache(2),
    }
    for message, cache in caches.items():
        with pytest.raises(ValueError, match=message):
            model(tokens, cache=cache)
        assert all(past.length == 0 for past in cache)
    for wrong in (gpt.KVCache(2, 3, 8, 4, like=features(1)), [None, None]):
        with pytest.raises(TypeError, match=r"cache must be a list of KVCache"):
            model(tokens, cache=wrong)


def test_the_head_names_a_stream_of_another_width(gpt):
    with pytest.raises(ValueError, match=r"hidden must be.*12.*\[2, 7\]"):
        small_model(gpt).head(features(2, 7))


def test_tokens_that_are_no_tensor_are_named(gpt):
    for name, arguments in (("tokens", ([[0, 1]],)), ("targets", (torch.zeros(1, 2, dtype=INT), [[0, 1]]))):
        with pytest.raises(TypeError, match=rf"{name} must be.*tensor.*list"):
            small_model(gpt)(*arguments)
