"""How does a guide prove what it says? Its code is run, and what it prints must be what the guide says.

A guide is a Markdown file that is executed from top to bottom; all its blocks share one set of variables.
Code is in one of two places, and what it prints right below it (blank lines and `</details>` may come between):

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
follow the formula, before the next heading.

A block may also draw: `figure("name.svg", figures.plot_lines(...))`. What it draws must be what figures/name.svg shows.

    python -m docs.tools.guides [--update] [--draw] [GUIDE ...]

runs guides, all if none is named. `make guides` writes what is printed into them (--update), and `make figures` what is
drawn into figures/ (--draw). Each function that reads a guide returns a list of problems, each of them
"file:line: what is wrong".
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import traceback
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.image as mpl_image
import numpy as np
from matplotlib.figure import Figure

from docs.tools import markdown
from docs.tools.markdown import CODE, OUTPUT, Part, parts_of, problems_of_links
from gpt import figures

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / name for name in ("WORKED_EXAMPLE.md", "DEEP_THEORY_GUIDE.md", "HOW_TO_CODE_GUIDE.md")]


# --- running


def run(guide: Path, update: bool = False, draw: bool = False) -> list[str]:
    """Execute a guide. With `update`, what is printed is written into it, unless something else is wrong.

    With `draw`, its figures are written; without, they are held against the files.
    """
    problems, replaced = [], []
    variables = {"__name__": "guide", "figure": partial(_figure, guide.parent / "figures", draw)}
    code, printed = None, None  # the last block, and what it printed as long as that is waiting for its output

    def unanswered() -> None:
        if printed:
            problems.append(f"{guide.name}:{code.line}: this code prints, but no output follows it")

    for part in parts_of(guide.read_text()):
        if not part.closed:
            problems.append(f"{guide.name}:{part.line - 1}: this block is never closed")
        elif part.kind == "code":
            unanswered()
            code, (printed, error) = part, _execute(part, guide, variables)
            if error:
                return [*problems, error]
        elif part.kind == "output" and printed is None:
            problems.append(f"{guide.name}:{part.line}: no code precedes this output")
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
    said, new = (lines[at] if at < len(lines) else "nothing" for lines in (part.lines, printed))
    return f"{guide.name}:{part.line + at}: it says\n    {said}\nbut the code prints\n    {new}"


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
            for tag in markdown.tags(text):
                if tag in seen:
                    problems.append(f"{guide.name}:{part.line + offset}: the number ({tag}) is taken")
                seen.add(tag)
                open_claims[tag] = part.line + offset
    unchecked()
    return problems


def links(guide: Path) -> list[str]:
    """Relative links to files or headings that do not exist; images without alt text. The web is not asked."""
    shown = markdown.prose(guide.read_text())
    return [f"{guide.name}:{line}: {what}" for line, text in shown for what in problems_of_links(text, guide)]


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


def main(arguments: list[str]) -> int:
    """The command; 0 if no guide has a problem."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.guides", description=__doc__.partition("\n")[0])
    parser.add_argument("guides", nargs="*", type=Path, metavar="GUIDE", help="a Markdown file; all guides if left out")
    parser.add_argument("--update", action="store_true", help="write what is printed into the guides")
    parser.add_argument("--draw", action="store_true", help="write what is drawn into figures/")
    options = parser.parse_args(arguments)
    problems = []
    for guide in options.guides or GUIDES:
        found = run(guide.resolve(), options.update, options.draw)
        print(*found or [f"{guide.name}: no problem"], sep="\n")
        problems += found
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
