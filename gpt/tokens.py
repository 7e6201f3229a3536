"""What does the model predict, and in which units?

A language model predicts the next token: a number from a fixed vocabulary. Two ways from text to numbers:

* characters: a short vocabulary, long sequences, and no number for a character that was never seen;
* byte-level byte-pair encoding (BPE), GPT-2's way: start from the 256 bytes, so that every text can be
  written, then join the most frequent neighbouring pair into a new token, again and again (Gage 1994;
  Sennrich et al. 2016; Radford et al. 2019, section 2.2). Frequent words become one token, rare ones a few.

Training and a plain reference encoder are written out here; everyday encoding runs on tiktoken's engine,
which gives the same ids, faster. DEEP_THEORY_GUIDE.md, Part 1.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import regex
import tiktoken
import torch
from torch import Tensor

from gpt.support.files import atomic_file, read_json

Pair = tuple[bytes, bytes]

END_OF_TEXT = "<|endoftext|>"

# GPT-2 never merges across the borders of these pre-tokens (released code, encoder.py). In order of preference:
# an English contraction; a word, a number or a run of other signs, each with at most one space before it;
# white space, of which the last space is left to the word that follows. Contractions are lower-case only, an
# oversight that was kept.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        ...



class _Saved:
    """Saving and loading, the same for both tokenizers: one JSON file, its "type" says which."""

    def save(self, path: str | Path) -> None:
        """Write a JSON file. On an error (a full disk, say) a file that was there before stays as it was."""
        content = json.dumps(self._to_json(), ensure_ascii=False, indent=1).encode()
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. A damaged file, or one of another kind, is a ValueError."""
        tokenizer = load_tokenizer(path)
        if type(tokenizer) is not cls:
            raise ValueError(f"{path} holds a {type(tokenizer).__name__}, not a {cls.__name__}")
        return tokenizer


class CharTokenizer(_Saved):
    """One token per character. `stoi` maps a character to its id, `itos` an id to its character."""

    def __init__(self, characters: Sequence[str]) -> None:
        if not characters or len(set(characters)) != len(characters) or any(len(c) != 1 for c in characters):
            raise ValueError(f"characters must be different single characters, got {characters!r}")
        self.itos = dict(enumerate(characters))
        self.stoi = {character: i for i, character in self.itos.items()}
        self.vocab_size = len(self.itos)

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The vocabulary of a text: its distinct characters, sorted. An empty text is a ValueError."""
        _check_text(text)
        if not text:
            raise ValueError("text must hold at least one character, got an empty text")
        return cls(sorted(set(text)))

    def encode(self, text: str) -> list[int]:
        """The id of each character. A ValueError names the characters that have none."""
        _check_text(text)
        if unknown := sorted(set(text) - self.stoi.keys()):
            names = ", ".join(map(repr, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise ValueError(f"text holds characters outside the vocabulary of {self.vocab_size}: {names}")
        return [self.stoi[character] for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. An id outside 0 ... vocab_size - 1 is a ValueError."""
        return "".join(_look_up(self.itos, ids))

    def _to_json(self) -> dict[str, Any]:
        return {"type": "char", "characters": list(self.stoi)}

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> CharTokenizer:
        return cls(data["characters"])


# --- byte-pair encoding: the algorithm


def pretokenize(text: str, pattern: str = GPT2_PATTERN) -> list[str]:
    """Cut a text into the pieces inside which pairs may merge. "Hello, world" -> ["Hello", ",", " world"]."""
    try:
        return [match.group() for match in regex.finditer(pattern, text)]
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error


def merge_pair(tokens: Sequence[bytes], pair: Pair) -> list[bytes]:
    """Join every occurrence of the pair, from left to right. a a a with (a, a) -> aa a."""
    merged = []
    i = 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append(tokens[i] + tokens[i + 1])
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def apply_merges(word: bytes, ranks: Mapping[Pair, int]) -> list[bytes]:
    """Encode one pre-token: while some neighbours may merge, merge the pair that was learned first."""
    tokens = [bytes([byte]) for byte in word]
    while len(tokens) > 1:
        pair = min(pairwise(tokens), key=lambda neighbours: ranks.get(neighbours, math.inf))
        if pair not in ranks:
            break
        tokens = merge_pair(tokens, pair)
    return tokens


