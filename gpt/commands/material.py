"""What a model learns from and is judged by: a text, or the tokens that `python -m gpt data` wrote."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gpt.model import GPT
    from gpt.storage.shards import Shards
    from gpt.tokens import Tokenizer
    from gpt.training import Evaluation

HELD_OUT = 2**17  # tokens, as many as in a tenth of a small text


@dataclass(frozen=True, eq=False)
class Material:
    """Token ids in two parts, the second of them held out.

    train, validation  ids [n] and [m]; `train` of a token file or a folder of shards stays on the disk
    characters         how many characters the held-out ids represent
    tokenizer          what made the ids
    source             name, checksum and size, for the record of a run
    """

    train: Tensor | np.ndarray | Shards
    validation: Tensor
    characters: int
    tokenizer: Tokenizer
    source: dict[str, Any]

    def score(self, model: GPT) -> Evaluation:
        """Of the whole held-out part. Its first token is only read, so its characters are not counted."""
        from gpt.training import evaluate

        first = self.tokenizer.decode(self.validation[:1].tolist())
        return evaluate(model, self.validation, self.characters - len(first))


def is_token_file(name: str) -> bool:
    from gpt.storage.token_file import MAGIC

    if not Path(name).is_file():
        return False
    with open(name, "rb") as file:
        head = file.read(len(MAGIC))
    return len(head) > 1 and MAGIC.startswith(head)  # also one of which only the first bytes are left


def holds_tokens(name: str) -> bool:
    """Whether it is a token file or a folder, and not a text."""
    return Path(name).is_dir() or is_token_file(name)


def default_tokenizer(name: str) -> str:
    """What --tokenizer is if it is not given: a folder of shards holds its own."""
    from gpt.storage.shards import read_manifest

    if Path(name).is_dir():
        read_manifest(Path(name))  # says what is wrong with another folder
        return name
    return "gpt2" if is_token_file(name) else "char"


def material(name: str, tokenizer: Tokenizer) -> Material:
    """A text by name or a file, or the tokens that this tokenizer made. The last tenth is held out."""
    if Path(name).is_dir():
        return from_shards(Path(name), tokenizer)
    if is_token_file(name):
        return from_tokens(Path(name), tokenizer)
    from gpt.storage.corpora import load_text

    return from_text(name, load_text(name), tokenizer)


def from_text(name: str, text: str, tokenizer: Tokenizer) -> Material:
    """The cut counts characters, so that every tokenizer is judged by the same text."""
    from gpt.storage.corpora import Corpus

    corpus = Corpus.from_text(text, tokenizer)
    source = {"name": name, "sha256": hashlib.sha256(text.encode()).hexdigest(), "characters": len(text)}
    return Material(corpus.train, corpus.validation, corpus.validation_characters, tokenizer, source)


def from_tokens(path: Path, tokenizer: Tokenizer) -> Material:
    """The cut counts tokens: the text itself is not read."""
    import numpy as np
    import torch

    from gpt.storage.token_file import read_tokens
    from gpt.support.files import sha256

    ids = read_tokens(path, tokenizer.vocab_size)
    cut = len(ids) * 9 // 10
    if min(cut, len(ids) - cut) < 2:
        raise ValueError(f"{path} is too short: {len(ids)} tokens, of which a tenth must be at least 2")
    validation = torch.from_numpy(ids[cut:].astype(np.int64))
    characters = len(tokenizer.decode(validation.tolist()))
    source = {"name": str(path), "sha256": sha256(path), "tokens": len(ids)}
    return Material(ids[:cut], validation, characters, tokenizer, source)


def from_shards(folder: Path, tokenizer: Tokenizer) -> Material:
    """The last tenth is held out, but at most HELD_OUT tokens, because it is kept in memory and scored often."""
    import numpy as np
    import torch

    from gpt.storage.shards import MANIFEST, read_shards
    from gpt.support.files import sha256

    ids = read_shards(folder, tokenizer)
    cut = max(len(ids) * 9 // 10, len(ids) - HELD_OUT)
    if min(cut, len(ids) - cut) < 2:
        raise ValueError(f"{folder} is too short: {len(ids)} tokens, of which a tenth must be at least 2")
    train, held_out = ids.cut(cut)
    validation = torch.from_numpy(held_out.read().astype(np.int64))
    characters = len(tokenizer.decode(validation.tolist()))
    source = {"name": str(folder), "sha256": sha256(folder / MANIFEST), "tokens": len(ids)}
    return Material(train, validation, characters, tokenizer, source)
