"""Files that are damaged at random: bits flipped, parts lost, overwritten or doubled, whole files emptied or deleted.

Every reader must refuse such a file in one line that names it, or give exactly what was saved. Where no checksum can
tell (a tokenizer.json or config.json copied out of its folder), a changed meaning is counted and not a failure.
"""

from __future__ import annotations

import contextlib
import io
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch

from gpt import GPT, BPETokenizer, CharTokenizer, GPTConfig
from gpt.storage.checkpoint import load_checkpoint, save_checkpoint
from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer, save_pretrained
from gpt.storage.token_file import read_tokens, write_tokens
from gpt.storage.tokenizer_files import load_tokenizer
from tests.faults import Tally

TEXT = "the cat sat on the mat. " * 20
PATIENCE = 2.0  # seconds of the processor within which any file, however damaged, is answered


class Endless(BaseException):
    """A reader has not answered in time."""


@dataclass(frozen=True)
class Reader:
    """One way in which files are read.

    read     reads the copy of `folder`; what it returns is compared with the same of the undamaged files
    files    a pattern of those that are damaged, relative to the folder
    checked  whether a checksum protects them, so that a difference must be seen
    """

    name: str
    read: Callable[[Path], Any]
    files: str
    checked: bool = True


def model() -> GPT:
    torch.manual_seed(0)
    vocab_size = CharTokenizer.from_text(TEXT).vocab_size
    return GPT(GPTConfig(context_size=8, vocab_size=vocab_size, n_layer=1, n_head=2, n_embd=8))


def weights(model: GPT) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def make(folder: Path) -> None:
    """A folder with every kind of file that the package writes."""
    tokenizer = CharTokenizer.from_text(TEXT)
    save_pretrained(model(), folder / "best", tokenizer)
    for step in (1, 2):
        save_checkpoint(folder / "checkpoints", model(), {"history": [step, 0.5], "tensor": torch.arange(50)}, step)
    bpe = BPETokenizer.train(TEXT, 10)
    bpe.save(folder / "bpe.json")
    tokenizer.save(folder / "char.json")
    write_tokens(folder / "text.tokens", tokenizer.encode(TEXT), tokenizer.vocab_size)
    (folder / "text.txt").write_text(TEXT)
    command(*TRAIN)(folder)


def read_checkpoint(folder: Path) -> Any:
    restored = model()
    state = load_checkpoint(folder / "checkpoints" / "step-00000002", restored)
    return weights(restored), str(state)


def read_model(folder: Path) -> Any:
    loaded, tokenizer = load_pretrained(folder / "best"), load_pretrained_tokenizer(folder / "best")
    return weights(loaded), str(loaded.config), tokenizer.encode(TEXT)


