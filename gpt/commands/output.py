"""What several commands print: a line, a heading, a text while it is drawn, the scores of a model.

A terminal obeys some characters instead of showing them: ESC [2J clears it, others move the cursor, rename the window
or turn the line around. Names and texts come from strangers, so every line that is printed goes through `shown`.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt.generation import Sampling
    from gpt.model import GPT
    from gpt.tokens import Tokenizer
    from gpt.training import Evaluation


TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # classes of marks that reorder a line
LAYOUT = "\n\t"  # the control characters that a text may hold


def shown(text: str) -> str:
    """The text with each character that a terminal would obey spelled out: ESC is \\x1b. Line breaks and tabs stay."""
    return "".join(spelled(c) if is_obeyed(c) and c not in LAYOUT else c for c in text)


def is_obeyed(character: str) -> bool:
    """Whether it is a control character, a mark that reorders the line, or a byte that is no character."""
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in TURNS


def spelled(character: str) -> str:
    """A character by its number: \\x1b, U+202E. Python carries a byte that is not UTF-8 as U+DC80..DCFF: \\xff."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"U+{code:04X}"


def say(text: str = "") -> None:
    """Print, above a progress bar if there is one."""
    _print(shown(text))


def heading(text: str) -> None:
    _print(f"\n\033[1m{shown(text)}\033[0m" if sys.stdout.isatty() else f"\n{shown(text)}")


def _print(text: str = "", end: str = "\n") -> None:
    from tqdm import tqdm

    with standard_output():
        tqdm.write(text, file=sys.stdout, end=end)
        sys.stdout.flush()


@contextmanager
def standard_output() -> Iterator[None]:
    """Within, an OSError says that it was the output that could not be written; the system's own names no file."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"standard output could not be written ({error.strerror})") from error


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
    """Print the prompt and its continuation as it is drawn; return all of it.

    A terminal is given the text as `shown`. A file or a program behind a pipe gets the very characters.
    """
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
    as_printed = shown if sys.stdout.isatty() else str
    whole, pending = prompt, []
    _print(as_printed(prompt), end="")
    for token in drawn:
        pending.append(int(token))
        text = tokenizer.decode(pending)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else half a character: wait for its other bytes
            _print(as_printed(text), end="")
            whole, pending = whole + text, []
    _print()
    return whole
