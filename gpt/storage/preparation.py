"""How do many gigabytes of text become tokens? In parts, side by side, so that a part which is done stays done.

    sources -> parts of about 64 MiB, cut where the ids of both sides do not depend on the other
            -> a shard each, by whichever process is free -> the manifest, when all of them are there

Each step is written whole or not at all. A run that was killed is continued by the same command: shards that are
there and match their checksums are kept. What the folder holds is told in shards.py.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, pairwise, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from gpt.storage.shards import MANIFEST, PLAN, TOKENIZER, fingerprint
from gpt.storage.token_file import read_tokens, write_tokens
from gpt.storage.tokenizer_files import load_tokenizer
from gpt.support.files import atomic_file, lock, read_json, sha256, shortened
from gpt.support.processes import Map, workers
from gpt.tokens import END_OF_TEXT, GPT2_PATTERN, ByteLevelTokenizer, Tokenizer

PART = 2**26  # bytes of text for one shard: seconds of work, so that a kill costs little
CHUNK = 2**20  # bytes of text in memory at a time, in each process
WINDOW = 2**16  # bytes in which a place to cut is looked for at a time

# White space after something else. Bytes that are half a character when a window begins or ends inside one are
# decoded to U+DC80 ... U+DCFF, of which nobody knows what the whole is.
BREAK = re.compile("(?<=[^\\s\udc80-\udcff])(?=[ \t\r\n])")


@dataclass(frozen=True)
class Part:
    """Bytes start ... stop - 1 of a source, and the shard that is to hold their ids.

    last       whether the source ends here
    separator  the line that ends a document, or None
    tokenizer  the fingerprint of the tokenizer; its file lies beside the shard
    """

    source: Path
    start: int
    stop: int
    last: bool
    separator: str | None
    shard: Path
    tokenizer: str


def prepare(
    sources: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: str | Path,
    processes: int = 1,
    separator: str | None = None,
    part_bytes: int = PART,
) -> dict[str, Any]:
    """Write the ids of text files (UTF-8) to the shards of a folder, and return its manifest.

    The shards, one after another, are the ids of each whole source (special tokens in it mean what they say) and,
    after each source, the end-of-text id, if the tokenizer has one. With a `separator`, so does every line that is
    exactly this: the line itself is replaced. `processes` work side by side; each holds some megabytes of text.

    A folder that was begun is continued, if the sources, the tokenizer and the options are the same. Raises
    ValueError if they are not, if another process writes to the folder, if a source is empty or not UTF-8 (naming
    the byte), and for a tokenizer that cannot be used in parts; OSError if a file cannot be read or written, or if a
    process was killed.
    """
    paths, folder = [Path(source) for source in sources], Path(folder)
    _check(paths, tokenizer, processes, separator, part_bytes)
    parts = list(_parts(paths, folder, separator, part_bytes, fingerprint(tokenizer)))
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    try:
        with workers(min(processes, len(parts))) as map_:
            plan = {
                "tokenizer": fingerprint(tokenizer),
                "vocab_size": tokenizer.vocab_size,
                "separator": separator,
                "part_bytes": part_bytes,
                "sources": list(map_(_describe, paths)),
            }
            _begin(folder, plan, tokenizer)
            manifest = plan | _shards(parts, map_)
        _write_json(folder / MANIFEST, manifest)
        return manifest
    finally:
        held.release()


def _check(paths: Sequence[Path], tokenizer: Tokenizer, processes: int, separator: str | None, part_bytes: int) -> None:
    for name, value in {"processes": processes, "part_bytes": part_bytes}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if not paths:
        raise ValueError("sources must name at least one file, got none")
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is not a file")
        with open(path, "rb") as file:
            if file.read(4) in (b"", codecs.BOM_UTF8):
                raise ValueError(f"{path} is empty")
    if separator is not None:
        if not separator or "\n" in separator or "\r" in separator:
            raise ValueError(f"separator must be the content of a line and not empty, got {separator!r}")
        if tokenizer.end_of_text is None:
            raise ValueError("separator needs a tokenizer with an end-of-text token, to mark the end of a document")
    if isinstance(tokenizer, ByteLevelTokenizer):
        if tokenizer.pattern != GPT2_PATTERN:
            raise ValueError(f"a text can be cut into parts under GPT2_PATTERN only, not {tokenizer.pattern!r}")
        for token in tokenizer.special_tokens:
            if re.search(r"\S\s", token):
                raise ValueError(f"the special token {token!r} has white space inside, where a text may be cut")


# --- the plan


def _describe(path: Path) -> dict[str, Any]:
    return {"name": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}


def _begin(folder: Path, plan: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Write the plan and the tokenizer, or make sure that the plan of an earlier run is this one."""
    if (folder / PLAN).is_file():
        begun = read_json(folder / PLAN)
        for name, found, asked in _pairs(begun, plan):
            if found != asked:
                raise ValueError(
                    f"{folder} was begun with another {name}: {shortened(str(found), 100)} then, now "
                    f"{shortened(str(asked), 100)}; give the same as then, or another folder"
                )
    elif any(folder.glob("*.tokens")):
        raise ValueError(f"{folder} holds token files that are not of `prepare`: it has no {PLAN}; give another folder")
    tokenizer.save(folder / TOKENIZER)
    _write_json(folder / PLAN, plan)


