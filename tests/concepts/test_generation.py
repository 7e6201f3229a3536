"""Concept 8: reshaping the next token's distribution, drawing from it, and the cache that makes it fast."""

import copy
import dataclasses
import math

import pytest
import torch

from tests.comparing import close


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
    close(actual, torch.tensor(expected, dtype=torch.float64), 1e-14)


@pytest.mark.step("sampling")
def test_temperature_one_is_the_softmax(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES), [0.5, 0.25, 0.125, 0.125])


@pytest.mark.step("sampling")
def test_temperature_half_squares_the_odds(gpt):
    # p^2 = 1/4, 1/16, 1/64, 1/64: sum 22/64
    assert_distribution(gpt.next_token_probabilities(HALVES, temperature=0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22])


@pytest.mark.step("sampling")
def test_temperature_zero_puts_everything_on_the_largest(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, temperature=0), [1, 0, 0, 0])


@pytest.mark.step("sampling")
def test_temperature_near_zero_tends_to_greedy_without_overflow(gpt):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        cold = gpt.next_token_probabilities(HALVES.to(dtype), temperature=1e-300)
        assert cold.tolist() == [1, 0, 0, 0]


def test_temperature_towards_infinity_tends_to_uniform(gpt):
    flat = gpt.next_token_probabilities(HALVES, temperature=1e12)
    close(flat, torch.full((4,), 0.25, dtype=torch.float64), 1e-11)


def test_entropy_grows_with_temperature(gpt):
    torch.manual_seed(0)
    logits = torch.randn(50, dtype=torch.float64)
    entropies = []
    for temperature in (0.1, 0.3, 0.7, 1.0, 1.5, 3.0, 10.0):
        p = gpt.next_token_probabilities(logits, temperature)
        entropies.append(-torch.special.xlogy(p, p).sum().item())
    assert entropies == sorted(entropies)
    assert entropies[-1] < math.log(50)


@pytest.mark.step("sampling")
def test_top_k_keeps_the_k_likeliest_and_renormalises(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_k=2), [2 / 3, 1 / 3, 0, 0])


@pytest.mark.step("sampling")
def test_top_k_keeps_exactly_k_among_equals(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_k=3), [4 / 7, 2 / 7, 1 / 7, 0])


def test_top_k_beyond_the_vocabulary_keeps_all(gpt):
    assert_distribution(gpt.next_token_probabilities(HALVES, top_k=99), [0.5, 0.25, 0.125, 0.125])


@pytest.mark.step("sampling")
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


@pytest.mark.step("sampling")
def test_top_p_counts_after_temperature_and_top_k(gpt):
    # temperature 1/2: (16, 4, 1, 1)/22; top_k 2: (0.8, 0.2); top_p 0.79 keeps the first
    assert_distribution(gpt.next_token_probabilities(HALVES, 0.5, top_k=2, top_p=0.79), [1, 0, 0, 0])


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [
        (0.0, [0.5, 0.25, 0.125, 0.125]),
        (0.25, [0.5, 0.25, 0.125, 0.125]),  # exactly a quarter of the largest is enough
        (0.26, [2 / 3, 1 / 3, 0, 0]),
        (1.0, [1, 0, 0, 0]),
    ],
)
def test_min_p_keeps_what_is_not_much_less_likely_than_the_likeliest(gpt, min_p, expected):
    assert_distribution(gpt.next_token_probabilities(HALVES, min_p=min_p), expected)


def test_the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones(gpt):
    """By hand, penalty 2: (2, -1, 1, 0) becomes (1, -2, 1, 0) if tokens 0 and 1 have occurred, one of them twice."""
    logits = torch.tensor([[2.0, -1.0, 1.0, 0.0]], dtype=torch.float64)
    actual = gpt.Sampling(repetition_penalty=2.0).probabilities(logits, torch.tensor([[0, 1, 0]]))
    close(actual, torch.tensor([[1.0, -2.0, 1.0, 0.0]], dtype=torch.float64).softmax(-1), 1e-15)


def test_a_penalty_of_more_digits_than_an_int64_has_is_a_number_too(gpt):
    logits, seen = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0]])
    settings = (gpt.Sampling(repetition_penalty=10**20), gpt.Sampling(repetition_penalty=1e20))
    close(*(setting.probabilities(logits, seen) for setting in settings))


