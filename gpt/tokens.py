"""What does the model predict, and in which units?

A language model predicts the next token: a number from a fixed vocabulary. Two ways from text to numbers:

* characters: a short vocabulary, long sequences, and no number for a character that was never seen;
* byte-level byte-pair encoding (BPE), GPT-2's way: start from the 256 bytes, so that every text can be
  written, then join the most frequent neighbouring pair into a new token, again and again (Gage 1994;
  Sennrich et al. 2016; Radford et al. 2019, section 2.2). Frequent words become one token, rare ones a few.

Training and a plain reference encoder are written out here; everyday encoding runs on tiktoken's engine,
which gives the same ids, faster. Files: gpt/storage/tokenizer_files.py. DEEP_THEORY_GUIDE.md, Part 1.
"""

from __future__ import annotations

import heapq
import math
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Protocol, Self, TypeVar, runtime_checkable

import regex
import tiktoken
import torch
from jaxtyping import Int
from torch import Tensor

Pair = tuple[bytes, bytes]
Piece = TypeVar("Piece", str, bytes)
Special = str | Collection[str]  # "all", or a set of special tokens

END_OF_TEXT = "<|endoftext|>"

# GPT-2 never merges across the borders of these pre-tokens (released code, encoder.py). In order of preference:
# an English contraction; a word, a number or a run of other characters, each with at most one space before it;
# white space, of which the last space is left to the word that follows. Contractions are lower-case only, an
# oversight that was kept.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# White space in masses for which the engine's regular expressions could run out of stack: it is cut out beforehand.
LONG = 100_000
LONG_SPACE = regex.compile(rf"(?<!\s)\s{{{LONG},}}+")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer. All three below have it; so may one of your own.

    vocab_size   ids are in 0 ... vocab_size - 1
    end_of_text  the id that ends a document, or None if there is none
    """

    vocab_size: int
    end_of_text: int | None

    def encode(self, text: str, *, allowed_special: Special = frozenset()) -> list[int]:
        """Text to ids. Special tokens are encoded as such only if allowed: a set of them, or "all"."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; a ValueError if one of them has no token."""
        ...

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each id: a token may be part of a character. A ValueError if one of them has no token."""
        ...

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load_tokenizer` reads."""
        ...


