"""Build the book: python -m docs.book.build

The site is docs/_build/html. It asks the network for nothing; only the first build does, for two packages of npm.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

from docs.book.split import write_source

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGES = ["katex@0.16.22", "axe-core@4.11.0"]  # formulas; the judge of contrast in tests/documents/test_book.py
NODE = ROOT / "docs/_build/npm"


def fetch() -> None:
    """Take the packages from npm, unless they are there."""
    if not (NODE / "node_modules/axe-core/axe.min.js").is_file():
        subprocess.run(["npm", "install", "--silent", "--no-package-lock", "--prefix", NODE, *PACKAGES], check=True)


def build(root: Path, out: Path) -> int:
    """Build the book of the repository `root` in `out`; 0 if there was nothing to complain about."""
    write_source(root, out / "source")
    shutil.rmtree(out / "html", ignore_errors=True)  # with what Sphinx remembers: only a whole build shows all faults
    katex, static = NODE / "node_modules/katex/dist", out / "static/katex"
    old_formats = shutil.ignore_patterns("*.ttf", "*.woff")
    shutil.copytree(katex / "fonts", static / "fonts", ignore=old_formats, dirs_exist_ok=True)
    shutil.copy(katex / "katex.min.css", static)
    os.environ["BOOK_STATIC"] = str(out / "static")  # conf.py reads it
    return build_main(["-q", "-W", "--keep-going", "-jauto", "-c", str(HERE), str(out / "source"), str(out / "html")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/_build", help="where source/ and html/ are made")
    arguments = parser.parse_args()
    fetch()
    sys.exit(build(arguments.root.resolve(), arguments.out.resolve()))