def count_words(
    texts: Iterable[str], special_tokens: Collection[str] = (), pattern: str = GPT2_PATTERN
) -> Counter[bytes]:
    """How often each pre-token occurs, as UTF-8 bytes. Special tokens only separate."""
    counts: Counter[str] = Counter()
    for text in texts:
        _check_text(text)
        for part in _any_of(special_tokens).split(text)[::2]:
            counts.update(pretokenize(part, pattern))
    return Counter({word.encode(): count for word, count in counts.items()})


def learn_merges(word_counts: Mapping[bytes, int]) -> Iterator[tuple[Pair, int]]:
    """Yield the merges in the order in which BPE learns them, each with its count, until no pair is left.

    Each step takes the most frequent pair of neighbours; of equally frequent ones, the first in byte order. It
    touches only the words that hold the pair: a step costs what it changes, not the length of the text.
    """
    words = [[bytes([byte]) for byte in word] for word in word_counts]
    weights = list(word_counts.values())
    pair_counts: Counter[Pair] = Counter()
    words_with = defaultdict(set)
    for i, tokens in enumerate(words):
        for pair in pairwise(tokens):
            pair_counts[pair] += weights[i]
            words_with[pair].add(i)

    # The heap has the best pair on top. An entry whose count has changed since it was pushed is skipped when it
    # comes up: to look for it in the heap earlier would cost more.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap:
        negative_count, best = heapq.heappop(heap)
        if -negative_count != pair_counts[best]:
            continue
        yield best, -negative_count
        changes: Counter[Pair] = Counter()
        for i in words_with.pop(best):
            before, words[i] = words[i], merge_pair(words[i], best)
            for pair in pairwise(before):
                changes[pair] -= weights[i]
            for pair in pairwise(words[i]):
                changes[pair] += weights[i]
                words_with[pair].add(i)
        for pair, change in changes.items():
            pair_counts[pair] += change
            if change and pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))


# --- byte-pair encoding: the tokenizer


