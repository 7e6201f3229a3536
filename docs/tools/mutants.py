"""Can the checks of a guide's claims fail? Each is run with a formula that is wrong in one place.

    python -m docs.tools.mutants [--each 6] [--seed 0] [GUIDE ...]

(`make mutants`) runs a guide once. Before each block that checks a claim, processes are forked that share all variables
so far; each runs the block with one mutant: a sign or an operator changed, a term left out, a factor 2, a transpose
dropped, a number changed. A mutant is killed if the block fails or prints something else. Mutated is arithmetic only:
no arguments that draw random numbers, no indices, no tolerances. What survives is printed with its line: it is either
no real change, or the check is weak. docs/tools/guides.py says what a claim and its check are.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import os
import random
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.tools.guides import GUIDES
from docs.tools.markdown import Part, parts_of

SECONDS = 20  # a mutant that runs longer will not end: it is killed
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult}
LEFT_ALONE = re.compile(r"rng|rand|normal|seed|shape|size|arange|range|print|figure|linspace|zeros|ones|full|isclose")


@dataclass(frozen=True)
class Mutant:
    """A block with one change, and the claim that should notice it."""

    claim: str
    line: int
    change: str  # "old -> new"
    source: ast.Module


# --- making mutants


def parsed(code: Part) -> ast.Module:
    """The code of a block, with the line numbers of its guide."""
    return ast.parse("\n" * (code.line - 1) + "\n".join(code.lines))


def mutants(code: Part) -> Iterator[Mutant]:
    """All mutants of a block."""
    tree = parsed(code)
    allowed = _arithmetic(tree)
    for i, old in enumerate(ast.walk(tree)):
        if not isinstance(old, ast.expr) or id(old) not in allowed:
            continue
        for new in changes(old):
            changed = copy.deepcopy(tree)
            place = list(ast.walk(changed))[i]
            _Replaced(place, new).visit(changed)
            whole = ast.fix_missing_locations(changed)
            yield Mutant(claim_at(code, old.lineno), old.lineno, f"{ast.unparse(old)} -> {ast.unparse(new)}", whole)


class _Replaced(ast.NodeTransformer):
    """Puts one expression in another's place."""

    def __init__(self, old: ast.AST, new: ast.expr) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else super().visit(node)


def claim_at(code: Part, line: int) -> str:
    """The claims whose code a line belongs to: those of the last comment above it, else the block's first."""
    above = [found for text in code.lines[: line - code.line + 1] if (found := _claims(text))]
    every = [found for text in code.lines if (found := _claims(text))]
    return (above[-1] if above else every[0]) if every else ""


def _claims(line: str) -> str:
    return ", ".join(re.findall(r"\(([A-Z\d]+\.\d+)\)", line)) if re.match(r"# \(", line) else ""


def _arithmetic(tree: ast.AST) -> set[int]:
    """The nodes that may be changed: sums, products, powers, signs and transposes, and the numbers in them."""
    found, waiting = set[int](), [(tree, False)]
    while waiting:
        node, inside = waiting.pop()
        if isinstance(node, ast.Call) and LEFT_ALONE.search(ast.unparse(node.func)):
            continue
        if isinstance(node, ast.JoinedStr | ast.keyword | ast.Import | ast.ImportFrom):
            continue
        number = isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value > 1e-4
        sign = isinstance(node, ast.UnaryOp) and (inside or not isinstance(node.operand, ast.Constant))  # no dim=-1
        if isinstance(node, ast.BinOp) or sign or _transpose(node) or (number and inside):
            found.add(id(node))
        below = isinstance(node, ast.BinOp) or (inside and isinstance(node, ast.UnaryOp))
        children = [node.value] if isinstance(node, ast.Subscript) else ast.iter_child_nodes(node)
        waiting += [(child, below) for child in children]
    return found


def _transpose(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("T", "mT")


def changes(node: ast.expr) -> Iterator[ast.expr]:
    """What an expression may become."""
    if isinstance(node, ast.BinOp):
        swapped = SWAPPED.get(type(node.op))
        if swapped:
            yield ast.BinOp(node.left, swapped(), node.right)
        if isinstance(node.op, ast.Add | ast.Sub):  # a term is missing
            yield node.left
        if not isinstance(node.op, ast.Sub):  # a difference is often 0, and twice 0 is no error
            yield ast.BinOp(ast.Constant(2), ast.Mult(), node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Attribute):
        yield node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)


# --- running them


def survives(mutant: Mutant, variables: dict[str, Any], expected: list[str]) -> bool:
    """Whether the block, with the change, neither fails nor prints anything else. It runs in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    same = False
    try:
        same = printed(mutant.source, variables) == expected
    finally:
        os._exit(0 if same else 1)  # whatever happens: no second copy of this program goes on


def printed(source: ast.Module, variables: dict[str, Any]) -> list[str]:
    """Run a block: the lines that it prints."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(io.StringIO()):
        exec(compile(source, "guide", "exec"), variables)
    return [line.rstrip() for line in output.getvalue().strip("\n").splitlines()]


def judge(guide: Path, each: int = 6, seed: int = 0) -> dict[str, list[tuple[Mutant, bool]]]:
    """For each claim of a guide its mutants, at most `each` of them, and whether they survive."""
    chance, judged = random.Random(seed), defaultdict(list)
    variables: dict[str, Any] = {"__name__": "guide", "figure": lambda *_: None}
    parts = [part for part in parts_of(guide.read_text("utf-8")) if part.kind in ("code", "output")]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if part.kind == "output":
            continue
        expected = after.lines if after and after.kind == "output" else []
        by_claim = defaultdict(list)
        for mutant in mutants(part) if any(map(_claims, part.lines)) else ():
            by_claim[mutant.claim].append(mutant)
        for claim, found in by_claim.items():
            some = chance.sample(found, min(each, len(found)))
            judged[claim] += [(mutant, survives(mutant, variables, expected)) for mutant in some]
        printed(parsed(part), variables)
    return dict(judged)


def main(arguments: list[str]) -> int:
    """The command. A survivor is a question, not a fault, so it ends with 0."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.tools.mutants", description="Can the checks of a guide's claims fail?"
    )
    parser.add_argument("guides", nargs="*", type=Path, metavar="GUIDE", help="a Markdown file with claims")
    parser.add_argument("--each", type=int, default=6, help="how many mutants of a claim are run at most")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    options = parser.parse_args(arguments)
    for guide in options.guides or GUIDES[:2]:
        judged = judge(guide, options.each, options.seed)
        for claim, results in judged.items():
            alive = [mutant for mutant, survived in results if survived]
            print(f"{guide.name} ({claim}): {len(results) - len(alive)} of {len(results)} killed")
            print(*(f"    {guide.name}:{mutant.line}: survives: {mutant.change}\n" for mutant in alive), sep="", end="")
        if idle := [claim for claim, results in judged.items() if all(survived for _, survived in results)]:
            print(f"{guide.name}: no mutant killed: ({'), ('.join(idle)})")
        every = [survived for results in judged.values() for _, survived in results]
        print(f"{guide.name}: {len(judged)} checks, {every.count(False)} of {len(every)} mutants killed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
