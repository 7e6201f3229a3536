"""The wheel: it holds the whole package and nothing else, and runs with no more than its base dependencies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DATA = {"gpt/py.typed"} | {f"gpt/storage/tinyshakespeare/{name}" for name in (
    "SHA256SUMS", "config.json", "model.safetensors", "record.json", "tokenizer.json"
)}  # fmt: skip

# Python imports sitecustomize by itself at its start. This one makes the libraries of the extras look uninstalled.
HIDE_EXTRAS = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: (
    None if name.split(".")[0] in ("matplotlib", "huggingface_hub") else find(name, *where)
)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because setuptools leaves folders in the source and would pack what an older build left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(REPOSITORY / "gpt", source / "gpt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()  # must not be packed
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index",
               "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the unpacked wheel, where matplotlib and huggingface_hub seem not to be installed."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "sitecustomize.py").write_text(HIDE_EXTRAS)
    return folder


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python outside the repository, whose `gpt` is the wheel's."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=installed.parent, timeout=60
    )


def test_the_wheel_holds_every_module_the_model_and_the_pages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gpt").rglob("*.py")}
    pages = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gpt").rglob("*.html")}
    assert pages
    assert packed == sources | pages | DATA


def test_generate_needs_no_extra(installed):
    done = run(installed, "-m", "gpt", "generate", "--prompt", "ROMEO:", "--tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ROMEO:")
    assert len(done.stdout.strip()) > len("ROMEO:")


def test_the_package_imports_without_extras_and_comes_from_the_wheel(installed):
    done = run(installed, "-c", "import gpt, sys; print(gpt.__file__, 'matplotlib' in sys.modules)")
    assert done.stdout.split() == [str(installed / "gpt" / "__init__.py"), "False"], done.stderr


@pytest.mark.parametrize(
    ("program", "extra", "library"),
    [
        ("from gpt import figures", "figures", "matplotlib"),
        ("import gpt; gpt.GPT.from_pretrained('gpt2')", "hub", "huggingface_hub"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(installed, program, extra, library):
    last = run(installed, "-c", program).stderr.splitlines()[-1]
    assert last.startswith("gpt.support.extras.MissingExtra: ")
    assert f"pip install {library}" in last
    assert f'extra "{extra}"' in last


def test_every_dependency_has_a_tested_version():
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    project = declared["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values(),
              *declared["dependency-groups"].values()]  # fmt: skip
    names = [name for group in groups for name in group]
    pinned = re.findall(r"^([\w.-]+)==", (REPOSITORY / "requirements.txt").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(pinned)