class BPETokenizer(_Saved):
    """Byte-level BPE with given merges; `train` learns them and `from_gpt2_files` reads GPT-2's.

    merges          (left, right) pairs of bytes, in the order in which they were learned
    vocabulary      bytes -> id of the 256 bytes, the merged tokens and, if they have ids already, the special
                    tokens. None numbers them in this order: bytes, merges, special tokens.
    special_tokens  strings that stand for one token and are never cut or merged
    pattern         the pre-tokenisation; it must match every character (`encode_stream` needs GPT-2's)

    Attributes: `merges`, `vocab` (bytes -> id, special tokens too), `special_tokens` (str -> id), `pattern`,
    `vocab_size` (largest id + 1). A ValueError says which merge, id or special token is wrong.
    """

    def __init__(
        self,
        merges: Iterable[Pair],
        vocabulary: Mapping[bytes, int] | None = None,
        special_tokens: Collection[str] = (END_OF_TEXT,),
        pattern: str = GPT2_PATTERN,
    ) -> None:
        self.merges = [(left, right) for left, right in merges]
        pretokenize("", pattern)  # refuses a broken pattern
        self.pattern = pattern
        self._ranks = _rank_merges(self.merges)
        ordinary = [bytes([byte]) for byte in range(256)] + [left + right for left, right in self.merges]
        self.vocab = _number_tokens(ordinary, special_tokens, vocabulary)
        self.special_tokens = {text: self.vocab[text.encode()] for text in special_tokens}
        self.vocab_size = max(self.vocab.values()) + 1
        self._token_of = {i: token for token, i in self.vocab.items()}
        # The engine merges in the order of its ids, so it works on ranks; this table makes them our ids.
        self._id_of_rank = [self.vocab[token] for token in ordinary]
        ranks = {token: rank for rank, token in enumerate(ordinary)}
        self._engine = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        n_merges: int,
        special_tokens: Collection[str] = (END_OF_TEXT,),
        pattern: str = GPT2_PATTERN,
    ) -> BPETokenizer:
        """Learn n_merges merges from one text or several documents; V = 256 + n_merges + special tokens.

        Special tokens in a text separate documents and are not learned from. Ties: see `learn_merges`. An empty
        text, or one that has no pair left before n_merges are learned, is a ValueError.
        """
        if not isinstance(n_merges, int) or n_merges < 0:
            raise ValueError(f"n_merges must be an integer of at least 0, got {n_merges!r}")
        _check_special_tokens(special_tokens)
        word_counts = count_words([texts] if isinstance(texts, str) else texts, special_tokens, pattern)
        if not word_counts:
            raise ValueError("texts must hold at least one character outside the special tokens")
        merges = [pair for pair, _ in islice(learn_merges(word_counts), n_merges)]
        if len(merges) < n_merges:
            raise ValueError(f"n_merges is {n_merges}, but texts have only {len(merges)} merges to learn")
        return cls(merges, special_tokens=special_tokens, pattern=pattern)

    @classmethod
    def from_gpt2_files(cls, encoder_json: str | Path, vocab_bpe: str | Path) -> BPETokenizer:
        """Read the released GPT-2's files: `encoder.json` (token -> id) and `vocab.bpe` (merges in order)."""
        lines = Path(vocab_bpe).read_text(encoding="utf-8").split("\n")
        data = {
            "pattern": GPT2_PATTERN,
            "special_tokens": [END_OF_TEXT],
            "merges": [line for line in lines if line and not line.startswith("#version")],
            "vocabulary": read_json(encoder_json),
        }
        return _build(cls, data, f"{encoder_json} with {vocab_bpe}")

    def encode(self, text: str, *, allowed_special: str | Collection[str] = frozenset()) -> list[int]:
        """Text to ids. As in tiktoken, a special token in the text is a ValueError unless it is allowed.

        `allowed_special` is a set of special tokens, or "all"; these become their one id. Text from outside must
        not pass for a control sign: use `encode_ordinary` for a text that only mentions special tokens.
        """
        ids = []
        for ordinary, special in self._cut_at_special(text, allowed_special):
            ids += self.encode_ordinary(ordinary)
            ids += [self.special_tokens[special]] if special else []
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Text to ids, with no eye for special tokens: their letters are encoded like any others."""
        _check_text(text)
        return [self._id_of_rank[rank] for rank in self._engine.encode_ordinary(text)]

    def encode_reference(self, text: str, *, allowed_special: str | Collection[str] = frozenset()) -> list[int]:
        """What `encode` computes, slowly and in plain sight: cut into pre-tokens, apply the merges to each.

        The two may differ on letters and digits that are newer than Unicode 14: tiktoken's engine and the `regex`
        library carry Unicode tables of different age.
        """
        ids = []
        for ordinary, special in self._cut_at_special(text, allowed_special):
            for word in pretokenize(ordinary, self.pattern):
                ids += [self.vocab[token] for token in apply_merges(word.encode(), self._ranks)]
            ids += [self.special_tokens[special]] if special else []
        return ids

    def encode_stream(
        self, chunks: Iterable[str], *, allowed_special: str | Collection[str] = frozenset()
    ) -> Iterator[int]:
        """Yield the ids of the joined chunks, wherever these are cut, and hold only what is not yet settled.

        The text is settled up to the last place where white space follows something else: under GPT-2's pattern
        a pre-token always ends there, and neither side depends on the other. So what is held is about two chunks,
        or two of the longest stretch without such a place (a text without white space is held whole).
        """
        if self.pattern != GPT2_PATTERN:
            raise ValueError(f"encode_stream needs GPT2_PATTERN, this tokenizer has the pattern {self.pattern!r}")
        longest_special = max(map(len, self.special_tokens), default=0)
        held, unsettled = "", 0
        for chunk in chunks:
            held += chunk
            if len(held) < 2 * unsettled:  # to search again at every small chunk would take quadratic time
                continue
            # A special token may have begun in the last characters: it must be whole before it is judged.
            border = regex.search(r"(?r)(?<=\S)\s", held, endpos=max(0, len(held) - longest_special))
            cut = border.start() if border else 0
            end = 0
            for ordinary, special in self._cut_at_special(held, allowed_special):
                start, end = end + len(ordinary), end + len(ordinary) + len(special)
                if start < cut < end:
                    cut = start
            yield from self.encode(held[:cut], allowed_special=allowed_special)
            held = held[cut:]
            unsettled = len(held)
        yield from self.encode(held, allowed_special=allowed_special)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of the ids. An id that the vocabulary lacks is a ValueError."""
        return b"".join(_look_up(self._token_of, ids))

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the ids. `errors` says what to do with half a character, as in `bytes.decode`."""
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def to_tiktoken(self, name: str) -> tiktoken.Encoding:
        """The same tokenizer as a `tiktoken.Encoding`. A ValueError if the ids do not follow the merges."""
        if self._id_of_rank[256:] != sorted(self._id_of_rank[256:]):
            raise ValueError("tiktoken merges in the order of the ids, and these ids do not follow the merges")
        ids = {self._token_of[i]: i for i in self._id_of_rank}
        return tiktoken.Encoding(name, pat_str=self.pattern, mergeable_ranks=ids, special_tokens=self.special_tokens)

    def _cut_at_special(self, text: str, allowed: str | Collection[str]) -> Iterator[tuple[str, str]]:
        """Pairs (ordinary text, the special token after it); the last one has an empty special token."""
        _check_text(text)
        known = set(self.special_tokens)
        if allowed != "all" and (isinstance(allowed, str) or not known.issuperset(allowed)):
            raise ValueError(f'allowed_special must be "all" or a set out of {sorted(known)}, got {allowed!r}')
        allowed = known if allowed == "all" else set(allowed)
        if forbidden := _any_of(known - allowed).search(text):
            raise ValueError(
                f"text holds the special token {forbidden.group()!r}: name it in allowed_special to encode it as "
                "that token, or use encode_ordinary to encode its letters"
            )
        pieces = [*_any_of(allowed).split(text), ""]
        return zip(pieces[::2], pieces[1::2], strict=True)

    def _to_json(self) -> dict[str, Any]:
        return {
            "type": "bpe",
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
            "merges": [f"{_spell(left)} {_spell(right)}" for left, right in self.merges],
            "vocabulary": {_spell(self._token_of[i]): i for i in self._id_of_rank} | self.special_tokens,
        }

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> BPETokenizer:
        special = data["special_tokens"]
        vocabulary = {t.encode() if t in special else _unspell(t): i for t, i in data["vocabulary"].items()}
        merges = [tuple(map(_unspell, line.split(" "))) for line in data["merges"]]
        return cls(merges, vocabulary, special, data["pattern"])


# --- GPT-2's own, files, tensors


def gpt2_tokenizer() -> tiktoken.Encoding:
    """GPT-2's own tokenizer, 50,257 tokens. tiktoken downloads its vocabulary (1.5 MB) once and keeps it.

    An OSError says what to do if that is not possible.
    """
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        raise OSError(
            "GPT-2's vocabulary is not at hand and could not be downloaded. Connect to a network once, or set "
            f"TIKTOKEN_CACHE_DIR to a folder that holds tiktoken's copy of it. The cause: {error}"
        ) from error


def load_tokenizer(path: str | Path) -> CharTokenizer | BPETokenizer:
    """Read what `save` of either tokenizer wrote. A damaged or foreign file is a ValueError."""
    data = read_json(path)
    kind = {"char": CharTokenizer, "bpe": BPETokenizer}.get(str(data.get("type")))
    if kind is None:
        raise ValueError(f'{path} is no tokenizer: its "type" must be "char" or "bpe", got {data.get("type")!r}')
    return _build(kind, data, path)


def text_to_ids(text: str, tokenizer: Any) -> Tensor:
    """Text to a batch of one: LongTensor [1, T]. Any tokenizer with `encode` will do, tiktoken's too."""
    return torch.tensor([tokenizer.encode(text)], dtype=torch.long)


