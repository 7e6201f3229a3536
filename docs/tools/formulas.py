"""Does every formula reach the typesetter as it is written? Four readers take Markdown apart, each in its own way.

    GitHub      reads CommonMark first: emphasis, lists, escapes. What is left of a formula goes to MathJax, which
                refuses some macros. A model: markdown-it-py for the first pass, a list for the second
    JupyterLab  takes formulas out first, from dollar to dollar, never over a blank line. A model
    VS Code     reads formulas together with Markdown. A model: the rule for dollars in mdit-py-plugins
    the book    MyST, as `make book` runs it

What arrives in the book and in VS Code is set by KaTeX: docs/book/formulas.py asks it. GitHub's model is strict: what
was seen to break there counts as broken. Two things pass although CommonMark alone would change them, a double
backslash at the end of a line and the fence called math.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from docs.tools.markdown import outside_fences, parts_of

INLINE = r"(?<![\\$])\$[^$\n]+\$"
DOLLARS = re.compile(rf"\$\$.+?\$\$|{INLINE}", re.S)
REFUSED = re.compile(
    r"\\(?:operatorname|(?:re)?newcommand|def|let|require|href|class|style|cssId|unicode|mbox|phantom|bbox)(?![a-zA-Z])"
)
REASONS = {  # what a broken formula holds, and what that does; the first that is found is named
    r"\\(?:\\(?!\n)|[!-/:-@\[\]^-`{-~])": "Markdown takes the backslash from {found}",
    r"\n *(?:[-+*]|\d+[.)]) ": "a line that begins with {found} begins a list",
    r"\n *(?:=+|-+|#+ .*)(?=\n)": "the line {found} makes a heading",
    r"\n *\n": "a blank line ends it",
    r"[^\w\s\\]_(?=\S)|\s_(?=\S)": "a pair of _ is taken for emphasis; a blank behind {found} helps",
    r"^\$ | \$$": "a blank touches its dollar from inside",
    r"^[^{]*\{[^}]*$": "its braces do not balance",
    r"\*": "{found} is taken for emphasis; \\ast is not",
}


@dataclass(frozen=True)
class Formula:
    """A formula with its dollars, or in a fence without any; `line` counts from 1."""

    line: int
    tex: str
    around: str = ""  # itself between the characters next to it

    @property
    def display(self) -> bool:
        return not self.tex.startswith("$") or self.tex.startswith("$$")

    @property
    def bare(self) -> str:
        return self.tex.strip("$")


def without_code(text: str) -> str:
    """The text in which code, fenced or in a line, has become blanks: each character keeps its place."""
    lines = text.splitlines(keepends=True)
    for part in parts_of(text):
        if part.fenced:
            for i in range(part.line - 2, min(part.line + len(part.lines), len(lines))):
                lines[i] = blank(lines[i])
    code = re.compile(r"(?<![\\`])(`+)(?!`)(?:(?!\n\n).)*?(?<!`)\1(?!`)", re.S)
    return code.sub(lambda found: blank(found[0]), "".join(lines))


def blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def formulas(text: str) -> list[Formula]:
    """All formulas that a reader should see, in order: neither code nor comments hold any."""
    shown = re.sub("<!--.*?-->", lambda comment: blank(comment[0]), without_code(text), flags=re.S)
    found = []
    for match in DOLLARS.finditer(shown):
        around = shown[max(match.start() - 1, 0) : match.end() + 1]
        found.append(Formula(shown.count("\n", 0, match.start()) + 1, match[0], around))
    fences = [part for part in parts_of(text) if part.mark.strip() == "```math"]
    return sorted([*found, *(Formula(part.line, "\n".join(part.lines)) for part in fences)], key=lambda one: one.line)


# --- readers: each takes a text and yields the formulas, with their dollars, that arrive


def github(text: str) -> Iterator[str]:
    """CommonMark first; then dollars in what became one run of plain text, not touched by letters or digits."""
    kept = outside_fences(lambda stretch: re.sub(r"\\\\$", r"\\\\\\\\", stretch, flags=re.M), text)
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(kept):
        if token.type == "inline":
            plain = "".join(_plain(child) for child in token.children or [])
            yield from (match[0] for match in re.finditer(rf"\$\$.+?\$\$|(?<!\w){INLINE}(?!\w)", plain, re.S))


def _plain(token: Token) -> str:
    breaks = {"softbreak": "\n", "hardbreak": "\n"}
    return token.content if token.type == "text" else breaks.get(token.type, "\0")


def jupyterlab(text: str) -> Iterator[str]:
    """From dollar to dollar, where braces balance and no blank line comes between."""
    shown, start, depth = without_code(text), None, 0
    for piece in re.finditer(r"\$\$?|\\[{}$]|[{}]|\n\s*\n", shown):
        if start is None:
            start, depth = (piece, 0) if piece[0] in ("$", "$$") else (None, 0)
        elif piece[0] == start[0] and depth == 0:
            yield shown[start.start() : piece.end()]
            start = None
        elif not piece[0].strip():
            start = None
        else:
            depth = max(0, depth + {"{": 1, "}": -1}.get(piece[0], 0))


def vscode(text: str) -> Iterator[str]:
    """Dollars with no blank inside them; what touches them from outside is looked at for all readers at once."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, allow_labels=False, allow_space=False, double_inline=True)
    yield from _math(parser.parse(text))


