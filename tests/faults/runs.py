"""A tiny training run in a process of its own, killed, signalled, or given too little room.

Processes are forked from a server that has PyTorch loaded already, so each costs some hundredths of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults import Tally

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["tests.faults.runs", "gpt.training", "gpt.storage.corpora", "gpt.figures", "gpt.__main__", "torch._dynamo"]
)  # an optimizer loads the last at its first step, which takes a second
STEPS = 24
KEPT = ("checkpoints/step-00000024/model.safetensors", "best/model.safetensors", "best/config.json", "end.json")


class Child:
    """A function of this module running in a process of its own, with what it prints in a file."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, log: Path) -> None:
        self.log = log
        self._pipe, end = SERVER.Pipe()
        self.process = SERVER.Process(target=_answer, args=(end, log, function, *arguments))
        self.process.start()
        end.close()
        self._pipe.recv()  # it has begun

    def send(self, number: int) -> None:
        if self.process.pid is not None and self.process.is_alive():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.process.pid, number)

    def wait(self) -> int | str:
        """What the function returned or how it failed; if it was killed, minus the signal's number."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = None
        self.process.join()
        return self.process.exitcode if answer is None else answer


def _answer(pipe: Connection, log: Path, function: Callable[..., Any], *arguments: Any) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may ignore them: `&`, nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    pipe.send("begun")
    try:
        answer = function(*arguments)
    except SystemExit as end:
        answer = end.code
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    pipe.send(answer)
    os._exit(0)


def learn(folder: Path, limit: int | None = None, width: int = 8) -> int:
    """A run with everything that a checkpoint must hold: dropout, a schedule, accumulation, an average, a curve."""
    import torch
    from tqdm import tqdm

    from gpt import GPT, GPTConfig, History, RandomWindows, adamw, cosine_schedule, train

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a kill would leave behind
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT(GPTConfig(context_size=8, vocab_size=19, n_layer=1, n_head=2, n_embd=width, dropout=0.1))
    ids, history = torch.randint(19, (400,)), History()
    train(
        model, RandomWindows(ids[:300], 8, 2, seed=0), STEPS, adamw(model), "cpu", 3,
        schedule=lambda step: cosine_schedule(step, 1e-2, 3, STEPS), accumulation=2, average=0.9,
        validation=ids[300:], eval_interval=4, folder=folder, checkpoint_interval=2, resume=True, history=history,
    )  # fmt: skip
    curve = {"train": history.train, "validation": history.validation, "best": history.best}
    (folder / "end.json").write_text(json.dumps(curve) if history.step == STEPS else "")
    return 0


def learn_by_command(folder: Path) -> int:
    """The same model, trained by the command line."""
    text = folder.parent / "text.txt"
    text.write_text("abcdefghijklmnopqrs" * 20)
    sizes = "--preset tiny --context-size 8 --n-layer 1 --n-head 2 --n-embd 8 --dropout 0.1 --batch-size 2"
    often = f"--steps {STEPS} --log-interval 3 --eval-interval 4 --checkpoint-interval 2"
    code = command(["train", str(text), *sizes.split(), *often.split(), "--resume", "--out", str(folder)])
    record = folder / "best" / "record.json"
    if code == 0 and record.is_file():  # else it was stopped before the first validation
        content = json.loads(record.read_text())
        (folder / "end.json").write_text(json.dumps([content["curve"], content["held_out"]]))
    return code


def command(arguments: list[str]) -> int:
    from tqdm import tqdm

    from gpt.__main__ import main

    tqdm.set_lock(threading.RLock())
    return main(arguments)


def unbroken(folder: Path, how: Callable[[Path], int] = learn) -> dict[str, bytes]:
    """The files of a run when nothing disturbs it; what every disturbed run must end with."""
    answer = Child(how, folder / "unbroken", log=folder / "log").wait()
    if answer != 0:
        raise AssertionError(f"the unbroken run failed: {answer}")
    return {name: (folder / "unbroken" / name).read_bytes() for name in KEPT}


def faults_in(run: Path) -> list[str]:
    """What is wrong with a run that was disturbed: a checkpoint or a best model that does not load."""
    from gpt import GPT, GPTConfig
    from gpt.storage.checkpoint import load_checkpoint
    from gpt.storage.pretrained import load_pretrained

    config = GPTConfig(context_size=8, vocab_size=19, n_layer=1, n_head=2, n_embd=8, dropout=0.1)
    found = []
    for path in (run / "checkpoints").glob("step-*"):
        try:
            load_checkpoint(path, GPT(config))
        except Exception as error:
            found.append(f"{path.name} does not load: {error}")
    if (run / "best").is_dir() and any(not path.name.startswith(".") for path in (run / "best").iterdir()):
        try:
            load_pretrained(run / "best")
        except Exception as error:
            found.append(f"best/ does not load: {error}")
    return found


def differences(run: Path, reference: dict[str, bytes]) -> list[str]:
    same = [(run / name).is_file() and (run / name).read_bytes() == content for name, content in reference.items()]
    return [f"{name} is not that of the unbroken run" for name, ok in zip(reference, same, strict=True) if not ok]


def newest(run: Path) -> int:
    return max((int(path.name[5:13]) for path in (run / "checkpoints").glob("step-*")), default=-1)


def hidden(run: Path) -> bool:
    """Whether a save was in progress: its files have hidden names."""
    return any(run.glob("**/.*.tmp"))


def kills(seed: int, tries: int, folder: Path, how: Callable[[Path], int] = learn) -> Tally:
    """kill -9 at random moments until `tries` have hit; after every few, the run is resumed to its end."""
    rng, tally = random.Random(seed), Tally()
    reference = unbroken(folder, how)
    started = time.perf_counter()
    Child(how, folder / "again", log=folder / "log").wait()
    whole = time.perf_counter() - started
    while tally.tries < tries:
        run = folder / f"run-{rng.getrandbits(32):08x}"
        for _ in range(min(8, tries - tally.tries)):
            before = newest(run)
            child = Child(how, run, log=folder / "log")
            time.sleep(rng.uniform(0, whole * 0.7))
            child.send(signal.SIGKILL)
            if child.wait() == 0:  # it was faster
                break
            faults = faults_in(run)
            if newest(run) < before:
                faults.append(f"went back from step {before} to {newest(run)}")
            if faults:
                tally.bad(f"seed {seed}, {run.name}: {'; '.join(faults)}")
            else:
                tally.good("killed in a save" if hidden(run) else "killed between saves")
        check_the_end(run, reference, how, tally, f"seed {seed}")
    return tally


def command_kills(seed: int, tries: int, folder: Path) -> Tally:
    """The same with `python -m gpt train`."""
    return kills(seed, tries, folder, learn_by_command)


def check_the_end(run: Path, reference: dict[str, bytes], how: Callable[[Path], int], tally: Tally, name: str) -> None:
    """Resume a run to its end: it must be that of the unbroken run, bit for bit. Then delete it."""
    end = Child(how, run, log=run.parent / "log").wait()
    wrong = differences(run, reference) if end == 0 else [f"resuming failed: {end} {last_line(run.parent / 'log')}"]
    if wrong:
        tally.failures.append(f"{name}, {run.name}: {'; '.join(wrong)}")
    else:
        tally.outcomes["runs that ended bit-equal"] += 1
    shutil.rmtree(run, ignore_errors=True)


def last_line(log: Path) -> str:
    return (log.read_text(errors="replace").splitlines() or [""])[-1]


def full_disks(seed: int, tries: int, folder: Path) -> Tally:
    """Too little room: a tmpfs of a few pages where mounting is allowed, else a limit for each file.

    It must end with an OSError, leave what it saved, leave no half file, and end as ever once there is room.
    """
    rng, tally = random.Random(seed), Tally()
    reference = unbroken(folder)
    for number in range(tries):
        with small_disk(folder / f"disk-{number}", pages := rng.randrange(1, 40)) as (disk, grow):
            run, mounted = disk / "run", grow is not None
            answer = Child(learn, run, *([] if mounted else [pages * 1000]), log=folder / "log").wait()
            faults = faults_in(run)
            if answer != 0 and not (isinstance(answer, str) and answer.startswith(("OSError", "FileExistsError"))):
                faults.append(f"ended with {answer}")
            if answer != 0 and hidden(run):
                faults.append("left a hidden file")
            if faults:
                tally.bad(f"seed {seed}, {pages} pages: {'; '.join(faults)}")
            else:
                tally.good("refused, nothing lost" if answer else "there was room")
            if grow is not None:
                grow()
            check_the_end(run, reference, learn, tally, f"seed {seed}, {pages} pages")
    return tally


@contextmanager
def small_disk(path: Path, pages: int) -> Iterator[tuple[Path, Callable[[], object] | None]]:
    """A disk of so many pages of 4096 bytes, and a function that makes it large; None where none can be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield path, None
        return
    try:
        larger = ["mount", "-o", "remount,size=64m", str(path)]
        yield path, lambda: subprocess.run(larger, capture_output=True, check=True)
    finally:
        subprocess.run(["umount", str(path)], check=True)


