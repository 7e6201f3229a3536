"""How do formulas become HTML while the book is built? A process of node reads them, one a line, and KaTeX answers.

A formula that KaTeX does not understand is a warning with its page and line, which fails the build.
"""

import json
import os
import re
from functools import cache
from html import escape
from pathlib import Path
from subprocess import PIPE, Popen

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

KATEX = Path(__file__).resolve().parent.parent / "_build/npm/node_modules/katex"
SCRIPT = """
const katex = require(process.argv[1]);
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [tex, displayMode] = JSON.parse(line);
  let answer;
  try { answer = { html: katex.renderToString(tex, { displayMode, strict: "error" }) }; }
  catch (error) { answer = { error: error.message }; }
  console.log(JSON.stringify(answer));
});
"""


@cache
def node(parent: int) -> Popen:
    """The process of node that works for the process `parent` of Sphinx; it ends when its input does."""
    return Popen(["node", "-e", SCRIPT, str(KATEX)], stdin=PIPE, stdout=PIPE, encoding="utf-8")


@cache
def rendered(tex: str, display: bool) -> dict[str, str]:
    """{"html": ...} or {"error": ...}."""
    process = node(os.getpid())
    print(json.dumps([tex, display]), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def take_neighbours(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """A bracket before a formula, a full stop behind it: browsers would break the line there, so it takes them in."""
    for formula in doctree.findall(nodes.math):
        line, i = formula.parent, formula.parent.index(formula)
        if i and isinstance(line[i - 1], nodes.Text):
            text, formula["before"] = re.fullmatch(r"(.*?)([^\s\w]{0,3})", line[i - 1].astext(), re.S).groups()
            line[i - 1] = nodes.Text(text)
        if i + 1 < len(line) and isinstance(line[i + 1], nodes.Text):
            after = r"([^\s\w]{0,3}(?:\w{1,3}(?!\w))?)(.*)"  # a full stop, or the th of $k$th
            formula["after"], text = re.fullmatch(after, line[i + 1].astext(), re.S).groups()
            line[i + 1] = nodes.Text(text)


def glued(html: str, before: str, after: str) -> str:
    """KaTeX's answer for a formula in a line, with its neighbours inside its first and last unbreakable box."""
    end, mark = "</span></span>", '<span class="base">'
    head, *bases = html.removesuffix(end).split(mark)
    bases = [mark + base for base in bases]
    if before:
        bases[0] = f'<span class="glued"><span>{escape(before)}</span>{bases[0]}</span>'
    if after:
        bases[-1] = f'<span class="glued">{bases[-1]}<span>{escape(after)}</span></span>'
    return head + "".join(bases) + end


def visit(writer, formula: nodes.math | nodes.math_block) -> None:
    """Write one formula to the page."""
    display = isinstance(formula, nodes.math_block)
    answer = rendered(formula.astext(), display)
    if "error" in answer:
        logging.getLogger(__name__).warning("%s", answer["error"], location=formula)
    tag = "div" if display else "span"
    body = answer.get("html", "")
    if body and not display:
        body = glued(body, formula.get("before", ""), formula.get("after", ""))
    writer.body.append(writer.starttag(formula, tag, "", CLASS="math") + body + f"</{tag}>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("katex", inline_renderers=(visit, None), block_renderers=(visit, None))
    app.add_css_file("katex/katex.min.css")
    app.connect("doctree-resolved", take_neighbours)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
