"""Guides: their code runs, what it prints is in them, every claim has its check and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from docs.tools import guides
from gpt.lessons import paper


@pytest.fixture
def planted(tmp_path: Path):
    """Write a small guide and hand back its path."""

    def write(text: str, name: str = "GUIDE.md") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# --- the guides themselves


@pytest.mark.parametrize("guide", guides.GUIDES, ids=lambda guide: guide.name)
def test_what_a_guide_prints_is_in_it(guide):
    problems = guides.run(guide)
    assert not problems, "\n".join(problems) + "\n`make guides` writes what is printed into the guides"


@pytest.mark.parametrize("check", [guides.claims, guides.links, guides.unproven], ids=lambda check: check.__name__)
@pytest.mark.parametrize("guide", guides.GUIDES, ids=lambda guide: guide.name)
def test_nothing_in_a_guide_is_only_said(guide, check):
    problems = check(guide)
    assert not problems, "\n".join(problems)


def test_links_and_images_of_the_readme_lead_somewhere():
    assert not guides.links(guides.ROOT / "README.md")


def test_every_figure_has_a_command_and_a_reader():
    """`make figures` draws each file of figures/, and README, a guide or a chapter shows it."""
    texts = [path.read_text() for path in (guides.ROOT / "README.md", *guides.GUIDES)]
    for path in sorted((guides.ROOT / "figures").glob("*.*")):
        name = re.sub(r"\d+", r"(\\d+|\\{\\w+\\})", re.escape(path.name))  # head_0 may be written f"head_{head}"
        drawn = [text for text in texts if re.search(rf'figure\(f?"{name}"', text)]
        shown = [text for text in texts if f"](figures/{path.name})" in text]
        assert drawn, f"nothing draws {path.name}"
        assert shown, f"nobody shows {path.name}"


def test_every_diagram_has_a_reader():
    pages = [guides.ROOT / "README.md", *guides.GUIDES, *(guides.ROOT / "notebooks").glob("*.ipynb")]
    shown = "".join(page.read_text() for page in pages)
    diagrams = sorted((guides.ROOT / "figures" / "diagrams").glob("*.svg"))
    assert len(diagrams) == 6
    for path in diagrams:
        assert f"figures/diagrams/{path.name})" in shown, f"nobody shows {path.name}"


DRAWS = """
<!-- python
from gpt import figures
height = 1.0
figure("line.KIND", figures.plot_lines({"one": ([0, 1, 2], [0, height, 0])}, "x", "y", "A line"))
-->
"""


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_figure_shows_what_the_code_draws(planted, kind):
    guide = planted(DRAWS.replace("KIND", kind))
    assert f"figures/line.{kind} is not there" in guides.run(guide)[0]
    assert guides.run(guide, draw=True) == guides.run(guide) == []
    same = guide.read_text().replace("1.0", "1.000001")  # another machine's last digits
    assert guides.run(planted(same)) == []
    for other in (guide.read_text().replace("1.0", "1.2"), guide.read_text().replace("A line", "B line")):
        assert "shows something else" in guides.run(planted(other))[0]


# --- running

COUNTS = """# Counting

```python
x = 2
```

```python
print(x)
print(x + 1)
```
```text
2
3
```

