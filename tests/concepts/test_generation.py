"""Concept 8: reshaping the next token's distribution, drawing from it, and the cache that makes it fast."""

import math

import pytest
import torch


@pytest.fixture(scope="module")
def model(gpt):
    torch.manual_seed(0)
    config = gpt.GPTConfig(context_size=12, vocab_size=17, n_layer=2, n_head=2, n_embd=8)
    model = gpt.GPT(config).double().eval()
    with torch.no_grad():  # larger weights than at initialisation, so that the distributions are far from uniform
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.dim() > 1 else parameter
    return model


def prompts(batch=3, length=4):
    return torch.randint(0, 17, (batch, length), generator=torch.Generator().manual_seed(1))


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# --- the distribution: ln of the probabilities (1/2, 1/4, 1/8, 1/8) are logits that a hand can follow

HALVES = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64))


def assert_distribution(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-14, rtol=0)


def test_temperature_one_is_the_softmax(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES), [0.5, 0.25, 0.125, 0.125])


def test_temperature_half_squares_the_odds(gpt):
    # p^2 = 1/4, 1/16, 1/64, 1/64: sum 22/64
    assert_distribution(gpt.next_token_probabilities(HALVES, temperature=0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22])


def test_temperature_zero_puts_everything_on_the_largest(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, temperature=0), [1, 0, 0, 0])


def test_temperature_near_zero_tends_to_greedy_without_overflow(gpt):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        cold = gpt.next_token_probabilities(HALVES.to(dtype), temperature=1e-300)
        assert cold.tolist() == [1, 0, 0, 0]


def test_temperature_towards_infinity_tends_to_uniform(gpt):
    flat = gpt.next_token_probabilities(HALVES, temperature=1e12)
    torch.testing.assert_close(flat, torch.full((4,), 0.25, dtype=torch.float64), atol=1e-11, rtol=0)


def test_entropy_grows_with_temperature(gpt):
    torch.manual_seed(0)
    logits = torch.randn(50, dtype=torch.float64)
    entropies = []
    for temperature in (0.1, 0.3, 0.7, 1.0, 1.5, 3.0, 10.0):
        p = gpt.next_token_probabilities(logits, temperature)
        entropies.append(-torch.special.xlogy(p, p).sum().item())
    assert entropies == sorted(entropies)
    assert entropies[-1] < math.log(50)


def test_top_k_keeps_the_k_likeliest_and_renormalises(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_k=2), [2 / 3, 1 / 3, 0, 0])


def test_top_k_keeps_exactly_k_among_equals(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_k=3), [4 / 7, 2 / 7, 1 / 7, 0])


def test_top_k_beyond_the_vocabulary_keeps_all(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_k=99), [0.5, 0.25, 0.125, 0.125])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.4, [1, 0, 0, 0]),  # the first alone holds 0.5
        (0.5, [1, 0, 0, 0]),  # exactly enough is enough
        (0.51, [2 / 3, 1 / 3, 0, 0]),
        (0.8, [4 / 7, 2 / 7, 1 / 7, 0]),
        (1.0, [0.5, 0.25, 0.125, 0.125]),
        (1e-9, [1, 0, 0, 0]),  # never empty
    ],
)
def test_top_p_keeps_the_smallest_set_that_holds_p(gpt, top_p, expected):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_p=top_p), expected)


def test_top_p_counts_after_temperature_and_top_k(gpt):
    # temperature 1/2: (16, 4, 1, 1)/22; top_k 2: (0.8, 0.2); top_p 0.79 keeps the first
    assert_distribution(gpt.next_token_probabilities(HALVES, 0.5, top_k=2, top_p=0.79), [1, 0, 0, 0])


def test_the_order_of_the_vocabulary_does_not_matter(gpt):
    torch.manual_seed(3)
    logits, order = torch.randn(2, 3, 40, dtype=torch.float64), torch.randperm(40)
    settings = dict(temperature=0.7, top_k=20, top_p=0.9)
    shuffled = gpt.next_token_probabilities(logits[..., order], **settings)
    torch.testing.assert_close(shuffled, gpt.next_token_probabilities(logits, **settings)[..., order])
    torch.testing.assert_close(shuffled.sum(-1), torch.ones(2, 3, dtype=torch.float64))


# --- drawing


def test_draws_follow_the_filtered_distribution(gpt, model):
    prompt = prompts(1)
    settings = dict(temperature=0.9, top_k=8, top_p=0.95)
    exact = gpt.next_token_probabilities(model(prompt)[0][0, -1], **settings)
    n = 20_000
    drawn = model.generate(prompt.expand(n, -1), 1, generator=seeded(), **settings)[:, -1]
    counts = torch.bincount(drawn, minlength=17).double()
    five_sigma = 5 * (n * exact * (1 - exact)).sqrt()  # of a binomial count
    assert ((counts - n * exact).abs() <= five_sigma).all()
    assert (exact == 0).any(), "the filter must bite for this test to mean anything"
    assert counts[exact == 0].sum() == 0


