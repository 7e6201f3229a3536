"""The book is read as a reader does: in a browser, page by page, in light and dark, on a phone, without a network.

Judges: Chromium and axe-core (contrast). Each check is a function that returns a list of problems, and each is seen to
find the faults of a page that was made for it. docs/book/.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urldefrag

import pytest

for package in ("sphinx", "myst_nb", "furo", "playwright"):
    pytest.importorskip(package, reason=f"the book needs {package}: make book")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
for program, found in {"chromium": CHROMIUM, "node": shutil.which("node"), "npm": shutil.which("npm")}.items():
    if found is None:
        pytest.skip(f"the book needs {program}", allow_module_level=True)

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from docs.book import build  # noqa: E402
from docs.book.split import write_source  # noqa: E402

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1360, "height": 900}
EACH_KIND = ("index", "theory/03_attention", "example", "notebooks/01_tokens", "api/training", "api/index",
             "source/gpt/attention.py", "source/index", "notation", "glossary", "downloads", "search")  # fmt: skip


def built(root: Path, out: Path) -> subprocess.CompletedProcess:
    """Run the command behind `make book`."""
    command = [sys.executable, "-m", "docs.book.build", "--root", str(root), "--out", str(out)]
    return subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def npm() -> None:
    try:
        build.fetch()
    except subprocess.CalledProcessError:
        pytest.skip("the book needs katex and axe-core from npm, and there is no network")


@pytest.fixture(scope="module")
def book(npm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built book."""
    out = tmp_path_factory.mktemp("book")
    result = built(build.ROOT, out)
    assert result.returncode == 0, result.stderr
    return out / "html"


@pytest.fixture(scope="module")
def browser():
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


# The checks.

# A page has thousands of cells and coloured words, but few kinds of them: what looks like two others is taken out.
TWO_OF_A_KIND = """() => {
    const kind = x => x === document.body ? "" : kind(x.parentElement) + ">" + x.tagName + x.getAttribute("class");
    const seen = {};
    document.querySelectorAll("details").forEach(x => x.open = true);
    document.querySelectorAll(".katex").forEach(x => x.replaceWith("x"));
    for (const x of [...document.querySelectorAll("body *")].reverse()) {
        const name = x.children.length ? "" : kind(x);
        seen[name] = (seen[name] || 0) + 1;
        if (name && seen[name] > 2) x.remove();
    }
}"""


def dead_links(folder: Path) -> list[str]:
    """Links and sources in the pages of a folder, whose file or fragment is not there."""
    texts = {file: file.read_text("utf-8") for file in folder.rglob("*.html")}
    places = {file: {unquote(name) for name in re.findall(r'\bid="([^"]+)"', text)} for file, text in texts.items()}
    problems = []
    for file, text in texts.items():
        for link in set(re.findall(r'<[a-z][^>]*?\s(?:href|src)="([^"]*)"', text)):
            path, fragment = urldefrag(link)
            target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            if re.match("https?:|mailto:|data:", link) or not link or link == "#":
                continue
            if not target.is_file() or (fragment and unquote(fragment) not in places.get(target, {unquote(fragment)})):
                problems.append(f"{file.relative_to(folder)}: {link}")
    return problems


def faults(page: Page, address: str) -> list[str]:
    """What is wrong with a page that a browser has loaded."""
    problems: list[str] = []
    heard = {"console": lambda message: message.type in ("error", "warning") and problems.append(message.text),
             "pageerror": lambda error: problems.append(str(error)),
             "request": lambda request: re.match("data:|" + re.escape(address.rpartition("/html/")[0]), request.url)
                        or problems.append(f"asks for {request.url}")}  # fmt: skip
    for event, listener in heard.items():
        page.on(event, listener)
    page.goto(address)
    problems += page.evaluate("""() => [
        ...[...document.querySelectorAll(".katex-error, .math:not(:has(.katex))")].map(x => "formula " + x.textContent),
        ...[...document.images].filter(x => !x.complete || !x.naturalWidth).map(x => "no picture " + x.src),
        ...[...document.images].filter(x => !x.alt).map(x => "no description of " + x.src),
        ...[document.scrollingElement.scrollWidth].filter(width => width > innerWidth).map(width => width + " wide"),
    ]""")
    for event, listener in heard.items():
        page.remove_listener(event, listener)
    return problems


def pale(page: Page) -> list[str]:
    """Texts whose contrast is below WCAG AA (4.5 to 1, large ones 3 to 1). Formulas have the colour of their text."""
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=build.NODE / "node_modules/axe-core/axe.min.js")
    page.evaluate(TWO_OF_A_KIND)
    result = page.evaluate("axe.run({ runOnly: ['color-contrast'], resultTypes: ['violations'] })")
    nodes = [node for rule in result["violations"] for node in rule["nodes"]]
    return [f"{node['html'][:80]} {node['any'][0]['message']}" for node in nodes]