def _pairs(begun: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, then, now) of all that must be the same, the sources one by one."""
    for name in [name for name in plan if name != "sources"]:
        yield name, begun.get(name), plan[name]
    sources = begun.get("sources")
    for i, (then, now) in enumerate(zip_longest(sources if isinstance(sources, list) else [], plan["sources"])):
        yield f"source {i + 1}", then, now


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


# --- where to cut


def _parts(
    paths: Sequence[Path], folder: Path, separator: str | None, part_bytes: int, tokenizer: str
) -> Iterator[Part]:
    number = count()
    for path in paths:
        cuts = places(path, separator, part_bytes)
        for start, stop in pairwise(cuts):
            shard = folder / f"{next(number):05}.tokens"
            yield Part(path, start, stop, stop == cuts[-1], separator, shard, tokenizer)


def places(path: Path, separator: str | None = None, part_bytes: int = PART) -> list[int]:
    """Where to cut a file, in bytes, with its start and its end: the first safe place after each `part_bytes`.

    They depend on the file alone, so a run that is continued, by however many processes, has the same parts. A
    stretch without a safe place is not cut.
    """
    # Before white space that follows something else, as in `encode_stream`; or, if lines end documents, after those.
    safe = BREAK if separator is None else re.compile(rf"(?<=\n){re.escape(separator)}\r?\n")
    size, cuts = path.stat().st_size, [0]
    with open(path, "rb") as file:
        for start in range(part_bytes, size, part_bytes):
            place = _first(safe, file, start, min(start + part_bytes, size))
            if place is not None and place < size:
                cuts.append(place)
    return [*cuts, size]


def _first(safe: re.Pattern[str], file: BinaryIO, start: int, stop: int) -> int | None:
    """Where the first match in these bytes of a file ends, looked for in one window after another."""
    for position in range(start, stop, WINDOW):
        file.seek(position)
        text = file.read(min(WINDOW, stop - position)).decode("utf-8", errors="surrogateescape")
        if match := safe.search(text):
            return position + len(text[: match.end()].encode("utf-8", errors="surrogateescape"))
    return None


# --- a part becomes a shard


def _shards(parts: Sequence[Part], map_: Map) -> dict[str, Any]:
    """Make all shards. How many tokens there are in all, and in each shard, where they come from, and a checksum."""
    shards = []
    total = sum(part.stop - part.start for part in parts)
    with tqdm(desc="encoding", total=total, unit="B", unit_scale=True, disable=None) as bar:
        for part, made in zip(parts, map_(_make, parts), strict=True):
            place = {"name": part.shard.name, "source": str(part.source), "start": part.start, "stop": part.stop}
            shards.append(place | made)
            bar.update(part.stop - part.start)
    return {"tokens": sum(shard["tokens"] for shard in shards), "shards": shards}


def _make(part: Part) -> dict[str, Any]:
    """Write the shard of a part, unless it is there and whole."""
    tokenizer = _load(part.shard.parent / TOKENIZER, part.tokenizer)
    with suppress(FileNotFoundError, ValueError):
        return _summary(part.shard, tokenizer.vocab_size)
    write_tokens(part.shard, _ids(part, tokenizer), tokenizer.vocab_size)
    return _summary(part.shard, tokenizer.vocab_size)


def _summary(shard: Path, vocab_size: int) -> dict[str, Any]:
    return {"tokens": len(read_tokens(shard, vocab_size)), "sha256": sha256(shard)}


@cache
def _load(path: Path, fingerprint: str) -> Tokenizer:
    """Once in each process. The fingerprint tells one tokenizer from another in a file of the same name."""
    return load_tokenizer(path)


def _ids(part: Part, tokenizer: Tokenizer) -> Iterator[int]:
    text = read_text(part.source, part.start, part.stop)
    ids = encoded(tokenizer, text if part.separator is None else _marked(text, part.separator))
    return chain(ids, [tokenizer.end_of_text] if part.last and tokenizer.end_of_text is not None else [])


def encoded(tokenizer: Tokenizer, text: Iterable[str]) -> Iterator[int]:
    """The ids of a text that comes in pieces. Special tokens in a text to learn from mean what they say."""
    if isinstance(tokenizer, ByteLevelTokenizer):
        return tokenizer.encode_stream(text, allowed_special="all")
    return chain.from_iterable(tokenizer.encode(chunk, allowed_special="all") for chunk in text)


def _marked(text: Iterable[str], separator: str) -> Iterator[str]:
    """The text with an end-of-text token in place of each line that is the separator."""
    line, held = re.compile(rf"^{re.escape(separator)}$\n?", re.MULTILINE), ""
    for chunk in text:
        whole, newline, held = (held + chunk).rpartition("\n")
        yield line.sub(END_OF_TEXT, whole + newline)
    yield line.sub(END_OF_TEXT, held)


def read_text(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """The text of bytes start ... stop - 1 of a file, by default of all, a chunk of it in memory at a time.

    As with `load_text`, a mark at the start of the file is no text and every line ends with "\\n" alone. Raises
    ValueError, naming the byte, if it is not UTF-8, and if the file ends before `stop`.
    """
    stop = path.stat().st_size if stop is None else stop
    encoding = codecs.getincrementaldecoder("utf-8" if start else "utf-8-sig")
    decoder, position = io.IncrementalNewlineDecoder(encoding(), translate=True), start
    with open(path, "rb") as file:
        file.seek(start)
        data = b"the first chunk is not read yet"
        while data:
            data = file.read(min(CHUNK, stop - position))
            position += len(data)
            try:
                yield decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = position - len(error.object) + error.start
                raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {place}") from error
    if position != stop:
        raise ValueError(f"{path} has changed: it ended at byte {position}, not {stop}")
