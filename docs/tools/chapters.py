"""How does a chapter stay true? It is stored in one form only, run again by nbval, and read by the checks below.

`python -m docs.tools.chapters [FILE ...]` (`make notebooks`) runs chapters from fresh kernels and stores them in the
normal form: cells numbered 1 to n, ids and metadata the same every time, progress bars left out. A number whose last
digit another machine might print differently stops it (docs/tools/rounding.py). nbval then runs every code cell again,
and what it prints must be what is stored.

Tags on code cells:
    exercise     holds one line, `name = ...`; the check follows, and then the solution, folded away
    experiment   takes seconds, and no exercise needs what it makes
    nbval-skip   needs a network or a GPU; it is neither run nor stored with an output. With `raises-exception` beside
                 it, JupyterLab runs the next cell where there is none

Each function that looks for problems returns them as a list of "file, cell n: what is wrong".
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from docs.tools import markdown, rounding
from docs.tools.concepts import CONCEPTS
from gpt.support.files import atomic_file

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SKIP = "nbval-skip"
GUARD = """import sys; sys.path.append({root!r})
from docs.tools import rounding; rounding.install(get_ipython())
del rounding"""


def load(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


# --- storing


def store(path: Path) -> None:
    """Run a chapter from a fresh kernel and write it in its normal form. Nothing is written if a cell fails."""
    from nbclient import NotebookClient  # needed here only: it starts kernels

    notebook = normal(load(path))
    guard = nbformat.v4.new_code_cell(GUARD.format(root=str(ROOT)))
    runnable = [cell for cell in notebook.cells if SKIP not in tags(cell)]
    alive = nbformat.v4.new_notebook(cells=[guard, *runnable], metadata=notebook.metadata)  # shares its cells
    os.environ["TQDM_DISABLE"] = "1"
    NotebookClient(alive, timeout=300, coalesce_streams=True, resources={"metadata": {"path": path.parent}}).execute()
    with atomic_file(path) as temporary:
        temporary.write_text(written(normal(notebook)))


def normal(notebook: NotebookNode) -> NotebookNode:
    """The one form in which a chapter is stored: nothing in it depends on when, where or how often it was run."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": tags(cell)} if tags(cell) else {}
        if cell.cell_type == "code":
            count += SKIP not in tags(cell)
            cell.execution_count = None if SKIP in tags(cell) else count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    return notebook


def written(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook).rstrip("\n") + "\n"


# --- reading without running


def form(path: Path) -> list[str]:
    """What is not in the normal form: a cell that was not run, an error, a name of a path or a time, a bare image."""
    problems = []
    for where, cell in _cells(path, "code"):
        if SKIP in tags(cell):
            problems += [f"{where}: it is skipped, so it must not hold an output"] if cell.outputs else []
            continue
        if cell.execution_count is None:
            problems.append(f"{where}: it was never run")
        for output in cell.outputs:
            problems += [f"{where}: {what}" for what in _wrong_with(output)]
    if not problems and path.read_text() != written(normal(load(path))):
        problems.append(f"{path.name}: it is not in its normal form: run `make notebooks`")
    return problems


# What differs from machine to machine: folders, addresses in memory, clock times and durations.
_UNSTABLE = re.compile(
    r"(?<![\w.])(?:/(?:home|tmp|usr|root|opt|var|work|Users|private)/|[A-Z]:\\)|\bat 0x[0-9a-f]+"
    r"|\b\d{1,2}:\d\d(:\d\d)?\b|\b\d[\d.,]*\s?(?:ns|µs|us|ms|s|sec|seconds?|minutes?)\b"
)


def _wrong_with(output: NotebookNode) -> list[str]:
    if output.output_type == "error":
        return [f"it ends with an error: {output.ename}"]
    if output.get("name") == "stderr":
        return ["it writes to stderr"]
    data = output.get("data", {})
    text = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
    found = _UNSTABLE.search(text)
    problems = [f"its output names a path or a time: {found[0]!r}"] if found else []
    images = [kind for kind in data if kind.startswith("image/")] + (["<img"] if "<img" in text else [])
    for kind in images:
        if len(output.metadata.get(kind, {}).get("alt", "")) < 20:
            problems.append("an image without a description: show it with described(figure, ...)")
    return problems


