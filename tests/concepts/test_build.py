"""From parts to a trained model: weights in the released layout, batches, the loop, and whether it learns.

These ask for little more than a learner's own file has; the package's other promises are tested elsewhere.
"""

import math
from pathlib import Path

import pytest
import torch

import gpt as package
from tests.comparing import close
from tests.models import small_gpt

BUNDLED = Path(package.__file__).parent / "storage" / "tinyshakespeare"
SIZES = dict(context_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- weights in the released layout


@pytest.mark.step("released weights")
def test_the_bundled_weights_give_the_packages_logits(gpt):
    mine = gpt.pretrained.load_pretrained(BUNDLED).eval()
    theirs = package.GPT.from_pretrained("tinyshakespeare").eval()
    tokens = torch.arange(40)[None] * 7 % 65
    with torch.no_grad():
        close(mine.double()(tokens)[0], theirs.double()(tokens)[0], 1e-9)


@pytest.mark.step("released weights")
def test_a_square_matrix_is_transposed_too(gpt, tmp_path):
    """The attention's projection is [d_model, d_model]: without its transpose nothing complains."""
    theirs = small_gpt(package, 3, dtype=torch.float32, **SIZES)
    theirs.save_pretrained(tmp_path)
    mine = gpt.pretrained.load_pretrained(tmp_path)
    close(mine.blocks[1].attention.projection.weight, theirs.blocks[1].attention.projection.weight)
    close(mine.blocks[0].attention.qkv.weight, theirs.blocks[0].attention.qkv.weight)


# --- batches


@pytest.mark.step("windows")
def test_the_target_of_a_token_is_the_token_that_follows_it(gpt):
    inputs, targets = gpt.RandomWindows(torch.arange(50), 6, 4, seed=1).next_batch()
    assert inputs.shape == targets.shape == (4, 6)
    close(targets, inputs + 1)
    close(inputs, inputs[:, :1] + torch.arange(6))


@pytest.mark.step("windows")
def test_every_window_that_fits_is_drawn_and_no_other(gpt):
    batches = gpt.RandomWindows(torch.arange(9), 6, 64, seed=2)
    starts = {int(start) for _ in range(4) for start in batches.next_batch()[0][:, 0]}
    assert starts == {0, 1, 2}


@pytest.mark.step("windows")
def test_one_seed_is_one_sequence_of_batches(gpt):
    def drawn(seed):
        batches = gpt.RandomWindows(torch.arange(1000), 6, 4, seed)
        return torch.stack([batches.next_batch()[0] for _ in range(3)])

    close(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert len({int(start) for start in drawn(3)[:, :, 0].flatten()}) > 6


# --- the loop


class Repeat:
    """The same few batches over and over."""

    def __init__(self, n=5):
        ids = torch.randint(0, 11, (n, 4, 9), generator=torch.Generator().manual_seed(7))
        self.batches, self.next = ids, 0

    def next_batch(self):
        ids = self.batches[self.next % len(self.batches)]
        self.next += 1
        return ids[:, :-1], ids[:, 1:]


def trained(by, model, steps=30):
    """`model` after 30 steps of `by.train`, with a rate and a bound on the gradient that both matter."""
    optimizer = package.adamw(model, weight_decay=0.1, betas=(0.9, 0.99))

    def rate(step):
        return package.cosine_schedule(step, 5e-3, 20, steps)

    return by.train(model, Repeat(), steps, optimizer, schedule=rate, max_grad_norm=0.2)


@pytest.mark.step("training")
def test_thirty_steps_are_the_packages_thirty_steps(gpt):
    """Without zero_grad the weights part by 0.08, without clipping or schedule by 0.05 and 0.13."""
    theirs = small_gpt(package, 4, std=None, **SIZES)
    mine = small_gpt(gpt, 4, std=None, **SIZES)
    mine.load_state_dict(theirs.state_dict())
    close(weights(trained(gpt, mine)), weights(trained(package, theirs)), 1e-9)


@pytest.mark.step("training")
def test_the_mean_loss_of_a_text_counts_every_token_but_the_first_once(gpt):
    model = small_gpt(gpt, 5, **SIZES)
    ids = torch.randint(0, 11, (30,), generator=torch.Generator().manual_seed(8))
    total = 0.0
    with torch.no_grad():
        for start in range(0, 29, 8):
            span = ids[start : start + 9]
            total += model(span[None, :-1], span[None, 1:])[1].item() * (len(span) - 1)
    found = gpt.evaluate(model, ids)
    close(float(getattr(found, "loss", found)), total / 29, 1e-12)


@pytest.mark.step("training")
def test_evaluation_leaves_no_gradient_behind(gpt):
    model = small_gpt(gpt, 5, **SIZES)
    gpt.evaluate(model, torch.arange(30) % 11)
    assert all(p.grad is None for p in model.parameters())


# --- does it learn?


@pytest.mark.step("it learns")
def test_one_batch_is_learned_by_heart(gpt):
    model = small_gpt(gpt, 6, std=None, **SIZES | {"n_embd": 32})
    batch = Repeat(n=1)
    before = model(*batch.next_batch())[1].item()
    assert abs(before - math.log(11)) < 0.1
    gpt.train(model, batch, 150, gpt.adamw(model, lr=1e-2), schedule=lambda step: 1e-2)
    assert model(*batch.next_batch())[1].item() < 0.1


@pytest.mark.step("it learns")
def test_english_is_learned_far_beyond_the_frequencies_of_its_letters(gpt):
    """Held out: a text of which the model has seen the other nine tenths. Guessing by frequency costs 3.2 nats."""
    text = package.load_text("python-docs")[:200_000]
    alphabet = sorted(set(text))
    ids = torch.tensor([alphabet.index(character) for character in text])
    cut = len(ids) * 9 // 10
    torch.manual_seed(0)
    model = small_gpt(gpt, 0, std=None, dtype=torch.float32, context_size=32, vocab_size=len(alphabet), n_layer=2,
                      n_head=2, n_embd=64)  # fmt: skip
    batches = gpt.RandomWindows(ids[:cut], 32, 16, seed=0)
    gpt.train(model, batches, 250, gpt.adamw(model, lr=5e-3), schedule=lambda step: 5e-3 * min(1, (step + 1) / 30))
    found = gpt.evaluate(model, ids[cut:][:4001])
    assert float(getattr(found, "loss", found)) < 2.7
