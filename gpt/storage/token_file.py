"""How is a text kept that is larger than memory? As a file of token ids, of which only the parts in use are read.

    bytes  0-7   the letters GPTTOKEN
           8-11  version of this layout, 1
          12-15  bytes per id: 2 if vocab_size is at most 65,536, else 4
          16-23  vocab_size
          24-31  number of ids
          32-    the ids, unsigned

All numbers are little-endian. `RandomWindows` and `evaluate` take what `read_tokens` gives.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from gpt.support.files import atomic_file

HEADER = struct.Struct("<8sIIQQ")
MAGIC, VERSION = b"GPTTOKEN", 1


def write_tokens(path: str | Path, ids: Iterable[int], vocab_size: int) -> int:
    """Write a stream of ids to a token file, holding only a small part of it in memory. Returns their number.

    Raises TypeError for ids that are not integers, ValueError for an id outside 0..vocab_size - 1 or no ids at all,
    OSError if the disk is full or read-only; then no file is made or changed.
    """
    if not 1 <= vocab_size <= 2**32:
        raise ValueError(f"vocab_size must be in 1..{2**32}, got {vocab_size}")
    width = 2 if vocab_size <= 2**16 else 4
    stream, count = iter(ids), 0
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
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
    return count


def read_tokens(path: str | Path, vocab_size: int | None = None) -> np.memmap:
    """Open a token file: an array [n] of unsigned integers whose values stay on the disk until they are used.

    Raises ValueError, naming the file, if it is no token file, is cut short or too long, or was made for another
    vocabulary than `vocab_size`. The ids themselves are not read here; the model checks those it is given.
    """
    path = Path(path)
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} is no token file: it does not begin with the header that write_tokens writes")
    _, version, width, own_vocab_size, count = HEADER.unpack(header)
    if version != VERSION:
        raise ValueError(f"{path} has version {version} of the layout, this program reads version {VERSION}")
    if width not in (2, 4) or not count:
        raise ValueError(f"{path} is damaged: its header says {count} ids of {width} bytes")
    expected, size = HEADER.size + width * count, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} is damaged: it has {size} bytes, but {count} ids of {width} bytes need {expected}")
    if vocab_size is not None and vocab_size != own_vocab_size:
        raise ValueError(f"{path} was made for a vocabulary of {own_vocab_size} tokens, not {vocab_size}")
    return np.memmap(path, dtype=f"<u{width}", mode="r", offset=HEADER.size, shape=(count,))
