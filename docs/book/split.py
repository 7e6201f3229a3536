"""How do README, guides and notebooks become the pages of one book?

They are written for GitHub, in files as long as they like. `write_source` makes the book's source of them: it cuts
the theory guide into its parts, copies the rest, and turns each link into one that works in the book. What the book
alone has, the pages of source files and of the package's API, is written here, too. Nothing is changed in place.

    README.md                     index.md
    DEEP_THEORY_GUIDE.md          theory/00_how_to_read.md ... theory/10_scale.md, and its notation once more
    notebooks/03_attention.ipynb  notebooks/03_attention.ipynb
    gpt/attention.py              source/gpt/attention.py.md and api/attention.md

Broken links are a ValueError that names them with their files.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, find_lexer_class_for_filename

from docs.tools.concepts import CONCEPTS
from docs.tools.markdown import (
    FORMULA,
    KEPT,
    LINK,
    WEB,
    anchors,
    headings,
    locate,
    outside_fences,
    tags,
    without_comments,
)  # fmt: skip

THEORY = [f"theory/{number:02}_{name}.md" for number, name in enumerate(["how_to_read", *CONCEPTS])]
CHAPTERS = [concept.chapter for concept in CONCEPTS.values()]
GUIDE, EXAMPLE, GLOSSARY = "DEEP_THEORY_GUIDE.md", "WORKED_EXAMPLE.md", "docs/book/glossary.md"
PLACES = {"README.md": "index.md", EXAMPLE: "example.md", "HOW_TO_CODE_GUIDE.md": "how_to.md", GLOSSARY: "glossary.md"}

MENTION = r"\((?P<claim>(?:\d+|W)\.\d+)\)|\bPart (?P<part>\d+)\b(?! ·)"


# --- cutting


def read(file: Path) -> str:
    """A Markdown file without its comments."""
    return without_comments(file.read_text("utf-8"))


def book_anchors(text: str) -> list[str]:
    """The anchors of all headings in the book, where formulas in a heading do not count."""
    return anchors(text, lambda title: re.sub(r"[`*]|\$[^$]*\$", "", title))


def parts(guide: str) -> dict[str, str]:
    """The theory guide in pages: name -> text. A part's own heading becomes its title, and what is below moves up."""
    lines = guide.splitlines(keepends=True)
    found = headings(guide)
    starts = [heading.line - 1 for heading in found if heading.level == 2]
    for heading in found:
        if heading.level > 1:
            lines[heading.line - 1] = lines[heading.line - 1][1:]
    texts = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    texts[0][1:1] = ["\n", *lines[1 : starts[0]]]  # what is above all parts
    return {page: "".join(text) for page, text in zip(THEORY, texts, strict=False)}


def with_target(formula: re.Match) -> str:
    """A numbered formula, and before it the place to which links to its number lead."""
    targets = [f"(claim-{tag})=\n" for tag in tags(formula[0])]
    return "\n" + "".join(targets) + formula[0] if targets else formula[0]


# --- linking


