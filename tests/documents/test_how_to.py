"""The how-to guide: its blocks, put together, are a file that passes every check that the guide names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from docs.tools.guides import ROOT

GUIDE = ROOT / "HOW_TO_CODE_GUIDE.md"
# Runs several selections of tests in one process, since starting PyTorch takes longer than most of them.
RUNNER = """
import sys, shlex, pytest
for line in sys.stdin.read().splitlines():
    print(line, "->", int(pytest.main(["-p", "no:cacheprovider", *shlex.split(line)])))
"""


def test_the_file_of_the_guide_passes_the_tests_that_it_names(tmp_path):
    text = GUIDE.read_text()
    blocks = re.findall(r"```python\n(# my_gpt\.py.*?)```", text, re.DOTALL)
    assert len(blocks) == 8
    program = "\n\n".join(blocks)
    assert sum(line.strip() != "" for line in program.splitlines()) < 150
    (tmp_path / "my_gpt.py").write_text(program)
    commands = re.findall(r"python -m pytest (tests/.* -k .*)", text)
    assert len(commands) == 7
    lines = [shlex.join(shlex.split(command)).replace("my_gpt.py", str(tmp_path / "my_gpt.py")) for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input="\n".join(lines), capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    codes = re.findall(r"-> (\d)$", done.stdout, re.MULTILINE)
    assert codes == ["0"] * len(commands), done.stdout + done.stderr
