"""LaTeX documents: they build without a warning, into the very figures that stand here, and type no number."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from docs.latex import numbers, tables
from docs.tools import guides

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures" / "diagrams"
PAGES = ("1_model", "2_block", "3_attention", "4_training", "5_generation", "6_gradients")
SOURCES = [ROOT / "CONTROL_FLOW_DIAGRAM.tex", *sorted((ROOT / "docs" / "latex").glob("*.tex"))]
RULES = ROOT / "docs" / "latex" / "diagrams.mk"
APT = "apt-get install --no-install-recommends " + re.search(r"LATEX_PACKAGES := (.*)", RULES.read_text())[1]
MISSING = [tool for tool in ("make", "latexmk", "pdflatex", "pdftocairo", "chktex") if not shutil.which(tool)]
needs_latex = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found: {APT}")


def code(source: Path) -> str:
    """A document without its comments."""
    return re.sub(r"(?<!\\)%.*", "", source.read_text())


def claims(text: str) -> set[str]:
    """The claims that a document names: behind "Guide:", in the last field of a list or of a line, and as (W.1)."""
    fields = re.findall(r"Guide:[^}]*|\}/[\d.-]+[,}]|\{[\d., ]+\}$|(?:W\.\d+[, ]*)+(?=[)}])", text, re.M)
    return {tag for field in fields for tag in re.findall(r"(?:W|\d+)\.\d+", field)}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with what the package writes for LaTeX."""
    folder = tmp_path_factory.mktemp("numbers")
    numbers.main(str(folder))
    return folder


def make(target: str, **variables: str | Path) -> subprocess.CompletedProcess:
    command = ["make", "-f", RULES, target, *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(written) -> Path:
    """Everything that `make diagrams` makes, made again in another folder."""
    for target in ("latex-documents", "latex-figures"):
        done = make(target, LATEX_BUILD=written, LATEX_FIGURES=written / "figures")
        assert done.returncode == 0, done.stdout + done.stderr
    return written


# --- with LaTeX


@needs_latex
def test_the_figures_that_stand_here_are_what_the_command_makes(built):
    ours, theirs = ((folder / "made_by.txt").read_text().splitlines() for folder in (built / "figures", FIGURES))
    assert ours[-1] == theirs[-1], "the sources of the diagrams have changed: `make diagrams` draws them again"
    if ours != theirs:
        pytest.skip(f"the figures were made by {theirs[:-1]}, here is {ours[:-1]}: they build, bytes may differ")
    for name in PAGES:
        for kind in ("svg", "png"):
            one, other = (folder / f"{name}.{kind}" for folder in (built / "figures", FIGURES))
            assert one.read_bytes() == other.read_bytes(), f"`make diagrams` makes another {other.name}"


@needs_latex
def test_every_document_has_as_many_pages_as_it_should(built):
    expected = {"CONTROL_FLOW_DIAGRAM": len(PAGES), "cheatsheet": 2, "worked_example": 4}
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


def test_the_figures_were_made_from_the_sources_that_stand_here(written):
    parts = [ROOT / "CONTROL_FLOW_DIAGRAM.tex", ROOT / "docs" / "latex" / "notation.tex", written / "numbers.tex"]
    sources = digest(*(part.read_bytes() for part in parts))
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


def test_every_claim_that_a_document_names_stands_in_a_guide():
    tags = {tag for guide in guides.GUIDES for tag in re.findall(r"\\tag\{([^}]*)\}", guide.read_text())}
    for source in SOURCES:
        named = claims(code(source))
        assert named or source.name == "notation.tex"
        assert named <= tags, f"{source.name} names {named - tags}"