<!-- python
print(f"| {x} |")
-->
<!-- printed -->
| 2 |
<!-- /printed -->
"""


def test_a_guide_that_tells_the_truth_has_no_problem(planted):
    assert guides.run(planted(COUNTS)) == []


def test_a_changed_digit_is_found_and_its_line_is_named(planted):
    [text] = guides.run(planted(COUNTS.replace("\n3\n", "\n4\n")))
    [markdown] = guides.run(planted(COUNTS.replace("| 2 |\n<", "| 7 |\n<")))
    assert text.startswith("GUIDE.md:13: it says\n    4\nbut the code prints\n    3")
    assert markdown.startswith("GUIDE.md:20: it says\n    | 7 |")


@pytest.mark.parametrize(("old", "new", "line"), [("\n3\n", "\n", 13), ("\n3\n", "\n3\n4\n", 14)])
def test_a_missing_line_and_a_line_too_many_are_found(planted, old, new, line):
    [problem] = guides.run(planted(COUNTS.replace(old, new)))
    assert problem.startswith(f"GUIDE.md:{line}: ")
    assert "nothing" in problem


def test_updating_writes_what_is_printed_and_nothing_else(planted):
    guide = planted(COUNTS.replace("\n2\n3\n", "\nold\n").replace("| 2 |\n<", "<"))
    assert guides.run(guide, update=True) == []
    assert guide.read_text() == COUNTS


def test_updating_changes_nothing_where_a_block_fails(planted):
    text = COUNTS.replace("\n3\n", "\n4\n") + "\n```python\n1 / 0\n```\n"
    guide = planted(text)
    assert guides.run(guide, update=True) == ["GUIDE.md:24: ZeroDivisionError: division by zero"]
    assert guide.read_text() == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```python\nprint(1)\n```\n", "GUIDE.md:2: this code prints, but no output follows it"),
        ("```python\nprint(1)\n```\nwords\n```text\n1\n```\n", "GUIDE.md:2: this code prints, but no output"),
        ("```python\nprint(1)\n```\n```python\nx = 1\n```\n", "GUIDE.md:2: this code prints, but no output"),
        ("\n```text\n1\n```\n", "GUIDE.md:3: no code precedes this output"),
        ("```python\nprint(1)\n```\n```text\n1\n```\n```text\n1\n```\n", "GUIDE.md:8: no code precedes"),
        ("```python\nx = 1\n```\n```text\n1\n```\n", "GUIDE.md:5: it says\n    1\nbut the code prints\n"),
        ("\n```python\nx = 1\n", "GUIDE.md:2: this block is never closed"),
        ("```python\nx = 1\ny = = 2\n```\n", "GUIDE.md:3: SyntaxError"),
        ("```python\nx = 1\nassert x == 2, 'no'\n```\n", "GUIDE.md:3: AssertionError: no"),
    ],
)
def test_a_problem_names_the_file_and_the_line(planted, text, problem):
    assert guides.run(planted(text))[0].startswith(problem)


def test_the_command_writes_what_is_printed_and_says_what_is_wrong(planted, capsys):
    old = planted(COUNTS.replace("\n3\n", "\n4\n"))
    assert guides.main([str(old)]) == 1
    assert "GUIDE.md:13: it says" in capsys.readouterr().out
    assert guides.main([str(old), "--update"]) == guides.main([str(old)]) == 0
    assert old.read_text() == COUNTS
    assert guides.main(["--draw", str(planted(DRAWS.replace("KIND", "svg")))]) == 0
    assert (old.parent / "figures" / "line.svg").is_file()


def test_code_may_be_folded_away(planted):
    folded = "<details><summary>How</summary>\n\n```python\nprint(1)\n```\n\n</details>\n\n```text\n1\n```\n"
    assert guides.run(planted(folded)) == []


def test_two_guides_share_no_variables(planted):
    guides.run(planted(COUNTS))
    assert "NameError" in guides.run(planted("```python\nx\n```\n", "OTHER.md"))[0]


# --- numbers


def test_a_zero_has_no_sign():
    assert paper.number(-1e-17) == paper.number(-0.0) == "0.0000"
    assert paper.number(-0.12344) == "-0.1234"


@pytest.mark.parametrize("value", [0.12345, -0.12345, 0.12345 + 5e-10, 0.00005, np.nan, np.inf])
def test_a_number_at_the_edge_of_two_roundings_is_refused(value):
    with pytest.raises(ValueError, match="cannot be written with 4 digits"):
        paper.number(value)


def test_a_number_near_the_edge_but_safe_is_written():
    assert paper.number(0.12345 + 2e-9) == "0.1235"
    assert paper.number(0.5, digits=1) == "0.5"


def test_a_table_is_markdown(capsys):
    paper.table("A", np.array([[1, -0.0], [np.nan, 0.25]]), ["a", "b"], ["c", "d"], digits=2)
    assert capsys.readouterr().out == "\n| A | c | d |\n|---|--:|--:|\n| **a** | 1.00 | 0.00 |\n| **b** | · | 0.25 |\n"


def test_a_label_that_would_break_the_table_is_refused():
    with pytest.raises(ValueError, match="must not hold a bar"):
        paper.table("A", np.ones((1, 1)), ["a"], ["c|d"])


def test_a_hand_calculation_is_printed_as_it_is_typed(capsys):
    paper.by_hand("one entry", "(1 * 2 - 1) / sqrt(2)", 1 / np.sqrt(2))
    assert capsys.readouterr().out == "\n✎ one entry: `(1 × 2 − 1) / √(2) = 0.7071`\n"


def test_a_hand_calculation_shows_what_the_calculator_shows(capsys):
    paper.by_hand("near", "0.3333 * 3", 1.0)
    assert capsys.readouterr().out == "\n✎ near: `0.3333 × 3 = 0.9999`, in the table 1.0000\n"


def test_a_hand_calculation_that_misses_the_entry_is_an_error():
    with pytest.raises(AssertionError, match=r"far: 0\.3343 \* 3"):
        paper.by_hand("far", "0.3343 * 3", 1.0)


def test_numbers_are_typed_as_one_types_them_into_a_calculator():
    assert [paper.pocket(x) for x in (2.0, -0.5, -1e-17, 0.25, 1.41421, 0.1 + 0.2, 0.25001)] == [
        "2", "(-0.5)", "0", "0.25", "1.4142", "0.3", "0.2500"
    ]  # fmt: skip
    assert paper.dot(np.array([1, 0, -2]), np.array([0.5, 3, 1])) == "1 * 0.5 + (-2) * 1"
    assert paper.dot(np.zeros(2), np.ones(2)) == "0"


def test_arrays_that_differ_are_an_error():
    paper.same(np.ones(2), np.ones(2) + 1e-11)
    with pytest.raises(AssertionError, match="differ by up to"):
        paper.same(np.ones(2), np.array([1, 1 + 1e-9]))
    with pytest.raises(AssertionError, match="shapes"):
        paper.same(np.ones(2), np.ones((1, 2)))
    with pytest.raises(AssertionError, match="differ by up to nan"):
        paper.same(np.ones(2), np.array([1, np.nan]))


# --- claims

CLAIM = "## Part\n\n$$a = b \\tag{3.2}$$\n\n```python\n# (3.2)\nassert 1 == 1\n```\n"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (CLAIM, []),
        (CLAIM.replace("# (3.2)", "# as it says"), ["GUIDE.md:3: claim (3.2) has no check"]),
        (CLAIM.replace("```python", "## Next\n\n```python"), ["GUIDE.md:3: claim (3.2) has no check"]),
        (CLAIM.replace("# (3.2)", "# (3.2), (3.3)"), ["GUIDE.md:6: a check of (3.3), which is not claimed"]),
        ("```python\n# (1.1)\n```\n", ["GUIDE.md:2: a check of (1.1), which is not claimed"]),
        ("```math\nx \\tag{1.1}\n```\n", ["GUIDE.md:2: claim (1.1) has no check"]),
        (CLAIM + CLAIM, ["GUIDE.md:11: the number (3.2) is taken"]),
        (CLAIM.replace("```python", "```bash"), ["GUIDE.md:3: claim (3.2) has no check"]),
        (CLAIM.replace("```python", "<!-- python").replace("```", "-->"), []),
    ],
)
def test_claims_and_checks_belong_together(planted, text, problems):
    assert guides.claims(planted(text)) == problems


# --- links and images


def test_links_and_images_that_lead_somewhere_are_well(planted):
    planted("# The *other* file: `x`, and more\n\n## Same\n\n## Same\n", "OTHER.md")
    planted("not really a picture", "picture.svg")
    text = (
        "# Here\n\n[a](OTHER.md) [b](OTHER.md#the-other-file-x-and-more) [c](#here) [d](https://example.org/x#y)\n"
        "[e](OTHER.md#same-1) ![A picture of it](picture.svg) `[not](a-link.md)`\n"
        "[![Also one](picture.svg)](OTHER.md)\n\n```text\n[neither](this.md)\n```\n"
    )
    assert guides.links(planted(text)) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](NOWHERE.md)", "GUIDE.md:1: NOWHERE.md leads to no file"),
        ("# A\n[a](#b)", "GUIDE.md:2: #b leads to no heading"),
        ("[a](OTHER.md#b)", "GUIDE.md:1: OTHER.md#b leads to no heading"),
        ("![](picture.svg)", "GUIDE.md:1: the image picture.svg has no alt text"),
        ("![alt](missing.svg)", "GUIDE.md:1: missing.svg leads to no file"),
        ("[![alt](missing.svg)](OTHER.md)", "GUIDE.md:1: missing.svg leads to no file"),
        ('<img src="picture.svg">', "GUIDE.md:1: the image picture.svg has no alt text"),
        ('<img src="missing.svg" alt="it">', "GUIDE.md:1: missing.svg leads to no file"),
        ("[a folder](.)", "GUIDE.md:1: . leads to no file"),
    ],
)
def test_links_and_images_that_lead_nowhere_are_found(planted, text, problem):
    planted("# A\n", "OTHER.md")
    planted("not really a picture", "picture.svg")
    assert guides.links(planted(text)) == [problem]


# --- numbers that nobody checks


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n| x | 1.25 |\n",
        "| a | b |\n|---|---|\n| x | **124,439,808** |\n",
        "```py\nprint(1)\n```\n",
        "```python title=x\nprint(1)\n```\n",
        "  ```python\nprint(1)\n```\n",
        "<!--python\nprint(1)\n-->\n",
        "<!-- printed-->\n1\n<!-- /printed -->\n",
    ],
)
def test_numbers_that_no_code_prints_are_found(planted, text):
    assert len(guides.unproven(planted(text))) == 1


def test_words_in_a_table_need_no_code(planted):
    assert guides.unproven(planted("| symbol | meaning |\n|---|---|\n| T | 3 tokens |\n")) == []
    assert guides.unproven(planted(COUNTS)) == []
