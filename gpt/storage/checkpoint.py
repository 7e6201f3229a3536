"""How does a training run survive being stopped at any moment?

A checkpoint is a folder `step-00001000` with three files:

    model.safetensors  the weights, under the model's own names
    state.pt           the config, the step, the random number generators, and what the training loop gives:
                       optimizer, schedule, position in the data, ...
    SHA256SUMS         the checksums of the other two (`sha256sum -c SHA256SUMS` checks them by hand)

Where several processes each hold a part of the model, `shard-0000k-...safetensors` take the place of the weights, see
sharded.py. Any number of processes, also one, can read either kind.

It is written under a hidden name, forced to the disk (fsync) and only then renamed. A rename happens whole or not
at all, so a folder with the final name is complete. Nothing is unpickled that could run code: the weights are
safetensors, and state.pt is read with `weights_only=True`. DEEP_THEORY_GUIDE.md, Part 7.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.model import GPT
from gpt.storage.sharded import SHARDS, dealt_out, put_together, read_parts, take_apart, write_parts
from gpt.support.distributed import from_first, is_sharded, rank
from gpt.support.files import CHECKSUMS, flush, read_checksums, sha256, temporary_beside, write_checksums

WEIGHTS, STATE = "model.safetensors", "state.pt"

# `.replaced` marks the old folder while a step that exists already is saved again: complete, but second choice.
STEP_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


def save_checkpoint(folder: str | Path, model: GPT, state: dict[str, Any], step: int, keep: int = 2) -> Path:
    """Write `folder/step-<step>` and return its path; then delete the oldest steps before it, so that `keep` remain.

    The model's `config` is saved too. state: tensors, numbers, strings, and lists, tuples and dicts of these.
    A later step in the folder is never deleted. One process at a time may write to a folder; only for a sharded model
    all processes must call this, and then each writes its part.
    Raises ValueError or TypeError for bad arguments, OSError if the disk is full or read-only. After any error or
    kill, the checkpoints from before can still be loaded; the next save clears away what a kill left.
    """
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step must be an integer of at least 0, got {step!r}")
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise ValueError(f"keep must be an integer of at least 1, got {keep!r}")
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dict, got {type(state).__name__}")
    folder = Path(folder)
    target = folder / f"step-{step:08d}"
    content = {"config": asdict(model.config), "step": step, "rng": rng_state(), "state": state}
    if is_sharded(model):
        start_saving(folder, model, state, step, keep).result()
        return target
    with temporary_beside(target) as temporary:
        tidy(folder)
        temporary.mkdir()
        _write_files(temporary, model.state_dict(), content, target)
        _move_into_place(temporary, target)
    _discard_older(folder, step, keep)
    return target


def start_saving(folder: Path, model: GPT, state: dict[str, Any], step: int, keep: int = 2) -> Future[None]:
    """`save_checkpoint` of a sharded model, of which only the copying in memory has happened when this returns.

    Every process writes its part of each tensor; the first also writes the rest, and renames the folder when all is
    there. One save at a time: before the next, ask the Future for its result(), which raises what went wrong.
    """
    target, first, held = folder / f"step-{step:08d}", rank() == 0, ExitStack()
    rest, parts = take_apart({"model": model.state_dict(), "state": state})
    content = {"config": asdict(model.config), "step": step, "rng": rng_state(), "state": rest["state"]}
    own = held.enter_context(temporary_beside(target)) if first else Path()
    with held:
        if first:
            tidy(folder)
            own.mkdir()
            _write_state(own, content, target)
        wait = write_parts(Path(from_first(str(own))), parts)
        held = held.pop_all()

    def finish() -> None:
        with held:
            wait()
            if first:
                _seal(own, (*sorted(path.name for path in own.glob(SHARDS)), STATE))
                _move_into_place(own, target)
                _discard_older(folder, step, keep)

    thread = ThreadPoolExecutor(1)
    saving = thread.submit(finish)
    thread.shutdown(wait=False)
    return saving


@dataclass(frozen=True)
class Checkpoint:
    """What one step's folder holds, read and checked, but not yet restored.

    folder   the step's own
    weights  under the model's names
    state    what was given to `save_checkpoint`, and "step"
    rng      the random number generators
    """

    folder: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]
    rng: dict[str, Any]

    def restore(self, model: GPT) -> None:
        """Give the model its weights and the random number generators their place."""
        model.load_state_dict(self.weights)
        set_rng_state(self.rng)


def read_checkpoint(folder: str | Path, model: GPT) -> Checkpoint:
    """Read a checkpoint of this model: of a run's folder the newest, or one step's folder. Tensors come on the CPU.

    Nothing is changed. For a sharded model all processes must call this, and tensors come as the model's own are.
    Raises FileNotFoundError if no checkpoint is there, ValueError if it belongs to another config
    (naming the fields that differ), or a file in it is damaged or holds something else.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).exists():
        newest = latest_checkpoint(folder)
        if newest is None:
            raise FileNotFoundError(f"no checkpoint in {folder}: it holds no complete step-... folder")
        folder = newest
    if rank() == 0:  # once is enough
        _verify_checksums(folder)
    content = _read_state(folder / STATE)
    _check_same_config(content["config"], asdict(model.config), folder)
    tensors = {"model": {}, "state": content["state"]}
    if any(folder.glob(SHARDS)):
        tensors = put_together(tensors, read_parts(folder, model))
    else:
        tensors["model"] = _read_weights(folder / WEIGHTS)
    weights = tensors["model"]
    _check_same_tensors(weights, model.state_dict(), folder / WEIGHTS)
    if is_sharded(model):
        weights = dealt_out(weights, model)
    return Checkpoint(folder, weights, {**tensors["state"], "step": content["step"]}, content["rng"])


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of weights: {error}") from error


