"""How does a file become whole or not at all? Writing that survives a kill and a full disk, checksums, and JSON."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

CHECKSUMS = "SHA256SUMS"


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It becomes `path` if the block succeeds, and vanishes if it raises.

    So `path` holds the old content or the new, never a part of it. Creates the folder if it is missing.
    Raises OSError, naming `path`, if the disk is full or read-only.
    """
    path = Path(path)
    with temporary_beside(path) as temporary:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)  # those of any new file: safetensors would make it private
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A hidden name in the folder of `target`, removed at the end if it still exists, be it a file or a folder.

    What a killed process left under such a name is removed first, unless another process is writing in the folder.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _cleared_of_leftovers(target):
            try:
                yield temporary
            finally:
                _remove(temporary)
    except OSError as error:
        # The system's errors have a number; those from a write or an fsync do not know their file.
        own = (str(temporary), str(target.parent))
        if error.errno is None or not str(error.filename or temporary).startswith(own):
            raise
        raise OSError(error.errno, f"could not write ({error.strerror})", str(target)) from error


@contextmanager
def _cleared_of_leftovers(target: Path) -> Iterator[None]:
    """Every writer shares a lock on the folder, which ends with its process, even by a kill. Who can have it alone
    knows that no temporary file in the folder is in use. Without locks (some network disks) nothing is removed."""
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        with suppress(OSError, ImportError):
            import fcntl  # not on Windows

            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"):
                _remove(leftover)
        with suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(folder, fcntl.LOCK_SH)
        yield
    finally:
        os.close(folder)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of these files into the folder's SHA256SUMS; `sha256sum -c SHA256SUMS` checks them."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def read_checksums(path: Path) -> dict[str, str]:
    """{name of a file: its SHA-256} out of a SHA256SUMS. Lines that do not look like one are passed over."""
    content = path.read_text(encoding="utf-8", errors="replace")
    return {name: checksum for checksum, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", content, re.MULTILINE)}


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ValueError, naming the file, if it is not JSON or not an object."""
    try:
        data = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets, thousands deep
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it holds a JSON {type(data).__name__}, not an object")
    return data


def lock(folder: Path) -> BaseFileLock:
    """Keep other processes from writing to a folder until the lock is released, or this process ends in any way.

    In one process it can be taken again. Raises ValueError if another process holds it.
    """
    try:
        held = FileLock(folder / ".lock", blocking=False, is_singleton=True)
        held.acquire()
    except Timeout as error:
        raise ValueError(f"folder {folder} is in use: another process is writing a run to it") from error
    return held


def shortened(text: str, longest: int = 300) -> str:
    """A text for a message: what a damaged file holds may have millions of characters."""
    return text if len(text) <= longest else f"{text[:longest]} ..."
