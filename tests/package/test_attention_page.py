"""The attention page: it holds the weights it was given, asks nothing of a network, and no token can break it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch

from tests.comparing import close

HOSTILE = [
    "</script>", "</SCRIPT ", "<!--", "<script>", "-->", "]]>", '"', "'", "\\", "\u2028", "\u2029", b"\xff", "\udcff",
    "\n", "\t", "\r", "\x00", "", " ", "😀", "你", "\u202e", "&lt;", "{{data}}", "{{title}}", "${1}", "`",
    "constructor", "__proto__",
]  # fmt: skip


def causal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights [..., query, key] of a head that cannot see the future."""
    weights = np.exp(2 * np.random.default_rng(seed).normal(size=shape)) * np.tri(shape[-1])
    return weights / weights.sum(-1, keepdims=True)


class Parsed(HTMLParser):
    """The elements of a page, its title and the text of each script, cut as a browser cuts them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.title, self.inside = [], [], "", None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, text):
        if self.inside == "script":
            self.scripts[-1] += text
        if self.inside == "title":
            self.title += text


def data_of(page: str) -> dict:
    return json.loads(Parsed(page).scripts[0])


def decoded(data: dict) -> np.ndarray:
    """What the page's script reads: two bytes a weight, the lower first, of each head the lower triangle by rows."""
    length = len(data["tokens"])
    weights = np.zeros((data["layers"], data["heads"], length, length))
    weights[..., np.tri(length, dtype=bool)] = (
        np.frombuffer(base64.b64decode(data["weights"]), "<u2").reshape(data["layers"], data["heads"], -1) / 65535
    )
    return weights


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 1, 1, 1), (3, 1, 20, 20)])
def test_the_page_holds_the_weights_that_it_was_given(gpt, shape):
    attention = causal(*shape)
    data = data_of(gpt.pages.attention.attention_page(attention, ["x"] * shape[-1]))
    close(decoded(data), attention, 1 / 131070 + 1e-12)  # half a step of 1 / 65535


def test_a_weight_that_rounding_made_larger_than_1_is_1(gpt):
    attention = torch.tensor([[[[1.0000002, 0], [0, 1]]]])
    held = decoded(data_of(gpt.pages.attention.attention_page(attention, "ab")))
    close(held, [[[[1, 0], [0, 1]]]])


def test_the_colours_are_those_of_the_figures(gpt):
    data = data_of(gpt.pages.attention.attention_page(np.ones((1, 1, 1, 1)), "a"))
    palette = np.frombuffer(base64.b64decode(data["palette"]), np.uint8)
    close(palette.reshape(256, 4), mpl.colormaps["viridis"](range(256), bytes=True))


def test_the_same_arguments_give_the_same_page(gpt):
    first, second = (gpt.pages.attention.attention_page(causal(2, 2, 5, 5), "to be") for _ in range(2))
    assert first == second


def test_no_token_can_break_out_of_the_page(gpt):
    """The same elements as with harmless tokens, and the labels come back as they went in."""
    count = len(HOSTILE)
    attention = causal(1, 2, count, count)
    page = gpt.pages.attention.attention_page(attention, HOSTILE, "".join(map(str, HOSTILE)))
    harmless = Parsed(gpt.pages.attention.attention_page(attention, ["a"] * count, "a"))
    assert Parsed(page).tags == harmless.tags
    assert Parsed(page).scripts[1] == harmless.scripts[1]
    assert data_of(page)["tokens"] == gpt.figures.token_labels(HOSTILE)
    assert "<" not in Parsed(page).scripts[0]
    assert Parsed(page).scripts[0].isascii()
    page.encode("utf-8")  # no half of a character is left in it, so it can be written


def test_a_title_is_text(gpt):
    page = gpt.pages.attention.attention_page(np.ones((1, 1, 1, 1)), "a", "</title><b>{{data}} é & {{title}}")
    assert "<b>" not in page
    assert Parsed(page).title == "</title><b>{{data}} é & {{title}}"


def test_the_page_refers_to_nothing_outside_itself(gpt):
    page = gpt.pages.attention.attention_page(causal(2, 2, 9, 9), "not to be")
    page = page.replace(Parsed(page).scripts[0], "")  # base64 may well hold two slashes
    outside = r"https?:|//\w|\bsrc\s*=|\bhref\b|@import|url\s*\(|\bfetch\b|XMLHttpRequest|WebSocket|sendBeacon|import\("
    assert re.findall(outside, page) == []
    assert "default-src 'none'" in page  # and the browser is told to refuse
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">')


