"""What one of several processes does in tests/package/test_many_machines.py. torchrun starts this file.

torchrun --nproc_per_node=3 tests/distributed_worker.py TASK FOLDER
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt import GPT, GPTConfig
from gpt.storage.corpora import RandomWindows
from gpt.storage.sharded import with_names
from gpt.support import distributed
from gpt.training import Run, adamw, cosine_schedule

STEPS, SAVED = 6, 3  # a run is saved at its half
WAYS = ("copies", "shards")  # DDP and FSDP2


def new_run(folder: Path, shard: bool = False, dropout: float = 0.0) -> Run:
    """A very small run with all that a checkpoint must hold. Its table has 11 rows: no number of processes fits."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(context_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, dropout=dropout))
    if shard:
        distributed.shard(model)
    windows = RandomWindows(torch.arange(200) % 11, 8, batch_size=4, seed=1)  # 4 rows: 1, 1 and 2 for three processes
    return Run(
        model, windows, adamw(model, 1e-2), device="cpu", schedule=lambda step: cosine_schedule(step, 1e-2, 2, STEPS),
        accumulation=2, average=0.5, max_grad_norm=0.5, folder=folder,
    )  # fmt: skip


def held_out() -> Tensor:
    """More windows than one batch of the evaluation holds, and a last one that is not full."""
    return torch.arange(600) * 7 % 11


def learn(run: Run, until: int = STEPS, after_step: Callable[[int], None] = lambda step: None) -> list[float]:
    """Go on to this step and save there and at `SAVED`. The loss of every step, and at the end the held-out one."""
    losses = []
    while run.history.step < until:
        losses.append(run.step())
        after_step(run.history.step)
        if run.history.step in (SAVED, until):
            run.save()
    if until == STEPS:
        losses.append(run.evaluate(held_out()))
    run.release()
    return losses


def everything(run: Run) -> dict[str, Tensor]:
    """Weights, average and the optimizer's memory, whole, in every process."""
    assert run.averaged is not None
    found: dict[str, Any] = {**run.model.state_dict(), **run.averaged.state_dict()}
    optimizer = with_names(run.optimizer.state_dict(), run._names())
    for name, values in optimizer["state"].items():
        found.update({f"{name} {key}": value for key, value in values.items()})
    return {name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
            for name, value in found.items()}  # fmt: skip


def from_start(folder: Path) -> dict[str, Any]:
    """A run of each kind: its losses, all it holds at the half and at the end."""
    answers = {}
    for way in WAYS:
        run = new_run(folder / f"{way}-{distributed.world_size()}", way == "shards")
        run.start()
        losses = learn(run, SAVED)
        half = everything(run)
        answers[way] = {"losses": losses + learn(run), "half": half, "end": everything(run)}
    return answers


def resumed(folder: Path) -> dict[str, Any]:
    """Runs of either kind that others have saved at the half: what they hold, and what they become."""
    answers = {}
    for saved in sorted((folder / "halves").iterdir()):
        for way in WAYS:
            run = new_run(saved, way == "shards")
            run.start(resume=True)
            half, step = everything(run), run.history.step
            while run.history.step < STEPS:
                run.step()
            run.release()
            answers[f"{saved.name} as {way}"] = {"step": step, "half": half, "end": everything(run)}
    return answers


def killed(folder: Path) -> dict[str, Any]:
    """Each kind of run loses a process at a step and is resumed by torchrun's next attempt, once each; at last one
    process fails by itself."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    answers = {}
    for number, way in enumerate(WAYS):
        draw = random.Random(f"{folder.name} {way}")
        victim, moment = draw.randrange(distributed.world_size()), draw.randint(1, STEPS)
        if attempt > number + 1:
            continue

        def kill(step: int, victim: int = victim, moment: int = moment, due: bool = attempt == number) -> None:
            if due and step == moment and distributed.rank() == victim:
                os.kill(os.getpid(), signal.SIGKILL)

        run = new_run(folder / f"killed-{way}", way == "shards", dropout=0.1)
        run.start()
        learn(run, after_step=kill)
        answers[way] = {"end": everything(run), "victim": victim, "moment": moment}
        if distributed.rank() == 0:
            torch.save(answers[way], folder / f"killed-{way}.pt")
    if distributed.rank() == 1:
        raise ValueError("process 1 has a trouble of its own")
    run.step()  # the others wait here
    return answers


def unbroken(folder: Path) -> dict[str, Any]:
    """What `killed` must end with."""
    answers = {}
    for way in WAYS:
        run = new_run(folder / f"unbroken-{way}", way == "shards", dropout=0.1)
        run.start()
        learn(run)
        answers[way] = {"end": everything(run)}
    return answers


TASKS = {task.__name__: task for task in (from_start, resumed, killed, unbroken)}


def main(tasks: str, folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.group("cpu"):
        for task in tasks.split(","):
            answers = TASKS[task](folder)
            if distributed.rank() == 0:
                torch.save(answers, folder / f"{task}-{distributed.world_size()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
