"""Where does the text come from, and how does it become batches?

    text -> token ids, split into training and validation -> random windows of T + 1 tokens -> inputs and targets

A window's first T tokens are the inputs, its last T the targets: at every position, the next token. So one window
is T predictions (DEEP_THEORY_GUIDE.md, Parts 1 and 7). Text larger than memory goes to a token file (token_file.py)
or to a folder of them (shards.py), which are read through the same windows.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor
from tqdm import tqdm

from gpt.storage.shards import Shards
from gpt.support.checks import check_seed
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
    path = fetch(str(name_or_path)) if name_or_path in DOWNLOADS else Path(name_or_path)
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

    train: Int[Tensor, " n"]
    validation: Int[Tensor, " m"]
    train_characters: int
    validation_characters: int
    tokenizer: Tokenizer

    @classmethod
    def from_text(cls, text: str, tokenizer: Tokenizer, validation_fraction: float = 0.1) -> Corpus:
        """Cut off the end of the text for validation, then encode both parts.

        The cut counts characters, so that every tokenizer is judged by the same text. It is one cut and not many
        small ones, because neighbouring passages know too much about each other.
        Raises TypeError if text is not a str or tokenizer not a Tokenizer, ValueError if validation_fraction is not in
        (0, 1) or a part has fewer than 2 tokens (one to read, one to predict), and what the tokenizer raises for text
        it cannot encode.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"tokenizer must have all that gpt.Tokenizer lists, got {type(tokenizer).__name__}")
        if not isinstance(validation_fraction, float) or not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction must be a number in (0, 1), got {validation_fraction!r}")
        cut = int((1 - validation_fraction) * len(text))
        parts = {"training": text[:cut], "validation": text[cut:]}
        # Special tokens in a text to learn from mean what they say: an end of text is one.
        encoded = {name: tokenizer.encode(part, allowed_special="all") for name, part in parts.items()}
        for name, ids in encoded.items():
            if len(ids) < 2:
                raise ValueError(
                    f"text is too short: of its {len(text)} characters, {len(parts[name])} are for {name}, which give "
                    f"{len(ids)} tokens, but at least 2 are needed"
                )
        train, validation = (torch.tensor(ids, dtype=torch.long) for ids in encoded.values())
        return cls(train, validation, cut, len(text) - cut, tokenizer)


class RandomWindows:
    """Batches of windows at random places of `tokens`: integers [n], a tensor, or from `read_tokens` or `read_shards`.

    It draws from its own generator, so nothing else that draws random numbers changes the order of the data.
    With several processes, give all of them the same seed: each draws the places of the whole batch, world_size *
    batch_size of them, and takes its own rows. Together they see what one process with the whole batch would see.

    Ids are checked here, once, and not in every batch: they must be at least 0 and, if `vocab_size` is given, below
    it. What stays on the disk is not read through for this: `read_tokens` compares the vocabulary in its header.
    Raises TypeError if tokens is none of these, or not of integers; ValueError if it is not one-dimensional, has fewer
    than context_size + 1 tokens or an id out of range, or if a number is out of range.
    """

    def __init__(
        self,
        tokens: Integer[Tensor, " n"] | Integer[np.ndarray, " n"] | Shards,
        context_size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        vocab_size: int | None = None,
    ) -> None:
        sizes = {"context_size": context_size, "batch_size": batch_size, "world_size": world_size}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not isinstance(rank, int) or not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank!r}")
        check_seed("seed", seed)
        _check_ids(tokens, vocab_size)
        if len(tokens) < context_size + 1:
            raise ValueError(
                f"tokens must have at least context_size + 1 = {context_size + 1} tokens (inputs, and targets one "
                f"further), got {len(tokens)}"
            )
        self.tokens, self.context_size = tokens, context_size
        self.global_batch_size = world_size * batch_size
        self.rows = slice(rank * batch_size, (rank + 1) * batch_size)
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self) -> tuple[Int[Tensor, "batch T"], Int[Tensor, "batch T"]]:
        """inputs and targets, LongTensors; targets are the inputs one token later."""
        n_places = len(self.tokens) - self.context_size  # the last window ends with the last token
        starts = torch.randint(n_places, (self.global_batch_size,), generator=self.generator)[self.rows]
        places = starts[:, None] + torch.arange(self.context_size + 1)
        if isinstance(self.tokens, Tensor):
            windows = self.tokens[places].long()
        else:  # on the disk: only these places are read
            windows = torch.from_numpy(self.tokens[places.numpy()].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """The position in the sequence of batches: the state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue, bit for bit, where the loader was that gave `state`."""
        self.generator.set_state(state["generator"])


def _check_ids(tokens: Tensor | np.ndarray | Shards, vocab_size: int | None) -> None:
    """Are they ids, and of this vocabulary? What stays on the disk is only asked for its dtype and shape."""
    if not isinstance(tokens, Tensor | np.ndarray | Shards):
        raise TypeError(f"tokens must be a tensor, an array or Shards of integers, got {type(tokens).__name__}")
    if isinstance(tokens, Tensor):
        integers = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    else:
        integers = tokens.dtype.kind in "iu"
    if not integers:
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have the shape [n], got {list(tokens.shape)}")
    if vocab_size is not None and (not isinstance(vocab_size, int) or vocab_size < 1):
        raise ValueError(f"vocab_size must be an integer of at least 1, got {vocab_size!r}")
    if isinstance(tokens, np.memmap | Shards) or not len(tokens):
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        allowed = "at least 0" if vocab_size is None else f"in 0..{vocab_size - 1}"
        raise ValueError(f"tokens must be {allowed}, got {low}..{high}")
