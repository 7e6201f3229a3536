"""Text larger than memory: cut into parts, encoded side by side, continued after a kill: gpt/storage/preparation.py."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.comparing import close

TEXT = "To be, or not to be: that's the question.\n\nWhether 'tis nobler é 好的。\n in the mind " * 50
PIECES = [
    "a",
    "to",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "'s",
    "12",
    "!",
    "é",
    "好",
    "。",
    "\u3000",
    "\xa0",
    "\x85",
    "\x1c",
]
END = "<|endoftext|>"
PIECES += ["\U0001f600", END, "<|endof", "text|>", "\u0301", "\ufeff"]


@pytest.fixture(scope="module")
def tokenizer(gpt):
    return gpt.BPETokenizer.train(TEXT, 50)


@pytest.fixture
def sources(tmp_path):
    """Two files of 4,700 and 1,000 bytes or so."""
    for name, text in {"a.txt": TEXT, "b.txt": TEXT[:900]}.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / "a.txt", tmp_path / "b.txt"]


def whole(tokenizer, paths):
    """The ids of each whole file, and its end."""
    return [
        i
        for path in paths
        for i in [*tokenizer.encode(path.read_text("utf-8-sig"), allowed_special="all"), tokenizer.end_of_text]
    ]


# --- where a text is cut


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60), st.integers(1, 40), st.integers(2, 50), st.integers(1, 20))
@example(["a", "\u3000", "  ", "to"], 3, 50, 20)  # the window begins inside a character that is white space
def test_the_parts_have_the_words_and_ids_of_the_whole(gpt, tokenizer, tmp_path_factory, pieces, part, window, chunk):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes("".join(pieces).encode())
    text = path.read_text("utf-8-sig")
    with mock.patch.multiple(gpt.preparation, WINDOW=window, CHUNK=chunk):
        cuts = gpt.preparation.places(path, part_bytes=part)
        parts = [list(gpt.preparation.read_text(path, start, stop)) for start, stop in pairwise(cuts)]
    words = [word for chunks in parts for word in gpt.tokens.pretokenize("".join(chunks))]
    assert words == gpt.tokens.pretokenize(text)
    ids = [i for chunks in parts for i in gpt.preparation.encoded(tokenizer, chunks)]
    assert ids == tokenizer.encode(text, allowed_special="all")


def test_a_text_is_cut_at_the_first_safe_place_after_each_part(gpt, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("好好好 好好好\n" * 100)
    cuts = gpt.preparation.places(path, part_bytes=100)
    assert cuts == [0, *range(109, 2000, 100), 2000]  # before a space; 100 itself is in the middle of a line
    path.write_text("x" * 250 + " " + "x" * 250)
    assert gpt.preparation.places(path, part_bytes=100) == [0, 250, 501]


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.lists(st.sampled_from(["--\n", "--", "\n", "a b", " --\n", "--\r\n", "c\n"]), max_size=40), st.integers(1, 20)
)
@example(["xxxxxxa--\n", "\n", "\n", "b"], 5)  # a line that only ends with it is no place to cut
def test_a_line_that_is_the_separator_ends_a_document(gpt, tmp_path_factory, pieces, part):
    path = tmp_path_factory.getbasetemp() / "documents.txt"
    path.write_bytes("".join(pieces).encode())
    lines = path.read_text().splitlines(keepends=True)
    expected = "".join(END if line.rstrip("\n") == "--" else line for line in lines)
    with mock.patch.multiple(gpt.preparation, CHUNK=5):
        cuts = gpt.preparation.places(path, "--", part)
        texts = [gpt.preparation.read_text(path, start, stop) for start, stop in pairwise(cuts)]
        parts = ["".join(gpt.preparation._marked(text, "--")) for text in texts]
    assert "".join(parts) == expected
    words = [word for text in parts for document in text.split(END) for word in gpt.tokens.pretokenize(document)]
    assert words == [word for document in expected.split(END) for word in gpt.tokens.pretokenize(document)]


# --- the folder


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_holds_the_ids_of_the_sources_in_order(gpt, tokenizer, sources, tmp_path, processes):
    manifest = gpt.preparation.prepare(sources, tokenizer, tmp_path / "out", processes, part_bytes=1000)
    expected = whole(tokenizer, sources)
    shards = gpt.shards.read_shards(tmp_path / "out", tokenizer)
    assert shards.read().tolist() == expected
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tokens"] == len(expected) == len(shards)
    names = [f"{i:05}.tokens" for i in range(len(manifest["shards"]))]
    assert [shard["name"] for shard in manifest["shards"]] == names
    assert len(names) == 6
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        [*names, ".lock", "manifest.json", "plan.json", "tokenizer.json"]
    )
    places = [(shard["source"], shard["start"], shard["stop"]) for shard in manifest["shards"]]
    assert all(before[2] == after[1] for before, after in pairwise(places) if before[0] == after[0])
    assert [source["bytes"] for source in manifest["sources"]] == [path.stat().st_size for path in sources]


def test_documents_have_no_end_where_the_tokenizer_has_none(gpt, sources, tmp_path):
    tokenizer = gpt.CharTokenizer.from_text(TEXT)
    gpt.preparation.prepare(sources, tokenizer, tmp_path / "out", part_bytes=1000)
    shards = gpt.shards.read_shards(tmp_path / "out", tokenizer)
    assert tokenizer.decode(shards.read().tolist()) == TEXT + TEXT[:900]


def test_windows_from_shards_equal_those_from_memory(gpt):
    ids = torch.randint(50257, (1000,), generator=torch.Generator().manual_seed(0))
    array = ids.numpy().astype(np.uint16)
    for cuts in ([], [500], [1, 2, 3, 999], list(range(7, 1000, 7))):
        shards = gpt.shards.Shards(np.split(array, cuts))
        assert len(shards) == 1000
        one, many = (gpt.RandomWindows(tokens, 40, 8, seed=3, vocab_size=50257) for tokens in (ids, shards))
        for _ in range(5):
            for expected, found in zip(one.next_batch(), many.next_batch(), strict=True):
                assert found.dtype == torch.int64
                close(found, expected)
        for place in (1, 2, 499, 500, 501, 999):
            before, after = shards.cut(place)
            assert (before.read().tolist(), after.read().tolist()) == (array[:place].tolist(), array[place:].tolist())


def test_a_model_trains_on_a_folder_and_is_judged_by_its_end(gpt, command, tokenizer, sources, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    options = ["--tokenizer", tmp_path / "t.json", "--out", tmp_path / "out", "--processes", 1]
    code, out, error = command("data", "prepare", *sources, *options)
    ids = whole(tokenizer, sources)
    size = sum(path.stat().st_size for path in sources)
    assert (code, error) == (0, "")
    assert out.startswith(f"wrote {tmp_path / 'out'}: {len(ids):,} tokens of {size:,} bytes in 2 shards. ")
    tiny = ["--preset", "tiny", "--context-size", "16", "--n-embd", "16", "--n-head", "2", "--steps", 2]
    code, out, _ = command(*out.split("python -m gpt ")[1].split(), *tiny, "--out", tmp_path / "run")
    assert code == 0
    assert f"{len(ids) * 9 // 10:,} tokens to learn from" in out
    record = json.loads((tmp_path / "run" / "best" / "record.json").read_text())
    held_out = torch.tensor(ids[len(ids) * 9 // 10 :])
    model = gpt.GPT.from_pretrained(tmp_path / "run" / "best")
    assert record["held_out"]["loss"] == pytest.approx(gpt.evaluate(model, held_out).loss, abs=1e-6)
    assert record["data"]["sha256"] == gpt.files.sha256(tmp_path / "out" / "manifest.json")
    code, out, _ = command("evaluate", tmp_path / "out", "--model", tmp_path / "run" / "best")
    assert f"loss {record['held_out']['loss']:.4f} " in out


def test_of_a_large_folder_no_more_is_held_out_than_is_scored_quickly(gpt, tokenizer, sources, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt.commands.material.HELD_OUT", 30)
    gpt.preparation.prepare(sources, tokenizer, tmp_path / "out")
    data = gpt.material.material(str(tmp_path / "out"), tokenizer)
    ids = whole(tokenizer, sources)
    assert (data.train.read().tolist(), data.validation.tolist()) == (ids[:-30], ids[-30:])
    assert data.characters == len(tokenizer.decode(ids[-30:]))


# --- a run that is cut off, and one that is refused


def test_a_killed_run_is_continued_and_nothing_is_written_twice(gpt, tokenizer, tmp_path):
    source, out = tmp_path / "long.txt", tmp_path / "out"
    source.write_text(TEXT * 100)
    tokenizer.save(tmp_path / "t.json")
    program = f"""if __name__ == "__main__":
    from gpt.storage.preparation import prepare
    from gpt.storage.tokenizer_files import load_tokenizer
    prepare([{str(source)!r}], load_tokenizer({str(tmp_path / "t.json")!r}), {str(out)!r}, 2, part_bytes=500)
