"""Token files: written as a stream, read a part at a time, refused when damaged: gpt/storage/token_file.py."""

from __future__ import annotations

import binascii
import math
import os
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from tests.comparing import close


@pytest.mark.parametrize(("vocab_size", "width"), [(65, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_a_token_file_holds_a_header_the_ids_and_a_checksum(gpt, tmp_path, vocab_size, width):
    ids = [0, 1, 64, vocab_size - 1, 7]
    assert gpt.token_file.write_tokens(tmp_path / "t.bin", iter(ids), vocab_size) == 5
    content = (tmp_path / "t.bin").read_bytes()
    assert content[:32] == struct.pack("<8sIIQQ", b"GPTTOKEN", 2, width, vocab_size, 5)
    assert content[32:-4] == b"".join(i.to_bytes(width, "little") for i in ids)
    assert content[-4:] == struct.pack("<I", binascii.crc32(content[:-4]))
    assert gpt.token_file.read_tokens(tmp_path / "t.bin", vocab_size).tolist() == ids
    assert os.listdir(tmp_path) == ["t.bin"]


def test_windows_from_a_token_file_equal_those_from_memory(gpt, tmp_path):
    ids = torch.randint(50257, (200_000,), generator=torch.Generator().manual_seed(0))  # more than one written chunk
    gpt.token_file.write_tokens(tmp_path / "t.bin", (i for i in ids.tolist()), 50257)
    tokens = gpt.token_file.read_tokens(tmp_path / "t.bin", 50257)
    assert isinstance(tokens, np.memmap)
    in_memory, on_disk = (gpt.corpora.RandomWindows(source, 64, 16, seed=2) for source in (ids, tokens))
    for _ in range(10):
        for expected, found in zip(in_memory.next_batch(), on_disk.next_batch(), strict=True):
            assert found.dtype == torch.int64
            close(found, expected)


def test_a_text_larger_than_memory_costs_only_its_windows(gpt, tmp_path):
    path = tmp_path / "t.bin"
    gpt.token_file.write_tokens(path, [5, 6, 7], 65)
    count = 2**35  # 64 GiB of ids, which a sparse file does not really take
    with open(path, "r+b") as file:
        file.seek(24)
        file.write(count.to_bytes(8, "little"))
        file.truncate(32 + 2 * count + 4 * (2**16 + 1))  # one checksum a MiB
    tracemalloc.start()
    try:
        inputs, _ = gpt.corpora.RandomWindows(gpt.token_file.read_tokens(path, verify=False), 16, 4).next_batch()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # measured: 8,000 bytes
    finally:
        tracemalloc.stop()
    close(inputs, torch.zeros(4, 16, dtype=torch.long))


def test_every_damage_to_the_length_or_the_header_of_a_token_file_is_found(gpt, tmp_path):
    path = tmp_path / "t.bin"
    gpt.token_file.write_tokens(path, range(10), 65)
    good = path.read_bytes()
    cut = [good[:n] for n in range(len(good))]
    changed = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(32)]
    for content in [*cut, good + b"\0", *changed]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.bin"):
            gpt.token_file.read_tokens(path)


@pytest.mark.parametrize("block", [1, 64, 2**20])
def test_a_flipped_bit_in_a_token_file_is_found_in_its_block(gpt, tmp_path, monkeypatch, block):
    monkeypatch.setattr(gpt.token_file, "BLOCK", block)
    path = tmp_path / "t.bin"
    gpt.token_file.write_tokens(path, range(100), 100)
    good = path.read_bytes()
    end = 32 + 200
    assert len(good) == end + 4 * math.ceil(end / block)
    assert gpt.token_file.read_tokens(path).tolist() == list(range(100))
    for i in range(32, len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 2]) + good[i + 1 :])
        start = (i // block if i < end else (i - end) // 4) * block
        with pytest.raises(ValueError, match=rf"t\.bin is damaged: bytes {start}\.\.{min(start + block, end) - 1} do"):
            gpt.token_file.read_tokens(path)
        assert len(gpt.token_file.read_tokens(path, verify=False)) == 100


def test_a_token_file_of_version_1_has_no_checksums_and_is_read(gpt, tmp_path):
    path = tmp_path / "t.bin"
    path.write_bytes(struct.pack("<8sIIQQ4H", b"GPTTOKEN", 1, 2, 65, 4, 3, 1, 4, 1))
    assert gpt.token_file.read_tokens(path, 65).tolist() == [3, 1, 4, 1]


def test_a_token_file_of_another_vocabulary_is_refused(gpt, tmp_path):
    gpt.token_file.write_tokens(tmp_path / "t.bin", range(10), 65)
    with pytest.raises(ValueError, match=r"t\.bin was made for a vocabulary of 65 tokens, not 50257"):
        gpt.token_file.read_tokens(tmp_path / "t.bin", 50257)


@pytest.mark.parametrize(
    ("ids", "vocab_size", "error", "message"),
    [
        ([0, 65], 65, ValueError, r"0\.\.64"),
        ([3, -1], 65, ValueError, r"0\.\.64"),
        ([2**40], 65, ValueError, r"0\.\.64"),
        ([1.5, 2.5], 65, TypeError, "ids must be integers"),
        ("ab", 65, TypeError, "ids must be integers"),
        ([], 65, ValueError, "at least one id"),
        ([1], 0, ValueError, "vocab_size"),
    ],
)
def test_bad_ids_leave_the_file_as_it_was(gpt, tmp_path, ids, vocab_size, error, message):
    path = tmp_path / "t.bin"
    gpt.token_file.write_tokens(path, range(10), 65)
    with pytest.raises(error, match=message):
        gpt.token_file.write_tokens(path, ids, vocab_size)
    assert gpt.token_file.read_tokens(path).tolist() == list(range(10))
    assert os.listdir(tmp_path) == ["t.bin"]


def test_a_stream_that_breaks_leaves_no_file(gpt, tmp_path):
    def stream():
        yield from range(100_000)
        raise RuntimeError("the tokenizer stopped")

    with pytest.raises(RuntimeError, match="the tokenizer stopped"):
        gpt.token_file.write_tokens(tmp_path / "t.bin", stream(), 100_000)
    assert os.listdir(tmp_path) == []
