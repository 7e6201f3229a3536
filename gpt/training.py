"""How does a model learn from its mistakes?

Over and over: predict the next token of a batch of text, take the gradient of the loss, and let AdamW move every
weight a little. Around that loop stand the things that make it work in practice: a schedule for the step size, a bound
on the gradient, batches larger than memory, numbers of 16 bits, an average of the weights, and checkpoints from which
a run goes on as if it had never stopped. DEEP_THEORY_GUIDE.md, Part 7.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from gpt.model import GPT, IGNORED
from gpt.storage.checkpoint import load_checkpoint, save_checkpoint, saved_parts
from gpt.storage.pretrained import save_pretrained

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str = "auto") -> torch.device:
    """The named device; "auto" takes a GPU where there is one. ValueError for one that this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in available.items() if here))
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not one that PyTorch knows") from error
    if not available.get(picked.type, False) or (picked.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f'device {device!r} is not available here; use "auto" or "cpu"')
    return picked


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
    model: GPT, tokens: Tensor | np.ndarray, characters: int | None = None, batch_size: int = 32
) -> Evaluation:
    """Score a whole split, tokens [n]: a LongTensor, or an array from `read_tokens`.

    Every token but the first is predicted exactly once. The windows are context_size long and do not overlap; the
    last may be shorter. `characters` is how many the predicted tokens stand for (default: one each, as with a
    CharTokenizer). Raises ValueError for fewer than two tokens.
    """
    predicted, size = len(tokens) - 1, model.config.context_size
    if predicted < 1:
        raise ValueError(f"tokens must hold at least two ids to predict one, got {len(tokens)}")
    device, was_training, total = model.token_embedding.weight.device, model.training, 0.0
    model.eval()
    try:
        for start in range(0, predicted, batch_size * size):
            span = torch.as_tensor(np.asarray(tokens[start : start + batch_size * size + 1], dtype=np.int64)).to(device)
            padding = (0, (1 - len(span)) % size)
            inputs = F.pad(span[:-1], padding).view(-1, size)
            targets = F.pad(span[1:], padding, value=IGNORED).view(-1, size)
            total += model(inputs, targets)[1].item() * (len(span) - 1)
    finally:
        model.train(was_training)
    loss = total / predicted
    perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # inf, not an error, when a run has diverged
    return Evaluation(loss, perplexity, total / math.log(2) / (characters or predicted))


@dataclass
class History:
    """What happened: lists of (step, loss), ready to be plotted, where step counts finished updates."""

    step: int = 0
    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: float = math.inf
    stopped_early: bool = False
    pending: list[float] = field(default_factory=list)  # training losses since the last entry of `train`


def batch_gradient(model: nn.Module, batches: list[tuple[Tensor, Tensor]], scaler=None, precision="float32") -> float:
    """Add to every parameter's grad the gradient of the mean loss over all targets of all micro-batches.

    Each micro-batch counts by its share of the targets that are not IGNORED. Then k small batches give the very
    gradient of the large one, also when they hold different numbers of targets. Returns that mean loss. Raises
    ValueError if there is no target at all.
    """
    device = next(model.parameters()).device
    counts = [(targets != IGNORED).sum().item() for _, targets in batches]
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