class Links:
    """Where the links of the repository `root` arrive in the book.

    `sources` collects the files that need a page for it, `pictures` what is shown, `dead` the broken ones.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.sources, self.pictures, self.dead = root, set[str](), set[str](), list[str]()
        guide = read(root / GUIDE)
        arrivals = [f"{page}#{anchor}" for page, text in parts(guide).items() for anchor in book_anchors(text)]
        self.guide = dict(zip(anchors(guide), [THEORY[0], *arrivals], strict=True)) | {"": THEORY[0]}
        self.claims = set(tags(guide + read(root / EXAMPLE)))

    def resolve(self, target: str, page: str) -> str:
        """The book's address for what `target` means in the file `page`."""
        file, fragment = locate(target, self.root / page)
        file = file.resolve()
        name = file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else target
        if not file.is_file() or (name == GUIDE and fragment not in self.guide):
            self.dead.append(f"{page}: the link {target} is broken")
            return target
        if name == GUIDE:
            return f"/{self.guide[fragment]}"
        if file.suffix in {".png", ".svg"}:
            self.pictures.add(name)
        elif name not in [*PLACES, *CHAPTERS]:
            self.sources.add(name)
            return f"/source/{name}.md"
        return f"/{PLACES.get(name, name)}" + (f"#{fragment}" if fragment else "")

    def rewrite(self, text: str, page: str) -> str:
        """`text`, which is in the file `page`, with links that arrive. Claims and parts become links, too."""

        def replace(match: re.Match) -> str:
            label, target = match["label"], match["target"]
            if match["code"] in CHAPTERS:
                label, target = f"[{match[0]}]", "/" + match["code"]
            if target and Path(target).name in unwritten:
                return label[1:-1]
            if target and not (target.startswith("/") or WEB.match(target)):
                return f"{label}({self.resolve(target, page)})"
            if target:
                return f"{label}({target})"
            if match["claim"] in self.claims:
                return f"[{match[0]}](#claim-{match['claim']})"
            if match["part"] and int(match["part"]) < len(THEORY):
                return f"[{match[0]}](/{THEORY[int(match['part'])]})"
            return match[0]

        unwritten = {Path(chapter).name for chapter in CHAPTERS if not (self.root / chapter).is_file()}
        link = re.compile(rf"{KEPT}|{LINK}|{MENTION}", re.M | re.S)
        return outside_fences(lambda stretch: link.sub(replace, stretch), text)

    def page(self, file: str) -> str:
        """The page of a Markdown file."""
        return self.rewrite(read(self.root / file), file)


# --- pages: each function gives name -> text


def rooms(name: str, here: str, links: Links) -> str:
    """One line of links between the places where a concept is found; `here` is the one that needs no link."""
    if name not in CONCEPTS:
        return ""
    concept = CONCEPTS[name]
    files = {"theory": THEORY[concept.number], "chapter": concept.chapter, "code": f"source/{concept.module}.md",
             "API": f"api/{name}.md", "tests": f"source/{concept.tests}.md"}  # fmt: skip
    found = {room: file for room, file in files.items() if room != "chapter" or (links.root / file).is_file()}
    line = " · ".join(f"**{room}**" if room == here else f"[{room}](/{file})" for room, file in found.items())
    return f"```{{container}} rooms\nConcept {concept.number}, {name}: {line}\n```\n"


def guide_pages(links: Links) -> dict[str, str]:
    """The parts of the theory guide, and its table of notation by itself."""
    guide = FORMULA.sub(with_target, read(links.root / GUIDE))
    pages = {page: links.rewrite(text, GUIDE) for page, text in parts(guide).items()}
    for page, text in pages.items():  # "Chapter ... · module ... · tests ...", below the title
        line = rf"```{{container}} rooms\n\g<0> · [API](/api/{Path(page).stem[3:]}.md)\n```"
        pages[page] = re.sub(r"^Chapter .*?(?=\n\n)", line, text, count=1, flags=re.M | re.S)
    return pages | {"notation.md": "# Notation\n" + pages[THEORY[0]].partition("## Notation\n")[2]}


def chapters(links: Links) -> dict[str, str]:
    """The notebooks: their links arrive in the book, their outputs stay as they are."""
    pages = {}
    for chapter in CHAPTERS:
        if (links.root / chapter).is_file():
            notebook = json.loads((links.root / chapter).read_text("utf-8"))
            notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "python"}
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = links.rewrite("".join(cell["source"]), chapter)
            pages[chapter] = json.dumps(notebook, ensure_ascii=False)
    return pages


def api(links: Links) -> dict[str, str]:
    """A page for the docstrings of each module, the concepts first."""
    files = [file.relative_to(links.root).as_posix() for file in sorted((links.root / "gpt").rglob("[!_]*.py"))]
    files = [file for file in files if file != "gpt/public.py"]  # which has no names of its own
    first = [f"gpt/{name}.py" for name in ["config", *CONCEPTS]]
    pages = {}
    for file in sorted(files, key=lambda file: first.index(file) if file in first else len(first)):
        module = file.removesuffix(".py").replace("/", ".")
        name = module.removeprefix("gpt.")
        line = rooms(name, "API", links) or f"[Code](/source/{file}.md)\n"
        directive = f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
        pages[f"api/{name}.md"] = f"# {module}\n\n{line}\n{directive}"
    return pages


