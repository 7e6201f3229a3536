"""Each famous bug of `gpt.lessons.bugs` is put in; a named check must turn red."""

import ast
import inspect
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from gpt import block
from gpt.lessons.bugs import BUGS, planted


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_famous_bug_turns_its_check_red(bug, gpt, monkeypatch, tmp_path):
    path, name = bug.check.split("::")
    check = getattr(import_module("tests." + path.removesuffix(".py").replace("/", ".")), name)
    fixtures = {"gpt": gpt, "tmp_path": tmp_path, "monkeypatch": monkeypatch, **bug.case}
    # Not NameError or SyntaxError: those are slips in the text of the bug.
    red = (AssertionError, pytest.fail.Exception, ValueError, IndexError, RuntimeError)
    with planted(bug), pytest.raises(red):
        check(**{name: fixtures[name] for name in inspect.signature(check).parameters if name in fixtures})


def test_a_bug_is_gone_when_it_is_dug_out():
    before = block.layer_norm
    with planted(next(bug for bug in BUGS if bug.place == "gpt.block.layer_norm")):
        assert block.layer_norm is not before
    assert block.layer_norm is before


def test_a_bug_that_does_not_fit_the_source_is_refused():
    bug = replace(BUGS[0], changes={"no such text": ""})
    with pytest.raises(ValueError, match="holds 'no such text' 0 times, not once"), planted(bug):
        pass


def test_no_two_bugs_have_one_name():
    assert len({bug.name for bug in BUGS}) == len(BUGS)


ASSERTING = ("assert", "raises", "fail", "warns")


def test_every_test_asserts_something():
    """The last famous bug: a test that compares without `assert` and so cannot fail."""
    for path in sorted(Path(__file__).parents[1].rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

        def asserts(name, functions=functions, seen=frozenset()):
            """Whether the function holds an assertion, or calls one of this file's functions that does."""
            if name in seen or name not in functions:
                return name == "close" or any(word in name for word in ASSERTING)
            calls = [node.func for node in ast.walk(functions[name]) if isinstance(node, ast.Call)]
            called = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
            has_own = any(isinstance(node, ast.Assert) for node in ast.walk(functions[name]))
            return has_own or any(asserts(other, functions, seen | {name}) for other in called)

        idle = [name for name in functions if name.startswith("test_") and not asserts(name)]
        assert not idle, f"{path.name}: these tests cannot fail: {idle}"