def test_the_same_seed_draws_the_same_text(model):
    first, again = (model.generate(prompts(), 20, generator=seeded(7)) for _ in range(2))
    other = model.generate(prompts(), 20, generator=seeded(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_greedy_takes_the_largest_logit_each_time(model):
    tokens = prompts()
    for _ in range(6):
        tokens = torch.cat([tokens, model(tokens)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(prompts(), 6, temperature=0), tokens)


def test_the_prompt_stands_in_front(model):
    assert torch.equal(model.generate(prompts(), 5)[:, :4], prompts())
    assert torch.equal(model.generate(prompts(), 0), prompts())


def test_a_batch_draws_what_each_prompt_would_alone(model):
    together = model.generate(prompts(), 10, temperature=0)
    for row, prompt in zip(together, prompts(), strict=True):
        assert torch.equal(row, model.generate(prompt[None], 10, temperature=0)[0])


def test_a_stream_yields_each_token_as_it_is_drawn(gpt, model):
    stream = gpt.stream(model, prompts(), 5, temperature=0)
    first = next(stream)
    assert first.shape == (3,)
    rest = list(stream)
    assert torch.equal(torch.stack([first, *rest], dim=1), model.generate(prompts(), 5, temperature=0)[:, 4:])


def test_generation_stops_at_the_stop_token(model):
    free = model.generate(prompts(1), 12, temperature=0)[0, 4:].tolist()
    stop = free[3]
    stopped = model.generate(prompts(1), 12, temperature=0, eos_token=stop)[0, 4:].tolist()
    assert stopped == free[: free.index(stop) + 1]


def test_a_sequence_that_is_done_is_filled_with_the_stop_token(model):
    free = model.generate(prompts(), 8, temperature=0)[:, 4:]
    stop = free[0, 0].item()  # the first prompt is done at once
    rows = model.generate(prompts(), 8, temperature=0, eos_token=stop)[:, 4:].tolist()
    for row, unstopped in zip(rows, free.tolist(), strict=True):
        end = unstopped.index(stop) if stop in unstopped else len(unstopped)
        assert row == (unstopped[: end + 1] + [stop] * 8)[: len(row)]


def test_every_drawn_id_is_in_the_vocabulary(model):
    drawn = model.generate(prompts(64), 8, temperature=50.0, generator=seeded())
    assert drawn.min() >= 0
    assert drawn.max() == 16  # hot enough to draw the last id, and none beyond


def test_training_mode_comes_back_and_dropout_sleeps(gpt):
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(context_size=8, vocab_size=17, n_layer=1, n_head=1, n_embd=8, dropout=0.5)).train()
    first, again = (model.generate(prompts(), 10, temperature=0) for _ in range(2))
    assert torch.equal(first, again)
    assert model.training
    stream = gpt.stream(model, prompts(), 10)
    next(stream)
    stream.close()
    assert model.training


# --- the cache


def test_cached_logits_equal_uncached_ones(model):
    """Several tokens at once into an empty cache, several into a filled one, then one by one. Worst measured: 2e-15."""
    tokens = prompts(2, 12)
    cache, pieces = model.new_cache(2), []
    for start, stop in [(0, 5), (5, 9), (9, 10), (10, 11), (11, 12)]:
        pieces.append(model(tokens[:, start:stop], cache=cache)[0])
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [1, 4, 11, 12, 15])
def test_the_cache_changes_nothing_even_past_the_context(model, length):
    """The context is 12: the prompt may fill it or exceed it, and 20 new tokens always do."""
    for settings in (dict(temperature=0), dict(temperature=1.0, top_k=10)):
        cached, uncached = (
            model.generate(prompts(2, length), 20, generator=seeded(), use_cache=use, **settings)
            for use in (True, False)
        )
        assert torch.equal(cached, uncached)


def test_past_the_context_the_model_reads_its_last_tokens(model):
    long = prompts(2, 30)
    assert torch.equal(
        model.generate(long, 1, temperature=0)[:, -1], model.generate(long[:, -12:], 1, temperature=0)[:, -1]
    )


# --- bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(temperature=-0.1), r"temperature must be at least 0 .* got -0.1"),
        (dict(temperature=math.nan), "temperature must be at least 0 .* got nan"),
        (dict(top_k=0), "top_k must be an int of at least 1.* got 0"),
        (dict(top_k=2.5), "top_k must be an int of at least 1.* got 2.5"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\].* got 0.0"),
        (dict(top_p=1.01), r"top_p must be in \(0, 1\].* got 1.01"),
        (dict(max_new_tokens=-1), "max_new_tokens must be at least 0, got -1"),
    ],
)
def test_a_wrong_setting_is_named(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompts(), **{"max_new_tokens": 3, **wrong})


@pytest.mark.parametrize("tokens", [torch.empty(1, 0, dtype=torch.int64), torch.tensor([1, 2])])
def test_an_empty_prompt_or_one_without_a_batch_is_refused(model, tokens):
    with pytest.raises(ValueError, match=r"tokens must be a prompt \[batch, T\] with at least one token"):
        model.generate(tokens, 3)


def test_an_id_outside_the_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match=r"tokens must be ids in 0\.\.16, got 3\.\.17"):
        model.generate(torch.tensor([[3, 17]]), 3)
