"""A run that is stopped at any moment goes on from its newest checkpoint: gpt/storage/checkpoint.py."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import small_gpt
from tests.package.test_files import fail_at, names_in

ROOT = Path(__file__).parents[2]
CHANGES = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")  # the calls through which a save moves the disk


def make_model(gpt, seed=0, **changes):
    sizes = {"context_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8, **changes}
    return small_gpt(gpt, seed, std=None, dtype=torch.float32, **sizes)


def set_weights(model, value):
    """All weights to one number, so that a mixture of two saves would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def save_value(gpt, folder, model, value, step, keep=2):
    set_weights(model, value)
    return gpt.checkpoint.save_checkpoint(folder, model, {"value": value}, step, keep)


def load_value(gpt, folder):
    """The number that `save_value` saved last, from the state; all weights must tell the same."""
    model = make_model(gpt, seed=9)
    value = gpt.checkpoint.load_checkpoint(folder, model)["value"]
    assert all(torch.all(parameter == value) for parameter in model.parameters())
    return value


def stop_at(monkeypatch, n):
    """From the n-th change on, nothing on the disk changes any more: what a kill or a power cut leaves."""
    calls = itertools.count(1)

    def until_then(real):
        def call(*args, **kwargs):
            if next(calls) >= n:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    for name in CHANGES:
        monkeypatch.setattr(os, name, until_then(getattr(os, name)))


# What comes back


def test_weights_state_and_step_come_back(gpt, tmp_path):
    model, other = make_model(gpt, seed=1), make_model(gpt, seed=2)
    state = {"losses": [2.5, 1.25], "best": None, "note": "Wörter", "pair": (1, True), "t": torch.arange(3)}
    path = gpt.checkpoint.save_checkpoint(tmp_path / "runs" / "a", model, state, step=1000)
    assert path == tmp_path / "runs" / "a" / "step-00001000"
    for folder in (path, path.parent, str(path.parent)):
        loaded = gpt.checkpoint.load_checkpoint(folder, other)
        assert torch.equal(loaded.pop("t"), torch.arange(3))
        assert loaded == {"losses": [2.5, 1.25], "best": None, "note": "Wörter", "pair": (1, True), "step": 1000}
        for name, weight in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], weight)
        set_weights(other, 0.0)


def test_weights_are_stored_under_the_models_own_names_and_once(gpt, tmp_path):
    model = make_model(gpt)
    path = gpt.checkpoint.save_checkpoint(tmp_path, model, {}, step=0)
    assert names_in(path) == ["SHA256SUMS", "model.safetensors", "state.pt"]
    stored = load_file(path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert sum(t.numel() for t in stored.values()) == model.num_parameters()


def test_the_checksums_are_those_of_the_files(gpt, tmp_path):
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {}, step=0)
    lines = [f"{hashlib.sha256((path / n).read_bytes()).hexdigest()}  {n}" for n in ("model.safetensors", "state.pt")]
    assert (path / "SHA256SUMS").read_text().splitlines() == lines