"""
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"])
    while not (out / "00003.tokens").exists():
        assert process.poll() is None
        time.sleep(0.002)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    for _ in range(500):
        if not any(alive(pid) for pid in workers):
            break
        time.sleep(0.01)
    assert not [pid for pid in workers if alive(pid)], "its processes outlived it"
    with pytest.raises(ValueError, match=r"out has no manifest\.json: it is not finished; the same `data prepare`"):
        gpt.shards.read_shards(out, tokenizer)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tokens")}
    total = len(gpt.preparation.places(source, part_bytes=500)) - 1
    assert 4 <= len(kept) < total
    gpt.preparation.prepare([source], tokenizer, out, part_bytes=500)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert gpt.shards.read_shards(out, tokenizer).read().tolist() == whole(tokenizer, [source])
    assert len(list(out.iterdir())) == total + 4


def alive(pid):
    """Whether it runs; one that has ended may wait to be fetched."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_finished_folder_is_left_as_it_is_and_a_damaged_shard_is_written_again(gpt, tokenizer, sources, tmp_path):
    out = tmp_path / "out"
    first = gpt.preparation.prepare(sources, tokenizer, out, part_bytes=1000)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tokens")}
    damaged = out / "00002.tokens"
    flip(damaged, 40)
    assert gpt.preparation.prepare(sources, tokenizer, out, part_bytes=1000) == first
    changed = {path for path, then in times.items() if path.stat().st_mtime_ns != then}
    assert changed == {damaged}
    assert gpt.shards.read_shards(out, tokenizer).read().tolist() == whole(tokenizer, sources)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_another_source_tokenizer_or_option_is_refused(gpt, tokenizer, sources, tmp_path):
    out, prepare = tmp_path / "out", gpt.preparation.prepare
    prepare(sources, tokenizer, out, part_bytes=1000)
    other = gpt.BPETokenizer.train(TEXT, 49)
    for arguments, name in [
        ((sources, other, out, 1, None, 1000), "tokenizer"),
        ((sources, tokenizer, out, 1, "--", 1000), "separator: None then, now --"),
        ((sources, tokenizer, out, 1, None, 999), "part_bytes: 1000 then, now 999"),
        ((sources[::-1], tokenizer, out, 1, None, 1000), "source 1"),
        ((sources[:1], tokenizer, out, 1, None, 1000), "source 2.* now None"),
    ]:
        with pytest.raises(ValueError, match=f"out was begun with another {name}"):
            prepare(*arguments)
    flip(sources[1], 5)  # of the same size
    with pytest.raises(ValueError, match="source 2"):
        prepare(sources, tokenizer, out, part_bytes=1000)
    with pytest.raises(ValueError, match=r"out was prepared with another tokenizer: .*tokenizer\.json holds the right"):
        gpt.shards.read_shards(out, other)


