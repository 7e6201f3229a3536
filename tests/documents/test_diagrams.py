"""LaTeX documents: they build without a warning, into the very figures of this repository, and type no number."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from docs.latex import numbers, tables
from docs.tools import guides

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures" / "diagrams"
PAGES = ("1_model", "2_block", "3_attention", "4_training", "5_generation", "6_gradients")
WRITTEN = ("numbers.tex", "tables.tex")  # by docs/latex/numbers.py
ALL_TEX = [ROOT / "CONTROL_FLOW_DIAGRAM.tex", *sorted((ROOT / "docs" / "latex").glob("*.tex"))]
SOURCES = [path for path in ALL_TEX if path.name not in WRITTEN]
RULES = ROOT / "docs" / "latex" / "diagrams.mk"
APT = "apt-get install --no-install-recommends " + re.search(r"LATEX_PACKAGES := (.*)", RULES.read_text())[1]
MISSING = [tool for tool in ("make", "latexmk", "pdflatex", "pdftocairo", "chktex", "git") if not shutil.which(tool)]
needs_latex = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found: {APT}")


def code(source: Path) -> str:
    """A document without its comments."""
    return re.sub(r"(?<!\\)%.*", "", source.read_text())


def claims(text: str) -> set[str]:
    """The claims that a document names: behind "Guide:", in the last field of a list or of a line, and as (W.1)."""
    fields = re.findall(r"Guide:[^}]*|\}/[\d.-]+[,}]|\{[\d., ]+\}$|(?:W\.\d+[, ]*)+(?=[)}])", text, re.M)
    return {tag for field in fields for tag in re.findall(r"(?:W|\d+)\.\d+", field)}


def difference(one: Path, other: Path) -> float:
    """How far apart two pictures are where they differ most: in the mean grey of 7 by 7 pixels, from 0 to 1.

    Measured: a whole page moved by a third of a pixel 0.07, an "s" at the end of a word 0.11, a new number 0.2.
    """
    pictures = [Image.open(path).convert("L").filter(ImageFilter.BoxBlur(3)) for path in (one, other)]
    a, b = (np.asarray(picture, dtype=float) / 255 for picture in pictures)
    return float(abs(a - b).max()) if a.shape == b.shape else 1.0


def make(target: str, **variables: str | Path) -> subprocess.CompletedProcess:
    command = ["make", "-f", RULES, target, *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Everything that `make diagrams` makes with LaTeX, made again in another folder."""
    folder = tmp_path_factory.mktemp("built")
    for target in ("latex-documents", "latex-figures"):
        done = make(target, LATEX_BUILD=folder, LATEX_FIGURES=folder / "figures")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


# --- with LaTeX


@needs_latex
@pytest.mark.parametrize("name", PAGES)
def test_a_figure_shows_what_the_command_draws(built, name):
    """Under the versions that drew it, to the byte; under others, where a letter may move by a hair, to the eye."""
    versions = [(folder / "made_by.txt").read_text().splitlines()[:2] for folder in (built / "figures", FIGURES)]
    drawn, committed = (folder / f"{name}.png" for folder in (built / "figures", FIGURES))
    assert difference(drawn, committed) < 0.1, f"`make diagrams` draws another {name}"
    if versions[0] == versions[1]:
        for kind in (".png", ".svg"):
            same = drawn.with_suffix(kind).read_bytes() == committed.with_suffix(kind).read_bytes()
            assert same, f"`make diagrams` makes another {name}{kind}"


def test_another_word_is_another_picture(tmp_path):
    for name, words in {"one": "softmax over the keys", "other": "softmax over the rows"}.items():
        picture = Image.new("L", (400, 60), "white")
        ImageDraw.Draw(picture).text((9, 9), words, fill="black", font_size=18)
        picture.save(tmp_path / f"{name}.png")
    assert difference(tmp_path / "one.png", tmp_path / "one.png") == 0
    assert difference(tmp_path / "one.png", tmp_path / "other.png") > 0.1
    assert difference(tmp_path / "one.png", FIGURES / "1_model.png") == 1


