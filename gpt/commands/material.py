"""What a model learns from and is judged by: a text, or a token file that `python -m gpt data` wrote."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gpt.model import GPT
    from gpt.tokens import Tokenizer
    from gpt.training import Evaluation


@dataclass(frozen=True, eq=False)
class Material:
    """Token ids in two parts, the second of them held out.

    train, validation  ids [n] and [m]; `train` of a token file stays on the disk
    characters         how many characters the held-out ids represent
    tokenizer          what made the ids
    source             name, checksum and size, for the record of a run
    """

    train: Tensor | np.ndarray
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


def material(name: str, tokenizer: Tokenizer) -> Material:
    """A text by name or a file, or a token file that this tokenizer made. The last tenth is held out."""
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
