"""Concept 7: the training loop and its parts. Everything is checked in float64 or bit for bit on the CPU."""

import math
import os
import signal
import threading

import numpy as np
import pytest
import torch

from tests.comparing import close
from tests.models import small_gpt

SIZES = dict(context_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)


def small_model(gpt, seed=0, **changes):
    """A fresh model in float32: what is trained starts where GPT-2 starts."""
    return small_gpt(gpt, seed, std=None, dtype=torch.float32, **SIZES | changes)


def text_ids(n=400, seed=5):
    return torch.randint(0, 11, (n,), generator=torch.Generator().manual_seed(seed))


def loader(gpt, batch_size=4, seed=0):
    return gpt.RandomWindows(text_ids(), 8, batch_size, seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- the schedule, in closed form


@pytest.mark.step("schedule")
def test_the_schedule_climbs_in_a_line_and_falls_in_a_half_cosine(gpt):
    rates = [gpt.cosine_schedule(step, peak=4.0, warmup=3, total=11, floor=1.0) for step in range(13)]
    assert rates[:3] == [1.0, 2.0, 3.0]
    assert rates[3] == 4.0
    close(rates[7], 2.5, 1e-15)  # half-way through the cosine: the mean of peak and floor
    close(rates[5], 1 + 3 * (1 + math.cos(math.pi / 4)) / 2, 1e-15)
    assert rates[11] == rates[12] == 1.0
    assert rates[3:12] == sorted(rates[3:12], reverse=True)


# --- the optimizer


@pytest.mark.step("optimizer")
def test_only_matrices_and_embeddings_are_decayed(gpt):
    model = small_model(gpt)
    decayed, kept = gpt.adamw(model, weight_decay=0.3).param_groups
    assert decayed["weight_decay"] == 0.3
    assert kept["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in kept["params"])
    assert not any(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_an_update_of_the_loop_is_the_update_in_numpy(gpt):
    """Forward, backward, clipping and AdamW against gpt.backward. Worst measured difference: 2e-16."""
    model = small_model(gpt).double()
    parameters = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    inputs, targets = loader(gpt).next_batch()
    _, _, cache = gpt.backward.gpt_forward(parameters, inputs.numpy(), 2, targets.numpy())
    gradients = gpt.backward.gpt_backward(cache)
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 0.5, "the bound must bite for this test to see the clipping"
    clipped = {name: g * 0.5 / (norm + 1e-6) for name, g in gradients.items()}  # 1e-6: PyTorch's own guard
    expected, _ = gpt.backward.adamw_step(parameters, clipped, lr=0.01, beta1=0.9, beta2=0.95, weight_decay=0.1)
    gpt.train(model, loader(gpt), 1, gpt.adamw(model, lr=0.01), "cpu", max_grad_norm=0.5)
    for name, parameter in model.named_parameters():
        close(parameter.detach(), torch.from_numpy(expected[name]), 1e-12)


# --- accumulation


@pytest.mark.parametrize("counts", [(3, 3), (1, 5), (6, 0)], ids=["equal", "unequal", "one is all ignored"])
def test_micro_batches_give_the_gradient_of_the_full_batch(gpt, counts):
    """Also when they hold different numbers of targets. Worst measured difference: 2e-17."""
    tokens = text_ids(2 * 2 * 8).view(2, 2, 8)
    targets = text_ids(2 * 2 * 8, seed=6).view(2, 2, 8)
    for part, count in zip(targets, counts, strict=True):
        part.view(-1)[count:] = -100
    full = small_model(gpt).double()
    loss = full(tokens.flatten(0, 1), targets.flatten(0, 1))[1]
    loss.backward()
    parts = small_model(gpt).double()
    mean_loss = gpt.batch_gradient(parts, list(zip(tokens, targets, strict=True)))
    close(mean_loss, loss.item(), 1e-14)
    for a, b in zip(parts.parameters(), full.parameters(), strict=True):
        close(a.grad, b.grad, 1e-14)


def test_unequal_micro_batches_count_by_their_targets(gpt):
    """One with a single target and one with eight: in closed form, the mean over all nine."""
    tokens = text_ids(16).view(2, 1, 8)
    targets = text_ids(16, seed=6).view(2, 1, 8)
    targets[0, 0, 1:] = -100
    model = small_model(gpt).double()
    losses = [model(inputs, aims)[1].item() for inputs, aims in zip(tokens, targets, strict=True)]
    mean_loss = gpt.batch_gradient(model, list(zip(tokens, targets, strict=True)))
    close(mean_loss, (1 * losses[0] + 8 * losses[1]) / 9, 1e-14)


def test_accumulation_trains_like_the_large_batch(gpt):
    class Halves:
        """The batches of `loader`, in two halves each."""

        def __init__(self):
            self.whole, self.second = loader(gpt), None

        def next_batch(self):
            if self.second is not None:
                half, self.second = self.second, None
                return half
            inputs, targets = self.whole.next_batch()
            self.second = (inputs[3:], targets[3:])
            return inputs[:3], targets[:3]

    large, small = small_model(gpt).double(), small_model(gpt).double()
    gpt.train(large, loader(gpt), 5, gpt.adamw(large, lr=0.01), "cpu")
    gpt.train(small, Halves(), 5, gpt.adamw(small, lr=0.01), "cpu", accumulation=2)
    close(weights(small), weights(large), 1e-10)  # worst measured 4e-15


# --- evaluation


def test_evaluation_predicts_every_token_but_the_first_once(gpt):
    """Against a loop that predicts window by window, token by token; 8 does not divide the number of predictions."""
    model, ids = small_model(gpt).double(), text_ids(8 * 5 + 4)
    total, predicted = 0.0, 0
    for start in range(0, len(ids) - 1, 8):
        window = ids[start : start + 9]
        log_probabilities = model(window[None, :-1])[0][0].log_softmax(-1)
        for position, target in enumerate(window[1:]):
            total -= log_probabilities[position, target].item()
            predicted += 1
    assert predicted == len(ids) - 1
    for batch_size in (1, 2, 32):
        score = gpt.evaluate(model, ids, characters=100, batch_size=batch_size)
        close(score.loss, total / predicted, 1e-12)
        close(score.perplexity, math.exp(total / predicted), 1e-10)
        close(score.bits_per_character, total / math.log(2) / 100, 1e-12)


def test_evaluation_reads_a_token_file_and_leaves_the_model_training(gpt, tmp_path):
    model, ids = small_model(gpt, dropout=0.5).train(), text_ids(50)
    gpt.token_file.write_tokens(tmp_path / "ids.bin", ids.tolist(), 11)
    stored = gpt.token_file.read_tokens(tmp_path / "ids.bin")
    assert gpt.evaluate(model, stored) == gpt.evaluate(model, ids)
    assert model.training


def test_a_failed_evaluation_leaves_the_model_training(gpt):
    model = small_model(gpt).train()
    with pytest.raises(ValueError, match="ids in 0"):
        gpt.evaluate(model, torch.tensor([1, 99, 2]))
    assert model.training


def test_a_model_that_diverged_has_an_infinite_perplexity(gpt):
    model = small_model(gpt)
    with torch.no_grad():
        model.token_embedding.weight.mul_(1e6)
    score = gpt.evaluate(model, text_ids())
    assert score.loss > 1000
    assert score.perplexity == math.inf
    with torch.no_grad():
        model.token_embedding.weight.fill_(math.nan)
    assert math.isnan(gpt.evaluate(model, text_ids()).perplexity)


def test_batches_without_a_target_are_refused(gpt):
    nothing = torch.full((1, 8), -100)
    with pytest.raises(ValueError, match="at least one target that is not ignored"):
        gpt.batch_gradient(small_model(gpt), [(text_ids(8).view(1, 8), nothing)] * 2)


def test_an_uninformed_model_has_the_loss_of_a_guess(gpt):
    model = small_model(gpt)
    with torch.no_grad():
        model.token_embedding.weight.zero_()
    close(gpt.evaluate(model, text_ids()).loss, math.log(11), 1e-6)


# --- the loop


def test_training_learns_a_text_that_repeats(gpt):
    ids = torch.arange(11).repeat(40)
    model, history = small_model(gpt), gpt.History()
    optimizer = gpt.adamw(model, lr=0.02)
    gpt.train(
        model, gpt.RandomWindows(ids, 8, 8), 120, optimizer, "cpu", validation=ids, eval_interval=40, history=history
    )
    assert history.validation[0][0] == 40
    assert history.validation[-1][1] < 0.05
    assert history.best == min(loss for _, loss in history.validation)
    assert [step for step, _ in history.train] == [50, 100, 120]


def test_a_loader_needs_nothing_but_next_batch(gpt, tmp_path):
    class Same:
        def next_batch(self):
            return text_ids(32).view(4, 8), text_ids(32, 6).view(4, 8)

    model = small_model(gpt)
    before = weights(model)
    assert gpt.train(model, Same(), 2, torch.optim.SGD(model.parameters(), lr=0.1), "cpu", folder=tmp_path) is model
    assert not torch.equal(weights(model), before)


def test_the_schedule_sets_the_rate_of_each_update(gpt):
    model, rates = small_model(gpt), []
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    optimizer.register_step_pre_hook(lambda opt, *_: rates.append(opt.param_groups[0]["lr"]))
    gpt.train(model, loader(gpt), 4, optimizer, "cpu", schedule=lambda step: 0.1 * step)
    close(rates, [0.0, 0.1, 0.2, 0.3], 1e-15)


def test_averaging_returns_the_moving_average(gpt):
    """After three updates with decay 1/2: w1/4 + w2/4 + w3/2."""
    model, seen = small_model(gpt).double(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.register_step_post_hook(lambda *_: seen.append(weights(model)))
    gpt.train(model, loader(gpt), 3, optimizer, "cpu", average=0.5)
    close(weights(model), seen[0] / 4 + seen[1] / 4 + seen[2] / 2, 1e-14)


def test_bfloat16_trains_close_to_float32(gpt):
    losses = {}
    for precision in ("float32", "bfloat16"):
        model, history = small_model(gpt), gpt.History()
        gpt.train(model, loader(gpt), 30, gpt.adamw(model, lr=0.01), "cpu", 30, precision=precision, history=history)
        assert next(model.parameters()).dtype == torch.float32
        losses[precision] = history.train[-1][1]
    assert losses["bfloat16"] != losses["float32"]
    close(losses["bfloat16"], losses["float32"], 0.01)  # measured 3e-4


def test_the_loss_is_unscaled_before_it_is_clipped(gpt):
    """A scaler of 1024 must not change the update, though the scaled gradient is far beyond the bound."""
    plain, scaled = small_model(gpt).double(), small_model(gpt).double()
    for model, scaler in ((plain, None), (scaled, torch.amp.GradScaler("cpu", init_scale=1024.0))):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        run = gpt.Run(model, loader(gpt), optimizer, device="cpu", max_grad_norm=1e-3)
        run.scaler = scaler or run.scaler
        run.step()
    close(weights(scaled), weights(plain), 1e-12)


def test_a_checkpoint_holds_the_scale_of_the_loss(gpt, tmp_path):
    """The scaler learns its scale; a resume that starts again at the default would throw away the next updates."""

    def prepared(scale):
        model = small_model(gpt)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        run = gpt.Run(model, loader(gpt), optimizer, device="cpu", max_grad_norm=None, folder=tmp_path)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return run

    saved, resumed = prepared(1024.0), prepared(8.0)
    saved.step()
    saved.save()
    resumed.start(resume=True)
    assert resumed.scaler.get_scale() == 1024.0


# --- stopping and resuming


def run(gpt, folder, n_steps, resume=False, **options):
    model = small_model(gpt, seed=1, dropout=0.2)
    history = gpt.History()
    torch.manual_seed(7)  # the dropout's draws
    gpt.train(
        model, loader(gpt, seed=3), n_steps, gpt.adamw(model, lr=0.01), "cpu", 2, folder=folder, average=0.9,
        schedule=lambda step: gpt.cosine_schedule(step, 0.01, 3, 12), validation=text_ids(60, 9), eval_interval=3,
        checkpoint_interval=100, resume=resume, history=history, **options,
    )  # fmt: skip
    return model, history


def test_six_steps_and_six_more_are_twelve_bit_for_bit(gpt, tmp_path):
    """Weights, average, optimizer, data order, dropout, schedule, history: all of it resumes."""
    whole, whole_history = run(gpt, tmp_path / "whole", 12)
    run(gpt, tmp_path / "parts", 6)
    torch.rand(100)  # a stranger draws random numbers in between
    parts, history = run(gpt, tmp_path / "parts", 12, resume=True)
    assert torch.equal(weights(parts), weights(whole))
    assert history.validation == whole_history.validation
    assert history.train == whole_history.train
    assert history.best == whole_history.best


def test_a_run_that_was_interrupted_has_the_history_of_one_that_was_not(gpt, tmp_path):
    """Stopped by Ctrl-C in step 6, between the entries for steps 4 and 8: the losses of 5 and 6 must not be lost."""

    class Interrupting(gpt.RandomWindows):
        calls = 0

        def next_batch(self):
            self.calls += 1
            if self.calls == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().next_batch()

    def go(folder, loader_class, resume=False):
        model, history = small_model(gpt, seed=1), gpt.History()
        windows = loader_class(text_ids(), 8, 4, seed=3)
        gpt.train(model, windows, 12, gpt.adamw(model), "cpu", 4, folder=folder, resume=resume, history=history)
        return history

    whole = go(tmp_path / "whole", gpt.RandomWindows)
    assert go(tmp_path / "parts", Interrupting).step == 6
    resumed = go(tmp_path / "parts", gpt.RandomWindows, resume=True)
    assert [step for step, _ in whole.train] == [4, 8, 12]
    assert resumed.train == whole.train


def test_a_second_run_does_not_mix_with_the_first(gpt, tmp_path):
    run(gpt, tmp_path, 4)
    with pytest.raises(ValueError, match="holds a run: resume it, or give another folder"):
        run(gpt, tmp_path, 2)


@pytest.mark.parametrize(("first", "second"), [(0.9, None), (None, 0.9)])
def test_a_resume_with_other_parts_is_refused_before_anything_changes(gpt, tmp_path, first, second):
    def go(average, seed, resume):
        model = small_model(gpt, seed)
        before = weights(model)
        arguments = dict(folder=tmp_path, average=average, resume=resume)
        return before, model, lambda: gpt.train(model, loader(gpt), 2, gpt.adamw(model), "cpu", **arguments)

    go(first, 0, False)[2]()
    before, model, again = go(second, 1, True)
    with pytest.raises(ValueError, match="averaged"):
        again()
    assert torch.equal(weights(model), before)


def test_resuming_where_nothing_is_starts_from_the_beginning(gpt, tmp_path):
    fresh, _ = run(gpt, tmp_path / "a", 4)
    resumed, _ = run(gpt, tmp_path / "b", 4, resume=True)
    assert torch.equal(weights(fresh), weights(resumed))


def test_the_best_model_is_kept_when_later_ones_are_worse(gpt, tmp_path):
    """A rate that explodes after step 6: `best` must be the model of step 6, also across a resume."""
    ids = torch.arange(11).repeat(40)

    def go(n_steps, resume):
        model = small_model(gpt)
        history = gpt.History()
        gpt.train(model, gpt.RandomWindows(ids, 8, 4), n_steps, gpt.adamw(model), "cpu", folder=tmp_path, resume=resume,
                  schedule=lambda step: 0.01 if step < 6 else 10.0, validation=ids, eval_interval=2,
                  history=history)  # fmt: skip
        return history

    go(6, resume=False)
    kept = gpt.GPT.from_pretrained(tmp_path / "best")
    history = go(12, resume=True)
    assert history.validation[-1][1] > history.validation[2][1] + 1, "the later models must be worse"
    assert history.best == history.validation[2][1]
    assert torch.equal(weights(gpt.GPT.from_pretrained(tmp_path / "best")), weights(kept))
    close(gpt.evaluate(kept, ids).loss, history.best, 1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(gpt, tmp_path, number):
    model, history, calls = small_model(gpt, seed=1), gpt.History(), []

    class Interrupting:
        def __init__(self):
            self.inner = loader(gpt)

        def next_batch(self):
            calls.append(None)
            if len(calls) == 3:
                os.kill(os.getpid(), number)
            return self.inner.next_batch()

    before = signal.getsignal(number)
    gpt.train(model, Interrupting(), 50, gpt.adamw(model), "cpu", folder=tmp_path, history=history)
    assert signal.getsignal(number) is before
    assert history.stopped_early
    assert len(calls) == 3
    saved = small_model(gpt, seed=2)
    assert gpt.checkpoint.load_checkpoint(tmp_path / "checkpoints", saved)["step"] == 3
    assert torch.equal(weights(saved), weights(model))


def test_training_works_outside_the_main_thread(gpt):
    model = small_model(gpt)
    before = weights(model)
    thread = threading.Thread(target=gpt.train, args=(model, loader(gpt), 1, gpt.adamw(model), "cpu"))
    thread.start()
    thread.join()
    assert not torch.equal(weights(model), before)


# --- a run by itself


def small_run(gpt, seed=0, **options):
    model = small_model(gpt, seed)
    return gpt.Run(model, loader(gpt, seed=3), gpt.adamw(model, lr=0.01), device="cpu", **options)


def test_train_is_a_loop_over_run(gpt):
    """The short door and the same steps by hand: equal bit for bit."""
    model, history = small_model(gpt), gpt.History()
    gpt.train(model, loader(gpt, seed=3), 6, gpt.adamw(model, lr=0.01), "cpu", 3, average=0.9, accumulation=2,
              validation=text_ids(60, 9), eval_interval=6, history=history)  # fmt: skip
    run = small_run(gpt, average=0.9, accumulation=2)
    losses = [run.step() for _ in range(3)]
    assert run.log() == sum(losses) / 3
    losses = [run.step() for _ in range(3)]
    assert run.log() == sum(losses) / 3
    assert run.evaluate(text_ids(60, 9)) == history.validation[0][1]
    assert (run.history.train, run.history.step) == (history.train, 6)
    assert torch.equal(weights(run.result), weights(model))
    assert not torch.equal(weights(run.model), weights(model)), "the average must differ from the last weights"
    assert run.finish() is run.model
    assert torch.equal(weights(run.model), weights(model))


def test_the_state_of_a_run_restores_another(gpt):
    """Two updates, the state into a run with other weights, two more: those of four updates, the model aside."""
    whole, first, second = small_run(gpt, average=0.5), small_run(gpt, average=0.5), small_run(gpt, 1, average=0.5)
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())
    for _ in range(2):
        second.step()
    assert torch.equal(weights(second.model), weights(whole.model))
    assert torch.equal(weights(second.result), weights(whole.result))
    assert second.history.step == 4
    assert second.log() == whole.log()


def test_a_state_with_other_parts_changes_nothing(gpt):
    run = small_run(gpt)
    before = weights(run.model)
    with pytest.raises(ValueError, match="averaged"):
        run.load_state_dict(small_run(gpt, 1, average=0.5).state_dict())
    assert torch.equal(weights(run.model), before)
    assert run.history.step == 0


def test_a_run_saved_before_the_losses_were_the_runs_own_resumes(gpt, tmp_path):
    """The layout of a checkpoint's state is fixed: a list of the unlogged losses lies in the history."""
    run = small_run(gpt, folder=tmp_path)
    losses = [run.step(), run.step()]
    state = run.state_dict()
    assert sorted(state) == ["dataloader", "history", "optimizer", "settings"]
    assert state["history"] == dict(step=2, train=[], validation=[], best=math.inf, stopped_by=0, pending=losses)


def test_a_history_is_continued(gpt):
    model, history = small_model(gpt), gpt.History()
    for n_steps in (3, 5):
        gpt.train(model, loader(gpt), n_steps, gpt.adamw(model), "cpu", history=history)
    assert [step for step, _ in history.train] == [3, 5]
    with pytest.raises(ValueError, match="n_steps must be more than the 5 steps of the history, got 5"):
        gpt.train(model, loader(gpt), 5, gpt.adamw(model), "cpu", history=history)


def test_a_run_without_a_folder_cannot_be_saved_and_one_without_steps_not_logged(gpt):
    run = small_run(gpt)
    with pytest.raises(ValueError, match="folder=None"):
        run.save()
    with pytest.raises(ValueError, match="folder=None"):
        run.start(resume=True)
    with pytest.raises(ValueError, match="at least one step"):
        run.log()


# --- a run that goes wrong


class Poisoned:
    """A loader that spoils a weight before batch `step`."""

    def __init__(self, gpt, model, step):
        self.inner, self.model, self.step, self.calls = loader(gpt, seed=3), model, step, 0

    def next_batch(self):
        if self.calls == self.step:
            with torch.no_grad():
                self.model.final_norm.bias[0] = math.nan
        self.calls += 1
        return self.inner.next_batch()


def test_a_loss_that_is_no_number_stops_the_run_and_names_what_is_left(gpt, tmp_path):
    model, ids = small_model(gpt), text_ids(60, 9)
    message = (r"after 5 steps the loss is nan; try a lower learning rate; "
               r"the last good checkpoint is \S+step-00000005; the best model, .* is \S+best")  # fmt: skip
    with pytest.raises(FloatingPointError, match=message):
        gpt.train(model, Poisoned(gpt, model, 5), 50, gpt.adamw(model), "cpu", folder=tmp_path, checkpoint_interval=1,
                  validation=ids, eval_interval=2)  # fmt: skip
    fresh = small_model(gpt, seed=2)
    assert gpt.checkpoint.load_checkpoint(tmp_path / "checkpoints", fresh)["step"] == 5
    assert all(weight.isfinite().all() for weight in fresh.parameters())


def test_a_gradient_that_is_not_finite_moves_no_weight(gpt):
    run = small_run(gpt)
    run.model.final_norm.weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights(run.model)
    with pytest.raises(FloatingPointError, match=r"the gradient's norm is (inf|nan)"):
        run.step()
    assert torch.equal(weights(run.model), before)
    assert run.history.step == 0


def test_a_model_that_is_not_finite_never_becomes_a_checkpoint(gpt, tmp_path):
    run = small_run(gpt, folder=tmp_path)
    run.step()
    run.save()
    run.step()
    with torch.no_grad():
        run.model.final_norm.bias[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"weight final_norm\.bias.*step-00000001"):
        run.save()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_report_that_fails_ends_training_but_loses_nothing(gpt, tmp_path):
    def report(line):
        raise BrokenPipeError

    model = small_model(gpt)
    with pytest.raises(BrokenPipeError):
        gpt.train(model, loader(gpt), 50, gpt.adamw(model), "cpu", 7, folder=tmp_path, report=report)
    assert gpt.checkpoint.load_checkpoint(tmp_path / "checkpoints", small_model(gpt, 1))["step"] == 7


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(lr=0.02), r"lr is 0\.01 there, 0\.02 here"),
        (dict(weight_decay=0.5), r"weight_decay is \[0\.1, 0\.0\] there, \[0\.5, 0\.0\] here"),
        (dict(accumulation=2), "accumulation is 1 there, 2 here"),
        (dict(precision="bfloat16"), "precision is float32 there, bfloat16 here"),
        (dict(max_grad_norm=None), r"max_grad_norm is 1\.0 there, None here"),
        (dict(settings={"text": "a novel"}), "text is a poem there, a novel here"),
    ],
)
def test_a_resume_with_other_settings_is_refused_unless_it_is_allowed(gpt, tmp_path, other, message):
    def make(lr=0.01, weight_decay=0.1, **options):
        model = small_model(gpt, seed=len(options))
        options = {"settings": {"text": "a poem"}, **options}
        return gpt.Run(model, loader(gpt), gpt.adamw(model, lr, weight_decay), device="cpu", folder=tmp_path, **options)

    run = make()
    run.step()
    run.save()
    run.release()
    refused = make(**other)
    before = weights(refused.model)
    with pytest.raises(ValueError, match=message):
        refused.start(resume=True)
    assert torch.equal(weights(refused.model), before)
    allowed = make(**other)
    allowed.start(resume=True, allow_changes=True)
    assert torch.equal(weights(allowed.model), weights(run.model))
    assert allowed.optimizer.param_groups[0]["lr"] == other.get("lr", 0.01)
    assert allowed.optimizer.param_groups[0]["weight_decay"] == other.get("weight_decay", 0.1)


def test_a_resume_with_another_alphabet_is_always_refused(gpt, tmp_path):
    run = small_run(gpt, folder=tmp_path, tokenizer=gpt.CharTokenizer("abcdefghijk"))
    run.step()
    run.save()
    for allowed in (False, True):
        other = small_run(gpt, folder=tmp_path, tokenizer=gpt.CharTokenizer("lmnopqrstuv"))
        with pytest.raises(ValueError, match=r"tokenizer is [0-9a-f]{64} there"):
            other.start(resume=True, allow_changes=allowed)


# --- bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(n_steps=0), "n_steps must be at least 1, got 0"),
        (dict(accumulation=0), "accumulation must be at least 1, got 0"),
        (dict(eval_interval=0), "eval_interval must be at least 1, got 0"),
        (dict(max_grad_norm=0.0), "max_grad_norm must be above 0.* got 0.0"),
        (dict(max_grad_norm=math.nan), "max_grad_norm must be above 0.* got nan"),
        (dict(average=math.nan), r"average must be in \[0, 1\).* got nan"),
        (dict(precision="int8"), "precision must be one of auto, float32, bfloat16, float16, got 'int8'"),
        (dict(precision="float16", device="cpu"), "precision float16 needs a GPU"),
        (dict(resume=True), "resume needs the folder"),
        (dict(device="xpu"), "device 'xpu' is not available here"),
        (dict(device="tpu"), "device 'tpu' is not one that PyTorch knows"),
        (dict(device="cuda:99"), "device 'cuda:99' is not available here"),
        (dict(average=1.5), r"average must be in \[0, 1\), or None for no average, got 1.5"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_moves(gpt, wrong, message):
    model = small_model(gpt).eval()
    before = weights(model)
    arguments = {"n_steps": 1, "device": "cpu", **wrong}
    with pytest.raises(ValueError, match=message):
        gpt.train(model, loader(gpt), optimizer=gpt.adamw(model), **arguments)
    assert torch.equal(weights(model), before)
    assert not model.training


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (dict(n_steps=1.0), "n_steps"),
        (dict(n_steps=True), "n_steps"),
        (dict(log_interval="50"), "log_interval"),
        (dict(accumulation=2.0), "accumulation"),
        (dict(schedule=0.1), "schedule"),
        (dict(dataloader=[1, 2]), "batches"),
    ],
)
def test_an_option_of_another_type_is_named(gpt, wrong, name):
    model = small_model(gpt).eval()
    arguments = {"n_steps": 1, "device": "cpu", "dataloader": loader(gpt), **wrong}
    with pytest.raises(TypeError, match=f"{name} must"):
        gpt.train(model, optimizer=gpt.adamw(model), **arguments)
    assert not model.training


