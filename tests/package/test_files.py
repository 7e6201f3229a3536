"""A file is the old or the new, never a part, whatever fails while it is written: gpt/support/files.py."""

from __future__ import annotations

import errno
import itertools
import os

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
