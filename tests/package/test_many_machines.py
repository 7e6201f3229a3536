"""Several processes train like one, whatever their number, and lose nothing when one of them dies.

They are started by torchrun, as a reader would, and never forked. A start costs seconds, so tests share them: what the
processes do is in tests/distributed_worker.py, and what they found is checked here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import distributed_worker as worker
from tests.comparing import close
from tests.faults.many import workers

ROOT = Path(__file__).parent.parent.parent
WORKER = ROOT / "tests" / "distributed_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
HALF = f"checkpoints/step-{worker.SAVED:08d}"
PATIENCE = 240  # seconds, on a machine that is busy with other things


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **more}


def together(processes: int, tasks: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, f"--nproc_per_node={processes}", *options, str(WORKER), tasks, str(folder)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )  # fmt: skip


def found(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    """The run of one process, saved at its half in `folder`."""
    folder = tmp_path_factory.mktemp("alone")
    run = worker.new_run(folder)
    run.start()
    losses = worker.learn(run, worker.SAVED)
    half = worker.everything(run)
    return {"folder": folder, "losses": losses + worker.learn(run), "half": half, "end": worker.everything(run)}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("two")
    done = together(2, "from_start,unbroken", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory, alone, two) -> Path:
    """What three processes found, also in the checkpoints that one and two have saved at the half."""
    folder = tmp_path_factory.mktemp("three")
    for saved in (alone["folder"], two / "copies-2", two / "shards-2"):
        name = "alone" if saved == alone["folder"] else saved.name
        shutil.copytree(saved / HALF, folder / "halves" / name / HALF)
    done = together(3, "from_start,resumed", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def same(actual: dict[str, Any], expected: dict[str, Any], tolerance: float, name: str) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        close(actual[key], expected[key], tolerance, f"{name}, {key}")


@pytest.mark.parametrize("way", worker.WAYS)
@pytest.mark.parametrize("processes", ["two", "three"])
def test_any_number_of_processes_has_the_losses_and_weights_of_one(request, alone, processes, way):
    """Four rows a batch: with three processes their shares are unequal."""
    number = {"two": 2, "three": 3}[processes]
    answer = found(request.getfixturevalue(processes), f"from_start-{number}")[way]
    close(answer["losses"], alone["losses"], 1e-5, f"losses of {number} with {way}")
    same(answer["end"], alone["end"], 2e-5, f"{number} with {way}")


def test_what_any_number_has_saved_any_other_reads_bit_for_bit(alone, two, three):
    saved = {"alone": alone["half"], "copies-2": None, "shards-2": None}
    first = found(two, "from_start-2")
    saved.update({f"{way}-2": first[way]["half"] for way in worker.WAYS})
    answers = found(three, "resumed-3")
    assert len(answers) == len(saved) * len(worker.WAYS)
    for name, answer in answers.items():
        assert answer["step"] == worker.SAVED
        same(answer["half"], saved[name.split(" as ")[0]], 0, name)
        same(answer["end"], alone["end"], 2e-5, name)
    for name in ("copies-2", "shards-2"):
        run = worker.new_run(three / "halves" / name)
        run.start(resume=True)
        run.release()
        same(worker.everything(run), saved[name], 0, f"{name} read by one process")


def test_a_damaged_or_missing_shard_is_named(gpt, two, tmp_path):
    from gpt.storage.checkpoint import read_checkpoint

    shutil.copytree(two / "shards-2", tmp_path / "run")
    folder = tmp_path / "run" / HALF
    model = worker.new_run(tmp_path / "other").model
    shard = next(folder.glob("shard-00002*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged"):
        read_checkpoint(folder, model)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"is incomplete: it has no {shard.name}"):
        read_checkpoint(folder, model)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two runs that each lose a process, which torchrun replaces; at last one process fails by itself."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, together(2, "killed", folder, "--max-restarts=2")


@pytest.mark.parametrize("way", worker.WAYS)
def test_a_run_that_loses_a_process_ends_as_if_it_had_not(two, killed, way):
    """kill -9 of a random process at a random step. There is dropout in it."""
    folder, done = killed
    answer = found(folder, f"killed-{way}")
    same(answer["end"], found(two, "unbroken-2")[way]["end"], 0, f"process {answer['victim']}, step {answer['moment']}")
    assert re.search(r"process \d of 2 has lost another one, which died or was killed", done.stderr), done.stderr


def test_a_process_that_fails_says_why_and_ends_all(killed):
    _, done = killed
    last_attempt = done.stderr.rpartition("has lost another one")[2]  # both kills come first
    assert done.returncode != 0
    assert last_attempt.count("ValueError: process 1 has a trouble of its own") == 1
    assert "rank0" not in last_attempt, "what the other process saw follows from it, and is not said"


def test_gradients_are_added_up_at_the_last_micro_batch_alone():
    from gpt.support.distributed import synchronised

    class Copies(torch.nn.Module):  # as DDP
        def no_sync(self):
            return "not yet"

    class Shards(torch.nn.Module):  # as FSDP2
        def set_requires_gradient_sync(self, wanted: bool) -> None:
            self.wanted = wanted

    assert synchronised(Copies(), last=False) == "not yet"
    assert synchronised(Copies(), last=True) != "not yet"
    shards = Shards()
    for last in (False, True):
        synchronised(shards, last)
        assert shards.wanted is last


# --- as schedulers start it

SMALL = ["--preset", "tiny", "--context-size", "8", "--n-layer", "1", "--n-head", "2", "--n-embd", "8"]
OFTEN = ["--batch-size", "2", "--log-interval", "1", "--checkpoint-interval", "100000", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a text, and commands that stand in for those of Slurm where one machine is all there is."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "my.txt").write_text("abcdefghijklmnopqrs" * 20)
    (folder / "bin").mkdir()
    for name, line in {"srun": 'exec "$@"', "scontrol": "echo 127.0.0.1",
                       "torchrun": f'exec {" ".join(TORCHRUN)} "$@"'}.items():  # fmt: skip
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def on_cluster(place: Path, **more: str) -> dict[str, str]:
    return environment(PATH=f"{place / 'bin'}:{os.environ['PATH']}", OUT=str(place / "run"), **more)


def free_port() -> str:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def test_the_script_for_slurm_saves_when_a_node_goes_or_its_time_is_over(place):
    """First one process is asked to end: all save, and torchrun starts them anew. Then the job is."""
    script = ROOT / "docs" / "cluster" / "slurm.sh"
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"}
    arguments = [str(script), str(place / "my.txt"), *SMALL, *OFTEN, "--steps", "100000"]  # it never ends by itself
    with open(place / "slurm.log", "w") as file:
        job = subprocess.Popen(
            arguments,
            env=on_cluster(place, PORT=free_port(), **slurm),
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    log = place / "slurm.log"
    wait_for("step 3/100000", log, job)
    os.kill(workers(job.pid)[1], signal.SIGTERM)
    resumed = wait_for("resuming after step", log, job)
    assert resumed.count("Stopped early. Nothing is lost") == 1, resumed
    before = newest(place)
    wait_for(f"step {before + 3}/100000", log, job)
    job.send_signal(signal.SIGTERM)
    job.wait(PATIENCE)
    said = log.read_text()
    assert said.count("Stopped early. Nothing is lost") == 2, said
    assert newest(place) >= before + 3, said


def wait_for(line: str, log: Path, job: subprocess.Popen[str]) -> str:
    end = time.monotonic() + PATIENCE
    while line not in (said := log.read_text()):
        assert job.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.05)
    return said


def newest(place: Path) -> int:
    return max(int(path.name[5:]) for path in (place / "run" / "checkpoints").glob("step-*"))


def test_the_job_for_kubernetes_goes_on_from_there_in_shards(place):
    """Its command, with the variables of its own list, of which the machine's are changed, and its last argument."""
    yaml = pytest.importorskip("yaml")
    _, job = yaml.safe_load_all((ROOT / "docs" / "cluster" / "kubernetes.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    here = {"NODES": "1", "PROCESSES": "2", "FIRST": "127.0.0.1", "PORT": free_port(), "TEXT": str(place / "my.txt")}
    assert variables.keys() == {*here, "OUT"}
    before = newest(place)
    last = before + 10
    fewer = ["--steps", str(last), "--allow-changes"]
    done = subprocess.run(
        [*container["command"], *SMALL, *OFTEN, *fewer, container["args"][-1]],
        env={**variables, **on_cluster(place, JOB_COMPLETION_INDEX="0", **here)},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming after step {before}/{last}" in done.stdout
    assert done.stdout.count(f"step {last}/{last}  train loss") == 1
    assert list((place / "run" / "checkpoints" / f"step-{last:08d}").glob("shard-0000?-*"))
    assert (place / "run" / "best" / "record.json").is_file()


# --- what cannot work is said in one line


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({}, ["--shard"], "--shard needs several processes: torchrun --nproc_per_node=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], "MASTER_ADDR and MASTER_PORT must be set where RANK and WORLD_SIZE are"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, [],
         "RANK must be in 0..WORLD_SIZE - 1, got RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, [],
         "RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers"),
    ],
)  # fmt: skip
def test_a_start_that_makes_no_sense_is_refused(place, capsys, monkeypatch, variables, arguments, message):
    from gpt.__main__ import main

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(place / "my.txt"), "--out", str(place / "none"), *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_more_processes_than_sequences_are_refused(place, capsys, monkeypatch):
    from gpt.__main__ import main
    from gpt.support import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert main(["train", str(place / "my.txt"), "--batch-size", "2", "--out", str(place / "none")]) == 2
    assert "--batch-size must be at least 3, a window for each process, got 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a batch must have a sequence for each of 3 processes, got 2"):
        distributed.own_rows(torch.zeros(2, 8))


