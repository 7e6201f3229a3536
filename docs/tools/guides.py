"""How does a guide prove what it says? Its code is run, and what it prints must be what stands in it.

A guide is a Markdown file that is executed from top to bottom; all its blocks share one set of variables.
Code stands in one of two places, and what it prints right below it (blank lines and `</details>` may come between):

    ```python                          <!-- python
    print(loss)                        print("The loss is", loss)
    ```                                -->

    ```text                            <!-- printed -->
    1.2345                             The loss is 1.2345
    ```                                <!-- /printed -->

The left one is for code that the reader should see. A comment (right) is not shown on GitHub or in the book: it
holds the line that makes a table or a sentence with numbers. What is printed between the `printed` marks is
Markdown. Both kinds of code go with both kinds of output. Code that prints nothing needs no output.

A claim is a numbered formula, `\\tag{3.2}`. A block that says `# (3.2)` in a comment of its own checks it, and must
stand behind the formula, before the next heading.

A block may also draw: `figure("name.svg", figures.plot_lines(...))`. What it draws must be what figures/name.svg shows.

`make guides` writes what is printed into the guides, and `make figures` what is drawn into figures/. Each function
that reads a guide returns a list of problems, each of them "file:line: what is wrong".
"""

from __future__ import annotations

import io
import json
import re
import traceback
import unicodedata
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.image as mpl_image
import numpy as np
from matplotlib.figure import Figure

from gpt import figures

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / name for name in ("WORKED_EXAMPLE.md", "DEEP_THEORY_GUIDE.md", "HOW_TO_CODE_GUIDE.md")]
CODE = {"```python": "```", "<!-- python": "-->"}  # how a block of each kind opens and closes
OUTPUT = {"```text": "```", "<!-- printed -->": "<!-- /printed -->"}


# --- running


@dataclass(frozen=True)
class Part:
    """Some lines of a guide: "code", "output", "fence" (other code, only shown) or "prose". `line` counts from 1."""

    kind: str
    line: int
    lines: list[str]  # without the marks around them
    closed: bool = True


def parts_of(text: str) -> list[Part]:
    """Cut a guide into its parts."""
    parts, lines, i = [], text.splitlines(), 0
    while i < len(lines):
        mark = lines[i].strip()
        kind = "code" if mark in CODE else "output" if mark in OUTPUT else "fence" if mark[:3] == "```" else "prose"
        if kind == "prose":
            parts.append(Part(kind, i + 1, [lines[i]]))
            i += 1
            continue
        end = (CODE | OUTPUT).get(mark, "```")
        stop = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == end), None)
        body = lines[i + 1 : stop]
        parts.append(Part(kind, i + 2, body, closed=stop is not None))
        i = len(lines) if stop is None else stop + 1
    return parts


def run(guide: Path, update: bool = False, draw: bool = False) -> list[str]:
    """Execute a guide. With `update`, what is printed is written into it, unless something else is wrong.

    With `draw`, its figures are written; without, they are held against the files that stand there.
    """
    problems, replaced = [], []
    variables = {"__name__": "guide", "figure": partial(_figure, guide.parent / "figures", draw)}
    code, printed = None, None  # the last block, and what it printed as long as that is waiting for its output

    def unanswered() -> None:
        if printed:
            problems.append(f"{guide.name}:{code.line}: this code prints, but no output stands below it")

    for part in parts_of(guide.read_text()):
        if not part.closed:
            problems.append(f"{guide.name}:{part.line - 1}: this block is never closed")
        elif part.kind == "code":
            unanswered()
            code, (printed, error) = part, _execute(part, guide, variables)
            if error:
                return [*problems, error]
        elif part.kind == "output" and printed is None:
            problems.append(f"{guide.name}:{part.line}: no code stands above this output")
        elif part.kind == "output":
            if part.lines != printed and not update:
                problems.append(_difference(guide, part, printed))
            replaced.append((part, printed))
            printed = None
        elif part.kind == "fence" or part.lines[0].strip() not in ("", "</details>"):
            unanswered()
            printed = None
    unanswered()
    if update and not problems:
        written = guide.read_text().splitlines()
        for part, new in reversed(replaced):  # from below, so that line numbers stay true
            written[part.line - 1 : part.line - 1 + len(part.lines)] = new
        guide.write_text("\n".join(written) + "\n")
    return problems


def _execute(code: Part, guide: Path, variables: dict) -> tuple[list[str], str | None]:
    """Run one block: the lines that it prints, and what went wrong. Blank lines in front make the line numbers true."""
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            exec(compile("\n" * (code.line - 1) + "\n".join(code.lines), str(guide), "exec"), variables)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(guide)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None) or code.line
        return [], f"{guide.name}:{line}: {type(error).__name__}: {error}"
    return [line.rstrip() for line in output.getvalue().strip("\n").splitlines()], None


def _difference(guide: Path, part: Part, printed: list[str]) -> str:
    length = min(len(part.lines), len(printed))
    at = next((i for i in range(length) if part.lines[i] != printed[i]), length)
    stands, new = (lines[at] if at < len(lines) else "nothing" for lines in (part.lines, printed))
    return f"{guide.name}:{part.line + at}: here stands\n    {stands}\nbut the code prints\n    {new}"


# --- what a block may call to draw


def _figure(folder: Path, draw: bool, name: str, figure: Figure) -> None:
    path = folder / name
    if draw:
        figures.save(figure, path)
        return
    assert path.is_file(), f"figures/{name} is not there: `make figures` draws it"
    assert _same_drawing(path, figure), f"figures/{name} shows something else than the code draws: run `make figures`"


