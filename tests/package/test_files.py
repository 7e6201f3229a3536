"""A file is the old or the new, never a part, whatever fails while it is written: gpt/support/files.py."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys

import pytest


def names_in(folder):
    return sorted(os.listdir(folder))


def fail_at(monkeypatch, name, n, error=errno.ENOSPC):
    """The n-th call of os.<name> raises; those before and after it work. Returns a list with one entry once it has."""
    calls, real, failed = itertools.count(1), getattr(os, name), []

    def call(*args, **kwargs):
        if next(calls) == n:
            failed.append(n)
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return failed


def test_an_atomic_file_is_the_old_or_the_new_never_a_part(gpt, tmp_path):
    path = tmp_path / "deep" / "er" / "notes.txt"
    with gpt.files.atomic_file(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("old")
        assert not path.exists()
    assert path.read_text() == "old"

    def half():
        with gpt.files.atomic_file(str(path)) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        half()
    assert path.read_text() == "old"
    assert names_in(path.parent) == ["notes.txt"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_an_atomic_file_names_its_path_when_the_disk_fails(gpt, tmp_path, monkeypatch, name, error):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    fail_at(monkeypatch, name, 1, error)
    with pytest.raises(OSError, match=r"notes\.txt") as raised, gpt.files.atomic_file(path) as temporary:
        temporary.write_text("new")
    assert (raised.value.errno, raised.value.filename) == (error, str(path))
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["notes.txt"]


def test_an_atomic_file_has_the_permissions_of_any_new_file(gpt, tmp_path):
    (tmp_path / "plain").write_text("x")
    with gpt.files.atomic_file(tmp_path / "atomic") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)  # as safetensors does
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- what a killed process leaves behind

WRITER = """
import sys, time
from pathlib import Path
from gpt.support.files import temporary_beside

with temporary_beside(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "part").write_text("half of it")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is in the middle of writing tmp_path / notes.txt; a call starts one more."""
    processes = []

    def start():
        command = [sys.executable, "-c", WRITER, str(tmp_path / "notes.txt")]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "writing\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def save(gpt, path):
    with gpt.files.atomic_file(path) as temporary:
        temporary.write_text("new")


def test_the_next_save_clears_away_what_killed_ones_left(gpt, tmp_path, writer):
    neighbour = tmp_path / ".other.txt.01234567.tmp"  # of another file, which has its own next save
    neighbour.write_text("x")
    for process in (writer(), writer()):
        process.kill()
        process.wait()
    assert len(names_in(tmp_path)) == 3
    save(gpt, tmp_path / "notes.txt")
    assert names_in(tmp_path) == [neighbour.name, "notes.txt"]


def test_what_a_live_process_is_writing_stays(gpt, tmp_path, writer):
    dead, alive = writer(), writer()
    dead.kill()
    dead.wait()
    save(gpt, tmp_path / "notes.txt")
    assert len(names_in(tmp_path)) == 3  # not to be told apart while one of them lives
    with gpt.files.atomic_file(tmp_path / "notes.txt") as one, gpt.files.atomic_file(tmp_path / "notes.txt") as two:
        one.write_text("1")  # nor does a process clear away its own
        two.write_text("2")
    alive.kill()
    alive.wait()
    save(gpt, tmp_path / "notes.txt")
    assert names_in(tmp_path) == ["notes.txt"]


def test_a_disk_without_locks_keeps_what_was_left(gpt, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.EBADF, "as a network disk answers")

    monkeypatch.setattr("fcntl.flock", no_locks)
    leftover = tmp_path / ".notes.txt.01234567.tmp"
    leftover.write_text("perhaps still being written")
    save(gpt, tmp_path / "notes.txt")
    assert names_in(tmp_path) == [leftover.name, "notes.txt"]


def test_checksums_are_those_of_sha256sum(gpt, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "abc").write_text("abc")
    gpt.files.write_checksums(tmp_path, ["empty", "abc"])
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's own example
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{empty}  empty\n{abc}  abc\n"
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\n" + f"{abc} *abc\nabc  empty\n".encode())
    assert gpt.files.read_checksums(tmp_path / "SHA256SUMS") == {"abc": abc}