@needs_latex
@pytest.mark.parametrize(
    ("folder", "document"),
    [
        ("", "CONTROL_FLOW_DIAGRAM.tex"),
        ("", "docs/latex/cheatsheet.tex"),
        ("", "docs/latex/worked_example.tex"),
        ("docs/latex", "cheatsheet.tex"),
        ("docs/latex", "worked_example.tex"),
        ("", "docs/latex/worksheet.tex"),
        ("docs/latex", "worksheet.tex"),
    ],
)
def test_latex_alone_builds_each_document_and_git_sees_nothing_new(tmp_path, folder, document):
    """In a clone that was never built: no Python, no make, no variable."""
    clone = tmp_path / "clone"
    for source in [".gitignore", *(path.relative_to(ROOT) for path in ALL_TEX)]:
        (clone / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, clone / source)
    quiet = {"capture_output": True, "text": True}
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    command = ["latexmk", "-pdf", "-halt-on-error", "-interaction=nonstopmode", document]
    done = subprocess.run(command, cwd=clone / folder, **quiet)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (clone / folder / Path(document).with_suffix(".pdf").name).is_file()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, **quiet).stdout
    assert [line for line in status.splitlines() if not line.startswith("A ")] == []


@needs_latex
def test_every_document_has_as_many_pages_as_it_should(built):
    expected = {"CONTROL_FLOW_DIAGRAM": len(PAGES), "cheatsheet": 2, "worked_example": 4, "worksheet": 6}
    for name, pages in expected.items():
        log = (built / "pdf" / f"{name}.log").read_text(errors="replace")
        assert f"({pages} page" in log.replace("\n", ""), f"{name} should have {pages} pages"


@needs_latex
@pytest.mark.parametrize("slip", ["\\hbox to 9mm{\\vrule width 20mm}", "\\ref{nothing}"], ids=["overfull", "undefined"])
def test_a_warning_stops_the_build(tmp_path, slip):
    document = tmp_path / "slip.tex"
    document.write_text(f"\\documentclass{{article}}\\begin{{document}}{slip}\\end{{document}}\n")
    done = make("latex-documents", LATEX_SOURCES=document, LATEX_BUILD=tmp_path / "build")
    assert done.returncode != 0
    assert "compiles, but not without a warning" in done.stdout


@needs_latex
def test_chktex_has_nothing_to_say():
    command = ["chktex", "-q", "-I0", "-l", "docs/latex/.chktexrc", *SOURCES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="make not found")