# The book.


def test_every_link_arrives(book):
    assert dead_links(book) == []


def test_every_page_is_whole_on_a_phone(book, browser):
    """No error, no request outside the book, no red formula, no picture without description, nothing too wide."""
    page = browser.new_page(viewport=PHONE, offline=True)
    pages = sorted(book.rglob("*.html"))
    problems = {file.relative_to(book).as_posix(): faults(page, file.as_uri()) for file in pages}
    page.close()
    assert {name: found for name, found in problems.items() if found} == {}
    assert len(pages) > 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_passes_wcag_aa(book, browser, scheme):
    page = browser.new_page(viewport=DESK, color_scheme=scheme)
    problems = {}
    for name in EACH_KIND:
        if (book / f"{name}.html").is_file():
            page.goto((book / f"{name}.html").as_uri())
            problems[name] = pale(page)
    page.close()
    assert {name: found for name, found in problems.items() if found} == {}


@pytest.mark.parametrize("over", ["file", "http"])
def test_the_search_finds_the_kv_cache(book, browser, over):
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=book)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = book.as_uri() if over == "file" else f"http://127.0.0.1:{server.server_port}"
        page = browser.new_page(viewport=DESK)
        page.goto(f"{root}/search.html?q=KV+cache")
        page.wait_for_selector("#search-results li")
        found = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.href)")
        page.close()
        server.shutdown()
    assert any("theory/08_generation" in link for link in found)


# Each check can fail.


BAD_PAGE = """<!doctype html><title>bad</title><body style="background: #fff; margin: 0">
<script src="https://example.com/outside.js"></script><script>console.error("an error")</script>
<script>undefined_name</script><span class="math"><span class="katex-error">\\frac</span></span>
<img src="missing.png" alt="a picture that is not there"><img src="dot.svg"><div style="width: 500px">wide</div>
<p style="color: #999">pale</p><a href="missing.html">1</a><a href="#missing">2</a><a href="dot.svg">3</a>"""


@pytest.fixture
def bad(tmp_path) -> Path:
    """A folder with one page in which everything is wrong."""
    folder = tmp_path / "html"
    folder.mkdir()
    (folder / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (folder / "bad.html").write_text(BAD_PAGE)
    return folder


def test_the_checks_see_a_bad_page(bad, npm, browser: Browser):
    assert sorted(dead_links(bad)) == ["bad.html: #missing", "bad.html: missing.html", "bad.html: missing.png"]
    page = browser.new_page(viewport=PHONE)
    found = "\n".join(faults(page, (bad / "bad.html").as_uri()))
    expected = ("asks for https://example.com/outside.js", "an error", "undefined_name is not defined",
                  "formula \\frac", "no picture", "missing.png", "no description of", "500 wide")  # fmt: skip
    assert [words for words in expected if words not in found] == []
    contrast = pale(page)
    page.close()
    assert len(contrast) == 1
    assert "pale" in contrast[0]


@pytest.fixture
def small(tmp_path) -> Path:
    """A repository with a guide of one part."""
    (tmp_path / "DEEP_THEORY_GUIDE.md").write_text("# Guide\n\n## Part 0 · How to read\n\n### Notation\n\n$x$\n")
    (tmp_path / "WORKED_EXAMPLE.md").write_text("# Example\n\n$$ y \\tag{W.1} $$\n")
    (tmp_path / "README.md").write_text("# Book\n\n[part](DEEP_THEORY_GUIDE.md#notation) and (W.1)\n")
    return tmp_path


@pytest.mark.parametrize("link", ["missing.md", "DEEP_THEORY_GUIDE.md#missing", "figures/missing.png"])
def test_a_dead_link_fails_the_build(small, link):
    write_source(small, small / "source")
    with (small / "README.md").open("a") as readme:
        readme.write(f"![here]({link})\n")
    with pytest.raises(ValueError, match=f"README.md: the link {link} is broken"):
        write_source(small, small / "source")


def test_a_bad_formula_fails_the_build(small, npm):
    with (small / "README.md").open("a") as readme:
        readme.write("a formula $\\frac{1$ and a link [dead](WORKED_EXAMPLE.md#missing)\n")
    result = built(small, small / "out")
    assert result.returncode != 0
    assert re.search(r"source/index.md:3: .*expected '}' at end of input: \\frac", result.stderr), result.stderr
    assert re.search(r"source/index.md:3: .*'missing'", result.stderr), result.stderr
