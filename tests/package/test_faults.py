"""Faults that are put in on purpose lose nothing, change nothing in silence, and are answered in one line.

A few of each kind, with a fixed seed. `make soak` does the same for minutes and writes docs/RELIABILITY.md.
"""

import sys
import tempfile
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("the harness needs fork and POSIX signals", allow_module_level=True)

from tests.faults import calls, files, runs
from tests.soak import FAULTS, Fault, soak, store, table


@pytest.fixture
def folder():
    """In memory where that is possible: a save waits until it is on the disk, and here it is the moment that counts."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path) / "faults"


def check(tally, tries):
    assert tally.failures == []
    assert tally.tries >= tries


@pytest.mark.parametrize(
    ("put_in", "tries"),
    [(runs.kills, 24), (runs.command_kills, 8), (runs.full_disks, 8), (runs.signals, 8)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_run_that_is_disturbed_loses_nothing_and_ends_as_if_it_had_not_been(put_in, tries, folder):
    folder.mkdir()
    check(put_in(1, tries, folder), tries)


@pytest.mark.parametrize("reader", files.READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_refused_by_name_or_read_as_it_was(reader, folder):
    check(files.damaged_files(1, 80, folder, (reader,)), 80)


@pytest.mark.parametrize("call", calls.CALLS, ids=lambda call: call.name)
def test_odd_arguments_are_answered_or_refused_in_the_packages_own_words(call):
    check(calls.odd_calls(1, 40, (call,)), 30)  # hypothesis does not try the same twice


def test_odd_command_lines_end_with_0_or_with_2_and_one_line(folder):
    check(calls.odd_command_lines(1, 150, folder), 100)


# --- the harness itself: it sees what it looks for


def test_a_reader_that_notices_nothing_is_a_failure(folder):
    """The ids of a token file that nobody compares with anything."""
    blind = files.Reader("blind", lambda folder: (folder / "text.txt").read_bytes(), "text.txt")
    tally = files.damaged_files(1, 20, folder, (blind,))
    assert any("silently different" in failure for failure in tally.failures)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (KeyError("config"), "KeyError"),
        (ValueError("a file is bad"), "does not name"),
        (ValueError("text.txt\n"), "line"),
    ],
)
def test_an_error_that_does_not_help_is_a_failure(folder, error, found):
    def read(folder):
        if (folder / "text.txt").read_bytes() != files.TEXT.encode():
            raise error

    (folder / "text.txt").parent.mkdir()
    reader = files.Reader("raises", read, "text.txt")
    failures = files.damaged_files(1, 10, folder, (reader,)).failures
    assert failures
    assert all(found in failure for failure in failures)


def test_a_reader_that_never_ends_is_a_failure(folder, monkeypatch):
    def read(folder):
        damaged = (folder / "text.txt").read_bytes() != files.TEXT.encode()
        while damaged:
            pass

    folder.mkdir()
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    failures = files.damaged_files(1, 8, folder, (files.Reader("endless", read, "text.txt"),)).failures
    assert any("no answer" in failure for failure in failures)


def test_a_librarys_words_and_nonsense_are_failures(gpt):
    def add(x):
        return 1 + x

    strange = calls.Call("add", add, {}, {"x": calls.ODD})
    assert calls.odd_calls(1, 20, (strange,)).failures
    wrong = calls.Call("wrong", lambda x: x, {}, {"x": calls.ODD}, lambda answer: False)
    assert "nonsense" in calls.odd_calls(1, 5, (wrong,)).failures[0]


def test_a_run_that_ends_otherwise_is_a_failure(folder, monkeypatch):
    folder.mkdir()
    reference = dict.fromkeys(runs.KEPT, b"another")
    tally = runs.Tally()
    runs.check_the_end(folder / "run", reference, runs.learn, tally, "here")
    assert "is not that of the unbroken run" in tally.failures[0]


def test_the_soak_tries_every_fault_and_writes_its_table_between_the_marks(tmp_path):
    def put_in(seed, tries, folder):
        assert folder.is_dir()
        tally = runs.Tally()
        for number in range(tries):
            tally.bad("lost") if number == 0 else tally.good("kept")
        return tally

    faults = (Fault("rare", put_in, 2, 10), Fault("frequent", put_in, 5, 1000))
    tallies = soak(1, 0.05, tmp_path, faults)
    assert tallies[0].tries < tallies[1].tries
    note = tmp_path / "note.md"
    note.write_text("Before <!-- soak --> old <!-- /soak --> after")
    store(table(tallies, faults), note)
    row = f"| rare | {tallies[0].tries} | kept {tallies[0].tries // 2} | {tallies[0].tries // 2} |"
    assert row in note.read_text()
    assert "old" not in note.read_text()
    assert note.read_text().startswith("Before <!-- soak -->")
    assert note.read_text().endswith("<!-- /soak --> after")
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(ValueError, match=r"other\.md must hold"):
        store("text", tmp_path / "other.md")


def test_the_soak_of_ten_minutes_is_as_large_as_it_says():
    """200 kills, 3,000 damaged files and 5,000 sets of arguments, in the proportions that it keeps."""
    shares = {fault.put_in: fault.share for fault in FAULTS}
    assert shares[runs.kills] >= 200
    assert shares[files.damaged_files] >= 3000
    assert sum(fault.share for fault in FAULTS if "odd" in fault.name) >= 5000