class _Loaded:
    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. A damaged file, or one of another kind of tokenizer, is a ValueError."""
        from gpt.storage.tokenizer_files import load_tokenizer

        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise ValueError(f"{path} holds a {type(tokenizer).__name__}, not a {cls.__name__}")
        return tokenizer


class CharTokenizer(_Loaded):
    """One token per character. `stoi` maps a character to its id, `itos` an id to its character."""

    def __init__(self, characters: Sequence[str]) -> None:
        if (
            not isinstance(characters, Sequence)
            or not characters
            or any(not isinstance(character, str) or len(character) != 1 for character in characters)
            or len(set(characters)) != len(characters)
        ):
            raise ValueError(f"characters must be different single characters, got {characters!r}")
        _check_text("".join(characters), "characters")
        self.itos = dict(enumerate(characters))
        self.stoi = {character: i for i, character in self.itos.items()}
        self.vocab_size = len(self.itos)
        self.end_of_text: int | None = None

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The vocabulary of a text: its distinct characters, sorted. An empty text is a ValueError."""
        _check_text(text)
        if not text:
            raise ValueError("text must hold at least one character, got an empty text")
        return cls(sorted(set(text)))

    def encode(self, text: str, *, allowed_special: Special = frozenset()) -> list[int]:
        """The id of each character. A ValueError names the characters that have none.

        There are no special tokens, so `allowed_special` is empty or "all", which makes no difference.
        """
        _check_text(text)
        _chosen(allowed_special, set(), "allowed_special")
        if unknown := sorted(set(text) - self.stoi.keys()):
            names = ", ".join(map(repr, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise ValueError(f"text holds characters outside the vocabulary of {self.vocab_size}: {names}")
        return [self.stoi[character] for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. An id outside 0 ... vocab_size - 1 is a ValueError."""
        return "".join(_look_up(self.itos, ids))

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The UTF-8 bytes of each id's character. An id outside 0 ... vocab_size - 1 is a ValueError."""
        return [character.encode() for character in _look_up(self.itos, ids)]

    def save(self, path: str | Path) -> None:
        """Write a JSON file, in full or not at all."""
        from gpt.storage.tokenizer_files import save_characters

        save_characters(self, path)


# --- byte-pair encoding: the algorithm


def pretokenize(text: str, pattern: str = GPT2_PATTERN) -> list[str]:
    """Cut a text into the pieces inside which pairs may merge. "Hello, world" -> ["Hello", ",", " world"].

    Raises ValueError for a pattern that is broken, drops characters, or takes a hundred times longer than GPT-2's.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a str, got {type(pattern).__name__}")
    if len(pattern) > 10_000:  # to compile a million takes half a minute
        raise ValueError(f"pattern must have at most 10,000 characters, got {len(pattern):,}")
    seconds = None if pattern == GPT2_PATTERN else 1 + len(text) / 100_000
    try:
        pieces = [match.group() for match in regex.finditer(pattern, text, timeout=seconds)]
    except (regex.error, RecursionError) as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    except TimeoutError:
        raise ValueError(f"pattern {pattern!r} takes too long for a text of {len(text):,} characters") from None
    if sum(map(len, pieces)) != len(text) or "" in pieces:
        raise ValueError(f"pattern {pattern!r} must match every character of a text, and nothing that is empty")
    return pieces


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


def ordinary_tokens(merges: Iterable[Pair]) -> list[bytes]:
    """The tokens that are not special: the 256 bytes, then what each merge makes."""
    return [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]


# --- byte-pair encoding: the tokenizers


class ByteLevelTokenizer(_Loaded, ABC):
    """What every byte-level tokenizer can do: encode with special tokens, as a stream, and from bytes; decode.

    token_bytes     id -> bytes, special tokens too
    special_tokens  string -> id of those that are one token each and are never cut or merged
    pattern         the pre-tokenisation
    ranks           bytes -> place in the order of merging, of all tokens that are not special
    vocab           bytes -> id, the inverse of token_bytes
    vocab_size      largest id + 1
    end_of_text     the id of "<|endoftext|>", or None
    """

    def __init__(
        self,
        token_bytes: Mapping[int, bytes],
        special_tokens: Mapping[str, int],
        pattern: str,
        ranks: Mapping[bytes, int],
    ) -> None:
        self.token_bytes, self.special_tokens, self.pattern = dict(token_bytes), dict(special_tokens), pattern
        self.vocab = {token: i for i, token in token_bytes.items()}
        self.vocab_size = max(token_bytes) + 1
        self.end_of_text: int | None = special_tokens.get(END_OF_TEXT)
        self._ranks_of_tokens = dict(ranks)

    @abstractmethod
    def _merge(self, engine: tiktoken.Encoding, text: str) -> list[int]:
        """Text to our ids by one of the two engines below."""

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        """tiktoken's engine, which cuts a text by GPT-2's pattern and merges."""
        return tiktoken.Encoding(
            "gpt2 cut", pat_str=GPT2_PATTERN, mergeable_ranks=self._ranks_of_tokens, special_tokens={}
        )

    @cached_property
    def _merger(self) -> tiktoken.Encoding:
        """The engine for one pre-token, of any length and kind: it merges and does not cut."""
        return tiktoken.Encoding("no cut", pat_str="(?s:.+)", mergeable_ranks=self._ranks_of_tokens, special_tokens={})

    def encode_ordinary(self, text: str) -> list[int]:
        """Text to ids without special tokens: their letters are encoded like any others."""
        _check_text(text)
        if self.pattern != GPT2_PATTERN:  # never handed to the engine, which has no limit of time
            return [i for word in pretokenize(text, self.pattern) for i in self._merge(self._merger, word)]
        ids, start = [], 0
        for space in _long_spaces(text):
            end = space.end() - (space.end() < len(text))  # its last character is left to the word that follows
            ids += self._merge(self._engine, text[start : space.start()])
            ids += self._merge(self._merger, text[space.start() : end])
            start = end
        return ids + self._merge(self._engine, text[start:])

    def encode(
        self, text: str, *, allowed_special: Special = frozenset(), disallowed_special: Special = "all"
    ) -> list[int]:
        """Text to ids. As in tiktoken, a special token in the text is a ValueError unless it is allowed.

        Special tokens out of `allowed_special` (a set, or "all") become their one id. Those out of
        `disallowed_special` (a set, or "all": all that are not allowed) are an error, because text from outside must
        not pass for a control token. What is in neither is read as letters: with `disallowed_special=()` all others.
        """
        ids = []
        for ordinary, special in self._cut_at_special(text, allowed_special, disallowed_special):
            ids += self.encode_ordinary(ordinary)
            ids += [self.special_tokens[special]] if special else []
        return ids

    def encode_stream(
        self, chunks: Iterable[str], *, allowed_special: Special = frozenset(), disallowed_special: Special = "all"
    ) -> Iterator[int]:
        """Yield the ids of the joined chunks, wherever these are cut, and hold only what is not yet settled.

        The options are those of `encode`; `disallowed_special=()` alone gives the ids of `encode_ordinary`.
        The text is settled up to the last place where white space follows something else: under GPT-2's pattern
        a pre-token always ends there, and neither side depends on the other. So what is held is about two chunks,
        or two of the longest stretch without such a place (a text without white space is held whole).
        """
        encode = partial(self.encode, allowed_special=allowed_special, disallowed_special=disallowed_special)
        return chain.from_iterable(map(encode, self._settled(chunks, allowed_special, disallowed_special)))

    def _settled(self, chunks: Iterable[str], allowed_special: Special, disallowed_special: Special) -> Iterator[str]:
        """The joined chunks, cut where the ids of both sides do not depend on the other."""
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
            for ordinary, special in self._cut_at_special(held, allowed_special, disallowed_special):
                start, end = end + len(ordinary), end + len(ordinary) + len(special)
                if start < cut < end:
                    cut = start
            yield held[:cut]
            held = held[cut:]
            unsettled = len(held)
        yield held

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes to ids. Stretches of UTF-8 give the ids of `encode_ordinary`, every other byte its own id."""
        text = data.decode("utf-8", errors="surrogateescape")  # byte 0x80 + i, if not UTF-8, becomes U+DC80 + i
        ids = []
        for i, part in enumerate(re.split("([\udc80-\udcff])", text)):
            ids += self.encode_ordinary(part) if i % 2 == 0 else [self.vocab[bytes([ord(part) - 0xDC00])]]
        return ids

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each id; a token may be part of a character. An id without a token is a ValueError."""
        return _look_up(self.token_bytes, ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of the ids. An id without a token is a ValueError."""
        return b"".join(self.pieces(ids))

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the ids. `errors` says what to do with half a character, as in `bytes.decode`."""
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def decode_with_offsets(self, ids: Iterable[int]) -> tuple[str, list[int]]:
        """The text of the ids and, for each id, the position of the character in which its token begins.

        As in tiktoken: a token that begins in the middle of a character has that character's position. Raises
        UnicodeDecodeError, a ValueError, if the bytes are not valid UTF-8.
        """
        pieces, offsets, n_characters = self.pieces(ids), [], 0
        for piece in pieces:
            continues = 0x80 <= piece[0] < 0xC0  # in UTF-8 all bytes of a character but the first are in this range
            offsets.append(max(0, n_characters - continues))
            n_characters += sum(not 0x80 <= byte < 0xC0 for byte in piece)
        return b"".join(pieces).decode("utf-8"), offsets

    def _cut_at_special(self, text: str, allowed: Special, disallowed: Special) -> Iterator[tuple[str, str]]:
        """Pairs (ordinary text, the special token after it); the last one has an empty special token."""
        _check_text(text)
        known = set(self.special_tokens)
        allowed_set = _chosen(allowed, known, "allowed_special")
        others = known - allowed_set
        disallowed_set = others if disallowed == "all" else _chosen(disallowed, known, "disallowed_special")
        if both := allowed_set & disallowed_set:
            raise ValueError(f"allowed_special and disallowed_special both hold {sorted(both)}")
        if forbidden := _any_of(disallowed_set).search(text):
            raise ValueError(
                f"text holds the special token {forbidden.group()!r}: name it in allowed_special to encode it as "
                "that token, or leave it out of disallowed_special to encode its letters"
            )
        pieces = [*_any_of(allowed_set).split(text), ""]
        return zip(pieces[::2], pieces[1::2], strict=True)


class BPETokenizer(ByteLevelTokenizer):
    """Byte-level BPE with given merges; `train` learns them and `from_gpt2_files` reads GPT-2's.

    merges          (left, right) pairs of bytes, in the order in which they were learned
    vocabulary      bytes -> id of the 256 bytes, the merged tokens and, if they have ids already, the special
                    tokens. None numbers them in this order: bytes, merges, special tokens.
    special_tokens  strings that are one token each and are never cut or merged
    pattern         the pre-tokenisation; it must match every character (`encode_stream` needs GPT-2's)

    Attributes: those of ByteLevelTokenizer, `merges`, and `ranks` (pair -> its place among the merges). A ValueError
    says which merge, id or special token is wrong.
    """

    def __init__(
        self,
        merges: Iterable[Pair],
        vocabulary: Mapping[bytes, int] | None = None,
        special_tokens: Collection[str] = (END_OF_TEXT,),
        pattern: str = GPT2_PATTERN,
    ) -> None:
        self.merges = [(left, right) for left, right in merges]
        pretokenize("", pattern)  # refuses a broken pattern, and one that matches what is empty
        self.ranks = _rank_merges(self.merges)
        ordinary = ordinary_tokens(self.merges)
        vocab = _number_tokens(ordinary, special_tokens, vocabulary)
        ids_of_special = {text: vocab[text.encode()] for text in special_tokens}
        ranks = {token: rank for rank, token in enumerate(ordinary)}
        super().__init__({i: token for token, i in vocab.items()}, ids_of_special, pattern, ranks)
        # The engine merges in the order of its ids, so it works on ranks; this table makes them our ids.
        self._id_of_rank = [vocab[token] for token in ordinary]

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        n_merges: int | None = None,
        special_tokens: Collection[str] = (END_OF_TEXT,),
        pattern: str = GPT2_PATTERN,
        *,
        vocab_size: int | None = None,
    ) -> BPETokenizer:
        """Learn merges from one text or several documents; V = 256 + merges + special tokens.

        Either `n_merges`, exactly that many: fewer pairs in the texts are a ValueError. Or `vocab_size`, the largest
        V allowed: texts with fewer pairs give a smaller vocabulary, as in other libraries. Special tokens in a text
        separate documents and are not learned from. Ties: see `learn_merges`. An empty text is a ValueError.
        """
        _check_special_tokens(special_tokens)
        limit = _merge_limit(n_merges, vocab_size, len(special_tokens))
        word_counts = count_words([texts] if isinstance(texts, str) else texts, special_tokens, pattern)
        if not word_counts:
            raise ValueError("texts must hold at least one character outside the special tokens")
        merges = [pair for pair, _ in islice(learn_merges(word_counts), limit)]
        if vocab_size is None and len(merges) < limit:
            raise ValueError(f"n_merges is {n_merges}, but texts have only {len(merges)} merges to learn")
        return cls(merges, special_tokens=special_tokens, pattern=pattern)

    @classmethod
    def from_gpt2_files(
        cls, encoder_json: str | Path, vocab_bpe: str | Path, special_tokens: Collection[str] = (END_OF_TEXT,)
    ) -> BPETokenizer:
        """Read files like the released GPT-2's: `encoder.json` (token -> id) and `vocab.bpe` (merges in order)."""
        from gpt.storage.tokenizer_files import read_gpt2_files

        return read_gpt2_files(encoder_json, vocab_bpe, special_tokens)

    def _merge(self, engine: tiktoken.Encoding, text: str) -> list[int]:
        return [self._id_of_rank[rank] for rank in engine.encode_ordinary(text)]

    def encode_reference(
        self, text: str, *, allowed_special: Special = frozenset(), disallowed_special: Special = "all"
    ) -> list[int]:
        """What `encode` computes, slowly and in plain sight: cut into pre-tokens, apply the merges to each.

        The two may differ on letters and digits that are newer than Unicode 14: tiktoken's engine and the `regex`
        library carry Unicode tables of different age.
        """
        ids = []
        for ordinary, special in self._cut_at_special(text, allowed_special, disallowed_special):
            for word in pretokenize(ordinary, self.pattern):
                ids += [self.vocab[token] for token in apply_merges(word.encode(), self.ranks)]
            ids += [self.special_tokens[special]] if special else []
        return ids

    def save(self, path: str | Path) -> None:
        """Write a JSON file, in full or not at all."""
        from gpt.storage.tokenizer_files import save_merges

        save_merges(self, path)

    def to_tiktoken(self, name: str) -> tiktoken.Encoding:
        """The same tokenizer as a `tiktoken.Encoding`. A ValueError if the ids do not follow the merges."""
        from gpt.storage.tokenizer_files import to_tiktoken

        return to_tiktoken(self, name)


class GPT2Tokenizer(ByteLevelTokenizer):
    """GPT-2's own tokenizer, 50,257 tokens, with the names of BPETokenizer and the common ones of tiktoken.

    tiktoken downloads the vocabulary (1.5 MB) once and keeps it. An OSError says what to do if that is not possible.
    """

    def __init__(self) -> None:
        try:
            engine = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:
            raise OSError(
                "GPT-2's vocabulary is missing and could not be downloaded. Connect to a network once, or set "
                f"TIKTOKEN_CACHE_DIR to a folder that holds tiktoken's copy of it. The cause: {error}"
            ) from error
        self.n_vocab, self.eot_token = engine.n_vocab, engine.eot_token  # tiktoken's names
        token_bytes = {i: engine.decode_single_token_bytes(i) for i in range(self.n_vocab)}
        ranks = {token: i for i, token in token_bytes.items() if i != self.eot_token}  # its ids follow its merges
        super().__init__(token_bytes, {END_OF_TEXT: self.eot_token}, GPT2_PATTERN, ranks)
        self._engine = engine

    def _merge(self, engine: tiktoken.Encoding, text: str) -> list[int]:
        return engine.encode_ordinary(text)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one id. An id without a token is a ValueError."""
        return self.pieces([token])[0]

    def save(self, path: str | Path) -> None:
        """Write a JSON file that names this tokenizer: its vocabulary is not copied."""
        from gpt.storage.tokenizer_files import save_name

        save_name(path)


def gpt2_tokenizer() -> GPT2Tokenizer:
    """GPT-2's own tokenizer. An OSError says what to do if its vocabulary cannot be downloaded."""
    return GPT2Tokenizer()


# --- tensors


def text_to_ids(text: str, tokenizer: Tokenizer) -> Int[Tensor, "1 T"]:
    """Text to a batch of one: a LongTensor."""
    return torch.tensor([tokenizer.encode(text)], dtype=torch.long)


def ids_to_text(ids: Int[Tensor, "*batch T"] | Sequence[int] | Sequence[Sequence[int]], tokenizer: Tokenizer) -> str:
    """Ids [T] or [1, T] to text. A larger batch, or an id without a token, is a ValueError."""
    tensor = torch.as_tensor(ids)
    if tensor.ndim == 2 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 1:
        raise ValueError(f"ids must have the shape [T] or [1, T], got {list(tensor.shape)}")
    if len(tensor) and tensor.is_floating_point():
        raise TypeError(f"ids must be integers, got {tensor.dtype}")
    return tokenizer.decode(tensor.tolist())


# --- checks


HIGH, LOW = "[\ud800-\udbff]", "[\udc00-\udfff]"  # the two halves of a surrogate pair


def _check_text(text: str, name: str = "text") -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        found = re.search(f"{HIGH}(?!{LOW})|(?<!{HIGH}){LOW}", text) or re.search(HIGH + LOW, text)
    else:
        return
    assert found is not None
    what = "half of a surrogate pair" if len(found.group()) == 1 else "a surrogate pair, not yet joined"
    raise ValueError(
        f"{name} is not valid Unicode: {found.group()!r} at position {found.start()} is {what}. "
        f'{name}.encode("utf-16", "surrogatepass").decode("utf-16", "replace") joins pairs and replaces halves'
    )


def _long_spaces(text: str) -> Iterator[regex.Match[str]]:
    """The runs of white space of at least LONG characters. One fills every half of that length where it lies, so that
    in an ordinary text a look at the start of each half is enough."""
    half = LONG // 2
    if any(text[i : i + half].isspace() for i in range(0, len(text) - half + 1, half)):
        yield from LONG_SPACE.finditer(text)


def _look_up(table: Mapping[int, Piece], ids: Iterable[int]) -> list[Piece]:
    try:
        return [table[i] for i in ids]
    except TypeError as error:  # no iterable, or one of things that are no ids
        raise TypeError(f"ids must be ints, one after another, got {type(ids).__name__} ({error})") from error
    except KeyError as error:
        raise ValueError(f"ids holds {error.args[0]}, which no token has; the largest is {max(table)}") from None


def _chosen(special: Special, known: set[str], name: str) -> set[str]:
    """The special tokens that an option of `encode` names; "all" names all that are known."""
    if special == "all":
        return known
    if isinstance(special, str) or not known.issuperset(special):
        raise ValueError(f'{name} must be "all" or a set out of {sorted(known)}, got {special!r}')
    return set(special)


def _merge_limit(n_merges: int | None, vocab_size: int | None, n_special: int) -> int:
    """How many merges to learn at most, however it was said."""
    if (n_merges is None) == (vocab_size is None):
        raise ValueError(f"give n_merges or vocab_size, one of the two, got {n_merges!r} and {vocab_size!r}")
    name, value, least = ("vocab_size", vocab_size, 256 + n_special) if n_merges is None else ("n_merges", n_merges, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value - least


def _any_of(tokens: Collection[str]) -> regex.Pattern:
    """A pattern that captures any of the tokens, the longest first; without tokens it matches nothing."""
    longest_first = sorted(tokens, key=len, reverse=True)
    nothing = r"\A(?!)"  # with the \A it is tried at the start of a text only, and not at every character
    return regex.compile("(" + ("|".join(map(regex.escape, longest_first)) or nothing) + ")")


def _check_special_tokens(tokens: Collection[str]) -> None:
    if (
        isinstance(tokens, str)
        or any(not isinstance(token, str) or not token for token in tokens)
        or len(set(tokens)) != len(tokens)
    ):
        raise ValueError(f"special_tokens must be a list of different, non-empty strings, got {tokens!r}")
    if (length := sum(map(len, tokens))) > 20_000:  # every text is searched for all of them
        raise ValueError(f"special_tokens must have at most 20,000 characters in all, got {length:,}")


def _rank_merges(merges: Sequence[Pair]) -> dict[Pair, int]:
    """Number the merges, and make sure that each can happen.

    The earlier merges must turn the bytes of a new token into exactly its two parts, as they do in every learned
    list. This rules out unknown parts and duplicates. It is also what lets the engine look for neighbours whose
    joined bytes are a token, where `apply_merges` looks for the pair itself.
    """
    ranks: dict[Pair, int] = {}
    made_of: dict[bytes, tuple[int, Pair]] = {bytes([byte]): (-1, (b"", b"")) for byte in range(256)}
    for rank, (left, right) in enumerate(merges):
        if not (isinstance(left, bytes) and isinstance(right, bytes)):
            raise TypeError(f"merges[{rank}] must be two bytes objects, got {(left, right)}")
        if not (left in made_of and right in made_of) or _merges_across(left, right, made_of, ranks):
            raise ValueError(
                f"merges[{rank}] = {(left, right)} never happens: those before it do not lead to this pair"
            )
        ranks[left, right] = rank
        made_of[left + right] = rank, (left, right)
    return ranks


def _merges_across(
    left: bytes, right: bytes, made_of: Mapping[bytes, tuple[int, Pair]], ranks: Mapping[Pair, int]
) -> bool:
    """Whether the bytes of two tokens, side by side, merge across the border between them before both are whole.

    Merges happen in the order of their ranks. So the token at the end of the left part grows through a fixed list of
    tokens, each from its rank on, and the token at the start of the right part likewise: two lists to go along
    together, instead of all the bytes. Of equal pairs, the one further left merges first.
    """
    ends, starts = _growth(left, 1, made_of), _growth(right, 0, made_of)
    end, start = ends.pop()[1], starts.pop()[1]
    while ends or starts:
        end_grows = ends[-1][0] if ends else math.inf
        start_grows = starts[-1][0] if starts else math.inf
        across = ranks.get((end, start), math.inf)
        if across < end_grows and across <= start_grows:
            return True
        if end_grows <= start_grows:
            end = ends.pop()[1]
        else:
            start = starts.pop()[1]
    return (end, start) in ranks


def _growth(token: bytes, side: int, made_of: Mapping[bytes, tuple[int, Pair]]) -> list[tuple[int, bytes]]:
    """(rank, token) of the token, of its part on that side (0: left, 1: right), of the part's part, down to a byte."""
    steps = []
    while token:
        rank, parts = made_of[token]
        steps.append((rank, token))
        token = parts[side]
    return steps


def _number_tokens(
    ordinary: Sequence[bytes], special_tokens: Collection[str], vocabulary: Mapping[bytes, int] | None
) -> dict[bytes, int]:
    """The id of every token: as in the vocabulary, or else in order. Special tokens without an id come last."""
    _check_special_tokens(special_tokens)
    special = [text.encode() for text in special_tokens]
    if duplicates := set(special).intersection(ordinary):
        raise ValueError(f"special_tokens must not be bytes or merged tokens as well: {sorted(duplicates)}")
    vocab = {token: i for i, token in enumerate(ordinary)} if vocabulary is None else dict(vocabulary)
    if missing := set(ordinary) - vocab.keys():
        raise ValueError(f"vocabulary lacks {len(missing)} bytes or merged tokens: {sorted(missing)[:10]}")
    if strange := vocab.keys() - {*ordinary, *special}:
        raise ValueError(f"vocabulary holds tokens neither merged nor named in special_tokens: {sorted(strange)[:10]}")
    if any(not isinstance(i, int) or i < 0 for i in vocab.values()) or len(set(vocab.values())) < len(vocab):
        raise ValueError("vocabulary must give each token its own integer id of at least 0")
    new_ids = count(max(vocab.values()) + 1)
    return vocab | {token: next(new_ids) for token in special if token not in vocab}