def sources(links: Links) -> dict[str, str]:
    """A page for each file of the package, of the tests, and for each other one that is linked. Line 12 is #L-12."""
    found = [file.relative_to(links.root).as_posix() for file in links.root.glob("*/**/*.py")]
    files = {file for file in found if file.startswith(("gpt/", "tests/"))} | links.sources
    pages = {}
    for file in sorted(files):
        lexer = (find_lexer_class_for_filename(file) or TextLexer)()
        text = (links.root / file).read_text("utf-8")
        code = highlight(text, lexer, HtmlFormatter(lineanchors="L", linenos="inline", wrapcode=True))
        name = Path(file).stem.removeprefix("test_")
        line = rooms(name, "code" if file.startswith("gpt") else "tests", links)
        head = f"---\norphan: true\nnosearch: true\n---\n# `{file}`\n\n{line}"
        pages[f"source/{file}.md"] = f"{head}\n```{{raw}} html\n{code}\n```\n"
    lines = [f"- [`{page[7:-3]}`](/{page})\n" for page in pages]
    return pages | {"source/index.md": "# Source files\n\n" + "".join(lines)}


def downloads(links: Links) -> dict[str, str]:
    """What can be taken along."""
    pdfs = [f"pdf/{pdf.name}" for pdf in sorted((links.root / "docs/_build/pdf").glob("*.pdf"))]
    notebooks = [chapter for chapter in CHAPTERS if (links.root / chapter).is_file()]
    lists = {"On paper:": pdfs, "The chapters as notebooks, to run and to change:": notebooks}
    text = "# Downloads\n"
    for title, files in lists.items():
        lines = [f"- {{download}}`{Path(file).name} </{file}>`\n" for file in files]
        text += f"\n{title}\n\n{''.join(lines)}" if files else ""
    return {"downloads.md": text}


def toctree(pages: list[str], options: str) -> str:
    """The contents of one section of the book."""
    names = [f"/{page.removesuffix('.md').removesuffix('.ipynb')}\n" for page in pages]
    return f"\n```{{toctree}}\n{options}\n\n{''.join(names)}```\n"


def write_source(root: Path, folder: Path) -> None:
    """Make the book's source of the repository `root` in `folder`, which is emptied before."""
    links = Links(root)
    pages = guide_pages(links)
    pages |= {place: links.page(file) for file, place in PLACES.items() if (root / file).is_file()}
    pages[PLACES[EXAMPLE]] = FORMULA.sub(with_target, pages[PLACES[EXAMPLE]])
    notebooks, modules = chapters(links), api(links)
    files = sources(links)  # last: now all links have said which files need a page
    if links.dead:
        raise ValueError("\n".join(links.dead))
    pages |= notebooks | modules | files | downloads(links)
    pages["api/index.md"] = "# The package\n" + toctree(list(modules), ":maxdepth: 1")
    theory = [PLACES[EXAMPLE], *(page for page in THEORY if page in pages)]
    reference = ["how_to.md", "notation.md", "glossary.md", "api/index.md", "source/index.md", "downloads.md"]
    reference = [page for page in reference if page in pages]
    for caption, names in {"Theory": theory, "Chapters": list(notebooks), "Reference": reference}.items():
        pages["index.md"] += toctree(names, f":caption: {caption}\n:hidden:") if names else ""
    shutil.rmtree(folder, ignore_errors=True)
    for page, text in pages.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text, "utf-8")
    pdfs = [file.relative_to(root) for file in (root / "docs/_build/pdf").glob("*.pdf")]
    for file in [*pdfs, *map(Path, links.pictures)]:
        target = folder / (f"pdf/{file.name}" if file in pdfs else file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / file, target)