def read_tokenizer(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        tokenizer = load_tokenizer(folder / name)
        try:
            ids = tokenizer.encode(TEXT)
        except ValueError as error:  # another alphabet: a difference, but no fault of the reader
            ids = str(error)
        return ids, tokenizer.vocab if isinstance(tokenizer, BPETokenizer) else vars(tokenizer)

    return read


def read_ids(folder: Path) -> Any:
    return np.asarray(read_tokens(folder / "text.tokens")).tolist()


def command(*words: str) -> Callable[[Path], Any]:
    """`python -m gpt` in this process, the folder in place of DIR: what it prints, or its line as an error."""

    def read(folder: Path) -> Any:
        from gpt.__main__ import main

        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main([word.replace("DIR", str(folder)) for word in words])
        if code == 0:
            return out.getvalue()
        line = error.getvalue()
        if code != 2 or line.count("\n") != 1 or not line.startswith("python -m gpt"):
            raise AssertionError(f"exit code {code} and {line!r}")
        raise ValueError(line.strip())

    return read


SIZES = "--preset tiny --context-size 8 --n-layer 1 --n-head 2 --n-embd 8 --batch-size 2 --steps 4"
TRAIN = ("train", "DIR/text.txt", *SIZES.split(), "--checkpoint-interval", "2", "--out", "DIR/run")
READERS = (
    Reader("checkpoint", read_checkpoint, "checkpoints/step-00000002/*"),
    Reader("model folder", read_model, "best/*"),
    Reader("tokenizer.json (bpe)", read_tokenizer("bpe.json"), "bpe.json", checked=False),
    Reader("tokenizer.json (char)", read_tokenizer("char.json"), "char.json", checked=False),
    Reader("token file", read_ids, "text.tokens"),
    Reader("generate", command("generate", "--model", "DIR/best", "--prompt", "the", "--tokens", "9"), "best/*"),
    Reader("evaluate a text", command("evaluate", "DIR/text.txt", "--model", "DIR/best"), "best/*"),
    Reader("evaluate tokens", command("evaluate", "DIR/text.tokens", "--model", "DIR/best"), "text.tokens"),
    Reader("tokenize", command("tokenize", "the mat", "--tokenizer", "DIR/bpe.json"), "bpe.json", checked=False),
    Reader("train --resume", command(*TRAIN, "--resume"), "run/checkpoints/step-00000004/*"),
)


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes | None]:
    """(what was done, the new content); None stands for a file that is gone."""
    size = len(content)
    place, length = rng.randrange(size), rng.choice([1, 2, 8, 64])
    start, end = content[:place], content[place + length :]
    kind = rng.choice(["bit", "bit", "bit", "bytes", "bytes", "zeros", "cut", "lost", "doubled", "emptied", "deleted"])
    if kind == "bit":
        return f"bit of byte {place}", start + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    if kind == "bytes":
        return f"{length} random bytes at {place}", start + rng.randbytes(min(length, size - place)) + end
    if kind == "zeros":
        return f"{length} zeros at {place}", start + bytes(min(length, size - place)) + end
    if kind == "lost":
        return f"{length} bytes lost at {place}", start + end
    if kind == "doubled":
        return f"{length} bytes doubled at {place}", content[: place + length] + content[place:]
    return {"cut": (f"cut at {place}", start), "emptied": ("emptied", b""), "deleted": ("deleted", None)}[kind]


def damaged_files(seed: int, tries: int, folder: Path, readers: tuple[Reader, ...] = READERS) -> Tally:
    """Damage one file at a time, read it, put it back."""
    rng, tally = random.Random(seed), Tally()
    make(folder)
    right = {reader.name: reader.read(folder) for reader in readers}
    for _ in range(tries):
        reader = rng.choice(readers)
        path = rng.choice(sorted(folder.glob(reader.files)))
        whole = path.read_bytes()
        what, content = damaged(whole, rng)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        said = f"seed {seed}, {reader.name}, {path.relative_to(folder)}, {what}"
        try:
            with patience():
                got = reader.read(folder)
        except (ValueError, OSError) as error:
            if fault := fault_in(str(error), path):
                tally.bad(f"{said}: {fault}: {error!r}")
            else:
                tally.good("refused by name")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            tally.bad(f"{said}: {type(error).__name__}: {error}")
        else:
            if got == right[reader.name]:
                tally.good("the same content")
            elif reader.checked and content is not None:
                tally.bad(f"{said}: silently different")
            else:
                tally.good("another content, no checksum")
        path.write_bytes(whole)
    return tally


def fault_in(message: str, path: Path) -> str:
    """What is wrong with an error: it must be one line, and name the file, or its folder if it is gone."""
    if "\n" in message:
        return "more than one line"
    named = path.name in message or (not path.exists() and path.parent.name in message)
    # A changed pattern may be a valid one that skips characters. Only a text shows it: the message names it.
    named = named or (path.suffix == ".json" and "must match every character" in message)
    return "" if named else f"does not name {path.name}"


@contextmanager
def patience() -> Iterator[None]:
    """Within, a reader that does not answer in time is interrupted, if this thread may set an alarm.

    The clock is the process's own: what else the machine does is not the reader's fault.
    """

    def ring(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Endless(f"no answer in {PATIENCE} s")

    previous = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
