"""How does a docstring become part of a page? They are plain text, laid out for a terminal; here they become reST.

    indented lines     stay as they are
    name    meaning    in columns become a list of names
    `code`             becomes code

All other lines flow together, and what a function returns or raises begins a new paragraph.
"""

import inspect
import re
import sys
from itertools import groupby

from sphinx.application import Sphinx

from docs.book.split import THEORY


def escaped(text: str) -> str:
    """What would be markup in reST is text; code is code, and so is a "string"; a part of the guide is a link."""
    pieces = re.split(r"`([^`]+)`", re.sub(r'"[\w-]+"', r"`\g<0>`", text))
    plain = [re.sub(r"([\\*_|])", r"\\\1", piece) for piece in pieces[::2]]
    plain = [re.sub(r"DEEP\\_THEORY\\_GUIDE\.md, Part (\d+)", part_link, piece) for piece in plain]
    code = [f"``{piece}``" for piece in pieces[1::2]] + [""]
    return "".join(a + b for a, b in zip(plain, code, strict=True))


def part_link(mention: re.Match) -> str:
    page = THEORY[int(mention[1])].removesuffix(".md")
    return f":doc:`theory, part {mention[1]} </{page}>`"


def kinds(lines: list[str]) -> list[tuple[str, str]]:
    """(kind, line) for each line."""
    found = [("text", "")]
    for line in lines:
        before = found[-1][0]
        if not line.strip():
            kind = "blank"
        elif line.startswith("* "):
            kind = "list"
        elif re.match(r"\w+(, \w+)* {2,}\S", line):
            kind = "names"
        elif line.startswith(" "):
            kind = before if before in ("list", "names") else "as it is"
        else:
            kind = "text"
        found.append((kind, line))
    return found[1:]


def as_rest(lines: list[str]) -> list[str]:
    """The docstring in reST."""
    out = []
    for kind, group in groupby(kinds(lines), key=lambda pair: pair[0]):
        block = [line for _, line in group]
        if kind == "as it is":
            out += ["", "::", "", *("    " + line for line in block), ""]
        elif kind == "names":
            for line in block:
                name, meaning = ("", line) if line.startswith(" ") else re.split(" {2,}", line, maxsplit=1)
                out += [f"``{name}``"] * bool(name) + ["    " + escaped(meaning.strip())]
            out += [""]
        elif kind == "list":
            out += ["", *map(escaped_item, block), ""]
        else:
            for line in block:
                out += [""] * line.startswith(("Returns ", "Raises ")) + [escaped(line)]
    return out


def escaped_item(line: str) -> str:
    return line[:2] + escaped(line[2:])


def source_of(domain: str, info: dict[str, str]) -> str | None:
    """The link from a name to its line on the page of its source."""
    thing = sys.modules[info["module"]]
    for name in info["fullname"].split("."):
        thing = getattr(thing, name, None)
    try:
        line = inspect.getsourcelines(inspect.unwrap(thing))[1]
    except TypeError:  # a constant, or a property
        return None
    return f"../source/{info['module'].replace('.', '/')}.py.html#L-{line}"


def setup(app: Sphinx) -> dict:
    def process(app, what, name, thing, options, lines: list[str]) -> None:
        lines[:] = as_rest(lines)

    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
