"""How is the repository's Markdown read? Fences, comments, headings and their anchors, links, and claims.

Guides, chapters and the book read it with these functions, so that they agree on where code ends and what GitHub calls
a heading. Markdown here is GitHub's: https://github.github.com/gfm.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

CODE = {"```python": "```", "<!-- python": "-->"}  # how a block of each kind opens and closes
OUTPUT = {"```text": "```", "<!-- printed -->": "<!-- /printed -->"}
LINK = r"(?P<label>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)"
KEPT = r"^\$\$.+?\$\$$|(?P<tick>`+)(?!`)(?P<code>.*?)(?<!`)(?P=tick)(?!`)|(?<![\\$])\$[^$\n]+\$"  # code and formulas
FORMULA = re.compile(r"^(?:\$\$.+?\$\$|```math\n.*?^```)$", re.M | re.S)  # one with lines of its own
WEB = re.compile(r"[a-z]+:")  # https:, mailto:


# --- parts


@dataclass(frozen=True)
class Part:
    """Some lines: "code", "output", "fence" (other code, only shown) or "prose", one line. `line` counts from 1."""

    kind: str
    line: int
    lines: list[str]  # without the marks around them
    mark: str = ""  # the line above them
    closed: bool = True

    @property
    def fenced(self) -> bool:
        return self.mark.strip().startswith("```")


def parts_of(text: str) -> list[Part]:
    """Cut a text into its parts."""
    parts, lines, i = [], text.splitlines(), 0
    while i < len(lines):
        mark = lines[i].strip()
        kind = "code" if mark in CODE else "output" if mark in OUTPUT else "fence" if mark[:3] == "```" else "prose"
        if kind == "prose":
            parts.append(Part(kind, i + 1, [lines[i]]))
            i += 1
            continue
        end = (CODE | OUTPUT).get(mark) or re.match("`+", mark)[0]
        stop = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == end), None)
        parts.append(Part(kind, i + 2, lines[i + 1 : stop], lines[i], closed=stop is not None))
        i = len(lines) if stop is None else stop + 1
    return parts


def prose(text: str) -> list[tuple[int, str]]:
    """The lines that are shown as text, with their numbers: prose, and what code prints as Markdown."""
    shown = [part for part in parts_of(text) if part.kind == "prose" or (part.kind == "output" and not part.fenced)]
    return [(part.line + i, line) for part in shown for i, line in enumerate(part.lines)]


def outside_fences(change: Callable[[str], str], text: str) -> str:
    """The text, with a change made to each stretch between two fences; comments belong to it."""
    lines, fenced = text.splitlines(keepends=True), set[int]()
    for part in parts_of(text):
        if part.fenced:
            fenced.update(range(part.line - 2, part.line + len(part.lines)))
    stretches = groupby(enumerate(lines), key=lambda numbered: numbered[0] in fenced)
    texts = [(inside, "".join(line for _, line in stretch)) for inside, stretch in stretches]
    return "".join(stretch if inside else change(stretch) for inside, stretch in texts)


def without_comments(text: str) -> str:
    """The text without its comments: they hold code that makes a table, and marks around what is printed."""
    return outside_fences(lambda stretch: re.sub("<!--.*?-->", "", stretch, flags=re.S), text)


def tags(text: str) -> list[str]:
    """The numbers of all claims in a text: 3.2 of \\tag{3.2}."""
    return re.findall(r"\\tag\{([^}]*)\}", text)


# --- headings


@dataclass(frozen=True)
class Heading:
    line: int  # counts from 1
    level: int
    title: str


def headings(text: str) -> list[Heading]:
    """Each heading. A line of code that begins with # is not one."""
    found = [(line, re.match(r"(#{1,6}) +(.*?)[ #]*$", text)) for line, text in prose(text)]
    return [Heading(line, len(match[1]), match[2]) for line, match in found if match]


def anchors(text: str, title: Callable[[str], str] = str) -> list[str]:
    """The names under which GitHub links to the headings of a text. `title` may change a heading before."""
    names, counts = [], dict[str, int]()
    for heading in headings(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title(heading.title)).strip().lower()
        name = "".join(c for c in words if c in " -_" or unicodedata.category(c)[0] in "LN").replace(" ", "-")
        counts[name] = counts.get(name, -1) + 1
        names.append(f"{name}-{counts[name]}" if counts[name] else name)
    return names


def places(file: Path) -> set[str]:
    """All names that a link to a guide or a notebook may end with: its headings', and those set with <a id="...">."""
    return _places(file, file.stat().st_mtime_ns)


@lru_cache
def _places(file: Path, _version: int) -> set[str]:
    text = file.read_text("utf-8")
    if file.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    own = [name for _, line in prose(text) for name in re.findall(r'<a (?:id|name)="([^"]+)"', line)]
    return {*anchors(text), *own}


# --- links


def locate(target: str, file: Path) -> tuple[Path, str]:
    """The file and the fragment that a link means which is written in `file`."""
    path, _, fragment = target.partition("#")
    return (file.parent / path if path else file), fragment


def problems_of_links(text: str, file: Path) -> list[str]:
    """Links in Markdown of `file` that lead to no file or heading; images without alt text. The web is not asked."""
    problems = []
    for kind, target, alt in _links(re.sub(r"`[^`]*`|\$[^$]*\$", "", text)):  # neither code nor mathematics is a link
        if kind == "image" and not alt.strip():
            problems.append(f"the image {target} has no alt text")
        found, fragment = locate(target, file)
        if WEB.match(target):
            continue
        if not found.is_file():
            problems.append(f"{target} leads to no file")
        elif fragment and found.suffix in (".md", ".ipynb") and fragment not in places(found):
            problems.append(f"{target} leads to no heading")
    return problems


def _links(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, target, words) of each image and link."""
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)", text):
        yield "image", target, alt
    without_images = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)  # an image may be the words of a link
    for words, target in re.findall(r"\[([^\[\]]*)\]\(([^)\s]+)[^)]*\)", without_images):
        yield "link", target, words
    for tag in re.findall(r"<img\b[^>]*>", text):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        yield "image", attributes.get("src", ""), attributes.get("alt", "")