def signals(seed: int, tries: int, folder: Path) -> Tally:
    """SIGINT, SIGTERM or SIGHUP at a random moment: `train` saves, and any other command ends with 128 + number.

    No traceback may be seen, no hidden file stay, and a run must resume to the end of the unbroken one.
    """
    rng, tally = random.Random(seed), Tally()
    reference = unbroken(folder, learn_by_command)
    others = {
        "generate": ["generate", "--tokens", "100000"],
        "tokenize": ["tokenize", "--file", "python-docs", "--tokenizer", "bpe:50"],
        "evaluate": ["evaluate", str(folder / "text.txt"), "--model", str(folder / "unbroken" / "best")],
        "attend": ["attend", "--text", "ROMEO: I am here.", "--out", str(folder / "figures")],
    }
    for number in range(tries):
        name = rng.choice(["train", "train", *others])
        sent = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        run, log = folder / f"run-{number}", folder / f"log-{number}"
        what = (learn_by_command, run) if name == "train" else (command, others[name])
        child = Child(*what, log=log)
        time.sleep(rng.uniform(0.005, 0.4))
        child.send(sent)
        answer = child.wait()
        faults = faults_in(run) if name == "train" else []
        if answer not in (0, 128 + sent, -sent):  # the last: it came before the command began, or after its end
            faults.append(f"ended with {answer}")
        printed = log.read_text(errors="replace")
        swallowed = "Exception ignored in" in printed  # it fell into a destructor, where Python lets no exception out
        if "Traceback" in printed and not swallowed:
            faults.append("traceback: " + last_line(log))
        if hidden(folder):
            faults.append("left a hidden file")
        said = f"seed {seed}, {name}, {sent.name}"
        if faults:
            tally.bad(f"{said}: {'; '.join(faults)}")
        else:
            other = {0: "ended itself or saved", -sent: "before or after the command"}
            ended = other.get(answer, "ended with 128 + number")
            tally.good("swallowed by Python" if swallowed else ended)
        if name == "train":
            check_the_end(run, reference, learn_by_command, tally, said)
    return tally