def test_without_latex_the_command_says_what_to_install(tmp_path):
    only = tmp_path / "bin"
    only.mkdir()
    for tool in ("make", "sh"):
        (only / tool).symlink_to(shutil.which(tool))
    command = ["make", "-f", RULES, "diagrams"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": str(only)})
    assert done.returncode != 0
    assert APT in done.stdout


# --- without LaTeX


def test_the_macros_are_those_that_the_package_writes(tmp_path):
    numbers.main(str(tmp_path))
    for name in WRITTEN:
        committed = (ROOT / "docs" / "latex" / name).read_text()
        assert committed == (tmp_path / name).read_text(), f"`make diagrams` writes docs/latex/{name} again"


def test_the_figures_were_made_from_these_sources():
    parts = ["CONTROL_FLOW_DIAGRAM.tex", "docs/latex/notation.tex", "docs/latex/numbers.tex"]
    sources = hashlib.sha256(b"".join((ROOT / part).read_bytes() for part in parts)).hexdigest()
    assert f"sources {sources}" in (FIGURES / "made_by.txt").read_text(), "`make diagrams` draws the figures again"


def test_each_diagram_is_there_in_both_forms_and_not_large():
    for name in PAGES:
        assert (FIGURES / f"{name}.svg").read_text().startswith("<?xml")
        assert (FIGURES / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (FIGURES / f"{name}.svg").stat().st_size < 400_000
        assert (FIGURES / f"{name}.png").stat().st_size < 400_000


def test_an_svg_needs_no_font_and_has_a_background_of_its_own():
    for name in PAGES:
        text = (FIGURES / f"{name}.svg").read_text()
        assert "<text" not in text
        assert "font-family" not in text
        first = re.search(r"<(?:path|rect) [^>]*>", text[text.index('id="surface') :])[0]
        assert re.search(r"fill:rgb\(98\.\d+%,98\.\d+%,98\.\d+%\)", first), f"{name} does not begin with its paper"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_no_long_number_is_typed(source):
    typed = re.findall(r"\d{4,}|\d\{,\}\d|\.\d{3,}", code(source))
    assert not typed, "let docs/latex/numbers.py write them"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_number_and_table_that_is_asked_for_is_written(source):
    known = numbers.numbers()
    for key in re.findall(r"\\num\{((?:[^{}\\]|\\[a-z]\b|\\num\{[^{}]*\})*)\}", code(source)):
        if "#" in key:  # a definition
            continue
        pattern = re.sub(r"\\\\num\\\{.*?\\\}|\\\\[a-z]", r"\\w+", re.escape(key))  # what a loop puts in
        assert any(re.fullmatch(pattern, one) for one in known), f"docs/latex/numbers.py does not write {key}"
    asked = set(re.findall(r"\\tab\{(\w+)\}", code(source)))
    assert asked <= set(tables.tables())


def test_the_numbers_are_those_of_the_package(gpt):
    written = numbers.numbers()

    def value(key: str) -> int:
        return int(written[key].replace("{,}", ""))

    assert written["small.parameters"] == "124{,}439{,}808"
    for name in numbers.SIZES:
        config = getattr(gpt.GPTConfig, f"gpt2_{name}")()
        parameters = gpt.scale.parameter_count(config)
        assert value(f"{name}.parameters") == parameters
        assert parameters == sum(value(f"{name}.{part}") for part in ("tokens", "positions", "blocks", "norm"))
        parts = [value(f"{name}.{part}") for part in ("qkv", "projection", "expand", "project", "norm", "norm")]
        assert value(f"{name}.block") == sum(parts)
    assert written["adamw.beta2"] == "0.95"
    assert written["norm.eps"] == "10^{-5}"


def test_the_tables_of_the_hand_out_stand_in_the_worked_example():
    lines = (ROOT / "WORKED_EXAMPLE.md").read_text().splitlines()
    rows = "\n".join(re.sub(r"[*\s]", "", line) for line in lines if line.startswith("|"))
    for name, text in tables.tables().items():
        for line in text.splitlines()[2:-1]:
            cells = [cell.strip("$").replace("\\cdot", "·") for cell in line.removesuffix("\\\\").split(" & ")[1:]]
            width = 4 if name in ("qkv", "dqkv") else len(cells)  # there, Q, K and V are tables of their own
            for start in range(0, len(cells), width):
                assert "|".join(cells[start : start + width]) in rows, f"{name}: {line}"


def test_the_worksheet_gives_the_sums_of_what_it_leaves_blank():
    filled, blank = tables.tables(), tables.blanks()
    assert {name.removeprefix("blank.") for name in blank} == filled.keys() - {"E", "P", "WO", "Wqkv", "units"}
    for name, text in blank.items():
        both = (table.splitlines()[2:-1] for table in (filled[name.removeprefix("blank.")], text))
        for full, empty in zip(*both, strict=True):
            full, empty = ([cell.strip("$\\") for cell in line.split(" & ")] for line in (full, empty))
            entries = [float(cell) for cell in full[1:] if cell != "cdot"]
            assert empty[0] == full[0]
            assert empty[1:-1] == ["blank" if cell != "cdot" else cell for cell in full[1:]]
            assert abs(float(empty[-1]) - sum(entries)) < 5.1e-4 + 5e-5 * len(entries), f"{name}: {empty[0]}"


def test_every_claim_that_a_document_names_stands_in_a_guide():
    tags = {tag for guide in guides.GUIDES for tag in re.findall(r"\\tag\{([^}]*)\}", guide.read_text())}
    for source in SOURCES:
        named = claims(code(source))
        assert named or source.name == "notation.tex"
        assert named <= tags, f"{source.name} names {named - tags}"
