"""The judge of checks: it finds the check that accepts a wrong formula, and only that one."""

from __future__ import annotations

from pathlib import Path

from docs.tools import mutants

GUIDE = """# A

```python
import numpy as np
x = np.arange(1.0, 7.0).reshape(2, 3)
```

$$a \\tag{1.1}$$

```python
# (1.1)
mean = (x[0, 0] + x[0, 1]) / 2
assert mean == 1.5
assert np.allclose((x @ x.T).T, x @ x.T)
print(mean)
```
```text
1.5
```

$$b \\tag{1.2}$$

```python
# (1.2)
weak = x[0, 0] * 3
assert weak > 0
# (1.3)
noise = np.random.default_rng(2 + 3).normal(size=2 + 1)
while x[0, 0] - 1:
    pass
```
"""


def test_what_a_weak_check_accepts_is_named(tmp_path: Path, capsys, monkeypatch):
    guide = tmp_path / "GUIDE.md"
    guide.write_text(GUIDE)
    monkeypatch.setattr(mutants, "SECONDS", 1)  # some mutants of the loop never end
    assert mutants.main(["--each", "99", str(guide)]) == 0
    printed = capsys.readouterr().out
    survivors = {line.partition("survives: ")[2] for line in printed.splitlines() if "survives" in line}
    weak = {"x[0, 0] * 3 -> x[0, 0] / 3", "x[0, 0] * 3 -> 2 * (x[0, 0] * 3)", "3 -> 4"}
    equal = {"(x @ x.T).T -> x @ x.T"}
    assert survivors == weak | equal
    assert "GUIDE.md (1.2): 0 of 3 killed" in printed
    assert "GUIDE.md: no mutant killed: (1.2)\n" in printed