def test_training_goes_on_bit_for_bit_with_adamw(gpt, tmp_path):
    def steps(model, optimizer, n):
        for _ in range(n):
            tokens = torch.randint(11, (4, 9))  # from the global generator, which must come back too
            optimizer.zero_grad()
            model(tokens[:, :-1], tokens[:, 1:])[1].backward()
            optimizer.step()

    model = make_model(gpt, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps(model, optimizer, 3)
    gpt.checkpoint.save_checkpoint(tmp_path, model, {"optimizer": optimizer.state_dict()}, step=3)
    steps(model, optimizer, 3)

    resumed = make_model(gpt, seed=7, dropout=0.1)
    again = torch.optim.AdamW(resumed.parameters(), lr=99.0)
    again.load_state_dict(gpt.checkpoint.load_checkpoint(tmp_path, resumed)["optimizer"])
    steps(resumed, again, 3)

    for here, there in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(here, there)
        for key, value in optimizer.state[here].items():
            assert torch.equal(value, again.state[there][key])


def test_the_random_numbers_go_on_where_they_were(gpt, tmp_path):
    model = make_model(gpt)
    torch.rand(5)
    gpt.checkpoint.save_checkpoint(tmp_path, model, {}, step=1)
    expected = torch.rand(5)
    torch.manual_seed(123)
    gpt.checkpoint.load_checkpoint(tmp_path, model)
    assert torch.equal(torch.rand(5), expected)


def test_rng_state_restores_every_generator(gpt):
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    state = gpt.checkpoint.rng_state()
    expected = [torch.rand(5, device=device) for device in devices]
    gpt.checkpoint.set_rng_state(state)
    for device, numbers in zip(devices, expected, strict=True):
        assert torch.equal(torch.rand(5, device=device), numbers)


def test_a_state_from_a_machine_with_more_gpus_is_welcome(gpt):
    state = gpt.checkpoint.rng_state()
    more = state["cuda"] + [torch.zeros(16, dtype=torch.uint8)] * 3
    gpt.checkpoint.set_rng_state({"cpu": state["cpu"], "cuda": more})
    assert torch.equal(torch.get_rng_state(), state["cpu"])


# Which checkpoints there are


def test_the_newest_is_taken_and_only_the_last_few_are_kept(gpt, tmp_path):
    model = make_model(gpt)
    for step in (0, 5, 10, 100_000_000, 2_000_000_000):  # 9 and 10 digits: the order is that of numbers, not of names
        save_value(gpt, tmp_path, model, float(step % 7), step)
        assert gpt.checkpoint.latest_checkpoint(tmp_path) == tmp_path / f"step-{step:08d}"
        assert load_value(gpt, tmp_path) == step % 7
    assert names_in(tmp_path) == ["step-100000000", "step-2000000000"]
    save_value(gpt, tmp_path, model, 1.0, 2_000_000_001, keep=1)
    assert names_in(tmp_path) == ["step-2000000001"]


def test_a_save_never_deletes_itself_or_a_later_step(gpt, tmp_path):
    model = make_model(gpt)
    save_value(gpt, tmp_path, model, 1.0, step=10, keep=1)
    save_value(gpt, tmp_path, model, 2.0, step=4, keep=1)  # a run that was taken up again from an early checkpoint
    assert names_in(tmp_path) == ["step-00000004", "step-00000010"]


def test_files_that_are_no_checkpoints_are_left_alone(gpt, tmp_path):
    for name in ("step-1", "step-00000001-best", "notes.txt", ".hidden"):
        (tmp_path / name).mkdir()
    assert gpt.checkpoint.latest_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save_value(gpt, tmp_path, make_model(gpt), 1.0, step)
    assert {"step-1", "step-00000001-best", "notes.txt", ".hidden"} < set(names_in(tmp_path))


def test_nothing_there_is_said_so(gpt, tmp_path):
    for folder in (tmp_path, tmp_path / "never"):
        assert gpt.checkpoint.latest_checkpoint(folder) is None
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {folder}"):
            gpt.checkpoint.load_checkpoint(folder, make_model(gpt))


def test_saving_the_same_step_again_replaces_it(gpt, tmp_path):
    model = make_model(gpt)
    for value in (1.0, 2.0, 3.0):
        save_value(gpt, tmp_path, model, value, step=4)
        assert load_value(gpt, tmp_path) == value
        assert names_in(tmp_path) == ["step-00000004"]


# What is refused


def test_a_checkpoint_of_another_config_names_the_fields_that_differ(gpt, tmp_path):
    gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {}, step=1)
    with pytest.raises(ValueError, match=r"n_layer is 2 there, 3 in the model; dropout is 0\.0 there, 0\.5") as error:
        gpt.checkpoint.load_checkpoint(tmp_path, make_model(gpt, n_layer=3, dropout=0.5))
    assert "n_embd" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "SHA256SUMS"])
def test_a_damaged_file_is_named_and_changes_nothing(gpt, tmp_path, name):
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {"value": 1.0}, step=1)
    good = (path / name).read_bytes()
    model = make_model(gpt, seed=5)
    set_weights(model, 3.0)
    before = torch.get_rng_state()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]  # one bit, which neither format notices
    for content in (b"", good[:1], good[:middle], good[:-1], flipped):
        (path / name).write_bytes(content)
        if name == "SHA256SUMS" and content == good[:-1]:
            continue  # only the last line's end is lost
        with pytest.raises(ValueError, match=str(path)):
            gpt.checkpoint.load_checkpoint(tmp_path, model)
    assert all(torch.all(parameter == 3.0) for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_missing_file_is_named(gpt, tmp_path, name):
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {}, step=1)
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        gpt.checkpoint.load_checkpoint(path, make_model(gpt))


@pytest.mark.parametrize("name", ["state.pt", "SHA256SUMS"])
def test_a_damaged_newest_checkpoint_is_named_before_it_is_read_and_so_is_the_one_before(gpt, tmp_path, name):
    model = make_model(gpt)
    for step in (1, 2):
        newest = gpt.checkpoint.save_checkpoint(tmp_path, model, {"a": 1}, step)
    (newest / name).write_bytes(b"") if name == "state.pt" else (newest / name).unlink()
    message = rf"step-00000002.*{name}.*delete this folder to resume from step-00000001"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gpt.checkpoint.load_checkpoint(tmp_path, model)
    shutil.rmtree(newest)
    assert gpt.checkpoint.load_checkpoint(tmp_path, model)["a"] == 1