def book(text: str) -> Iterator[str]:
    """As docs/book/conf.py sets MyST."""
    config = MdParserConfig(enable_extensions={"dollarmath", "amsmath"}, dmath_double_inline=True)
    yield from _math(create_md_parser(config, RendererHTML).parse(text))


def _math(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type.startswith("math_"):
            dollars = "$" if token.type == "math_inline" else "$$"
            yield f"{dollars}{token.content}{dollars}"
        yield from _math(token.children or [])


READERS: dict[str, Callable[[str], Iterator[str]]] = {
    "GitHub": github, "JupyterLab": jupyterlab, "VS Code": vscode, "the book": book
}  # fmt: skip


# --- what breaks


def problems(text: str, name: str) -> list[str]:
    """The formulas of a text that break on their way: "name:line: the reader, the formula and the reason"."""
    found = formulas(text)
    dollars = [formula for formula in found if formula.tex.startswith("$")]
    broken = {}  # formula -> the reason, and those who break it
    for formula in found:
        if refused := REFUSED.search(formula.tex):
            broken[formula] = f"GitHub refuses {refused[0]}"
        elif re.match(r"\w\$[^$]|[^$].*[^$]\$\w$", formula.around, re.S):
            broken[formula] = "GitHub, VS Code: a letter or a digit touches its dollar from outside"
    breakers = dict[Formula, list[str]]()
    for reader, arriving in READERS.items():
        arrived = Counter(" ".join(tex.split()) for tex in arriving(text))
        for formula in dollars:
            tex = " ".join(formula.tex.split())
            if not arrived[tex]:
                breakers.setdefault(formula, []).append(reader)
            arrived[tex] -= 1
    for formula, readers in breakers.items():
        broken.setdefault(formula, f"{', '.join(readers)}: {reason(formula.tex)}")
    return [f"{name}:{formula.line}: {_short(formula.tex)}: {why}" for formula, why in broken.items()]


def reason(tex: str) -> str:
    """Why a formula breaks, as far as a pattern tells."""
    for pattern, why in REASONS.items():
        if match := re.search(pattern, tex):
            return why.format(found=match[0].strip())
    return "Markdown changes it, or tears it apart"


def _short(tex: str) -> str:
    line = " ".join(tex.split())
    return line if len(line) < 80 else f"{line[:76]} ..."


def texts(path: Path) -> list[tuple[str, str]]:
    """(name, text) of what a file shows as Markdown: itself, or each such cell of a notebook."""
    if path.suffix != ".ipynb":
        return [(path.name, path.read_text("utf-8"))]
    cells = enumerate(nbformat.read(path, as_version=4).cells, start=1)
    return [(f"{path.name}, cell {i}", cell.source) for i, cell in cells if cell.cell_type == "markdown"]