def test_dropout_differs_between_steps_and_processes_and_not_between_attempts(monkeypatch):
    from gpt.support import distributed

    def drawn(step: int, rank: int) -> float:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        distributed.seed(5, step)
        return torch.rand(1).item()

    places = [(step, rank) for step in range(4) for rank in range(4)]
    draws = [drawn(*place) for place in places]
    assert len(set(draws)) == len(places)
    assert draws == [drawn(*place) for place in places]


def test_compiled_training_learns_the_same_and_leaves_the_model_alone(gpt, monkeypatch):
    """With the compiler's front alone, which takes seconds less; --compile itself adds the machine code."""
    compiler, calls = torch.compile, []

    def front(model: torch.nn.Module) -> object:
        calls.append(model)
        return compiler(model, backend="eager")

    monkeypatch.setattr(torch, "compile", front)
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = gpt.GPT(gpt.GPTConfig(context_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8, dropout=0.0))
        windows = gpt.RandomWindows(torch.arange(200) % 11, 8, batch_size=4, seed=1)
        run = gpt.Run(model, windows, gpt.adamw(model, 1e-2), device="cpu", compile=compiled)
        losses[compiled] = [run.step() for _ in range(3)]
        assert not any("_orig_mod" in name for name in run.result.state_dict())
    assert calls == [run.model]
    close(losses[True], losses[False], 1e-5)