def test_a_checkpoint_of_another_config_is_refused(gpt, tmp_path):
    run(gpt, tmp_path, 2)
    other = small_model(gpt, n_layer=1)
    with pytest.raises(ValueError, match="n_layer"):
        gpt.train(other, loader(gpt), 3, gpt.adamw(other), "cpu", folder=tmp_path, average=0.9, resume=True)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (dict(tokens=torch.rand(20)), TypeError, "tokens must be integer .* got torch.float32"),
        (dict(tokens=np.ones(20)), TypeError, "tokens must be integer .* got torch.float64"),
        (dict(tokens=torch.ones(20, dtype=torch.bool)), TypeError, "tokens must be integer .* got torch.bool"),
        (dict(tokens=text_ids(20).view(2, 10)), ValueError, r"tokens must have the shape \[n\], got \[2, 10\]"),
        (dict(tokens=torch.tensor([1, -1, 2])), ValueError, r"tokens must be ids in 0\.\.10, got -1\.\.2"),
        (dict(tokens=np.array([1, 11, 2], dtype=np.uint16)), ValueError, r"tokens must be ids in 0\.\.10, got 1\.\.11"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (dict(batch_size=2.0), TypeError, "batch_size must be an int .* got 2.0"),
        (dict(characters=0), ValueError, "characters must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_evaluated_is_named(gpt, wrong, error, message):
    model = small_model(gpt)
    with pytest.raises(error, match=message):
        gpt.evaluate(**{"model": model, "tokens": text_ids(), **wrong})
    assert model.training


def test_the_parts_of_a_model_keep_their_modes_when_it_is_evaluated(gpt):
    model = small_model(gpt, dropout=0.5).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    gpt.evaluate(model, text_ids(50))
    assert [module.training for module in model.modules()] == modes


def test_one_token_cannot_be_evaluated(gpt):
    with pytest.raises(ValueError, match="tokens must hold at least two ids to predict one, got 1"):
        gpt.evaluate(small_model(gpt), text_ids(1))