def load_checkpoint(folder: str | Path, model: GPT) -> dict[str, Any]:
    """Restore `model` in place and the random number generators; return the saved `state` with its "step".

    Takes and raises what `read_checkpoint` does. After an error, nothing has changed.
    """
    checkpoint = read_checkpoint(folder, model)
    checkpoint.restore(model)
    return checkpoint.state


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The complete checkpoint with the highest step in `folder`, or None."""
    steps = _complete_steps(Path(folder))
    return steps[-1][2] if steps else None


def rng_state() -> dict[str, Any]:
    """The states of PyTorch's random number generators, on the CPU and on every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` gave. A GPU that this machine lacks is passed over."""
    torch.set_rng_state(state["cpu"])
    for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
        torch.cuda.set_rng_state(state["cuda"][device], device)


def _write_files(folder: Path, weights: dict[str, Tensor], content: dict[str, Any], target: Path) -> None:
    try:
        save_file(weights, folder / WEIGHTS)
    except SafetensorError as error:  # it does not pass on the system's own OSError
        raise OSError(f"could not write {target} (is the disk full?): {error}") from error
    _write_state(folder, content, target)
    _seal(folder, (WEIGHTS, STATE))


def _write_state(folder: Path, content: dict[str, Any], target: Path) -> None:
    try:
        torch.save(content, folder / STATE)
    except RuntimeError as error:  # nor does this one
        raise OSError(f"could not write {target} (is the disk full?): {error}") from error
    _read_state(folder / STATE, mmap=True)  # a state that does not load must not become a checkpoint


def _seal(folder: Path, names: Sequence[str]) -> None:
    """Write down the checksums, and wait until all is on the disk."""
    write_checksums(folder, names)
    for path in (*(folder / name for name in names), folder / CHECKSUMS, folder):
        flush(path)