def test_what_is_wrong_with_a_folder_is_named(gpt, tokenizer, sources, tmp_path, command):
    out = tmp_path / "out"
    gpt.preparation.prepare(sources, tokenizer, out, part_bytes=1000)
    first, second, manifest = (out / name for name in ("00000.tokens", "00001.tokens", "manifest.json"))
    good = {path: path.read_bytes() for path in (first, second, manifest)}
    for path, content, message in [
        (second, None, r"00001\.tokens is missing"),
        (second, good[second][:-1], r"00001\.tokens is damaged: it has"),
        (second, good[second][:50] + b"?" + good[second][51:], r"00001\.tokens is damaged: bytes 0\.\."),
        (second, good[first], r"00001\.tokens is whole, but another file"),
        (manifest, b"{", r"manifest\.json is damaged"),
        (manifest, b'{"tokenizer": "", "shards": [{}]}', r"manifest\.json is damaged"),
        (manifest, b'{"tokenizer": "", "shards": 3}', r"manifest\.json is damaged"),
        (manifest, b'{"tokenizer": "", "shards": []}', r"manifest\.json is damaged"),
        (manifest, None, r"manifest\.json: it is not finished"),
    ]:
        path.unlink() if content is None else path.write_bytes(content)
        code, _, error = command("train", out, "--out", tmp_path / "run")
        assert code == 2
        assert re.fullmatch(f"python -m gpt train: .*{message}.*\n", error), error
        path.write_bytes(good[path])
    for arguments in (("train", tmp_path), ("evaluate", tmp_path)):
        code, _, error = command(*arguments)
        assert (code, error.count("\n")) == (2, 1)
        assert f"{tmp_path} has no manifest.json: `data prepare` did not write it" in error


