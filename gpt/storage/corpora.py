"""Where does the text come from, and how does it become batches?

    text -> token ids, split into training and validation -> random windows of T + 1 tokens -> inputs and targets

A window's first T tokens are the inputs, its last T the targets: at every position, the next token. So one window
is T predictions (DEEP_THEORY_GUIDE.md, Parts 1 and 7). Text larger than memory goes to a token file, which is read
through the same windows.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import struct
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gpt.support.files import atomic_file
from gpt.tokens import Tokenizer

PYTHON_DOCS = "python-docs"  # the language reference that ships inside every Python; its text varies with the version

# name -> (address, SHA-256)
DOWNLOADS = {
    "tinyshakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "the-verdict": (
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
    ),
}

TIMEOUT = 30  # seconds without an answer


def fetch(name: str) -> Path:
    """The file of "tinyshakespeare" or "the-verdict": `<name>.txt` in the folder GPT_DATA_DIR, or else in ./data.

    Downloads it if it is missing. Raises ValueError for another name, and if the SHA-256 is wrong (a wrong download
    is not kept); ConnectionError if the network fails, saying what to do instead; OSError if the disk does.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"name must be one of {list(DOWNLOADS)}, which can be downloaded, got {name!r}")
    url, sha256 = DOWNLOADS[name]
    path = Path(os.environ.get("GPT_DATA_DIR") or "data") / f"{name}.txt"
    if path.exists():
        _check_sha256(path.read_bytes(), sha256, f"{path} (move it away to download it again)")
        return path
    try:
        content = _download(url)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"could not download {name} from {url} ({error}). Instead, put the file at {path}, or set GPT_DATA_DIR to "
            f'the folder that holds {name}.txt, or give a text file of your own, or use "{PYTHON_DOCS}", which needs '
            "no download."
        ) from error
    _check_sha256(content, sha256, f"{url} (nothing was kept)")
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def load_text(name_or_path: str | Path) -> str:
    """A text by name ("python-docs", "tinyshakespeare", "the-verdict"), or any file in UTF-8.

    Raises ValueError for a name that is no file either, an empty file, and one that is not UTF-8; and as `fetch`.
    """
    if name_or_path == PYTHON_DOCS:
        return "\n\n".join(topics[topic] for topic in sorted(topics))
    path = fetch(name_or_path) if name_or_path in DOWNLOADS else Path(name_or_path)
    if not os.path.isfile(path):  # unlike Path.is_file, it takes a string too long for a name as no file
        names = ", ".join([PYTHON_DOCS, *DOWNLOADS])
        given = str(name_or_path)[:80]
        raise ValueError(f"{given!r} is neither a file nor the name of a text; the names are {names}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: Windows may put a mark in front that is not text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text:
        raise ValueError(f"{path} is empty")
    return text


def _download(url: str) -> bytes:
    parts = []
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        # disable=None: no bar where the output is not a terminal
        with tqdm(desc=url.rsplit("/")[-1], total=size, unit="B", unit_scale=True, disable=None) as bar:
            while part := response.read(2**16):
                parts.append(part)
                bar.update(len(part))
    content = b"".join(parts)
    if size is not None and len(content) != size:
        raise ConnectionError(f"it ended after {len(content):,} of {size:,} bytes")
    return content


def _check_sha256(content: bytes, expected: str, source: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"wrong SHA-256 of {source}: expected {expected}, got {found} of {len(content):,} bytes")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as token ids, cut into a part to learn from and a part to be judged by.

    train, validation                        LongTensors of ids, each of its own length
    train_characters, validation_characters  how many characters these ids stand for: for bits per character
    tokenizer                                what made the ids
    """

    train: Tensor
    validation: Tensor
    train_characters: int
    validation_characters: int
    tokenizer: Tokenizer

    @classmethod
    def from_text(cls, text: str, tokenizer: Tokenizer, validation_fraction: float = 0.1) -> Corpus:
        """Cut off the end of the text for validation, then encode both parts.

        The cut counts characters, so that every tokenizer is judged by the same text. It is one cut and not many
        small ones, because neighbouring passages know too much about each other.
        Raises ValueError if validation_fraction is not in (0, 1) or a part has fewer than 2 tokens (one to read, one
        to predict), and what the tokenizer raises for text it cannot encode.
        """
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {validation_fraction}")
        cut = int((1 - validation_fraction) * len(text))
        parts = {"training": text[:cut], "validation": text[cut:]}
        # Special tokens in a text to learn from mean what they say: an end of text is one.
        ids = {name: torch.tensor(tokenizer.encode(part, allowed_special="all"), dtype=torch.long)
               for name, part in parts.items()}  # fmt: skip
        for name in parts:
            if len(ids[name]) < 2:
                raise ValueError(
                    f"text is too short: of its {len(text)} characters, {len(parts[name])} are for {name}, which give "
                    f"{len(ids[name])} tokens, but at least 2 are needed"
                )
        return cls(ids["training"], ids["validation"], cut, len(text) - cut, tokenizer)


class RandomWindows:
    """Batches of windows at random places of `tokens`: a LongTensor [n], or an array from `read_tokens`.

    It draws from its own generator, so nothing else that draws random numbers changes the order of the data.
    With several processes, give all of them the same seed: each draws the places of the whole batch, world_size *
    batch_size of them, and takes its own rows. Together they see what one process with the whole batch would see.
    Raises ValueError if tokens is not one-dimensional or has fewer than context_size + 1 tokens, or if a number is
    out of range.
    """

    def __init__(
        self,
        tokens: Tensor | np.ndarray,
        context_size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("context_size", context_size), ("batch_size", batch_size), ("world_size", world_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        if tokens.ndim != 1:
            raise ValueError(f"tokens must have the shape [n], got {list(tokens.shape)}")
        if len(tokens) < context_size + 1:
            raise ValueError(
                f"tokens must have at least context_size + 1 = {context_size + 1} tokens (inputs, and targets one "
                f"further), got {len(tokens)}"
            )
        self.tokens, self.context_size = tokens, context_size
        self.global_batch_size = world_size * batch_size
        self.rows = slice(rank * batch_size, (rank + 1) * batch_size)
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """inputs [batch, T] and targets [batch, T], LongTensors; targets are the inputs one token later."""
        n_places = len(self.tokens) - self.context_size  # the last window ends with the last token
        starts = torch.randint(n_places, (self.global_batch_size,), generator=self.generator)[self.rows]
        places = starts[:, None] + torch.arange(self.context_size + 1)
        if isinstance(self.tokens, Tensor):
            windows = self.tokens[places]
        else:  # a memory-mapped array: only these places are read from the file
            windows = torch.from_numpy(self.tokens[places.numpy()].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """The position in the sequence of batches: the state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue, bit for bit, where the loader stood that gave `state`."""
        self.generator.set_state(state["generator"])


# The header of a token file, little-endian, 32 bytes.
HEADER = struct.Struct("<8sIIQQ")
MAGIC, VERSION = b"GPTTOKEN", 1


def write_tokens(path: str | Path, ids: Iterable[int], vocab_size: int) -> int:
    """Write a stream of ids to a token file, holding only a small part of it in memory. Returns their number.

        bytes  0-7   the letters GPTTOKEN
               8-11  version of this layout, 1
              12-15  bytes per id: 2 if vocab_size is at most 65,536, else 4
              16-23  vocab_size
              24-31  number of ids
              32-    the ids, unsigned

    All numbers are little-endian. Raises TypeError for ids that are not integers, ValueError for an id outside
    0..vocab_size - 1 or no ids at all, OSError if the disk is full or read-only; then no file is made or changed.
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