@pytest.mark.parametrize(
    ("attention", "tokens", "message"),
    [
        (causal(2, 3, 3), "abc", r"attention must be \[layer, head, query, key\]"),
        (causal(1, 1, 1, 3, 3), "abc", r"attention must be \[layer, head, query, key\]"),
        (np.zeros((0, 1, 3, 3)), "abc", "attention must be .* and not empty"),
        (np.full((1, 1, 2, 2), np.nan), "ab", "attention must be finite"),
        (causal(1, 1, 3, 3) * 2, "abc", r"attention must be in \[0, 1\]"),
        (-causal(1, 1, 3, 3), "abc", r"attention must be in \[0, 1\]"),
        (np.full((1, 1, 3, 3), 1 / 3), "abc", "attention must be causal.*no weight on the future"),
        (causal(1, 1, 3, 3)[:, :, 1:], "abc", "attention must be causal.*got 2 queries and 3 keys"),
        (causal(1, 1, 3, 3), "ab", "tokens must be as many as the keys, 3, got 2"),
        (causal(1, 1, 3, 3), "abcd", "tokens must be as many as the keys, 3, got 4"),
    ],
)
def test_wrong_arguments_are_named(gpt, attention, tokens, message):
    with pytest.raises(ValueError, match=message):
        gpt.pages.attention.attention_page(attention, tokens)


def test_a_page_that_no_browser_would_like_is_refused(gpt, monkeypatch):
    assert gpt.pages.attention.LARGEST == 20_000_000
    monkeypatch.setattr(gpt.pages.attention, "LARGEST", 2_000_000)
    message = "attention of 12 layers, 12 heads and 110 tokens would make a page of 2.3 MB, and 2 MB is the most"
    with pytest.raises(ValueError, match=message):
        gpt.pages.attention.attention_page(np.zeros((12, 12, 110, 110)), "a" * 110)