def test_a_source_that_cannot_be_used_is_named(gpt, tokenizer, sources, tmp_path):
    bad = tmp_path / "bad.txt"
    for i, (content, message) in enumerate(
        [
            (b"", "bad.txt is empty"),
            ("\ufeff".encode(), "bad.txt is empty"),
            (b"word " * 500 + b"\xff word" * 10, r"bad\.txt is not UTF-8 text: .* at byte 2500"),
            (b"word " * 500 + b"\xe5\xa5", r"bad\.txt is not UTF-8 text: unexpected end of data at byte 2500"),
        ]
    ):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            gpt.preparation.prepare([*sources, bad], tokenizer, tmp_path / f"out{i}", part_bytes=1000)
    with pytest.raises(ValueError, match=r"none\.txt is not a file"):
        gpt.preparation.prepare([tmp_path / "none.txt"], tokenizer, tmp_path / "none")
    bad.write_bytes(b"ten bytes.")
    with pytest.raises(ValueError, match="has changed: it ended at byte 10, not 11"):
        list(gpt.preparation.read_text(bad, 0, 11))
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_cut_into_parts_is_refused(gpt, sources, tmp_path):
    out = tmp_path / "out"
    for tokenizer, options, message in [
        (gpt.BPETokenizer([], pattern=r"\S+|\s+"), {}, "GPT2_PATTERN only"),
        (gpt.BPETokenizer([], special_tokens=["<end of text>"]), {}, "'<end of text>' has white space inside"),
        (gpt.CharTokenizer.from_text(TEXT), {"separator": "--"}, "separator needs a tokenizer with an end-of-text"),
        (gpt.BPETokenizer([]), {"separator": ""}, "separator must be the content of a line"),
        (gpt.BPETokenizer([]), {"separator": "a\nb"}, "separator must be the content of a line"),
        (gpt.BPETokenizer([]), {"processes": 0}, "processes must be an integer of at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            gpt.preparation.prepare(sources, tokenizer, out, **options)
    with pytest.raises(ValueError, match="at least one file"):
        gpt.preparation.prepare([], gpt.BPETokenizer([]), out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.tokens").write_bytes(b"")
    with pytest.raises(ValueError, match=r"out holds token files .* no plan\.json"):
        gpt.preparation.prepare(sources, gpt.BPETokenizer([]), out)


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(gpt, tokenizer, sources, tmp_path, command):
    tokenizer.save(tmp_path / "t.json")
    arguments = ["data", "prepare", *sources, "--tokenizer", tmp_path / "t.json", "--out", tmp_path / "out"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may grow beyond it
    try:
        code, _, error = command(*arguments, "--processes", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    assert re.fullmatch(r"python -m gpt data: .*could not write \(File too large\).*\n", error), error
    assert command(*arguments, "--processes", 1)[0] == 0
    assert gpt.shards.read_shards(tmp_path / "out", tokenizer).read().tolist() == whole(tokenizer, sources)


def test_two_runs_do_not_write_to_one_folder(gpt, tokenizer, sources, tmp_path):
    (tmp_path / "out").mkdir()
    program = (
        "import sys, filelock as f; lock = f.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=1); input()"
    )
    path = str(tmp_path / "out" / ".lock")
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="out is in use"):
            gpt.preparation.prepare(sources, tokenizer, tmp_path / "out")
        other.communicate(b"\n")
    gpt.preparation.prepare(sources, tokenizer, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.txt", "b.txt"], "data takes one text, got 2"),
        (["a.txt", "--out", "x"], "--out goes with `data prepare FILE ...`"),
        (["a.txt", "--separator", "x"], "--separator goes with"),
        (["prepare", "a.txt"], "needs files and the folder to write"),
        (["prepare", "--out", "x"], "needs files and the folder to write"),
        (["prepare", "a.txt", "--out", "x", "--tokens", "y"], "--tokens is for one text"),
        (["prepare", "a.txt", "--out", "x", "--tokenizer", "bpe:9"], "learns no tokenizer, got 'bpe:9'"),
        (["prepare", "a.txt", "--out", "x", "--processes", "0"], "must be at least 1"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(command, arguments, message):
    code, _, error = command("data", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