def test_every_setting_agrees_with_transformers(gpt):
    """Its processors in its own order. Ours keep the smaller id among equals, so the logits are all different."""
    from transformers.generation import logits_process as theirs

    logits = 3 * torch.randn(5, 60, dtype=torch.float64, generator=seeded(2))
    seen = torch.randint(60, (5, 30), generator=seeded(3))
    for settings, processors in [
        (dict(repetition_penalty=1.3), [theirs.RepetitionPenaltyLogitsProcessor(1.3)]),
        (dict(repetition_penalty=0.7, top_k=9),
         [theirs.RepetitionPenaltyLogitsProcessor(0.7), theirs.TopKLogitsWarper(9)]),
        (dict(temperature=0.6, top_p=0.8), [theirs.TemperatureLogitsWarper(0.6), theirs.TopPLogitsWarper(0.8)]),
        (dict(temperature=1.7, min_p=0.1), [theirs.TemperatureLogitsWarper(1.7), theirs.MinPLogitsWarper(0.1)]),
        (dict(top_k=20, top_p=0.9, min_p=0.05),
         [theirs.TopKLogitsWarper(20), theirs.TopPLogitsWarper(0.9), theirs.MinPLogitsWarper(0.05)]),
    ]:  # fmt: skip
        expected = logits
        for processor in processors:
            expected = processor(seen, expected)
        close(gpt.Sampling(**settings).probabilities(logits, seen), expected.softmax(-1), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_logits_are_cut_where_their_true_sum_is(gpt, dtype):
    """1,000 equal tokens: exactly 900 hold 0.9. In 16 bits a running sum of 1/1000 stops growing long before."""
    p = gpt.next_token_probabilities(torch.zeros(1000, dtype=dtype), top_p=0.8995)
    assert (p.dtype, int((p > 0).sum())) == (dtype, 900)
    close(p[:900], torch.full((900,), 1 / 900).to(dtype))


def test_logits_whose_probabilities_round_to_equals_are_still_ranked(gpt):
    hot = gpt.next_token_probabilities(torch.tensor([0.0, 1.0, 2.0]), temperature=1e30, top_k=1)
    assert hot.tolist() == [0, 0, 1]


def test_the_order_of_the_vocabulary_does_not_matter(gpt):
    torch.manual_seed(3)
    logits, order = torch.randn(2, 3, 40, dtype=torch.float64), torch.randperm(40)
    settings = dict(temperature=0.7, top_k=20, top_p=0.9)
    shuffled = gpt.next_token_probabilities(logits[..., order], **settings)
    close(shuffled, gpt.next_token_probabilities(logits, **settings)[..., order], 1e-15)
    close(shuffled.sum(-1), torch.ones(2, 3, dtype=torch.float64), 1e-14)


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


def test_draws_of_every_token_follow_the_distribution(gpt):
    """Pearson's chi-square: 9 degrees of freedom, mean 9, variance 18; 1 seed in 13,000 passes the bound."""
    logits, n = torch.randn(10, dtype=torch.float64, generator=seeded(4)), 100_000
    p = gpt.next_token_probabilities(logits)
    counts = torch.bincount(gpt.Sampling().draw(logits.expand(n, -1), seeded(5)), minlength=10)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 9 + 6 * math.sqrt(18)


def test_the_shares_of_the_tokens_lie_side_by_side_in_the_order_of_their_ids(gpt):
    """(1/2, 0, 1/4, 1/4): a share holds its lower end and not its upper one, and token 1 has none."""
    uniform = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.7499, 0.75, 0.9999], dtype=torch.float64)
    p = torch.tensor([0.5, 0, 0.25, 0.25], dtype=torch.float64).expand(7, -1)
    assert gpt.generation.inverse_distribution(p, uniform).tolist() == [0, 0, 0, 2, 2, 3, 3]
    narrow = torch.tensor([[1 - 1e-9, 1e-9]], dtype=torch.float64)  # in float32 the second share would be empty
    assert gpt.generation.inverse_distribution(narrow, torch.tensor([1 - 5e-10], dtype=torch.float64)).tolist() == [1]


@pytest.mark.parametrize("row", [[0.0, 1, 0], [0.0, 0.3, 0.7, 0, 0], [0.1] * 10 + [0.0], [1 / 49] * 49 + [0.0] * 3])
def test_a_token_of_probability_0_is_never_drawn(gpt, row):
    """Not for the smallest number that torch.rand gives nor for the largest, however the sum is rounded."""
    ends = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-24, 1 - 2.0**-53], dtype=torch.float64)
    for p in (torch.tensor(row, dtype=torch.float64), torch.tensor(row, dtype=torch.float64) * (1 + 2**-52)):
        drawn = gpt.generation.inverse_distribution(p.expand(4, -1), ends)
        assert (p[drawn] > 0).all()