def _same_drawing(path: Path, figure: Figure) -> bool:
    """Whether a file shows what the figure shows; another machine's last digits make no difference."""
    with TemporaryDirectory() as folder:
        new = figures.save(figure, Path(folder) / path.name)
        if path.suffix == ".png":
            one, other = (mpl_image.imread(file) for file in (path, new))
        else:
            (words, one), (other_words, other) = (_strokes(file.read_text()) for file in (path, new))
            if words != other_words:
                return False
    return one.shape == other.shape and np.abs(one - other).max() < 0.5


def _strokes(svg: str) -> tuple[list[str], np.ndarray]:
    """An SVG's words and its numbers. Its ids are made from the numbers' last digits, so they are left out."""
    pieces = re.split(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)", re.sub(r'\bid="[^"]*"|#\w+\b', "", svg))
    return pieces[::2], np.array(pieces[1::2], dtype=float)


# --- reading without running


def claims(guide: Path) -> list[str]:
    """Claims without a check, checks without a claim, and numbers that two claims share."""
    problems, open_claims, seen = [], {}, set()

    def unchecked() -> None:
        problems.extend(f"{guide.name}:{line}: claim ({tag}) has no check" for tag, line in open_claims.items())
        open_claims.clear()

    for part in parts_of(guide.read_text()):
        if part.kind == "code":
            for offset, text in enumerate(part.lines):
                for tag in re.findall(r"\(([\w.]+)\)", text) if re.match(r"# \(", text) else []:
                    if tag not in open_claims and tag not in seen:
                        problems.append(f"{guide.name}:{part.line + offset}: a check of ({tag}), which is not claimed")
                    open_claims.pop(tag, None)
        for offset, text in enumerate(part.lines if part.kind in ("prose", "fence") else []):
            if part.kind == "prose" and re.match(r"#+ ", text):
                unchecked()
            for tag in re.findall(r"\\tag\{([^}]*)\}", text):
                if tag in seen:
                    problems.append(f"{guide.name}:{part.line + offset}: the number ({tag}) is taken")
                seen.add(tag)
                open_claims[tag] = part.line + offset
    unchecked()
    return problems


def links(guide: Path) -> list[str]:
    """Relative links to files or headings that do not exist; images without alt text. The web is not asked."""
    return [f"{guide.name}:{line}: {what}" for line, text in _prose(guide) for what in problems_of_links(text, guide)]


def problems_of_links(text: str, file: Path) -> list[str]:
    """The same for some Markdown that stands in `file`."""
    problems = []
    text = re.sub(r"`[^`]*`|\$[^$]*\$", "", text)  # neither code nor mathematics is a link
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)", text):
        if not alt.strip():
            problems.append(f"the image {target} has no alt text")
        problems += _broken(target, file)
    without_images = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)  # an image may be the words of a link
    for target in re.findall(r"\[[^\[\]]*\]\(([^)\s]+)[^)]*\)", without_images):
        problems += _broken(target, file)
    for tag in re.findall(r"<img\b[^>]*>", text):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if not attributes.get("alt", "").strip():
            problems.append(f"the image {attributes.get('src')} has no alt text")
        problems += _broken(attributes.get("src", ""), file)
    return problems


def _broken(target: str, file: Path) -> list[str]:
    if re.match(r"[a-z]+:", target):  # https:, mailto:
        return []
    path, _, anchor = target.partition("#")
    found = (file.parent / path) if path else file
    if not found.is_file():
        return [f"{target} leads to no file"]
    if anchor and found.suffix in (".md", ".ipynb") and anchor not in anchors(found):
        return [f"{target} leads to no heading"]
    return []


def anchors(file: Path) -> set[str]:
    """The names under which GitHub links to the headings of a guide or a notebook, and those set with <a id="...">."""
    if file.suffix == ".md":
        lines = [text for _, text in _prose(file)]
    else:
        cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "markdown"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    names, counts = set(), {}
    for text in lines:
        names.update(re.findall(r'<a (?:id|name)="([^"]+)"', text))
        if heading := re.match(r"#{1,6} +(.*?)[ #]*$", text):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            kept = "".join(c for c in words if c in " -_" or unicodedata.category(c)[0] in "LN").replace(" ", "-")
            counts[kept] = counts.get(kept, -1) + 1
            names.add(f"{kept}-{counts[kept]}" if counts[kept] else kept)
    return names


def unproven(guide: Path) -> list[str]:
    """Numbers that no code prints: in tables written by hand, or under a fence such as ```py, which is not run."""
    problems = []
    for part in parts_of(guide.read_text()):
        if part.kind == "prose" and part.lines[0].lstrip().startswith("|"):
            cells = [cell.strip(" *`$") for cell in part.lines[0].split("|")]
            if any(re.fullmatch(r"[-−+]?\d[\d,]*\.?\d*%?", cell) for cell in cells):
                problems.append(f"{guide.name}:{part.line}: a number in a table that no code prints")
    for line, text in enumerate(guide.read_text().splitlines(), start=1):
        mark = text.strip()
        looks_like_code = re.match(r"```+ ?(py|text)|<!-- ?(python|printed)|~~~", mark)
        if looks_like_code and (mark not in CODE | OUTPUT or text != mark):
            allowed = [*CODE, *OUTPUT]
            problems.append(f"{guide.name}:{line}: {text!r} is not run or compared: write it as one of {allowed}")
    return problems


def _prose(guide: Path) -> list[tuple[int, str]]:
    """What is shown as text: prose, and what code prints as Markdown."""
    shown = []
    lines = guide.read_text().splitlines()
    for part in parts_of(guide.read_text()):
        if part.kind == "prose" or (part.kind == "output" and lines[part.line - 2].strip() == "<!-- printed -->"):
            shown += [(part.line + i, text) for i, text in enumerate(part.lines)]
    return shown
