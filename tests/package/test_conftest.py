"""What the test run itself promises: a learner's file takes the package's place, and no skip goes unseen."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.lessons.learner import Implementation, learners_module
from tests.skips import ALLOWED

ROOT = Path(__file__).parents[2]

CONFIG = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 3

model = "not the module of that name"
"""


@pytest.fixture
def learners_file(tmp_path):
    """Write a learner's file called random.py; what it enters in sys.modules is forgotten afterwards."""
    path = tmp_path / "random.py"

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    yield write
    sys.modules.pop("learners_random", None)


def test_a_learners_file_may_hold_a_dataclass_with_postponed_annotations(learners_file):
    own = learners_module(learners_file(CONFIG))
    config = own.GPTConfig()
    assert config.n_layer == 3
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_learners_names_come_first_and_the_packages_fill_the_rest(gpt, learners_file):
    mixed = Implementation(learners_module(learners_file(CONFIG)))
    assert mixed.GPTConfig().n_layer == 3
    assert mixed.model.GPT is gpt.GPT  # a variable is no model
    assert mixed.Block is gpt.Block
    assert (mixed.checkpoint.__name__, mixed.train.__name__) == ("gpt.storage.checkpoint", "train")
    with pytest.raises(AttributeError, match="'gtp'"):
        _ = mixed.gtp


def test_a_learners_file_replaces_no_module(learners_file):
    learners_module(learners_file(CONFIG))
    assert sys.modules["random"] is random


def test_a_learners_file_that_fails_leaves_no_trace(learners_file):
    with pytest.raises(ZeroDivisionError):
        learners_module(learners_file("1 / 0"))
    assert "learners_random" not in sys.modules


@pytest.mark.parametrize("name", ["missing.py", "notes.txt", "."])
def test_what_is_no_python_file_is_named(tmp_path, name):
    (tmp_path / "notes.txt").write_text("GPTConfig")
    with pytest.raises(ValueError, match="must be a Python file, got"):
        learners_module(tmp_path / name)


# Skips.

SKIPPING = """
import pytest

def test_that_passes():
    pass

@pytest.mark.parametrize("reason", [{reasons}])
def test_that_skips(reason):
    pytest.skip(reason)

@pytest.mark.xfail(reason="known")
def test_that_fails_as_expected():
    assert False
"""


def run(tmp_path: Path, *reasons: str, ci: str, text: str = SKIPPING) -> tuple[int, str]:
    path = tmp_path / "test_skipping.py"
    path.write_text(text.replace("{reasons}", ", ".join(map(repr, reasons))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", path]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    return done.returncode, done.stdout


MAY = "Tiny Shakespeare is not at hand: set GPT_DATA_DIR"


@pytest.mark.parametrize(
    ("reasons", "ci", "code"),
    [(["I am tired"], "true", 1), ([MAY, MAY], "true", 0), (["I am tired", MAY], "", 0), ([MAY], "false", 0)],
)
def test_in_ci_a_skip_without_an_allowed_reason_fails_the_run(tmp_path, reasons, ci, code):
    status, out = run(tmp_path, *reasons, ci=ci)
    assert status == code
    counted = "; ".join(f"{reason} ({reasons.count(reason)})" for reason in dict.fromkeys(reasons))
    assert f"{len(reasons)} skipped: {counted}\n" in out
    assert ("Not allowed in CI (tests/skips.py): I am tired\n" in out) == bool(code)


def test_a_whole_file_that_is_skipped_counts(tmp_path):
    text = 'import pytest\npytest.skip("no module", allow_module_level=True)\n'
    beside = tmp_path / "test_beside.py"
    beside.write_text("def test_that_passes(): pass\n")
    status, out = run(tmp_path, beside.name, ci="1", text=text)
    assert "1 skipped: no module (1)" in out
    assert status != 0


def test_every_allowed_reason_says_why():
    assert all(ALLOWED.values())


# What a run with a learner's file says.


@pytest.mark.parametrize(
    ("workers", "text", "code", "said"),
    [
        (0, "", 1, "checked from my_gpt.py: NOTHING: all of this tested the package"),
        (
            2,  # the names come from the workers of pytest-xdist
            "import torch\n\ndef attention():\n    return 1\n\n"
            "def causal_mask(queries, keys):\n"
            "    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)\n",
            0,
            "checked from my_gpt.py: causal_mask\ndefined there, but asked for by none of these tests: attention",
        ),
    ],
)
def test_a_run_says_what_it_has_checked(tmp_path, workers, text, code, said):
    path = tmp_path / "my_gpt.py"
    path.write_text(text)
    line = [sys.executable, "-m", "pytest", "tests/concepts/test_attention.py", "-k", "causal_mask_lets", "-q",
            f"--numprocesses={workers}", "-p", "no:cacheprovider", f"--implementation={path}"]  # fmt: skip
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, said in ran.stdout) == (code, True), ran.stdout