# --- in a browser


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test with")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: no browser to test with")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a page from its file; at the end nothing else may have been asked for, and nothing complained of."""
    seen, pages = [], []

    def open_page(text: str, **options):
        path = tmp_path / "attention.html"
        path.write_text(text, encoding="utf-8")
        page = chromium.new_page(**options)
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto(path.as_uri())
        pages.append((page, path))
        return page

    yield open_page
    for page, path in pages:
        page.close()
        assert seen == [path.as_uri()]


def said(attention, layer: int, head: int, query: int) -> str:
    """How the live line must begin: the token that really has the largest weight, and that weight."""
    row = np.asarray(attention[layer, head, query])
    top = row.argmax()
    return f"Layer {layer}, head {head}, token {query} “{{}}”: looks at token {top} “{{}}” with {row[top]:.2f}"


def test_pointing_choosing_and_keys_show_where_the_heads_really_look(gpt, opened):
    text = "To be, or not to be"
    model, tokenizer = gpt.GPT.from_pretrained("tinyshakespeare"), gpt.load_pretrained_tokenizer("tinyshakespeare")
    attention = gpt.trace(model, torch.tensor([tokenizer.encode(text)])).attention[:, 0].double()
    page = opened(gpt.pages.attention.attention_page(attention, text))

    def check(layer: int, head: int, query: int) -> None:
        key = attention[layer, head, query].argmax()
        names = [text[i].replace(" ", "space") for i in (query, key)]
        line = page.text_content("#live")
        assert line.startswith(said(attention, layer, head, query).format(*names))
        tops = [int(label.split("token ")[1].split()[0]) for label in page.eval_on_selector_all(
            ".head", "heads => heads.map(head => head.ariaLabel)")]  # fmt: skip
        assert tops == attention[:, :, query].argmax(-1).flatten().tolist()

    last = len(text) - 1
    token, head = page.locator(".token"), page.locator(".head")
    check(0, 0, last)
    token.nth(9).hover()  # pointing is for the moment
    check(0, 0, 9)
    page.mouse.move(0, 0)
    check(0, 0, last)
    token.nth(9).click()  # choosing stays
    page.mouse.move(0, 0)
    check(0, 0, 9)
    for key, place in (
        ("ArrowLeft", (0, 0, 8)), ("ArrowRight", (0, 0, 9)), ("ArrowDown", (0, 1, 9)), ("ArrowUp", (0, 0, 9)),
        ("ArrowUp", (0, 0, 9)), ("Home", (0, 0, 0)), ("ArrowLeft", (0, 0, 0)), ("End", (0, 0, last)),
    ):  # fmt: skip
        page.keyboard.press(key)
        check(*place)
    page.keyboard.press("Tab")  # one stop for the text, one for the heads
    for key, place in (("ArrowRight", (0, 1, last)), ("ArrowDown", (1, 1, last)), ("ArrowDown", (1, 1, last)),
                       ("End", (1, 7, last)), ("Home", (0, 0, last))):  # fmt: skip
        page.keyboard.press(key)
        check(*place)
    head.nth(13).click()
    check(1, 5, last)
    page.select_option("#layer", "0")
    page.select_option("#head", "3")
    check(0, 3, last)
    box = page.locator("#large").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 4.5 / len(text), box["y"] + box["height"] * 7.5 / len(text))
    check(0, 3, 7)
    assert page.text_content("#cell") == f"Here token 7 “o” looks at token 4 “e” with {attention[0, 3, 7, 4]:.4f}."


def test_the_future_is_masked_and_the_shades_are_those_of_the_figures(gpt, opened):
    attention = np.array([[[[1, 0, 0], [0, 1, 0], [0.25, 0, 0.75]]]])
    page = opened(gpt.pages.attention.attention_page(attention, "abc"))
    pixels = page.evaluate("[...at('large').getContext('2d').getImageData(0, 0, 3, 3).data]")
    viridis = mpl.colormaps["viridis"]
    expected = [[*viridis(np.sqrt(w), bytes=True)] if key <= query else [0, 0, 0, 0]
                for query, row in enumerate(attention[0, 0]) for key, w in enumerate(row)]  # fmt: skip
    close(np.reshape(pixels, (9, 4)), expected)
    page.locator(".token").nth(1).click()
    assert page.eval_on_selector_all(".token", "all => all.map(token => token.classList.contains('masked'))") == [
        False, False, True,
    ]  # fmt: skip


def test_the_table_holds_the_numbers(gpt, opened):
    attention = causal(1, 2, 4, 4)
    page = opened(gpt.pages.attention.attention_page(attention, "a bc"))
    page.locator(".head").nth(1).click()
    page.locator("summary").click()
    page.wait_for_selector("tbody tr")
    cells = page.eval_on_selector_all("tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))")
    for query, (name, *row) in enumerate(cells):
        assert name == f"{query} {'a␣bc'[query]}"
        assert row == [f"{w:.4f}" if key <= query else "–" for key, w in enumerate(attention[0, 1, query])]


def test_hostile_tokens_are_shown_as_their_labels(gpt, opened):
    count = len(HOSTILE)
    page = opened(gpt.pages.attention.attention_page(causal(1, 1, count, count), HOSTILE, "<b>&amp;</title>"))
    labels = gpt.figures.token_labels(HOSTILE)
    assert page.eval_on_selector_all(".token", "all => all.map(token => token.textContent)") == labels
    spoken = {"␣": "space", "⏎": "line break", "⇥": "tab", "∅": "nothing"}
    assert page.eval_on_selector_all(".token", "all => all.map(token => token.ariaLabel)") == [
        f"token {i} “{spoken.get(label, label)}”" for i, label in enumerate(labels)
    ]
    assert page.title() == page.text_content("h1") == "<b>&amp;</title>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("layers", "heads", "count"), [(1, 1, 1), (2, 8, 19), (12, 12, 40)])
def test_on_a_phone_nothing_sticks_out_and_all_can_be_named_and_read(gpt, opened, layers, heads, count, scheme):
    tokens = [" extraordinary", *"x" * (count - 1)]
    html = gpt.pages.attention.attention_page(causal(layers, heads, count, count), tokens)
    page = opened(html, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    unnamed = "all => all.filter(e => !(e.ariaLabel || e.labels?.length)).map(e => e.outerHTML)"
    assert page.eval_on_selector_all("button, canvas[role=img], select, [role=radiogroup]:not([aria-labelledby])",
                                     unnamed) == []  # fmt: skip
    assert page.eval_on_selector_all("[role=radio][tabindex='0']", "all => all.length") == 2

    def channels(color: str) -> list[float]:
        return [int(part) for part in re.findall(r"\d+", color)[:3]]

    def contrast(one: str, other: str) -> float:
        """WCAG 2.2, contrast ratio."""
        linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(channels(color)) / 255]
                  for color in (one, other)]  # fmt: skip
        low, high = sorted(np.array(linear) @ [0.2126, 0.7152, 0.0722] + 0.05)
        return high / low

    style = "all => all.map(e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])"
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for color, background in page.eval_on_selector_all(".token", style):
        assert contrast(color, background) >= 4.5
    for color, _ in page.eval_on_selector_all("p, .quiet, .top, .weight, .label, summary, label", style):
        assert contrast(color, paper) >= 4.5