def test_a_draw_is_one_uniform_number_for_each_row(gpt):
    logits = torch.randn(6, 40, dtype=torch.float64, generator=seeded(6))
    uniform = torch.rand(6, dtype=torch.float64, generator=seeded(7))
    expected = gpt.generation.inverse_distribution(gpt.next_token_probabilities(logits, 0.8, top_k=9), uniform)
    assert torch.equal(gpt.Sampling(0.8, top_k=9).draw(logits, seeded(7)), expected)


def test_greedy_drawing_takes_no_random_number(model):
    before = torch.get_rng_state()
    model.generate(prompts(), 5, temperature=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_penalty_counts_the_prompt_and_all_that_was_drawn(gpt, model):
    """Token by token, with all that came before, also what has left the context of 12."""
    tokens, sampling = prompts(), gpt.Sampling(temperature=0, repetition_penalty=1.5)
    for _ in range(20):
        logits = model(tokens[:, -12:])[0][:, -1]
        tokens = torch.cat([tokens, sampling.draw(logits, seen=tokens)[:, None]], dim=1)
    assert torch.equal(model.generate(prompts(), 20, temperature=0, repetition_penalty=1.5), tokens)
    assert not torch.equal(model.generate(prompts(), 20, temperature=0), tokens)


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


def test_the_prompt_comes_first(model):
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


def test_streams_of_one_model_take_turns(gpt):
    """Each leaves the model as it was between two tokens, also when one is dropped half-way."""
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(context_size=8, vocab_size=17, n_layer=1, n_head=1, n_embd=8, dropout=0.5)).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    alone = model.generate(prompts(), 6, temperature=0)[:, 4:]
    first, second = (gpt.stream(model, prompts(), 6, temperature=0) for _ in range(2))
    drawn = []
    for step in range(6):
        if step < 2:
            assert torch.equal(next(first), alone[:, step])
            assert [module.training for module in model.modules()] == modes
        if step == 2:
            first.close()
        drawn.append(next(second))
        assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.stack(drawn, dim=1), alone)


def test_a_stream_leaves_gradients_on_for_its_reader(gpt, model):
    stream = gpt.stream(model, prompts(), 3)
    next(stream)
    assert torch.is_grad_enabled()
    assert model(prompts())[0].requires_grad


# --- the cache


def test_cached_logits_equal_uncached_ones(model):
    """Several tokens at once into an empty cache, several into a filled one, then one by one. Worst measured: 2e-15."""
    tokens = prompts(2, 12)
    cache, pieces = model.new_cache(2), []
    for start, stop in [(0, 5), (5, 9), (9, 10), (10, 11), (11, 12)]:
        pieces.append(model(tokens[:, start:stop], cache=cache)[0])
    close(torch.cat(pieces, dim=1), model(tokens)[0], 1e-12)


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
    ("wrong", "error", "message"),
    [
        (dict(temperature=-0.1), ValueError, "temperature .* got -0.1"),
        (dict(temperature=math.nan), ValueError, "temperature .* got nan"),
        (dict(temperature=math.inf), ValueError, "temperature .* got inf"),
        (dict(temperature="1"), TypeError, "temperature .* got '1'"),
        (dict(temperature=True), TypeError, "temperature .* got True"),
        (dict(temperature=None), TypeError, "temperature .* got None"),
        (dict(top_k=0), ValueError, "top_k .* at least 1.* got 0"),
        (dict(top_k=2.5), TypeError, "top_k .* at least 1.* got 2.5"),
        (dict(top_k=True), TypeError, "top_k .* at least 1.* got True"),
        (dict(top_p=0.0), ValueError, r"top_p .*\(0, 1\].* got 0.0"),
        (dict(top_p=1.01), ValueError, r"top_p .*\(0, 1\].* got 1.01"),
        (dict(top_p=math.nan), ValueError, r"top_p .*\(0, 1\].* got nan"),
        (dict(top_p="0.9"), TypeError, "top_p .* got '0.9'"),
        (dict(min_p=-0.1), ValueError, r"min_p .*\[0, 1\].* got -0.1"),
        (dict(min_p=1.1), ValueError, r"min_p .*\[0, 1\].* got 1.1"),
        (dict(repetition_penalty=0.0), ValueError, "repetition_penalty .* above 0.* got 0.0"),
        (dict(repetition_penalty=math.inf), ValueError, "repetition_penalty .* finite.* got inf"),
        (dict(max_new_tokens=-1), ValueError, "max_new_tokens .* at least 0, got -1"),
        (dict(max_new_tokens=1.0), TypeError, "max_new_tokens .* got 1.0"),
        (dict(max_new_tokens=True), TypeError, "max_new_tokens .* got True"),
        (dict(eos_token=17), ValueError, r"eos_token .* 0\.\.16.* got 17"),
        (dict(eos_token=-1), ValueError, r"eos_token .* 0\.\.16.* got -1"),
        (dict(eos_token=1.0), TypeError, "eos_token .* got 1.0"),
    ],
)
def test_a_wrong_setting_is_named(gpt, model, wrong, error, message):
    arguments = {"max_new_tokens": 3, **wrong}
    with pytest.raises(error, match=message):
        model.generate(prompts(), **arguments)
    with pytest.raises(error, match=message):
        gpt.stream(model, prompts(), **arguments)  # at the door, not at the first token