def _read_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read without running code that the file may hold. With mmap, the values of tensors stay on the disk.

    ValueError unless it holds what `save_checkpoint` writes: a checksum says that a file is whole, not that it is ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        raise ValueError(
            f"state may hold only tensors, numbers, strings, and lists, tuples and dicts of these; {path} holds more"
        ) from error
    except Exception as error:  # the reader stumbles in many ways: EOFError, IndexError, RuntimeError, ...
        raise ValueError(f"{path} is not a state that save_checkpoint wrote: {error}") from error
    for name, kind in {"config": dict, "step": int, "rng": dict, "state": dict}.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise ValueError(f"{path} is not a state that save_checkpoint wrote: it has no {name}")
    _check_rng(content["rng"], path)
    return content


def _check_rng(state: dict[str, Any], path: Path) -> None:
    """Try the state on a generator of its own: the one that all draw from must not be changed by half."""
    try:
        torch.Generator().set_state(state["cpu"])
        if not all(isinstance(device, Tensor) for device in state["cuda"]):
            raise TypeError("a state is no tensor")
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} holds no state of a random number generator: {error}") from error


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename a finished folder. A folder cannot replace another in one move, so an old one steps aside first,
    under a name where `latest_checkpoint` still finds it."""
    replaced = target.with_name(f"{target.name}.replaced")
    try:
        if target.exists():
            os.rename(target, replaced)
        os.rename(temporary, target)
        flush(target.parent)
    finally:
        _settle(replaced)


def _settle(replaced: Path) -> None:
    """End a replacement: drop the old folder if the new one is in its place, else put the old one back."""
    target = replaced.with_suffix("")
    if replaced.exists() and target.exists():
        _discard(replaced)
    elif replaced.exists():
        os.rename(replaced, target)


def tidy(folder: Path) -> None:
    """Clear away what a killed save left behind."""
    for path in folder.glob(".step-*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
    for path in folder.glob("step-*.replaced"):
        _settle(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint. It loses its name first: half-deleted, it must not pass for a complete one."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _discard_older(folder: Path, step: int, keep: int) -> None:
    """Of the steps up to this one, delete the oldest, so that `keep` remain."""
    up_to_this = [path for other, _, path in _complete_steps(folder) if other <= step]
    for path in up_to_this[:-keep]:
        _discard(path)


def _complete_steps(folder: Path) -> list[tuple[int, bool, Path]]:
    """The checkpoints in `folder`, oldest first, each as (step, whether it is the step's first choice, path)."""
    paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else ()
    matches = [(STEP_NAME.fullmatch(path.name), path) for path in paths]
    return sorted((int(match[1]), match[2] is None, path) for match, path in matches if match)


def _verify_checksums(folder: Path) -> None:
    """Raise ValueError for a damaged file, FileNotFoundError for a missing one; name the checkpoint before it."""
    expected = read_checksums(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}
    shards = {path.name for path in folder.glob(SHARDS)}
    names = sorted({*expected, *shards, STATE}) if shards else [WEIGHTS, STATE]
    for name in (CHECKSUMS, *names):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is incomplete: it has no {name}{_way_out(folder)}")
    for name in names:
        if expected.get(name) != sha256(folder / name):
            raise ValueError(
                f"{folder / name} is damaged: it does not match its checksum in {CHECKSUMS}{_way_out(folder)}"
            )


def _way_out(folder: Path) -> str:
    """What to do about a checkpoint that does not load, if an older one is there."""
    older = [path for _, _, path in _complete_steps(folder.parent) if path.name < folder.name]
    return f"; delete this folder to resume from {older[-1].name}" if older else ""


def _check_same_config(saved: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    different = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
    if different:
        listed = "; ".join(f"{name} is {saved.get(name)} there, {own.get(name)} in the model" for name in different)
        raise ValueError(f"{folder} is a checkpoint of another config: {listed}")


def _check_same_tensors(saved: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    for name in {**saved, **own}:
        there, here = (_described(tensors.get(name)) for tensors in (saved, own))
        if there != here:
            raise ValueError(f"{path} does not fit the model: {name} is {there} there, {here} in the model")


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
