"""Every formula in every Markdown file and chapter reaches the typesetter of each reader, and is understood there."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from docs.tools import formulas
from docs.tools.guides import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs/book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_formula_arrives_as_it_is_written(page):
    problems = [problem for name, text in formulas.texts(page) for problem in formulas.problems(text, name)]
    assert not problems, "\n".join(problems)


def test_katex_understands_every_formula():
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("the book needs node")
    pytest.importorskip("sphinx", reason="the book needs sphinx: make book")
    from docs.book import build
    from docs.book.formulas import node, rendered

    try:
        build.fetch()
    except subprocess.CalledProcessError:
        pytest.skip("the book needs katex and axe-core from npm, and there is no network")
    assert "error" in rendered(r"\nothing", False)
    problems, count = [], 0
    for name, text in (named for page in PAGES for named in formulas.texts(page)):
        for formula in formulas.formulas(text):
            count += 1
            if error := rendered(formula.bare, formula.display).get("error"):
                problems.append(f"{name}:{formula.line}: {error}")
    with node(os.getpid()) as process:
        process.stdin.close()
    node.cache_clear()
    assert not problems, "\n".join(problems)
    assert count > 2000


WELL = r"""Words $x_t$ and $\bar{x} _ t$, cost \$5, `$code$` and `\$`.

$$
\begin{aligned}
a &= b \\
{} + c &= \lbrace d \rbrace \quad \Vert x \Vert _ 2
\end{aligned}
$$

<!-- python
print("$\operatorname{x}$")
-->

```python
cost = "$\operatorname{x}$"
```

```math
\big\{ x_{i}_{j} \,\big\}
```

| $a_1$ | ($b$) |
|---|---|
| $a_{t}$ | $b_{t}$ |
"""


def test_what_all_readers_take_is_well():
    assert formulas.problems(WELL, "A.md") == []
    assert len(formulas.formulas(WELL)) == 8


@pytest.mark.parametrize(
    ("tex", "problem"),
    [
        (r"$\operatorname{KL}$", r"GitHub refuses \operatorname"),
        (r"$\newcommand{\a}{b}$", r"GitHub refuses \newcommand"),
        (r"$a\,b$", r"GitHub: Markdown takes the backslash from \,"),
        (r"$\{a\}$", r"GitHub: Markdown takes the backslash from \{"),
        (r"$5\%$", r"GitHub: Markdown takes the backslash from \%"),
        ("$$\na \\\\ b\n$$", r"GitHub: Markdown takes the backslash from \\"),
        ("$$\na \\\\[1ex]\nb\n$$", r"GitHub: Markdown takes the backslash from \\"),
        ("$$\na\n+ b\n$$", "GitHub: a line that begins with + begins a list"),
        ("$$\na\n- b\n$$", "GitHub: a line that begins with - begins a list"),
        ("$$\na\n===\nb\n$$", "GitHub: the line === makes a heading"),
        ("$$\na\n\nb\n$$", "GitHub, JupyterLab: a blank line ends it"),
        (r"$\bar{x}_{a} + \bar{x}_{b}$", "GitHub: a pair of _ is taken for emphasis; a blank behind }_ helps"),
        ("$a^*b + c^*$", r"GitHub: * is taken for emphasis; \ast is not"),
        ("$k$th", "GitHub, VS Code: a letter or a digit touches its dollar from outside"),
        ("the$k$", "GitHub, VS Code: a letter or a digit touches its dollar from outside"),
        ("$ k $", "VS Code: a blank touches its dollar from inside"),
        ("$a {b$", "JupyterLab: its braces do not balance"),
        ("$[a](b)$", "GitHub: Markdown changes it, or tears it apart"),
        ("<div>\n$a$\n</div>", "GitHub, VS Code, the book: Markdown changes it, or tears it apart"),
        ("| a |\n|---|\n| $p(a | b)$ |", "GitHub, VS Code, the book: Markdown changes it, or tears it apart"),
    ],
)
def test_what_breaks_is_named_with_its_reason(tex, problem):
    [found] = formulas.problems(f"# A\n\nb {tex}\n" if tex[0] == "$" and tex[1] != "$" else f"# A\n\n{tex}\n", "A.md")
    assert found.startswith("A.md:")
    assert found.endswith(f": {problem}")
