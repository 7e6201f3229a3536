"""The chapters, without running their kernels (nbval does that): are they whole, stored in the one form, and solvable?

`docs/tools/chapters.py` says what is looked for. Each check is first seen to find what it looks for.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import matplotlib.image as mpl_image
import nbformat
import pytest

from docs.tools import chapters as notebooks
from docs.tools.concepts import CONCEPTS
from docs.tools.guides import ROOT
from gpt import figures
from gpt.lessons.notebook import check, described


def test_there_is_a_chapter_for_every_concept():
    chapters = [path.relative_to(ROOT).as_posix() for path in notebooks.CHAPTERS]
    assert chapters == [concept.chapter for concept in CONCEPTS.values()]


@pytest.fixture(params=notebooks.CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return request.param


def test_a_chapter_is_stored_in_its_normal_form(chapter):
    assert not notebooks.form(chapter)


def test_a_chapter_defines_nothing_that_the_package_has(chapter):
    assert not notebooks.repeats(chapter)


def test_links_of_a_chapter_arrive(chapter):
    assert not notebooks.links(chapter)


def test_solutions_are_accepted_and_nonsense_is_not(chapter, monkeypatch):
    monkeypatch.chdir(chapter.parent)  # where its kernel runs
    monkeypatch.setitem(os.environ, "TQDM_DISABLE", "1")
    assert not notebooks.exercises(chapter)


def test_a_chapter_asks_for_predictions_and_sums_up(chapter):
    text = "\n".join(cell.source for cell in notebooks.load(chapter).cells if cell.cell_type == "markdown")
    for part in ("**Change this and predict", "## Exercises", "## Summary"):
        assert part in text


# --- what the chapters call


def test_a_described_figure_is_a_picture_with_its_words():
    data, metadata = described(figures.plot_positions([[0.0, 1.0]]), "Two cells,\n  one white.")._repr_mimebundle_()
    assert data["image/png"][:4] == b"\x89PNG"
    assert data["text/plain"] == metadata["image/png"]["alt"] == "Two cells, one white."
    pixels = mpl_image.imread(io.BytesIO(data["image/png"])).shape
    assert metadata["image/png"]["width"] == pixels[1] * 100 // 144
    assert metadata["image/png"]["height"] == pixels[0] * 100 // 144
    with pytest.raises(ValueError, match="description must say what the figure shows, got 'a map'"):
        described(figures.plot_positions([[0.0, 1.0]]), "a map")


@pytest.mark.parametrize(("answer", "said"), [(..., "put your answer"), (4, "right."), (5, "not yet. Count again.")])
def test_an_answer_is_checked(answer, said, capsys):
    check("3.1", answer, lambda a: a == 4, "Count again.")
    assert capsys.readouterr().out.startswith("Exercise 3.1: " + said)


# --- the checks themselves


@pytest.fixture
def stored(tmp_path):
    """A function that writes a small chapter and returns its path."""

    def write(*cells, name="03_attention") -> Path:
        path = tmp_path / f"{name}.ipynb"
        path.write_text(notebooks.written(notebooks.normal(nbformat.v4.new_notebook(cells=list(cells)))))
        return path

    return write


def code(source="1 + 1", outputs=(), tags=()):
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return cell


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def image(description):
    metadata = {"image/png": {"alt": description}} if description else {}
    return nbformat.v4.new_output("display_data", data={"image/png": "aGk="}, metadata=metadata)


def test_a_good_chapter_has_no_problem(stored):
    assert not notebooks.form(stored(code(outputs=[stream("loss 1.47\n"), image("A map whose diagonal is bright.")])))


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (stream("see /home/ann/model\n"), "names a path or a time: '/home/'"),
        (stream("<Block object at 0x7f00aa>\n"), "names a path or a time: 'at 0x7f00aa'"),
        (stream("took 1.5 s\n"), "names a path or a time: '1.5 s'"),
        (stream("at 12:30:07\n"), "names a path or a time: '12:30:07'"),
        (stream("100%|###|", name="stderr"), "it writes to stderr"),
        (nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[]), "it ends with an error"),
        (image(None), "an image without a description"),
        (image("a map"), "an image without a description"),
    ],
)
def test_an_output_that_should_not_be_stored(stored, output, problem):
    (found,) = notebooks.form(stored(code(outputs=[output])))
    assert problem in found


def test_a_cell_that_was_not_run(stored):
    path = stored(code())
    content = json.loads(path.read_text())
    content["cells"][0]["execution_count"] = None
    path.write_text(json.dumps(content))
    assert "cell 1: it was never run" in notebooks.form(path)[0]


def test_another_form_than_the_normal_one(stored):
    path = stored(code())
    path.write_text(path.read_text().replace('"cell-1"', '"something-else"'))
    assert "not in its normal form" in notebooks.form(path)[0]


def test_a_skipped_cell_holds_no_output(stored):
    assert not notebooks.form(stored(code(tags=["nbval-skip"])))
    assert "must not hold an output" in notebooks.form(stored(code(outputs=[stream("5")], tags=["nbval-skip"])))[0]


def test_a_second_definition(stored):
    assert "the package already has gelu (in gpt/block.py)" in notebooks.repeats(stored(code("def gelu(x): pass")))[0]
    assert not notebooks.repeats(stored(code("def my_gelu(x): pass")))


def test_links_that_lead_nowhere(stored):
    found = notebooks.links(stored(nbformat.v4.new_markdown_cell("[a part](../NO_SUCH_GUIDE.md)")))
    assert "../NO_SUCH_GUIDE.md leads to no file" in found[0]
    assert "does not link to ../gpt/attention.py" in found[2]


ASK = 'from gpt.lessons.notebook import check\ncheck("3.1", answer, lambda a: a == 4, "Count again.")'
SOLVED = "<details><summary>Solution</summary>\n\n```python\nanswer = 4\n```\n</details>"


@pytest.mark.parametrize(
    ("ask", "answer", "problem"),
    [
        (ASK, SOLVED, None),
        (ASK.replace("4", "5"), SOLVED, "does not accept the solution"),
        (ASK.replace("a == 4", "True"), SOLVED, "accepts 0.1234"),
        ("print('exercise: right.')", SOLVED, "does not wait for an answer"),
        (ASK, "It is 4.", "then a folded Solution"),
    ],
)
def test_an_exercise_is_solved_by_its_solution_only(stored, ask, answer, problem):
    cells = []
    for _ in range(3):
        cells += [code("answer = ...  # how many?", tags=["exercise"]), code(ask)]
        cells += [nbformat.v4.new_markdown_cell(answer)]
    found = notebooks.exercises(stored(*cells))
    assert any(problem in line for line in found) if problem else not found


def test_a_chapter_has_three_exercises(stored):
    assert "0 exercises, but a chapter has three" in notebooks.exercises(stored(code()))[0]


def test_a_number_at_the_edge_of_two_roundings_is_found(stored):
    edge = code("print(f'{sum([0.1] * 5) / 4:.2f}')")
    assert "cell 1: 0.125 lies at the edge of two roundings" in notebooks.exercises(stored(edge))[0]
    path = stored(edge)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"EdgeError.*: 0\.125 lies at the edge"):
        notebooks.store(path)
    assert path.read_bytes() == before


def test_storing_twice_gives_the_same_bytes(stored):
    plot = (
        "from gpt import figures\nfrom gpt.lessons.notebook import described\n"
        "described(figures.plot_positions([[0.0, 1.0]]), 'Two cells, one white and one red.')"
    )
    path = stored(code("print(6 * 7)"), code(plot), code("print('on a GPU')", tags=["nbval-skip"]), code("1 + 1"))
    notebooks.store(path)
    first = path.read_bytes()
    notebooks.store(path)
    assert path.read_bytes() == first
    assert not notebooks.form(path)
    shown, drawn, skipped, last = notebooks.load(path).cells
    assert (shown.outputs[0].text, shown.execution_count) == ("42\n", 1)
    assert drawn.outputs[0].data["text/plain"] == "Two cells, one white and one red."
    assert (skipped.outputs, skipped.execution_count) == ([], None)
    assert (last.outputs[0].data["text/plain"], last.execution_count) == ("2", 3)


def test_a_failing_cell_changes_nothing(stored):
    path = stored(code("print(1)"), code("1 / 0"))
    before = path.read_bytes()
    with pytest.raises(Exception, match="division by zero"):
        notebooks.store(path)
    assert path.read_bytes() == before
    assert (ROOT / "notebooks") not in path.parents