def ids_to_text(ids: Tensor | Sequence[int], tokenizer: Any) -> str:
    """Ids [T] or [1, T] to text. A larger batch, or an id without a token, is a ValueError."""
    ids = torch.as_tensor(ids)
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"ids must have the shape [T] or [1, T], got {list(ids.shape)}")
    if len(ids) and ids.is_floating_point():
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    try:
        return tokenizer.decode(ids.tolist())
    except (KeyError, OverflowError) as error:  # tiktoken's errors for it
        raise ValueError(f"ids holds an id that the vocabulary lacks: {error}") from error


def _byte_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in GPT-2's files.

    `vocab.bpe` is a text file with a space between the parts of a merge, so every byte needs a visible spelling.
    Bytes that are visible characters of Latin-1 stand for themselves. The 68 others are given the characters from
    256 on, in order: the space (32) becomes "Ġ", the newline (10) "Ċ".
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


_CHARACTER_OF = _byte_alphabet()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


def _spell(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _unspell(spelling: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in spelling)


def _build(kind: type, data: dict[str, Any], source: object) -> Any:
    try:
        return kind._from_json(data)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} is damaged: {type(error).__name__}: {error}") from error


# --- checks


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r} at position {error.start}"
        raise ValueError(f"text is not valid Unicode: {half} is half of a surrogate pair") from None