def repeats(path: Path) -> list[str]:
    """Classes and functions of the package that a chapter defines a second time."""
    problems, known = [], _public_names()
    for where, cell in _cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in known:
                problems.append(f"{where}: the package already has {node.name} (in {known[node.name]}): import it")
    return problems


def _public_names() -> dict[str, str]:
    """Each class and function of the package, and the module that holds it."""
    names = {}
    for path in sorted((ROOT / "gpt").rglob("*.py")):
        if path.parent.name == "commands":  # whose functions are typed, not imported
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names[node.name] = path.relative_to(ROOT).as_posix()
    return names


def links(path: Path) -> list[str]:
    """Links of a chapter that lead nowhere, images without alt text, and rooms of its concept it does not link to."""
    problems, targets = [], set()
    for where, cell in _cells(path, "markdown"):
        problems += [f"{where}: {what}" for what in markdown.problems_of_links(cell.source, path)]
        targets.update(re.findall(r"\]\(([^)\s]+)\)", cell.source))
    concept = CONCEPTS[path.stem.partition("_")[2]]
    for needed in (concept.part, concept.module, concept.tests):
        if f"../{needed}" not in targets:
            problems.append(f"{path.name}: it does not link to ../{needed}")
    return problems


def _cells(path: Path, kind: str) -> list[tuple[str, NotebookNode]]:
    cells = enumerate(load(path).cells, start=1)
    return [(f"{path.name}, cell {number}", cell) for number, cell in cells if cell.cell_type == kind]


# --- exercises


def exercises(path: Path) -> list[str]:
    """Solutions that their own check does not accept, checks that accept nonsense, and too few exercises.

    On the way, a number at the edge of two roundings in any cell that is run: all but experiments.
    """
    with rounding.arrays_checked():
        return _exercises(path)


def _exercises(path: Path) -> list[str]:
    problems, found = [], 0
    variables = {"__name__": "chapter"}
    cells = load(path).cells
    for i, cell in enumerate(cells):
        where = f"{path.name}, cell {i + 1}"
        if cell.cell_type != "code" or SKIP in tags(cell) or "experiment" in tags(cell):
            continue
        if "exercise" not in tags(cell):
            try:
                _printed(cell.source, variables)
            except rounding.EdgeError as error:
                return [f"{where}: {error}"]
            continue
        found += 1
        _printed(cell.source, variables)
        name = re.fullmatch(r"(?:#.*\n)*(\w+) = \.\.\.(?: +#.*)?(?:\n#.*)*", cell.source.strip())
        solution = re.search(r"<summary>Solution</summary>.*?```python\n(.*?)```", cells[i + 2].source, re.DOTALL)
        if not name or not solution:
            problems.append(f"{where}: an exercise is `name = ...`, then its check, then a folded Solution with code")
            continue
        ask = cells[i + 1].source
        if "put your answer" not in _printed(ask, variables):
            problems.append(f"{where}: the check does not wait for an answer")
        for nonsense in (0.1234, lambda *_: 0.1234):
            try:
                accepted = ": right." in _printed(ask, variables | {name[1]: nonsense})
            except Exception:  # an answer that cannot even be compared is not accepted either
                accepted = False
            if accepted:
                problems.append(f"{where}: the check accepts {nonsense}")
        if ": right." not in _printed(f"{solution[1]}\n{ask}", variables):
            problems.append(f"{where}: the check does not accept the solution")
    return problems if found >= 3 else [*problems, f"{path.name}: {found} exercises, but a chapter has three"]


def _printed(source: str, variables: dict) -> str:
    output = io.StringIO()
    with redirect_stdout(output):
        exec(rounding.guard(source, variables), variables)
    return output.getvalue()


if __name__ == "__main__":
    for name in sys.argv[1:] or CHAPTERS:
        store(Path(name).resolve())
        print(f"stored {Path(name).name}")