def test_the_settings_are_checked_when_they_are_made_and_cannot_change(gpt):
    with pytest.raises(ValueError, match="top_p"):
        gpt.Sampling(top_p=2.0)
    with pytest.raises(AttributeError):
        gpt.Sampling().top_p = 2.0


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("row", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_without_a_largest_are_refused(gpt, row, temperature):
    with pytest.raises(ValueError, match=r"logits .* finite"):
        gpt.Sampling(temperature).draw(torch.tensor([[1.0, 2.0], row]))


def test_a_penalty_needs_the_tokens_so_far(gpt):
    sampling = gpt.Sampling(repetition_penalty=1.2)
    for seen in (None, torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="seen"):
            sampling.probabilities(torch.zeros(2, 5), seen)


def test_logits_of_integers_are_refused(gpt):
    with pytest.raises(TypeError, match=r"logits .* got torch\.int64"):
        gpt.next_token_probabilities(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("tokens", [torch.empty(1, 0, dtype=torch.int64), torch.tensor([1, 2])])
def test_an_empty_prompt_or_one_without_a_batch_is_refused(model, tokens):
    with pytest.raises(ValueError, match=r"tokens must be a prompt \[batch, T\] with at least one token"):
        model.generate(tokens, 3)


def test_ids_that_are_none_of_the_vocabulary_are_refused_at_the_door(gpt, model):
    with pytest.raises(ValueError, match=r"tokens .* 0\.\.16, got 3\.\.17"):
        gpt.stream(model, torch.tensor([[3, 17]]), 3)
    with pytest.raises(TypeError, match=r"tokens .* got torch\.float32"):
        gpt.stream(model, torch.tensor([[3.0, 4.0]]), 3)


# --- a model with more ids than the tokenizer has tokens


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0}, {"top_k": 17}, {"repetition_penalty": 1.5}],
    ids=["all", "greedy", "few", "penalised"],
)
def test_only_ids_below_the_vocabulary_size_are_drawn_and_their_odds_stay(gpt, model, settings):
    tokens = prompts(64) % 5
    assert gpt.generate(model, tokens, 20, generator=seeded(), **settings).max() >= 5
    found = gpt.generate(model, tokens, 20, generator=seeded(), vocab_size=5, **settings)
    assert found.max() < 5
    cut = copy.deepcopy(model)
    cut.config = dataclasses.replace(cut.config, vocab_size=5)
    cut.token_embedding.weight = torch.nn.Parameter(cut.token_embedding.weight[:5].detach())  # and so the head
    close(found, gpt.generate(cut, tokens, 20, generator=seeded(), **settings))


@pytest.mark.parametrize("vocab_size", [0, -1, 18])
def test_a_vocabulary_size_that_the_model_cannot_have_is_refused(gpt, model, vocab_size):
    with pytest.raises(ValueError, match=rf"vocab_size must be in 1\.\.17, .* got {vocab_size}"):
        gpt.generate(model, prompts(), 1, vocab_size=vocab_size)
    with pytest.raises(ValueError, match=r"tokens .*0\.\.4"):
        gpt.generate(model, torch.tensor([[1, 5]]), 1, vocab_size=5)