def _look_up(table: Mapping[int, Any], ids: Iterable[int]) -> list[Any]:
    try:
        return [table[i] for i in ids]
    except KeyError as error:
        raise ValueError(f"ids holds {error.args[0]}, which no token has; the largest is {max(table)}") from None


def _any_of(tokens: Collection[str]) -> regex.Pattern:
    """A pattern that captures any of the tokens, the longest first; without tokens it matches nothing."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.compile("(" + ("|".join(map(regex.escape, longest_first)) or "(?!)") + ")")


def _check_special_tokens(tokens: Collection[str]) -> None:
    if (
        isinstance(tokens, str)
        or any(not isinstance(token, str) or not token for token in tokens)
        or len(set(tokens)) != len(tokens)
    ):
        raise ValueError(f"special_tokens must be a list of different, non-empty strings, got {tokens!r}")


def _rank_merges(merges: Sequence[Pair]) -> dict[Pair, int]:
    """Number the merges, and make sure that each can happen.

    The earlier merges must turn the bytes of a new token into exactly its two parts, as they do in every learned
    list. This rules out unknown parts and doubles. It is also what lets the engine look for neighbours whose
    joined bytes are a token, where `apply_merges` looks for the pair itself.
    """
    ranks: dict[Pair, int] = {}
    for rank, (left, right) in enumerate(merges):
        if not (isinstance(left, bytes) and isinstance(right, bytes)):
            raise TypeError(f"merges[{rank}] must be two bytes objects, got {(left, right)}")
        if (parts := apply_merges(left + right, ranks)) != [left, right]:
            raise ValueError(f"merges[{rank}] = {(left, right)} never happens: those before it give {parts}")
        ranks[left, right] = rank
    return ranks


def _number_tokens(
    ordinary: Sequence[bytes], special_tokens: Collection[str], vocabulary: Mapping[bytes, int] | None
) -> dict[bytes, int]:
    """The id of every token: as in the vocabulary, or else in order. Special tokens without an id come last."""
    _check_special_tokens(special_tokens)
    special = [text.encode() for text in special_tokens]
    if doubles := set(special).intersection(ordinary):
        raise ValueError(f"special_tokens must not be bytes or merged tokens as well: {sorted(doubles)}")
    vocab = {token: i for i, token in enumerate(ordinary)} if vocabulary is None else dict(vocabulary)
    if missing := set(ordinary) - vocab.keys():
        raise ValueError(f"vocabulary lacks {len(missing)} bytes or merged tokens: {sorted(missing)[:10]}")
    if strange := vocab.keys() - {*ordinary, *special}:
        raise ValueError(f"vocabulary holds tokens neither merged nor in special_tokens: {sorted(strange)[:10]}")
    if any(not isinstance(i, int) or i < 0 for i in vocab.values()) or len(set(vocab.values())) < len(vocab):
        raise ValueError("vocabulary must give each token its own integer id of at least 0")
    for token in special:
        vocab.setdefault(token, max(vocab.values()) + 1)
    return vocab
