"""How does a model learn from its mistakes?

Over and over: predict the next token of a batch of text, take the gradient of the loss, and let AdamW move every
weight a little. Around that loop are the things that make it work in practice: a schedule for the step size, a bound
on the gradient, batches larger than memory, numbers of 16 bits, an average of the weights, and checkpoints from which
a run resumes as if it had never stopped. DEEP_THEORY_GUIDE.md, Part 7.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from filelock import BaseFileLock
from jaxtyping import Int, Integer
from torch import Tensor, nn
from tqdm import tqdm

from gpt.model import GPT, IGNORED, check_ids
from gpt.storage.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, save_checkpoint, start_saving, tidy
from gpt.storage.pretrained import save_pretrained
from gpt.storage.sharded import dealt_out, has_names, with_names, with_numbers
from gpt.support import distributed, kernels
from gpt.support.checks import check_number
from gpt.support.files import lock, sha256
from gpt.support.machine import PRECISIONS, a_signal_finishes_the_step, hide_progress_bar, pick_device
from gpt.support.modules import evaluation_mode
from gpt.support.precision import fastest_precision
from gpt.tokens import Tokenizer

Setting = str | float | bool | list | tuple | None  # what a checkpoint can hold and compare


class Batches(Protocol):
    """Whatever gives batches to learn from: `RandomWindows`, or a loader of your own.

    One that also has state_dict() and load_state_dict(state) keeps its place in the data across a resume.
    """

    def next_batch(self) -> tuple[Int[Tensor, "batch T"], Int[Tensor, "batch T"]]:
        """inputs and targets, ids; a target that is IGNORED (-100) is not learned from."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """What has a state of its own that a checkpoint must hold."""

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors, numbers, strings, and lists, tuples and dicts of these."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore what `state_dict` gave."""
        ...


def adamw(
    model: nn.Module, lr: float = 3e-4, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay on the matrices and embeddings alone.

    Biases and the gains of norms have one axis and are not decayed: shrinking a gain towards 0 would switch its
    norm off, not make the model simpler.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_number("lr", lr, 0)
    check_number("weight_decay", weight_decay, 0)
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    for beta in betas:
        check_number("betas", beta, 0)
        if beta >= 1:
            raise ValueError(f"betas must be below 1, got {betas}")
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    kept = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(float(betas[0]), float(betas[1])), fused=True)


