"""How is a corpus kept that is larger than memory? As a folder of token files, its shards, which follow one another.

    plan.json        what the folder is to hold: the sources, the tokenizer; written first
    tokenizer.json   the tokenizer
    00000.tokens ... the ids, in order, each shard a token file (token_file.py)
    manifest.json    written last: the plan, and of each shard its place in the sources, its tokens, its checksum

`python -m gpt data prepare` writes it (preparation.py), `python -m gpt train` reads it. Each source ends with the
end-of-text id, if the tokenizer has one. Whoever reads does not notice the shards: they are one array of ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt.storage.token_file import read_tokens
from gpt.support.files import read_json, sha256
from gpt.tokens import ByteLevelTokenizer, Tokenizer

PLAN, MANIFEST, TOKENIZER = "plan.json", "manifest.json", "tokenizer.json"


class Shards:
    """Arrays of ids one after another, as if they were one array [n]; their values stay on the disk.

    A window may begin in one shard and end in the next, so what is drawn depends on the ids alone and not on how they
    were cut: `RandomWindows` gives the batches that it would give from one array. Raises ValueError without arrays.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        if not arrays:
            raise ValueError("arrays must hold at least one array of ids, got none")
        self.arrays, self.dtype = list(arrays), arrays[0].dtype
        self.ends = np.cumsum([len(array) for array in arrays])
        self.ndim, self.shape = 1, (len(self),)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The ids at these places, integers in 0 ... n - 1, in the shape of `places`."""
        shard_of = np.searchsorted(self.ends, places, side="right")
        ids = np.empty(places.shape, self.dtype)
        for i in np.unique(shard_of):
            here = shard_of == i
            ids[here] = self.arrays[i][places[here] - (self.ends[i] - len(self.arrays[i]))]
        return ids

    def cut(self, place: int) -> tuple[Shards, Shards]:
        """The ids before a place in 1 ... n - 1 and those from it on. Nothing is read."""
        i = int(np.searchsorted(self.ends, place, side="left"))  # the shard in which the first part ends
        array = self.arrays[i]
        inside = place - int(self.ends[i] - len(array))
        rest = [array[inside:], *self.arrays[i + 1 :]]
        return Shards([*self.arrays[:i], array[:inside]]), Shards([part for part in rest if len(part)])

    def read(self) -> np.ndarray:
        """All the ids, in memory."""
        return np.concatenate(self.arrays)


def read_shards(folder: str | Path, tokenizer: Tokenizer) -> Shards:
    """Open what `prepare` wrote. Every shard is read once, to compare its checksum: seconds for a gigabyte.

    Raises ValueError, naming the folder or the shard, if the preparation is not finished, was made with another
    tokenizer, or if a shard is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest["tokenizer"] != fingerprint(tokenizer):
        raise ValueError(f"{folder} was prepared with another tokenizer: {folder / TOKENIZER} holds the right one")
    return Shards([_read_shard(folder / shard["name"], shard, tokenizer.vocab_size) for shard in manifest["shards"]])


def read_manifest(folder: Path) -> dict[str, Any]:
    """What manifest.json holds. Raises ValueError if there is none, because the preparation is not finished."""
    if not (folder / MANIFEST).is_file():
        begun = "it is not finished; the same `data prepare` again continues it"
        unknown = "`data prepare` did not write it"
        raise ValueError(f"{folder} has no {MANIFEST}: {begun if is_prepared(folder) else unknown}")
    manifest = read_json(folder / MANIFEST)
    try:
        whole = all(isinstance(shard[name], str) for shard in manifest["shards"] for name in ("name", "sha256"))
    except (LookupError, TypeError):
        whole = False
    if not whole or not manifest["shards"] or "tokenizer" not in manifest:
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not list the shards and the tokenizer")
    return manifest


def is_prepared(folder: str | Path) -> bool:
    """Whether `data prepare` has begun to write this folder."""
    return (Path(folder) / PLAN).is_file() or (Path(folder) / MANIFEST).is_file()


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides the ids of a text: two tokenizers with one fingerprint give the same ids.

    GPT-2's own and a BPETokenizer with GPT-2's vocabulary have the same. It takes for granted that of two tokenizers
    with the same ids for the same tokens, both learned their merges in the same order.
    """
    if isinstance(tokenizer, ByteLevelTokenizer):
        table = sorted(tokenizer.token_bytes.items())
        parts: object = (table, sorted(tokenizer.special_tokens.items()), tokenizer.pattern)
    else:
        parts = tokenizer.pieces(range(tokenizer.vocab_size))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _read_shard(path: Path, shard: dict[str, Any], vocab_size: int) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing, a shard that {MANIFEST} names; give the same `data prepare` again")
    if sha256(path) != shard["sha256"]:
        read_tokens(path, vocab_size)  # says where it is damaged, if it is
        raise ValueError(f"{path} is whole, but another file than {MANIFEST} was written for")
    return read_tokens(path, vocab_size, verify=False)
