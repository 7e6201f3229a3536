"""What several commands print: a line, a heading, a text while it is drawn, the scores of a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt.generation import Sampling
    from gpt.model import GPT
    from gpt.tokens import Tokenizer
    from gpt.training import Evaluation


def say(text: str = "") -> None:
    """Print, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def heading(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


@contextmanager
def optional_figures(what: str) -> Iterator[None]:
    """Within, a missing matplotlib leaves out the figures and is said in a line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        say(f"no {what}: {error}")


def scores(score: Evaluation) -> str:
    return (
        f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_character:.3f} bits per character"
    )


def stream_text(model: GPT, tokenizer: Tokenizer, prompt: str, n_tokens: int, sampling: Sampling, seed: int) -> str:
    """Print the prompt and its continuation as it is drawn; return all of it."""
    import torch

    from gpt.generation import stream

    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("prompt must not be empty: the model needs a token to start from")
    generator = torch.Generator().manual_seed(seed)
    drawn = stream(
        model,
        torch.tensor([ids]),
        n_tokens,
        eos_token=tokenizer.end_of_text,
        generator=generator,
        vocab_size=min(tokenizer.vocab_size, model.config.vocab_size),
        **asdict(sampling),
    )
    shown = prompt
    print(prompt, end="", flush=True)
    for token in drawn:
        ids.append(int(token))
        text = tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else half a character: wait for its other bytes
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(flush=True)
    return shown
