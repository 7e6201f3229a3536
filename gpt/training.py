"""How does a model learn from its mistakes?

Over and over: predict the next token of a batch of text, take the gradient of the loss, and let AdamW move every
weight a little. Around that loop is what makes it work in practice: a schedule for the step size, a bound on the
gradient, batches larger than memory, numbers of 16 bits, an average of the weights, and checkpoints from which a run
resumes as if it had never stopped. DEEP_THEORY_GUIDE.md, Part 7.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from gpt.model import GPT, IGNORED, check_ids
from gpt.storage.checkpoint import load_checkpoint, save_checkpoint, saved_parts
from gpt.storage.pretrained import save_pretrained
from gpt.support.machine import PRECISIONS, ctrl_c_finishes_the_step, hide_progress_bar, pick_device
from gpt.support.modules import evaluation_mode
from gpt.tokens import Tokenizer

Batch = tuple[Int[Tensor, "batch T"], Int[Tensor, "batch T"]]
Schedule = Callable[[int], float]  # the number of an update -> its learning rate


class Batches(Protocol):
    """Where a run gets its data. One that also has state_dict() and load_state_dict() resumes where it was."""

    def next_batch(self) -> Batch:
        """Inputs and targets, both [batch, T] of ids."""
        ...


def adamw(
    model: nn.Module, lr: float = 3e-4, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay on the matrices and embeddings alone.

    Biases and the gains of norms have one axis and are not decayed: shrinking a gain towards 0 would switch its
    norm off, not make the model simpler.
    """
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    kept = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def cosine_schedule(step: int, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The learning rate of update `step` (0, 1, ..., total - 1): a line up to `peak`, then a half cosine to `floor`.

    The warm-up reaches peak at step `warmup`; the first update already moves. After `total` the floor holds.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss in nats per token, perplexity exp(loss), and bits per character.

    Bits per character divides by what every tokenizer agrees on, so models with different vocabularies compare.
    """

    loss: float
    perplexity: float
    bits_per_character: float


@torch.no_grad()
def evaluate(
    model: GPT, tokens: Int[Tensor, " n"] | np.ndarray, characters: int | None = None, batch_size: int = 32
) -> Evaluation:
    """Score a whole split, tokens [n]: a LongTensor, or an array from `read_tokens`.

    Every token but the first is predicted exactly once. The windows are context_size long and do not overlap; the
    last may be shorter. `characters` is how many the predicted tokens stand for (default: one each, as with a
    CharTokenizer). Raises TypeError or ValueError for fewer than two tokens, for tokens that are not ids of the model,
    and for a batch_size or characters below 1.
    """
    _check_counts(batch_size=batch_size, characters=1 if characters is None else characters)
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have the shape [n], got {list(tokens.shape)}")
    predicted, size = len(tokens) - 1, model.config.context_size
    if predicted < 1:
        raise ValueError(f"tokens must hold at least two ids to predict one, got {len(tokens)}")
    device, total = model.token_embedding.weight.device, 0.0
    with evaluation_mode(model):
        for start in range(0, predicted, batch_size * size):
            span = torch.as_tensor(_widened(tokens[start : start + batch_size * size + 1]))
            check_ids("tokens", span, model.config.vocab_size)
            inputs, targets = span[:-1], span[1:]
            short = -len(inputs) % size  # the last window is filled up with targets that do not count
            inputs = F.pad(inputs, (0, short)).view(-1, size).to(device)
            targets = F.pad(targets, (0, short), value=IGNORED).view(-1, size).to(device)
            total += model(inputs, targets)[1].item() * (len(span) - 1)
    loss = total / predicted
    perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # inf, not an error, when a run has diverged
    return Evaluation(loss, perplexity, total / math.log(2) / (characters or predicted))


def _widened(ids: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Ids of a token file are unsigned and narrow; PyTorch wants them signed and wide."""
    return ids.cpu() if isinstance(ids, Tensor) else ids.astype(np.int64) if ids.dtype.kind in "iu" else ids


def _check_counts(**counts: int) -> None:
    """Each must be an int of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class History:
    """What happened: lists of (step, loss), ready to be plotted, where step counts finished updates."""

    step: int = 0
    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: float = math.inf
    stopped_early: bool = False
    pending: list[float] = field(default_factory=list)  # training losses since the last entry of `train`


def batch_gradient(
    model: nn.Module,
    batches: list[Batch],
    scaler: torch.amp.GradScaler | None = None,
    precision: str = "float32",
) -> float:
    """Add to every parameter's grad the gradient of the mean loss over all targets of all micro-batches.

    Each micro-batch counts by its share of the targets that are not IGNORED. Then k small batches give the very
    gradient of the large one, also when they hold different numbers of targets. Returns that mean loss. Raises
    ValueError if there is no target at all, or for an unknown precision.
    """
    _check_precision(precision)
    device = next(model.parameters()).device
    counts = [int((targets != IGNORED).sum()) for _, targets in batches]
    if not sum(counts):
        raise ValueError("batches must hold at least one target that is not ignored, got none")
    mean_loss = 0.0
    for (inputs, targets), count in zip(batches, counts, strict=True):
        if not count:
            continue
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32"):
            _, loss = model(inputs.to(device), targets.to(device))
        loss = loss * (count / sum(counts))
        (scaler.scale(loss) if scaler else loss).backward()
        mean_loss += loss.item()
    return mean_loss


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


class Run:
    """One training run: the model, what moves it, and all that a checkpoint must hold to resume it bit for bit.

    `step()` makes one update, `evaluate(tokens)` scores the model, `save()` writes a checkpoint and `resume()` reads
    the newest; `train` is the loop around them. The arguments are those of `train`, and so are the errors.
    """

    def __init__(
        self,
        model: GPT,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        *,
        device: str = "auto",
        schedule: Schedule | None = None,
        accumulation: int = 1,
        precision: str = "float32",
        max_grad_norm: float | None = 1.0,
        average: float | None = None,
        folder: str | Path | None = None,
        tokenizer: Tokenizer | None = None,
        history: History | None = None,
    ) -> None:
        _check_counts(accumulation=accumulation)
        _check_precision(precision)
        self.device = pick_device(device)
        if precision == "float16" and self.device.type == "cpu":
            raise ValueError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, or None for no bound, got {max_grad_norm}")
        if average is not None and not 0 <= average < 1:
            raise ValueError(f"average must be in [0, 1), or None for no average, got {average}")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held.intersection(map(id, model.parameters())):
            raise ValueError("optimizer must hold parameters of the model, but it holds none of them")
        self.model, self.batches, self.optimizer = model.to(self.device).train(), batches, optimizer
        self.schedule, self.accumulation, self.max_grad_norm = schedule, accumulation, max_grad_norm
        self.precision, self.history = precision, history or History()
        self.folder, self.tokenizer = None if folder is None else Path(folder), tokenizer
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "float16" else None
        self.averaged = None
        if average is not None:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average))
        self.tokens = 0  # read by this process, for its speed

    @property
    def updates(self) -> int:
        """How many updates are done."""
        return self.history.step

    def step(self) -> float:
        """One update of the weights on the next micro-batches; returns their mean loss."""
        batches = [self.batches.next_batch() for _ in range(self.accumulation)]
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule(self.updates)
        self.optimizer.zero_grad()
        loss = batch_gradient(self.model, batches, self.scaler, self.precision)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)  # before clipping: the bound is on the true gradient
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.model)
        self.history.step += 1
        self.history.pending.append(loss)
        self.tokens += sum(inputs.numel() for inputs, _ in batches)
        return loss

    def log(self) -> float:
        """Enter the mean training loss since the last entry into the history, and return it."""
        losses, self.history.pending = self.history.pending, []
        self.history.train.append((self.updates, sum(losses) / len(losses)))
        return self.history.train[-1][1]

    @property
    def result(self) -> GPT:
        """The model to evaluate and to keep: the averaged one, if the weights are averaged."""
        return self.averaged.module if self.averaged else self.model  # pyright: ignore[reportReturnType]

    def evaluate(self, tokens: Int[Tensor, " n"] | np.ndarray) -> float:
        """The loss on a whole split, entered into the history; the best model so far is kept in folder/best."""
        loss = evaluate(self.result, tokens).loss
        self.history.validation.append((self.updates, loss))
        if loss < self.history.best:
            self.history.best = loss
            if self.folder:
                save_pretrained(self.result, self.folder / "best", self.tokenizer)
        return loss

    def _parts(self) -> dict[str, Any]:
        """Everything with a state of its own, besides the model and the random generators."""
        parts = {"optimizer": self.optimizer, "averaged": self.averaged, "scaler": self.scaler}
        if hasattr(self.batches, "state_dict"):
            parts["dataloader"] = self.batches
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds besides the weights and the random generators."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"history": asdict(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name, value in state["history"].items():
            setattr(self.history, name, value)

    def save(self) -> None:
        """Write a checkpoint into the folder, if there is one."""
        if self.folder:
            save_checkpoint(self.folder / "checkpoints", self.model, self.state_dict(), self.updates)

    def start(self, resume: bool = False) -> None:
        """Begin in an empty folder, or resume from its newest checkpoint; two runs never share one."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)  # now, not after an hour: the disk may be read-only
        saved = saved_parts(self.folder / "checkpoints")
        if saved is None:
            return
        if not resume:
            raise ValueError(f"folder {self.folder} holds a run: resume it, or give another folder")
        own = {*self._parts(), "history"}
        if saved != own:
            raise ValueError(f"the run in {self.folder} saved {sorted(saved)}, but this one has {sorted(own)}")
        self.load_state_dict(load_checkpoint(self.folder / "checkpoints", self.model))

    def finish(self) -> GPT:
        """The trained model; if the weights are averaged, it gets the average."""
        if self.averaged:
            self.model.load_state_dict(self.averaged.module.state_dict())
        return self.model


def train(
    model: GPT,
    dataloader: Batches,
    n_steps: int,
    optimizer: torch.optim.Optimizer,
    device: str = "auto",
    log_interval: int = 50,
    *,
    schedule: Schedule | None = None,
    accumulation: int = 1,
    max_grad_norm: float | None = 1.0,
    precision: str = "float32",
    average: float | None = None,
    validation: Int[Tensor, " n"] | np.ndarray | None = None,
    eval_interval: int = 250,
    folder: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    checkpoint_interval: int = 1000,
    resume: bool = False,
    history: History | None = None,
    report: Callable[[str], None] | None = None,
) -> GPT:
    """Train until n_steps updates are done and return the model: the loop around a `Run`.

    dataloader     anything whose next_batch() gives (inputs, targets), both [batch, T] of ids
    optimizer      steps the model's parameters, for example `adamw(model)`
    log_interval   every so many updates the mean training loss goes to the history and to report(line)
    schedule       step -> learning rate, for example a `cosine_schedule`; default: the optimizer's own rate
    accumulation   micro-batches per update; they give the gradient of one batch of their joint size
    max_grad_norm  a longer gradient is scaled down to this norm (None: never)
    precision      "float32", or "bfloat16" / "float16" autocast (float16 scales its loss and needs a GPU)
    average        decay of an exponential moving average of the weights, for example 0.999; the averaged weights are
                   those that are evaluated, kept as best, and returned
    validation     ids of the held-out split; its whole loss is taken every eval_interval updates and at the end
    folder         keeps `checkpoints/` (every checkpoint_interval updates, at the end, and on Ctrl-C, which ends
                   training after the update in progress) and `best/` (lowest validation loss, for from_pretrained,
                   with the tokenizer if one is given)
    resume         resume from the newest checkpoint in folder, if there is one; on the CPU bit for bit as if the
                   run had never stopped
    history        a `History` to fill

    Raises TypeError or ValueError for a device that is not there, an unknown precision, float16 without a GPU, an
    average outside [0, 1), a max_grad_norm that is not above 0, an optimizer of another model, n_steps, intervals or
    accumulation that are no ints of at least 1, and a folder that holds a run which is not resumed or has other
    parts; OSError if the folder cannot be written.
    """
    _check_counts(n_steps=n_steps, log_interval=log_interval, eval_interval=eval_interval,
                  checkpoint_interval=checkpoint_interval)  # fmt: skip
    if resume and folder is None:
        raise ValueError("resume needs the folder that holds the checkpoints, got folder=None")
    run = Run(
        model, dataloader, optimizer, device=device, schedule=schedule, accumulation=accumulation, precision=precision,
        max_grad_norm=max_grad_norm, average=average, folder=folder, tokenizer=tokenizer, history=history,
    )  # fmt: skip
    run.start(resume)
    say = report or (lambda line: None)
    tokens, seconds = 0, 0.0
    bar = tqdm(total=n_steps, initial=run.updates, unit="step", disable=hide_progress_bar(), leave=False)
    with bar, ctrl_c_finishes_the_step() as stop_asked:
        while run.updates < n_steps and not stop_asked():
            started = time.perf_counter()
            run.step()
            seconds += time.perf_counter() - started
            bar.update()
            done, last = f"step {run.updates}/{n_steps}", run.updates == n_steps
            if run.updates % log_interval == 0 or last:
                loss, speed = run.log(), (run.tokens - tokens) / seconds
                tokens, seconds = run.tokens, 0.0
                bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{speed:,.0f}")
                say(f"{done}  train loss {loss:.4f}  {speed:,.0f} tokens/s")
            if validation is not None and (run.updates % eval_interval == 0 or last):
                say(f"{done}  validation loss {run.evaluate(validation):.4f}  best {run.history.best:.4f}")
            if run.updates % checkpoint_interval == 0 or last:
                run.save()
        run.history.stopped_early = run.updates < n_steps
        if run.history.stopped_early:
            run.save()
    return run.finish()
