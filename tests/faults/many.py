"""kill -9 from outside, of one of the processes that torchrun has started; torchrun starts them anew."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file

from tests.faults import Tally

ROOT = Path(__file__).parent.parent.parent
STEPS = 60
KEPT = (f"checkpoints/step-{STEPS:08d}", "best")  # what must be that of the unbroken run
OPTIONS = (
    "--preset tiny --context-size 8 --n-layer 1 --n-head 2 --n-embd 8 --dropout 0.1 --batch-size 4 --accumulation 2 "
    f"--average 0.9 --steps {STEPS} --log-interval 1 --eval-interval 20 --checkpoint-interval 3 --device cpu"
)


def start(run: Path, processes: int, shard: bool, log: Path) -> subprocess.Popen[bytes]:
    text = run.parent / "text.txt"
    text.write_text("abcdefghijklmnopqrs" * 20)
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--max-restarts=1",
        "-m", "gpt", "train", str(text), *OPTIONS.split(), "--out", str(run), *(["--shard"] if shard else []),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with open(log, "wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def workers(of: int) -> list[int]:
    """The processes that this one has started."""
    with suppress(FileNotFoundError):  # it has ended
        return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]
    return []


def kept(run: Path) -> dict[str, bytes]:
    """All tensors that must be equal in the end, by file and name; their order in a file may differ."""
    tensors = {}
    for path in (path for name in KEPT for path in sorted((run / name).glob("*.safetensors"))):
        for name, tensor in load_file(path).items():
            tensors[f"{path.relative_to(run)} {name}"] = tensor.numpy().tobytes()
    return tensors


def worker_kills(seed: int, tries: int, folder: Path, report: Callable[[str], None] | None = None) -> Tally:
    """One kill -9 a run, at a random step; each run must end as the unbroken one, bit for bit.

    Runs of two processes and of three, replicated and sharded, take turns.
    """
    rng, tally, unbroken = random.Random(seed), Tally(), {}
    for number in range(tries):
        processes, shard = 2 + number // 2 % 2, number % 2 == 1
        kind = f"{processes} processes, {'sharded' if shard else 'replicated'}"
        if kind not in unbroken:
            whole = folder / f"unbroken-{len(unbroken)}"
            if start(whole, processes, shard, folder / "log").wait():
                raise AssertionError(f"the unbroken run failed: {(folder / 'log').read_text()[-500:]}")
            unbroken[kind] = kept(whole)
        run, log, step = folder / f"run-{number}", folder / f"log-{number}", rng.randint(1, STEPS - 1)
        job = start(run, processes, shard, log)
        while f"step {step}/{STEPS}  train" not in log.read_text() and job.poll() is None:
            time.sleep(0.01)
        there = workers(job.pid)
        victim = rng.randrange(len(there)) if there else 0
        with suppress(ProcessLookupError, IndexError):  # it was faster
            os.kill(there[victim], signal.SIGKILL)
        code, said = job.wait(), log.read_text(errors="replace")
        resumed, equal = re.search(r"resuming after step (\d+)/", said), kept(run) == unbroken[kind]
        name = f"seed {seed}, {kind}, process {victim} killed after step {step}"
        if code or not equal:
            tally.bad(f"{name}: ended with {code}{'' if equal else ', not equal'}; {said[-300:]}")
        else:
            tally.good("resumed by itself, ended bit-equal" if resumed else "ended bit-equal from the beginning")
        if report:
            report(
                f"{name}: resumed after step {resumed[1] if resumed else 0}, {'bit-equal' if equal else 'NOT equal'}"
            )
        shutil.rmtree(run, ignore_errors=True)
    return tally