def test_a_file_with_the_name_of_a_checkpoint_is_in_nobodys_way(gpt, tmp_path):
    for name in ("step-00000055", ".step-00000009.aaaa.tmp"):
        (tmp_path / name).write_text("a file")
    model = make_model(gpt)
    for step in (1, 2, 3):
        gpt.checkpoint.save_checkpoint(tmp_path, model, {}, step)
    assert gpt.checkpoint.latest_checkpoint(tmp_path).name == "step-00000003"


def rewrite_checksums(path):
    names = ("model.safetensors", "state.pt")
    sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "SHA256SUMS").write_text("".join(sums))


def test_weights_of_another_shape_or_name_are_named(gpt, tmp_path):
    model = make_model(gpt)
    path = gpt.checkpoint.save_checkpoint(tmp_path, model, {}, step=1)
    good = load_file(path / "model.safetensors")
    renamed = {name.replace("final_norm.bias", "ln_f.bias"): tensor for name, tensor in good.items()}
    reshaped = {**good, "final_norm.weight": torch.zeros(9)}
    for weights, message in (
        (reshaped, r"final_norm\.weight is \[9\] of float32 there, \[8\] of float32 in the model"),
        (renamed, r"ln_f\.bias is \[8\] of float32 there, missing in the model|final_norm\.bias is missing there"),
    ):
        save_file(weights, path / "model.safetensors")
        rewrite_checksums(path)
        set_weights(model, 3.0)
        with pytest.raises(ValueError, match=rf"model\.safetensors.*({message})"):
            gpt.checkpoint.load_checkpoint(tmp_path, model)
        assert all(torch.all(parameter == 3.0) for parameter in model.parameters())


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_a_state_that_could_run_code_is_never_loaded(gpt, tmp_path, monkeypatch):
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {}, step=1)
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    torch.save({"state": Evil()}, path / "state.pt", pickle_module=pickle)
    rewrite_checksums(path)
    with pytest.raises(ValueError, match=r"state\.pt"):
        gpt.checkpoint.load_checkpoint(tmp_path, make_model(gpt))
    assert not ran


def test_a_state_that_would_not_load_is_not_saved(gpt, tmp_path):
    model = make_model(gpt)
    save_value(gpt, tmp_path, model, 1.0, step=1)
    with pytest.raises(ValueError, match="state may hold only tensors"):
        gpt.checkpoint.save_checkpoint(tmp_path, model, {"config": model.config}, step=2)
    assert names_in(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"step": -1}, ValueError, "step"),
        ({"step": 1.5}, ValueError, "step"),
        ({"keep": 0}, ValueError, "keep"),
        ({"state": [1]}, TypeError, "state"),
    ],
)
def test_bad_arguments_are_named_and_write_nothing(gpt, tmp_path, arguments, error, name):
    with pytest.raises(error, match=f"^{name} must be"):
        gpt.checkpoint.save_checkpoint(
            **{"folder": tmp_path / "run", "model": make_model(gpt), "state": {}, "step": 1, **arguments}
        )
    assert names_in(tmp_path) == []


# A full disk, a kill


