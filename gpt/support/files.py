"""How does a file become whole or not at all? Writing that survives a kill and a full disk, checksums, and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout


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
    """A hidden name in the folder of `target`, removed at the end if it still exists, be it a file or a folder."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        # The system's errors have a number; those from a write or an fsync do not know their file.
        own = (str(temporary), str(target.parent))
        if error.errno is None or not str(error.filename or temporary).startswith(own):
            raise
        raise OSError(error.errno, f"could not write ({error.strerror})", str(target)) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()


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
