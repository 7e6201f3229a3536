"""The how-to guide: its solutions, put together, are a file that passes every step that the guide checks."""

from __future__ import annotations

import re

import pytest

from docs.tools.guides import ROOT
from gpt.lessons.check import check
from gpt.lessons.steps import STEPS

TEXT = (ROOT / "HOW_TO_CODE_GUIDE.md").read_text()


@pytest.fixture(scope="module")
def solution(tmp_path_factory):
    """The guide's blocks as a file."""
    blocks = re.findall(r"```python\n(# my_gpt\.py.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 17
    program = "\n\n".join(blocks)
    assert sum(line.strip() != "" for line in program.splitlines()) < 300
    path = tmp_path_factory.mktemp("how_to") / "my_gpt.py"
    path.write_text(program)
    return path


def test_the_solutions_of_the_guide_pass_every_step(solution):
    report = check(solution)
    assert {r.step.key: (r.status, r.red) for r in report.results if r.status != "passed" and not r.step.optional} == {}
    assert report.green
    assert {"CharTokenizer", "apply_merges", "GPT", "train", "KVCache", "load_pretrained"} <= report.used


def test_the_guide_has_every_step_in_order():
    titles = re.findall(r"^## Step (\d+) · (.*)$", TEXT, re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, len(STEPS) + 1))
    commands = re.findall(r"gpt check --step (\d+)$", TEXT, re.MULTILINE)
    assert [int(number) for number in commands] == list(range(1, len(STEPS) + 1))


def test_nothing_is_written_in_the_starter():
    report = check(ROOT / "exercises" / "my_gpt.py")
    assert {result.status for result in report.results} <= {"missing", "waiting"}
    assert not report.used