@pytest.mark.parametrize("limit", [0, 100, 3_000, 20_000])  # nothing fits; a part of the weights; the weights only
def test_a_full_disk_leaves_the_checkpoints_from_before(gpt, tmp_path, limit):
    model = make_model(gpt)
    save_value(gpt, tmp_path, model, 1.0, step=1)
    set_weights(model, 2.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # no file may grow beyond it
    try:
        with pytest.raises(OSError, match=str(tmp_path / "step-00000002")):
            gpt.checkpoint.save_checkpoint(tmp_path, model, {"moments": torch.zeros(10_000)}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == ["step-00000001"]
    assert load_value(gpt, tmp_path) == 1.0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("step", [1, 2])  # replacing a step, and adding one
def test_after_any_error_the_newest_checkpoint_loads_and_nothing_temporary_is_left(
    gpt, tmp_path, monkeypatch, name, step, error
):
    model, raised = make_model(gpt), []
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        save_value(gpt, folder, model, 1.0, step=1)
        with monkeypatch.context() as patch:
            failed = fail_at(patch, name, n, error)
            try:
                save_value(gpt, folder, model, 2.0, step=step, keep=1)
            except OSError as caught:
                raised.append(caught)
        assert load_value(gpt, folder) in (1.0, 2.0)
        if load_value(gpt, folder) == 1.0:
            assert names_in(folder) == ["step-00000001"]
        assert not [entry for entry in names_in(folder) if not entry.startswith("step-")]
        if not failed:
            break  # a save has fewer than n such calls
    assert load_value(gpt, folder) == 2.0
    assert {one.errno for one in raised} == {error}
    assert Path(raised[0].filename).name == f"step-{step:08d}"


@pytest.mark.parametrize("step", [1, 2])
def test_a_stop_before_any_change_on_the_disk_leaves_a_complete_checkpoint(gpt, tmp_path, monkeypatch, step):
    model = make_model(gpt)
    seen = []
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        save_value(gpt, folder, model, 1.0, step=1, keep=1)
        stopped = False
        with monkeypatch.context() as patch:
            stop_at(patch, n)
            try:
                save_value(gpt, folder, model, 2.0, step=step, keep=1)
            except KeyboardInterrupt:
                stopped = True
        seen.append(load_value(gpt, folder))
        for path in folder.glob("step-*"):
            load_value(gpt, path)  # not only the newest: whatever has the name of a checkpoint is complete
        if not stopped:
            break
        save_value(gpt, folder, model, 3.0, step=3, keep=1)  # the next save clears away what was left
        assert names_in(folder) == ["step-00000003"]
        assert load_value(gpt, folder) == 3.0
    assert n > 8
    assert seen == sorted(seen)  # first always the old one, from the rename on always the new one
    assert set(seen) == {1.0, 2.0}


KILLING = """
import os, random, signal, sys, time
import torch
from gpt import GPT, GPTConfig
from gpt.storage.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)
folder, value, late = sys.argv[1], 0, random.Random(0)
model = GPT(GPTConfig.tiny())

def fill(value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)

for _ in range(15):
    report, announce = os.pipe()
    worker = os.fork()
    if not worker:
        while True:
            value += 1
            fill(value)
            save_checkpoint(folder, model, {"value": value}, step=value // 3)  # so each step is also replaced
            os.write(announce, b".")
    os.close(announce)
    os.read(report, 1)
    time.sleep(late.random() * 0.06)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    finished = value + 1 + len(os.read(report, 2**16))
    os.close(report)
    value = load_checkpoint(folder, model)["value"]
    assert finished <= value <= finished + 1, (finished, value)  # no finished save is lost
    assert all(torch.all(parameter == value) for parameter in model.parameters())
    print(*sorted(os.listdir(folder)))
"""


def test_a_process_killed_while_it_saves_leaves_a_complete_checkpoint(gpt, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", KILLING, str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert child.returncode == 0, child.stderr
    assert ".tmp" in child.stdout  # at least one kill hit a save in progress


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: [content], "it has no config"),
        (lambda content: {**content, "state": None}, "it has no state"),
        (lambda content: {**content, "step": "7"}, "it has no step"),
        (lambda content: {**content, "rng": {}}, "no state of a random number generator"),
        (lambda content: {**content, "rng": {"cpu": torch.zeros(3), "cuda": []}}, "no state of a random number"),
        (lambda content: {**content, "rng": {**content["rng"], "cuda": [1]}}, "no state of a random number"),
    ],
)
def test_a_whole_file_with_something_else_in_it_is_named_and_changes_nothing(gpt, tmp_path, spoil, message):
    """Its checksum is right: it says that the file is as it was written, not what was written."""
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {"value": 1.0}, step=1)
    torch.save(spoil(torch.load(path / "state.pt")), path / "state.pt")
    rewrite_checksums(path)
    model, before = make_model(gpt, seed=5), torch.get_rng_state()
    set_weights(model, 3.0)
    with pytest.raises(ValueError, match=rf"state\.pt.*{message}"):
        gpt.checkpoint.load_checkpoint(tmp_path, model)
    assert all(torch.all(parameter == 3.0) for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_files_that_are_neither_weights_nor_a_state_are_named(gpt, tmp_path):
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt), {}, step=1)
    for name in ("model.safetensors", "state.pt"):
        good = (path / name).read_bytes()
        for content in (b"", b"a novel" * 100):
            (path / name).write_bytes(content)
            rewrite_checksums(path)
            with pytest.raises(ValueError, match=re.escape(str(path / name))):
                gpt.checkpoint.load_checkpoint(tmp_path, make_model(gpt))
        (path / name).write_bytes(good)


def test_weights_of_another_dtype_are_named(gpt, tmp_path):
    path = gpt.checkpoint.save_checkpoint(tmp_path, make_model(gpt).bfloat16(), {}, step=1)
    with pytest.raises(ValueError, match=rf"{path}.* of bfloat16 there, .* of float32 in the model"):
        gpt.checkpoint.load_checkpoint(tmp_path, make_model(gpt))
