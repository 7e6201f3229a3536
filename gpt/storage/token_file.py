"""How is a text kept that is larger than memory? As a file of token ids, of which only the parts in use are read.

    bytes  0-7   the letters GPTTOKEN
           8-11  version of this layout, 2
          12-15  bytes per id: 2 if vocab_size is at most 65,536, else 4
          16-23  vocab_size
          24-31  number of ids
          32-    the ids, unsigned
           then  a checksum of 4 bytes, CRC-32, for every block of 2^20 bytes of all that comes before; the last
                 block may be shorter

All numbers are little-endian. A changed id is an id all the same: only a checksum tells, and one for each block says
where the damage is. Version 1 has no checksums; it can still be read. `RandomWindows` and `evaluate` take what
`read_tokens` gives.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt.support.files import atomic_file

HEADER = struct.Struct("<8sIIQQ")
MAGIC, VERSION = b"GPTTOKEN", 2
BLOCK = 2**20


def write_tokens(path: str | Path, ids: Iterable[int], vocab_size: int) -> int:
    """Write a stream of ids to a token file, holding only a small part of it in memory. Returns their number.

    Raises TypeError for ids that are not integers, ValueError for an id outside 0..vocab_size - 1 or no ids at all,
    OSError if the disk is full or read-only; then no file is made or changed.
    """
    if not 1 <= vocab_size <= 2**32:
        raise ValueError(f"vocab_size must be in 1..{2**32}, got {vocab_size}")
    width = 2 if vocab_size <= 2**16 else 4
    stream, count = iter(ids), 0
    with atomic_file(path) as temporary, open(temporary, "w+b") as file:
        file.write(bytes(HEADER.size))  # filled in when the number of ids is known
        while chunk := list(islice(stream, 2**16)):
            block = np.asarray(chunk)
            if block.dtype.kind not in "iu":
                raise TypeError(f"ids must be integers, got {block.dtype} after {count} ids")
            if block.min() < 0 or block.max() >= vocab_size:
                raise ValueError(f"ids must be in 0..{vocab_size - 1}, got {block.min()}..{block.max()}")
            file.write(block.astype(f"<u{width}").tobytes())
            count += len(block)
        if not count:
            raise ValueError("ids must hold at least one id, got none")
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, width, vocab_size, count))
        checksums = b"".join(_checksums(file, HEADER.size + width * count))
        file.write(checksums)
    return count


def read_tokens(path: str | Path, vocab_size: int | None = None, *, verify: bool = True) -> np.memmap:
    """Open a token file: an array [n] of unsigned integers whose values stay on the disk until they are used.

    Raises ValueError, naming the file, if it is no token file, is cut short or too long, or was made for another
    vocabulary than `vocab_size`, or does not match its checksums. To check these, the file is read once, a block at
    a time: seconds for a gigabyte. `verify=False` leaves that out; the model checks the ids that it is given.
    """
    path = Path(path)
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} is no token file: it does not begin with the header that write_tokens writes")
    _, version, width, own_vocab_size, count = HEADER.unpack(header)
    if version not in (1, VERSION):
        raise ValueError(f"{path} has version {version} of the layout, this program reads 1 and {VERSION}")
    if width not in (2, 4) or not count:
        raise ValueError(f"{path} is damaged: its header says {count} ids of {width} bytes")
    end, size = HEADER.size + width * count, path.stat().st_size
    expected = end if version == 1 else end + 4 * -(-end // BLOCK)
    if size != expected:
        raise ValueError(f"{path} is damaged: it has {size} bytes, but {count} ids of {width} bytes need {expected}")
    if vocab_size is not None and vocab_size != own_vocab_size:
        raise ValueError(f"{path} was made for a vocabulary of {own_vocab_size} tokens, not {vocab_size}")
    if verify and version != 1:
        _verify(path, end)
    return np.memmap(path, dtype=f"<u{width}", mode="r", offset=HEADER.size, shape=(count,))


def _checksums(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The checksum of each block of a file's first `end` bytes, after which the file stands at `end`."""
    file.seek(0)
    for start in range(0, end, BLOCK):
        yield zlib.crc32(file.read(min(BLOCK, end - start))).to_bytes(4, "little")


def _verify(path: Path, end: int) -> None:
    with open(path, "rb") as file:
        file.seek(end)
        stored = file.read()
        for i, checksum in enumerate(_checksums(file, end)):
            if checksum != stored[4 * i : 4 * i + 4]:
                raise ValueError(
                    f"{path} is damaged: bytes {i * BLOCK}..{min((i + 1) * BLOCK, end) - 1} do not match "
                    "their checksum; write the file again"
                )