@contextmanager
def _ctrl_c_finishes_the_step() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only raises a flag, so that no update is left half done; the second one interrupts."""
    pressed = []

    def on_signal(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        previous = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not in the main thread: signals do not arrive here
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


def train(
    model: GPT,
    dataloader,
    n_steps: int,
    optimizer: torch.optim.Optimizer,
    device: str = "auto",
    log_interval: int = 50,
    *,
    schedule: Callable[[int], float] | None = None,
    accumulation: int = 1,
    max_grad_norm: float | None = 1.0,
    precision: str = "float32",
    average: float | None = None,
    validation: Tensor | None = None,
    eval_interval: int = 250,
    folder: str | Path | None = None,
    tokenizer=None,
    checkpoint_interval: int = 1000,
    resume: bool = False,
    history: History | None = None,
    report: Callable[[str], None] | None = None,
) -> GPT:
    """Train until n_steps updates are done and return the model.

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
    resume         go on from the newest checkpoint in folder, if there is one; on the CPU bit for bit as if the
                   run had never stopped
    history        a `History` to fill

    Raises ValueError for a device that is not there, an unknown precision, float16 without a GPU, an average outside
    [0, 1), n_steps, intervals or accumulation below 1, and a folder that holds a run which is not resumed or has other
    options; OSError if the folder cannot be written.
    """
    for name, value in [("n_steps", n_steps), ("log_interval", log_interval), ("accumulation", accumulation),
                        ("eval_interval", eval_interval), ("checkpoint_interval", checkpoint_interval)]:  # fmt: skip
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if resume and folder is None:
        raise ValueError("resume needs the folder that holds the checkpoints, got folder=None")
    run = _Run(model, dataloader, optimizer, device, precision, average, folder, tokenizer, history or History())
    run.start(resume)
    tokens, seconds = 0, 0.0
    bar = tqdm(total=n_steps, initial=run.step, unit="step", disable=_bar_is_unwanted(), leave=False)
    with bar, _ctrl_c_finishes_the_step() as stop_asked:
        while run.step < n_steps and not stop_asked():
            started = time.perf_counter()
            batches = [dataloader.next_batch() for _ in range(accumulation)]
            run.update(batches, schedule, max_grad_norm)
            tokens += sum(inputs.numel() for inputs, _ in batches)
            seconds += time.perf_counter() - started
            bar.update()
            last = run.step == n_steps
            if run.step % log_interval == 0 or last:
                loss, speed = run.log(), tokens / seconds
                bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{speed:,.0f}")
                if report:
                    report(f"step {run.step}/{n_steps}  train loss {loss:.4f}  {speed:,.0f} tokens/s")
                tokens, seconds = 0, 0.0
            if validation is not None and (run.step % eval_interval == 0 or last):
                score = run.evaluate(validation)
                if report:
                    report(f"step {run.step}/{n_steps}  validation loss {score:.4f}  best {run.history.best:.4f}")
            if run.step % checkpoint_interval == 0 or last:
                run.save()
        run.history.stopped_early = run.step < n_steps
        if run.history.stopped_early:
            run.save()
    return run.finish()


def _bar_is_unwanted() -> bool | None:
    """None: tqdm shows a bar in a terminal only. A notebook is none, but its reader waits all the same."""
    return bool(os.environ.get("TQDM_DISABLE")) if "ipykernel" in sys.modules else None


class _Run:
    """The state of one training run: all that a checkpoint must hold to go on as if nothing had happened."""

    def __init__(self, model, dataloader, optimizer, device, precision, average, folder, tokenizer, history) -> None:
        self.device = pick_device(device)
        if average is not None and not 0 <= average < 1:
            raise ValueError(f"average must be in [0, 1), or None for no average, got {average}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "float16" and self.device.type == "cpu":
            raise ValueError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
        self.model, self.dataloader, self.optimizer = model.to(self.device).train(), dataloader, optimizer
        self.precision, self.history, self.step = precision, history, 0
        self.folder, self.tokenizer = None if folder is None else Path(folder), tokenizer
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "float16" else None
        self.averaged = None
        if average is not None:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average))

    def update(self, batches, schedule, max_grad_norm) -> None:
        """One step of the optimizer on the joint gradient of the micro-batches."""
        if schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = schedule(self.step)
        self.optimizer.zero_grad()
        self.history.pending.append(batch_gradient(self.model, batches, self.scaler, self.precision))
        if self.scaler:
            self.scaler.unscale_(self.optimizer)  # before clipping: the bound is on the true gradient
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.model)
        self.step += 1
        self.history.step = self.step

    def log(self) -> float:
        """Enter the mean training loss since the last entry."""
        losses, self.history.pending = self.history.pending, []
        self.history.train.append((self.step, sum(losses) / len(losses)))
        return self.history.train[-1][1]

    @property
    def best_guess(self) -> GPT:
        """The model to evaluate and to hand out: the averaged one, if the weights are averaged."""
        return self.averaged.module if self.averaged else self.model

    def evaluate(self, validation: Tensor) -> float:
        loss = evaluate(self.best_guess, validation).loss
        self.history.validation.append((self.step, loss))
        if loss < self.history.best:
            self.history.best = loss
            if self.folder:
                save_pretrained(self.best_guess, self.folder / "best", self.tokenizer)
        return loss

    def _parts(self) -> dict:
        """Everything with a state of its own, besides the model and the random generators."""
        parts = {"optimizer": self.optimizer, "averaged": self.averaged, "scaler": self.scaler}
        if hasattr(self.dataloader, "state_dict"):
            parts["dataloader"] = self.dataloader
        return {name: part for name, part in parts.items() if part is not None}

    def save(self) -> None:
        if self.folder:
            state = {name: part.state_dict() for name, part in self._parts().items()}
            state["history"] = asdict(self.history)
            save_checkpoint(self.folder / "checkpoints", self.model, state, self.step)

    def start(self, resume: bool) -> None:
        """Begin in an empty folder, or go on from its newest checkpoint; two runs never share one."""
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
        state = load_checkpoint(self.folder / "checkpoints", self.model)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        for name, value in state["history"].items():
            setattr(self.history, name, value)

    def finish(self) -> GPT:
        if self.averaged:
            self.model.load_state_dict(self.averaged.module.state_dict())
        return self.model