def cosine_schedule(step: int, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The learning rate of update `step` (0, 1, ..., total - 1): a line up to `peak`, then a half cosine to `floor`.

    The warm-up reaches peak at step `warmup`; the first update already moves. After `total` the floor holds.
    """
    for name, value in dict(step=step, peak=peak, warmup=warmup, total=total, floor=floor).items():
        check_number(name, value)
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
    model: GPT,
    tokens: Integer[Tensor, " n"] | Integer[np.ndarray, " n"],
    characters: int | None = None,
    batch_size: int = 32,
    together: bool = False,
) -> Evaluation:
    """Score a whole split: a tensor of ids, or an array from `read_tokens`.

    Every token but the first is predicted exactly once. The windows are context_size long and do not overlap; the
    last may be shorter. `characters` is how many the predicted tokens spell (default: one each, as with a
    CharTokenizer). With `together` all processes of a `gpt.support.distributed.group` call this, and each scores its
    share of the windows. Raises TypeError for ids that are not integers, ValueError for fewer than two tokens, another
    shape than [n], ids outside the vocabulary, and characters or a batch_size below 1.
    """
    at_least_one("batch_size", batch_size)
    if characters is not None:
        at_least_one("characters", characters)
    if not isinstance(tokens, Tensor | np.ndarray):
        raise TypeError(f"tokens must be a tensor or an array of ids, got {type(tokens).__name__}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have the shape [n], got {list(tokens.shape)}")
    predicted, size = len(tokens) - 1, model.config.context_size
    if predicted < 1:
        raise ValueError(f"tokens must hold at least two ids to predict one, got {len(tokens)}")
    device, total = model.token_embedding.weight.device, 0.0
    reach, processes, rank = batch_size * size, 1, 0
    if together:
        processes, rank = distributed.world_size(), distributed.rank()
    with evaluation_mode(model):
        for first in range(0, predicted, processes * reach):
            start = first + rank * reach
            idle = start >= predicted  # nothing is left for this process; it only keeps step with the others
            start = first if idle else start
            span = _ids_on_cpu(tokens[start : start + reach + 1])
            check_ids("tokens", span, model.config.vocab_size)  # here, where a wrong id can still be named
            inputs, targets = span[:-1], span[1:]
            short = -len(inputs) % size  # the last window is filled up: token 0 to read, nothing to predict
            inputs = F.pad(inputs, (0, short)).view(-1, size).to(device)
            targets = F.pad(targets, (0, short), value=IGNORED).view(-1, size).to(device)
            summed = model(inputs, targets)[1].item() * (len(span) - 1)
            total += 0.0 if idle else summed
    total = distributed.total(total) if together else total
    loss = total / predicted
    perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # inf, not an error, when a run has diverged
    return Evaluation(loss, perplexity, total / math.log(2) / (characters or predicted))


def _ids_on_cpu(tokens: Tensor | np.ndarray) -> Tensor:
    """As int64, also from a memory-mapped array of uint16, of which only this part is read."""
    integers = (torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int16, torch.int32, torch.int64)
    ids = tokens.cpu() if isinstance(tokens, Tensor) else torch.from_numpy(np.array(tokens))
    if ids.dtype not in integers:
        raise TypeError(f"tokens must be integer token ids, got {ids.dtype}")
    return ids.long()


def at_least_one(name: str, value: object) -> None:
    """Raise TypeError or ValueError, naming the argument, unless it is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class History:
    """What happened: lists of (step, loss), ready to be plotted, where step counts finished updates."""

    step: int = 0
    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: float = math.inf
    stopped_by: int = 0  # the number of the signal that ended training before its last step

    @property
    def stopped_early(self) -> bool:
        return self.stopped_by != 0


def batch_gradient(
    model: nn.Module,
    batches: list[tuple[Int[Tensor, "_ _"], Int[Tensor, "_ _"]]],
    scaler: torch.amp.GradScaler | None = None,
    precision: str = "float32",
) -> float:
    """Add to every parameter's grad the gradient of the mean loss over all targets of all micro-batches.

    Each micro-batch counts by its share of the targets that are not IGNORED. Then k small batches give the very
    gradient of the large one, also when they hold different numbers of targets. Returns that mean loss. In a
    `gpt.support.distributed.group` the batches of all processes count so: the loss is the sum over all, divided by all
    their targets. Raises ValueError if there is no target at all; in a group, if a micro-batch has none.
    """
    device = next(model.parameters()).device
    kernels.keep_freed_memory()
    counts = [(targets != IGNORED).sum().item() for _, targets in batches]
    processes = distributed.world_size()
    if not sum(counts) or (processes > 1 and not all(counts)):
        raise ValueError("batches must hold at least one target that is not ignored, got none")
    share = sum(counts) / distributed.total(sum(counts)) * processes  # DDP and FSDP take the mean over processes
    mean_loss, last = 0.0, len(batches) - 1
    for i, ((inputs, targets), count) in enumerate(zip(batches, counts, strict=True)):
        if not count:
            continue
        with distributed.synchronised(model, i == last):
            with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32"):
                _, loss = model(inputs.to(device), targets.to(device), loss_only=True)
            loss = loss * ((count / sum(counts)) * share)
            (scaler.scale(loss) if scaler else loss).backward()
        mean_loss += loss.item()
    return distributed.total(mean_loss) / processes


def _settings_of(optimizer: torch.optim.Optimizer) -> dict[str, Setting]:
    """Its kind, and the options of its groups: one value each, or a list if the groups differ."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    values = {name: [group[name] for group in groups] for name in groups[0]}
    settings = {name: each[0] if all(one == each[0] for one in each) else each for name, each in values.items()}
    return {"optimizer": type(optimizer).__name__, **settings}


def _checksum(tokenizer: Tokenizer) -> str:
    """Of what it saves: two with one checksum give the same ids."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        return sha256(path)


class Run:
    """One training run: what changes from update to update, and so all that a checkpoint must hold.

    batches        whose next_batch() gives (inputs, targets), both [batch, T] of ids
    optimizer      steps the model's parameters, for example `adamw(model)`
    device         where the model is moved to; "auto" takes an accelerator if there is one
    schedule       update 0, 1, ... -> learning rate, for example a `cosine_schedule`; default: the optimizer's own
    accumulation   micro-batches per update; they give the gradient of one batch of their joint size
    precision      "float32", or "bfloat16" / "float16" autocast (float16 scales its loss and needs a GPU); "auto" takes
                   the faster of float32 and bfloat16, measured here and now, and keeps it: see `self.precision`
    max_grad_norm  a longer gradient is scaled down to this norm (None: never)
    average        decay of an exponential moving average of the weights, for example 0.999
    compile        whether training calls the model through torch.compile: slow to start, then faster
    folder         keeps `checkpoints/` and `best/` (lowest loss in `evaluate`, for from_pretrained, with the tokenizer
                   if one is given)
    history        the `History` to fill; its `step` is the run's only count of finished updates
    settings       what else makes this run what it is, by name: the checksum of its text, its seed, ... A checkpoint
                   holds them, with the options above, so that a resume can tell whether it continues the same run

    In a `gpt.support.distributed.group` every process makes the same Run, with the same batches, and takes its own rows
    of each; a model that is not sharded is replicated. All methods but `log` and `release` wait for all processes.

    Raises TypeError or ValueError, naming the argument, before anything is moved or changed.
    """

    def __init__(
        self,
        model: GPT,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        *,
        device: str | torch.device = "auto",
        schedule: Callable[[int], float] | None = None,
        accumulation: int = 1,
        precision: str = "float32",
        max_grad_norm: float | None = 1.0,
        average: float | None = None,
        compile: bool = False,
        folder: str | Path | None = None,
        tokenizer: Tokenizer | None = None,
        history: History | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        self.device = pick_device(device)
        if not hasattr(batches, "next_batch"):
            raise TypeError(f"batches must have next_batch(), got {type(batches).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if history is not None and not isinstance(history, History):
            raise TypeError(f"history must be a History, or None, got {type(history).__name__}")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of the step, or None, got {schedule!r}")
        at_least_one("accumulation", accumulation)
        if not isinstance(precision, str) or precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "float16" and self.device.type == "cpu":
            raise ValueError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
        for name, value in [("max_grad_norm", max_grad_norm), ("average", average)]:
            if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
                raise TypeError(f"{name} must be a number, or None, got {value!r}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, or None for no bound, got {max_grad_norm}")
        if average is not None and not 0 <= average < 1:
            raise ValueError(f"average must be in [0, 1), or None for no average, got {average}")
        self.model, self.batches, self.optimizer = model.to(self.device).train(), batches, optimizer
        precision = fastest_precision(self.model) if precision == "auto" else precision
        self.schedule, self.accumulation, self.max_grad_norm = schedule, accumulation, max_grad_norm
        self.precision, self.scaler = precision, torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.averaged = None if average is None else distributed.moving_average(model, average)
        self.learner = distributed.replicated(model)  # what training calls; the weights are the model's
        if compile:
            self.learner = cast(nn.Module, torch.compile(self.learner))
        self.seed = torch.initial_seed()
        self.folder, self.tokenizer = None if folder is None else Path(folder), tokenizer
        self.history = History() if history is None else history
        self.settings: dict[str, Setting] = {
            **(settings or {}),
            **_settings_of(optimizer),
            "accumulation": accumulation,
            "precision": precision,
            "max_grad_norm": max_grad_norm,
            "average": average,
            "tokenizer": None if tokenizer is None else _checksum(tokenizer),
        }
        self.pending: list[float] = []  # the losses since the last entry of history.train
        self.tokens_read = 0  # by this process
        self.lock: BaseFileLock | None = None
        self.saving: Future[None] | None = None

    def step(self) -> float:
        """One update: fetch its batches, take their joint gradient, clip it, move the weights. Returns the loss.

        Raises FloatingPointError, before the weights are moved, if the loss or the gradient is not finite.
        """
        batches = [self.batches.next_batch() for _ in range(self.accumulation)]
        self.tokens_read += sum(inputs.numel() for inputs, _ in batches)
        if distributed.world_size() > 1:
            batches = [(distributed.own_rows(inputs), distributed.own_rows(targets)) for inputs, targets in batches]
            distributed.seed(self.seed, self.history.step)
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule(self.history.step)
        self.optimizer.zero_grad()
        loss = batch_gradient(self.learner, batches, self.scaler, self.precision)
        self._check_finite("loss", loss)
        self.scaler.unscale_(self.optimizer)  # before clipping: the bound is on the true gradient
        if self.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            if not self.scaler.is_enabled():  # the scaler leaves out such a step, and scales less
                self._check_finite("gradient's norm", norm.item())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.pending.append(loss)
        self.history.step += 1
        return loss

    def log(self) -> float:
        """Enter the mean training loss since the last entry into the history, and return it."""
        if not self.pending:
            raise ValueError("log needs at least one step since the last entry")
        mean = sum(self.pending) / len(self.pending)
        self.history.train.append((self.history.step, mean))
        self.pending = []
        return mean

    @property
    def result(self) -> GPT:
        """The model to evaluate and to keep: the one with averaged weights, if they are averaged."""
        return self.model if self.averaged is None else cast(GPT, self.averaged.module)

    def evaluate(self, tokens: Integer[Tensor, " n"] | Integer[np.ndarray, " n"]) -> float:
        """Enter the loss of the result on a held-out split into the history; if it is the lowest, keep the model."""
        loss = evaluate(self.result, tokens, together=distributed.world_size() > 1).loss
        self.history.validation.append((self.history.step, loss))
        if loss < self.history.best:
            self.history.best = loss
            if self.folder is not None and (best := distributed.whole(self.result)) is not None:
                save_pretrained(best, self.folder / "best", self.tokenizer)
        return loss

    def finish(self) -> GPT:
        """Give the model the averaged weights, if they are averaged, and return it. Unlocks the folder."""
        self._wait_for_the_save()
        self.release()
        if self.averaged is not None:
            self.model.load_state_dict(self.result.state_dict())
        return self.model

    def release(self) -> None:
        """Let another process write to the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _parts(self) -> dict[str, Stateful]:
        """Everything with a state of its own, besides the model and the random number generators."""
        parts: dict[str, Stateful] = {"optimizer": self.optimizer}
        if self.averaged is not None:
            parts["averaged"] = self.averaged
        if self.scaler.is_enabled():
            parts["scaler"] = self.scaler
        if isinstance(self.batches, Stateful):
            parts["dataloader"] = self.batches
        return parts

    def state_dict(self) -> dict[str, Any]:
        """All but the model's weights and the random number generators, which a checkpoint saves by itself."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state["history"] = {**asdict(self.history), "pending": list(self.pending)}
        state["settings"] = self.settings
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. ValueError, before anything changes, if it has other parts."""
        self._check_parts(set(state) - {"step"}, "state")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        past = state["history"]
        self.history.step = past["step"]
        self.history.train = past["train"]
        self.history.validation = past["validation"]
        self.history.best = past["best"]
        self.pending = past["pending"]

    def _check_parts(self, saved: set[str], whose: str) -> None:
        own = {*self._parts(), "history", "settings"}
        if saved | {"settings"} != own:  # a run of an earlier version has none
            raise ValueError(f"{whose} holds {sorted(saved)}, but this run has {sorted(own)}: give it the same options")

    def save(self, wait: bool = True) -> None:
        """Write a checkpoint of this step into the folder.

        Without `wait`, a sharded model is written while training goes on; what fails then is raised by the next save
        or by `finish`. Raises ValueError without a folder, OSError if it cannot be written, FloatingPointError if a
        weight is not finite: such a state must not push good checkpoints out.
        """
        if self.folder is None:
            raise ValueError("save needs a folder, got folder=None")
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                self._check_finite(f"weight {name}", math.nan)
        state = self.state_dict()
        if distributed.is_sharded(self.model):
            self._wait_for_the_save()
            state["optimizer"] = with_names(state["optimizer"], self._names())
            self.saving = start_saving(self.folder / "checkpoints", self.model, state, self.history.step)
            if wait:
                self._wait_for_the_save()
        elif distributed.rank() == 0:  # all hold the same
            save_checkpoint(self.folder / "checkpoints", self.model, state, self.history.step)

    def _wait_for_the_save(self) -> None:
        if self.saving is not None:
            self.saving.result()
            self.saving = None

    def _names(self) -> list[str]:
        """Of the weights, in the optimizer's order."""
        names = {weight: name for name, weight in self.model.named_parameters()}
        return [names[weight] for group in self.optimizer.param_groups for weight in group["params"]]

    def _check_finite(self, what: str, value: float) -> None:
        """Stop a run that has diverged, and say what is left of it."""
        if math.isfinite(value):
            return
        kept = []
        if self.folder is not None and (newest := latest_checkpoint(self.folder / "checkpoints")):
            kept.append(f"the last good checkpoint is {newest}")
        if self.folder is not None and self.history.validation and math.isfinite(self.history.best):
            kept.append(f"the best model, of loss {self.history.best:.4f}, is {self.folder / 'best'}")
        raise FloatingPointError(
            f"training diverged: after {self.history.step} steps the {what} is {value}; try a lower learning rate"
            + "".join(f"; {line}" for line in kept)
        )

    def start(self, resume: bool = False, allow_changes: bool = False) -> None:
        """Begin in an empty folder, or resume from its newest checkpoint, if it has one. Locks the folder.

        With allow_changes the settings may differ from those of the run, but not its parts, config and tokenizer.
        Raises ValueError if resume is asked without a folder, if another process is writing to the folder, or if the
        folder holds a run that is not resumed, is damaged, or is another run; then the model has not changed. OSError
        if the folder cannot be written. A further attempt of `torchrun --max-restarts` always resumes.
        """
        if self.folder is None:
            if resume:
                raise ValueError("resume needs the folder that holds the checkpoints, got folder=None")
            return
        checkpoints = self.folder / "checkpoints"
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)  # now, not after an hour: the disk may be read-only
            self.lock = lock(self.folder)
            tidy(checkpoints)
        distributed.wait_for_all()
        if latest_checkpoint(checkpoints) is None:
            return
        if not resume and not distributed.restarted():
            raise ValueError(f"folder {self.folder} holds a run: resume it, or give another folder")
        self._resume(read_checkpoint(checkpoints, self.model), allow_changes)

    def _resume(self, checkpoint: Checkpoint, allow_changes: bool) -> None:
        self._check_parts(set(checkpoint.state) - {"step"}, f"the run in {self.folder}")
        self._check_settings(checkpoint.state.get("settings", {}), allow_changes)
        own = [{**group} for group in self.optimizer.param_groups]
        try:
            self.load_state_dict(self._fitting(checkpoint.state))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{checkpoint.folder} does not fit this run: {error}") from error
        if allow_changes:  # the optimizer has loaded the old ones
            for group, before in zip(self.optimizer.param_groups, own, strict=True):
                group.update({name: value for name, value in before.items() if name != "params"})
        checkpoint.restore(self.model)

    def _fitting(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a run in another number of processes, in the form that this one's parts take."""
        optimizer, sharded = state["optimizer"], distributed.is_sharded(self.model)
        if not has_names(optimizer):
            if not sharded:
                return state
            optimizer = with_names(optimizer, self._names())
        if sharded:
            state = dealt_out({**state, "optimizer": optimizer}, self.model)
            optimizer = state["optimizer"]
        return {**state, "optimizer": with_numbers(optimizer, self._names())}

    def _check_settings(self, saved: dict[str, Setting], allow_changes: bool) -> None:
        """Raise ValueError, naming all settings that differ, unless they may."""
        names = [name for name in saved if name in self.settings and saved[name] != self.settings[name]]
        fixed = [name for name in names if name == "tokenizer"] if allow_changes else names
        if fixed:
            listed = "; ".join(f"{name} is {saved[name]} there, {self.settings[name]} here" for name in fixed)
            way_out = "another folder" if allow_changes else "the same options, another folder, or allow changes"
            raise ValueError(f"the run in {self.folder} is another one: {listed}; give {way_out}")


def train(
    model: GPT,
    dataloader: Batches,
    n_steps: int,
    optimizer: torch.optim.Optimizer,
    device: str | torch.device = "auto",
    log_interval: int = 50,
    *,
    schedule: Callable[[int], float] | None = None,
    accumulation: int = 1,
    max_grad_norm: float | None = 1.0,
    precision: str = "float32",
    average: float | None = None,
    compile: bool = False,
    validation: Integer[Tensor, " n"] | Integer[np.ndarray, " n"] | None = None,
    eval_interval: int = 250,
    folder: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    checkpoint_interval: int = 1000,
    resume: bool = False,
    allow_changes: bool = False,
    settings: Mapping[str, Setting] | None = None,
    history: History | None = None,
    report: Callable[[str], None] | None = None,
) -> GPT:
    """Train until n_steps updates are done and return the model: the short door to `Run`, which explains the rest.

    log_interval         every so many updates the mean training loss goes to the history and to report(line)
    validation           ids of the held-out split; its whole loss is taken every eval_interval updates and at the end
    checkpoint_interval  every so many updates, at the end, and on Ctrl-C, SIGTERM or SIGHUP, which end training after
                         the update in progress, a checkpoint goes to the folder, if there is one
    resume               continue from the newest checkpoint in the folder, if there is one; on the CPU bit for bit as
                         if the run had never stopped
    allow_changes        resume also with other settings than the run's; they are those of `Run`
    history              the `History` to fill; one that has been filled is continued, and n_steps counts its steps too

    With `average`, the averaged weights are those that are evaluated, kept as best, and returned.
    Raises TypeError or ValueError, naming the argument, for what `Run` refuses, n_steps or intervals below 1, a history
    that has its n_steps already, and a folder that holds a run which is not resumed or has other options; OSError if
    the folder cannot be written.
    """
    for name, value in [("n_steps", n_steps), ("log_interval", log_interval), ("eval_interval", eval_interval),
                        ("checkpoint_interval", checkpoint_interval)]:  # fmt: skip
        at_least_one(name, value)
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function of a line, or None, got {report!r}")
    if resume and folder is None:
        raise ValueError("resume needs the folder that holds the checkpoints, got folder=None")
    if isinstance(history, History) and history.step >= n_steps and not resume:
        raise ValueError(f"n_steps must be more than the {history.step} steps of the history, got {n_steps}")
    run = Run(model, dataloader, optimizer, device=device, schedule=schedule, accumulation=accumulation,
              precision=precision, max_grad_norm=max_grad_norm, average=average, compile=compile, folder=folder,
              tokenizer=tokenizer, history=history, settings=settings)  # fmt: skip
    try:
        run.start(resume, allow_changes)
        log, seconds, read, stopped_by, first = run.history, 0.0, 0, 0, distributed.rank() == 0
        say = report if report and first else lambda line: None
        if log.step:  # nothing is learned yet that could be lost
            say(f"resuming after step {log.step}/{n_steps}")
        bar = tqdm(total=n_steps, initial=log.step, unit="step", disable=hide_progress_bar() if first else True,
                   leave=False)  # fmt: skip
        with bar, a_signal_finishes_the_step(distributed.world_size() > 1) as stop_asked:
            while log.step < n_steps and not (stopped_by := distributed.largest(stop_asked())):
                started = time.perf_counter()
                run.step()
                seconds += time.perf_counter() - started
                with _saved_if_unheard(run):
                    bar.update()
                last = log.step == n_steps
                if log.step % log_interval == 0 or last:
                    loss, rate = run.log(), (run.tokens_read - read) / seconds
                    seconds, read = 0.0, run.tokens_read
                    with _saved_if_unheard(run):
                        bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{rate:,.0f}")
                        say(f"step {log.step}/{n_steps}  train loss {loss:.4f}  {rate:,.0f} tokens/s")
                if validation is not None and (log.step % eval_interval == 0 or last):
                    score = run.evaluate(validation)
                    with _saved_if_unheard(run):
                        say(f"step {log.step}/{n_steps}  validation loss {score:.4f}  best {log.best:.4f}")
                if folder is not None and (log.step % checkpoint_interval == 0 or last):
                    run.save(wait=last)
            log.stopped_by = stopped_by
            if folder is not None and log.stopped_early:
                run.save()
        return run.finish()
    finally:
        run.release()


@contextmanager
def _saved_if_unheard(run: Run) -> Iterator[None]:
    """Within, a report that cannot be written (a closed pipe, a full disk) ends training, but loses nothing."""
    try:
        yield
    except OSError:
        if run.folder is not None and distributed.world_size() == 1:  # one process of many cannot save
            run.save()
        raise
