"""Tokenizers go into files and come back the same, or not at all: gpt/storage/tokenizer_files.py."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.concepts.test_tokens import END, ENGLISH, gpt2_files


@pytest.fixture(scope="module")
def trained(gpt):
    return gpt.BPETokenizer.train(ENGLISH, 100)


# --- our JSON


def test_a_saved_character_tokenizer_comes_back(gpt, tmp_path):
    tokenizer = gpt.CharTokenizer.from_text("héllo\n\u2028\x00 \U0001f600")
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for again in (gpt.CharTokenizer.load(path), gpt.tokenizer_files.load_tokenizer(path)):
        assert type(again) is type(tokenizer)
        assert (again.stoi, again.itos, again.vocab_size) == (tokenizer.stoi, tokenizer.itos, tokenizer.vocab_size)
    assert json.loads(path.read_bytes())["type"] == "char"


def test_a_saved_bpe_tokenizer_comes_back(gpt, trained, tmp_path):
    ids = random.Random(5).sample(range(len(trained.vocab)), len(trained.vocab) - 1)
    vocabulary = dict(zip((token for token in trained.vocab if token != END.encode()), ids, strict=True))
    special = [END, "<pad ü>"]  # raw text in the file, also where a byte's spelling would not allow it
    tokenizer = gpt.BPETokenizer(trained.merges, vocabulary, special_tokens=special)
    path = tmp_path / "tokenizer.json"
    for original in (trained, tokenizer):
        original.save(str(path))
        for again in (gpt.BPETokenizer.load(path), gpt.tokenizer_files.load_tokenizer(path)):
            for name in ("merges", "vocab", "special_tokens", "pattern", "vocab_size"):
                assert getattr(again, name) == getattr(original, name)
            assert again.encode(ENGLISH[:500]) == original.encode(ENGLISH[:500])
    assert json.loads(path.read_bytes())["type"] == "bpe"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"[]", b"5", b"{}", b'{"type": "word"}', b'{"type": []}',
        b'{"type": "char"}', b'{"type": "char", "characters": 5}', b'{"type": "char", "characters": ["a", "a"]}',
        b'{"type": "char", "characters": [1]}', b'{"type": "bpe"}',
        b'{"type": "bpe", "pattern": "x", "special_tokens": [], "merges": ["a"], "vocabulary": {}}',
        b'{"type": "bpe", "pattern": "x", "special_tokens": [], "merges": [], "vocabulary": {" ": 0}}',
        b'{"type": "bpe", "pattern": "x", "special_tokens": 5, "merges": [], "vocabulary": {}}',
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_refused_by_name(gpt, tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json (is damaged|is no tokenizer)"):
        gpt.tokenizer_files.load_tokenizer(path)


def bpe_file(gpt, merges=(), **fields):
    """The text of a BPETokenizer's file, before anything has looked at it."""
    spellings = [gpt.tokenizer_files.spell(bytes([byte])) for byte in range(256)]
    spellings += [merge.replace(" ", "") for merge in merges]
    data = {"type": "bpe", "pattern": gpt.tokens.GPT2_PATTERN, "special_tokens": [], "merges": list(merges)}
    return json.dumps(data | {"vocabulary": {spelling: i for i, spelling in enumerate(spellings)}} | fields)


def chain(length):
    """Each merge puts one more letter at the end of the last token: 4 MB for 2,000 of them."""
    return [f"a{'b' * i} b" for i in range(length)]


HOSTILE = {
    "a chain that breaks": lambda gpt: bpe_file(gpt, [*chain(2000), "bb a"]),
    "a merge of a million letters": lambda gpt: bpe_file(gpt, ["x" * 1_000_000 + " y"]),
    "100,000 special tokens": lambda gpt: bpe_file(gpt, special_tokens=[f"<{i}>" for i in range(100_000)]),
    "a special token of a million letters": lambda gpt: bpe_file(gpt, special_tokens=["x" * 1_000_000]),
    "special tokens in one string": lambda gpt: bpe_file(gpt, special_tokens="<>"),
    "a pattern of a million letters": lambda gpt: bpe_file(gpt, pattern="|".join(f"a{i}" for i in range(140_000))),
    "a pattern thousands deep": lambda gpt: bpe_file(gpt, pattern="(" * 4000 + ")" * 4000),
    "a pattern that matches nothing": lambda gpt: bpe_file(gpt, pattern="x*"),
    "a pattern that is no text": lambda gpt: bpe_file(gpt, pattern=None),
    "200,000 brackets": lambda gpt: "[" * 200_000,
    "200,000 brackets in a field": lambda gpt: '{"type": ' + "[" * 200_000,
    "900 brackets that close": lambda gpt: '{"type": ' + "[" * 900 + "]" * 900 + "}",
    "a number of 10,000 digits": lambda gpt: '{"type": "char", "characters": ' + "9" * 10_000 + "}",
    "an id of 4,000 digits": lambda gpt: bpe_file(gpt, vocabulary={"a": 10**3999}),
    "an id that is infinite": lambda gpt: bpe_file(gpt).replace(": 97,", ": 1e999,"),
    "an id that is true": lambda gpt: bpe_file(gpt).replace(": 97,", ": true,"),
    "a type of a million letters": lambda gpt: json.dumps({"type": "x" * 1_000_000}),
    "characters that repeat": lambda gpt: json.dumps({"type": "char", "characters": ["a"] * 1_000_000}),
    "characters in an object": lambda gpt: '{"type": "char", "characters": {"a": 1}}',
    "half a surrogate pair": lambda gpt: '{"type": "char", "characters": ["\\ud800"]}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_in_one_line_and_at_once(gpt, tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content(gpt))
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"tokenizer\.json (is damaged|is no tokenizer)") as raised:
        gpt.tokenizer_files.load_tokenizer(path)
    assert time.perf_counter() - started < 2  # measured: at most 0.35
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)


