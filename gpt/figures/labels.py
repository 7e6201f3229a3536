"""How is a token written on an axis? As one short, visible label without surprises."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import findfont, get_font

from gpt.figures.style import FONT

_MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "\\r"}
_LONGEST = 14  # just enough for <|endoftext|>


def token_labels(tokens: Sequence[str | bytes]) -> list[str]:
    """What to write for each token: one short, visible label without surprises.

    A space is ␣, a line break ⏎, a tab ⇥, nothing at all ∅. Control characters and bytes that are no text are \\x...,
    characters without a glyph in the figures' font are U+.... Labels over 14 characters end in an ellipsis.
    Labels of labels are the same labels.
    """
    return [_label(token) for token in tokens]


def _label(token: str | bytes) -> str:
    if not isinstance(token, str | bytes):
        raise TypeError(f"tokens must be strings or bytes, got {token!r}")
    text = token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token
    parts = [_visible(character) for character in text[: _LONGEST + 1]]  # no label shows more
    if sum(map(len, parts)) > _LONGEST:
        while sum(map(len, parts)) >= _LONGEST:
            parts.pop()
        parts.append("…")
    return "".join(parts) or "∅"


def _visible(character: str) -> str:
    code = ord(character)
    if character in _MARKS:
        return _MARKS[character]
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or 0x7F <= code < 0xA0:
        return f"\\x{code:02x}"
    printable = unicodedata.category(character)[0] in "LNPS"  # letters, numbers, punctuation, symbols
    return character if printable and code in _glyphs() else f"U+{code:04X}"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def labels_for(tokens: Sequence[str | bytes], count: int, what: str) -> list[str]:
    """The labels of tokens, of which there must be as many as `what`."""
    if len(tokens) != count:
        raise ValueError(f"tokens must be as many as the {what}, {count}, got {len(tokens)}")
    return token_labels(tokens)