def test_a_long_chain_of_merges_loads_at_once(gpt, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe_file(gpt, chain(2000)))
    started = time.perf_counter()
    assert gpt.BPETokenizer.load(path).encode("a" + "b" * 2000 + "a") == [256 + 1999, 97]
    assert time.perf_counter() - started < 2  # measured: 0.3


def test_a_truncated_file_is_refused(gpt, trained, tmp_path):
    trained.save(tmp_path / "t.json")
    content = (tmp_path / "t.json").read_bytes()
    (tmp_path / "t.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        gpt.BPETokenizer.load(tmp_path / "t.json")


def test_a_tokenizer_of_the_other_kind_is_refused_and_a_missing_file_is_missing(gpt, trained, tmp_path):
    trained.save(tmp_path / "t.json")
    with pytest.raises(ValueError, match="BPETokenizer, not a CharTokenizer"):
        gpt.CharTokenizer.load(tmp_path / "t.json")
    with pytest.raises(FileNotFoundError):
        gpt.tokenizer_files.load_tokenizer(tmp_path / "none.json")


def test_a_save_that_fails_leaves_the_old_file(gpt, trained, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    trained.save(path)
    before = path.read_bytes()

    def full_disk(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        gpt.CharTokenizer("abc").save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]


# --- GPT-2's files


def test_gpt2s_file_layout_spells_bytes_as_visible_characters(gpt, tmp_path):
    # In these files a space is Ġ and a newline Ċ; ids need not follow anything.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    spelling = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    encoder = {spelling[byte]: i for i, byte in enumerate([*visible, *hidden])}
    encoder |= {"Ġt": 256, "he": 257, "Ġthe": 258, "ĊĊ": 259, END: 260}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ t\nh e\nĠt he\nĊ Ċ\n", encoding="utf-8")
    tokenizer = gpt.BPETokenizer.from_gpt2_files(tmp_path / "encoder.json", tmp_path / "vocab.bpe")
    assert tokenizer.merges == [(b" ", b"t"), (b"h", b"e"), (b" t", b"he"), (b"\n", b"\n")]
    assert tokenizer.encode(f"! the\n\n{END}", allowed_special="all") == [0, 258, 259, 260]
    assert tokenizer.special_tokens == {END: 260}
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ t\nh\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"encoder\.json and .*vocab\.bpe"):
        gpt.BPETokenizer.from_gpt2_files(tmp_path / "encoder.json", tmp_path / "vocab.bpe")


def test_special_tokens_in_gpt2s_files_must_be_named(gpt, tmp_path):
    encoder = {character: byte for byte, character in gpt.tokenizer_files.byte_alphabet().items()}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder | {"[PAD]": 256}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    files = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    tokenizer = gpt.BPETokenizer.from_gpt2_files(*files, special_tokens=[END, "[PAD]"])
    assert tokenizer.special_tokens == {END: 257, "[PAD]": 256}
    with pytest.raises(ValueError, match=r"vocab\.bpe .*special_tokens.*PAD"):
        gpt.BPETokenizer.from_gpt2_files(*files)


def test_gpt2s_tokenizer_is_saved_by_name(gpt, trained, tmp_path):
    gpt2_files()
    gpt.gpt2_tokenizer().save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_bytes()) == {"type": "gpt2"}
    assert gpt.tokens.GPT2Tokenizer.load(tmp_path / "t.json").encode("the cat") == [1169, 3797]
    trained.save(tmp_path / "t.json")
    with pytest.raises(ValueError, match="BPETokenizer, not a GPT2Tokenizer"):
        gpt.tokens.GPT2Tokenizer.load(tmp_path / "t.json")
