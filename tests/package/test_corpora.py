"""From a text to batches: gpt/storage/corpora.py."""

from __future__ import annotations

import hashlib
import http.server
import os
import resource
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.comparing import close

STORY = "Every effort moves you. Die Wörter zählen auch – ¿y éstas?\n" * 4


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty folder where the texts are looked for."""
    folder = tmp_path / "texts"
    monkeypatch.setenv("GPT_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def site(gpt, monkeypatch):
    """A web server on this machine that gives `site.content` for "the-verdict", whose checksum is that of STORY."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.claimed_length or len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.claimed_length, server.requests = STORY.encode(), None, 0
        url = f"http://127.0.0.1:{server.server_port}/story.txt"
        monkeypatch.setitem(gpt.corpora.DOWNLOADS, "the-verdict", (url, hashlib.sha256(STORY.encode()).hexdigest()))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Texts


def test_the_python_reference_needs_no_download(gpt):
    from pydoc_data.topics import topics

    text = gpt.corpora.load_text("python-docs")
    assert all(topic in text for topic in topics.values())
    assert len(text) == sum(map(len, topics.values())) + 2 * (len(topics) - 1)  # blank lines between the topics
    assert text.index(topics["assert"]) < text.index(topics["yield"])
    assert len(text) > 300_000


def test_a_missing_text_is_downloaded_once_and_then_read_from_the_disk(gpt, data_dir, site):
    assert gpt.corpora.load_text("the-verdict") == STORY
    assert gpt.corpora.fetch("the-verdict") == data_dir / "the-verdict.txt"
    assert gpt.corpora.load_text("the-verdict") == STORY
    assert site.requests == 1
    assert files_under(data_dir) == [data_dir / "the-verdict.txt"]


def test_an_end_of_text_in_a_corpus_is_the_special_token(gpt):
    text = "one two three<|endoftext|>" * 20
    tokenizer = gpt.BPETokenizer.train(text, 3)
    corpus = gpt.Corpus.from_text(text, tokenizer)
    assert (corpus.train == tokenizer.special_tokens["<|endoftext|>"]).sum() == 18  # nine tenths of 20


def test_without_GPT_DATA_DIR_texts_are_in_the_folder_data(gpt, tmp_path, monkeypatch, site):
    monkeypatch.delenv("GPT_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert gpt.corpora.fetch("the-verdict") == Path("data/the-verdict.txt")
    assert (tmp_path / "data" / "the-verdict.txt").read_text(encoding="utf-8") == STORY


def test_a_download_with_a_wrong_checksum_is_not_kept(gpt, data_dir, site):
    site.content = STORY.encode()[:-1] + b"?"
    with pytest.raises(ValueError, match="SHA-256"):
        gpt.corpora.fetch("the-verdict")
    assert not files_under(data_dir)


def test_a_download_that_breaks_off_is_a_connection_error(gpt, data_dir, site):
    site.claimed_length = len(site.content) + 10
    with pytest.raises(ConnectionError, match="python-docs"):
        gpt.corpora.fetch("the-verdict")
    assert not files_under(data_dir)


def test_without_a_network_the_error_says_what_to_do_instead(gpt, data_dir, monkeypatch):
    def no_network(*args, **kwargs):
        raise gpt.corpora.urllib.request.URLError("Name or service not known")

    monkeypatch.setattr(gpt.corpora.urllib.request, "urlopen", no_network)
    with pytest.raises(ConnectionError) as error:
        gpt.corpora.load_text("tinyshakespeare")
    for advice in (str(data_dir / "tinyshakespeare.txt"), "GPT_DATA_DIR", "of your own", "python-docs", "not known"):
        assert advice in str(error.value)
    assert not data_dir.exists()


def test_a_full_disk_is_not_taken_for_a_broken_network(gpt, data_dir, site):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(OSError, match=r"texts/the-verdict\.txt") as error:
            gpt.corpora.fetch("the-verdict")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(error.value, ConnectionError)
    assert not files_under(data_dir)


def test_a_file_with_a_wrong_checksum_is_refused_and_left_alone(gpt, data_dir):
    data_dir.mkdir()
    (data_dir / "tinyshakespeare.txt").write_text("First Citizen: ...")
    with pytest.raises(ValueError, match=r"tinyshakespeare\.txt"):
        gpt.corpora.load_text("tinyshakespeare")
    assert (data_dir / "tinyshakespeare.txt").read_text() == "First Citizen: ..."


def test_any_utf8_file_is_a_text_with_or_without_windows_mark(gpt, tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "own.txt").write_text(STORY, encoding=encoding)
        assert gpt.corpora.load_text(tmp_path / "own.txt") == gpt.corpora.load_text(str(tmp_path / "own.txt")) == STORY


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"caf\xe9"])
def test_a_file_that_is_empty_or_not_utf8_is_refused_by_name(gpt, tmp_path, content):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"own\.txt"):
        gpt.corpora.load_text(tmp_path / "own.txt")


@pytest.mark.parametrize("name", ["shakespeer", "", ".", "To be, or not to be" * 100])
def test_an_unknown_name_lists_the_known_ones(gpt, name):
    with pytest.raises(ValueError, match="python-docs, tinyshakespeare, the-verdict"):
        gpt.corpora.load_text(name)


def test_only_texts_that_have_an_address_can_be_fetched(gpt):
    with pytest.raises(ValueError, match=r"\['tinyshakespeare', 'the-verdict'\]"):
        gpt.corpora.fetch("python-docs")


# Training and validation


def test_the_last_tenth_of_the_characters_is_held_out(gpt):
    text = "abcdefghij" * 7 + "klm"  # 73 characters: 65 and 8
    corpus = gpt.corpora.Corpus.from_text(text, gpt.CharTokenizer.from_text(text))
    assert (corpus.train_characters, corpus.validation_characters) == (65, 8)
    assert corpus.tokenizer.decode(corpus.train.tolist()) == text[:65]
    assert corpus.tokenizer.decode(corpus.validation.tolist()) == text[65:]
    assert corpus.train.dtype == corpus.validation.dtype == torch.int64


def test_the_cut_counts_characters_not_tokens(gpt):
    class EveryTwoCharacters(gpt.CharTokenizer):
        def encode(self, text, *, allowed_special=frozenset()):
            return [ord(character) for character in text[::2]]

    corpus = gpt.corpora.Corpus.from_text("x" * 100, EveryTwoCharacters("x"), validation_fraction=0.3)
    assert (corpus.train_characters, corpus.validation_characters) == (70, 30)
    assert (len(corpus.train), len(corpus.validation)) == (35, 15)


def test_tiny_shakespeare_is_cut_as_everyone_cuts_it(gpt):
    if not (Path(os.environ.get("GPT_DATA_DIR") or "data") / "tinyshakespeare.txt").exists():
        pytest.skip("Tiny Shakespeare is not at hand: set GPT_DATA_DIR to the folder of tinyshakespeare.txt")
    text = gpt.corpora.load_text("tinyshakespeare")
    corpus = gpt.corpora.Corpus.from_text(text, gpt.CharTokenizer.from_text(text))
    assert (len(corpus.train), len(corpus.validation)) == (1_003_854, 111_540)
    assert corpus.tokenizer.vocab_size == 65


@pytest.mark.parametrize("text", ["", "a", "a" * 10])  # ten characters leave one for validation: nothing to predict
def test_a_text_too_short_to_learn_and_judge_is_refused_with_numbers(gpt, text):
    with pytest.raises(ValueError, match=f"{len(text)} characters.*at least 2"):
        gpt.corpora.Corpus.from_text(text, gpt.CharTokenizer("a"))
    gpt.corpora.Corpus.from_text("a" * 20, gpt.CharTokenizer("a"))  # long enough


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_validation_fraction_lies_between_0_and_1(gpt, fraction):
    with pytest.raises(ValueError, match="validation_fraction"):
        gpt.corpora.Corpus.from_text("abc" * 100, gpt.CharTokenizer("abc"), fraction)


def test_characters_that_the_tokenizer_lacks_are_named(gpt):
    with pytest.raises(ValueError, match="'z'"):
        gpt.corpora.Corpus.from_text("abc" * 30 + "z", gpt.CharTokenizer("abc"))


# Windows


def test_targets_are_the_inputs_one_token_later(gpt):
    tokens = torch.arange(100, 200)  # consecutive numbers: the next token is one more
    loader = gpt.corpora.RandomWindows(tokens, context_size=7, batch_size=5)
    for _ in range(20):
        inputs, targets = loader.next_batch()
        assert inputs.shape == targets.shape == (5, 7)
        assert inputs.dtype == targets.dtype == torch.int64
        close(targets, inputs + 1)
        close(inputs, inputs[:, :1] + torch.arange(7))


def test_every_place_is_drawn_equally_often_the_first_and_the_last_too(gpt):
    n, context_size, draws = 12, 4, 16_000
    loader = gpt.corpora.RandomWindows(torch.arange(n), context_size, batch_size=draws, seed=1)
    inputs, targets = loader.next_batch()
    counts = Counter(inputs[:, 0].tolist())
    assert sorted(counts) == list(range(n - context_size))
    assert targets.max() == n - 1
    # Binomial: mean 2000, sigma 42. Worst of 8 places measured: 2.1 sigma. Bound: 5 sigma.
    p = 1 / (n - context_size)
    assert max(abs(count - draws * p) for count in counts.values()) < 5 * (draws * p * (1 - p)) ** 0.5


def test_a_corpus_of_exactly_one_window_is_enough_and_one_token_less_is_not(gpt):
    inputs, targets = gpt.corpora.RandomWindows(torch.arange(9), context_size=8, batch_size=2).next_batch()
    close(inputs, torch.arange(8).repeat(2, 1))
    close(targets, torch.arange(1, 9).repeat(2, 1))
    with pytest.raises(ValueError, match=r"at least context_size \+ 1 = 9 tokens.*got 8"):
        gpt.corpora.RandomWindows(torch.arange(8), context_size=8, batch_size=2)


def test_the_seed_decides_and_the_global_generator_neither_moves_nor_is_moved(gpt):
    def batches(seed):
        loader = gpt.corpora.RandomWindows(torch.arange(1000), 8, 4, seed=seed)
        return torch.stack([loader.next_batch()[0] for _ in range(3)])

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = batches(seed=5)
    close(torch.get_rng_state(), before)
    torch.manual_seed(1)
    close(batches(seed=5), first)
    assert not torch.equal(batches(seed=6), first)


def test_a_restored_loader_continues_bit_for_bit(gpt):
    loader = gpt.corpora.RandomWindows(torch.arange(1000), 8, 4, seed=3)
    for _ in range(5):
        loader.next_batch()
    state = loader.state_dict()
    expected = [loader.next_batch() for _ in range(5)]
    restored = gpt.corpora.RandomWindows(torch.arange(1000), 8, 4, seed=99)
    restored.load_state_dict(state)
    for inputs, targets in expected:
        again = restored.next_batch()
        close(again[0], inputs)
        close(again[1], targets)


def test_several_ranks_see_together_what_one_loader_sees(gpt):
    tokens = torch.arange(1000)
    whole = gpt.corpora.RandomWindows(tokens, 8, batch_size=6, seed=4)
    ranks = [gpt.corpora.RandomWindows(tokens, 8, 2, seed=4, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(5):
        for own, parts in zip(
            whole.next_batch(), zip(*(rank.next_batch() for rank in ranks), strict=True), strict=True
        ):
            close(torch.cat(parts), own)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"context_size": 0}, "context_size"),
        ({"context_size": 2.5}, "context_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"world_size": 0}, "world_size"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1, got 2"),
        ({"rank": -1}, "rank"),
        ({"tokens": torch.zeros(2, 50, dtype=torch.long)}, r"tokens.*\[2, 50\]"),
    ],
)
def test_numbers_out_of_range_are_named(gpt, arguments, name):
    with pytest.raises(ValueError, match=name):
        gpt.corpora.RandomWindows(**{"tokens": torch.arange(100), "context_size": 8, "batch_size": 2, **arguments})


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "found"),
    [
        (torch.arange(-1, 50), None, r"at least 0, got -1\.\.49"),
        (torch.arange(50), 49, r"0\.\.48, got 0\.\.49"),
        (np.arange(50), 49, r"0\.\.48, got 0\.\.49"),
        (torch.arange(50), 0, "vocab_size .*0"),
        (torch.arange(50), 50.0, r"vocab_size .*50\.0"),
    ],
)
def test_an_id_out_of_range_is_found_when_the_loader_is_made(gpt, tokens, vocab_size, found):
    with pytest.raises(ValueError, match=found):
        gpt.RandomWindows(tokens, 8, 2, vocab_size=vocab_size)


def test_ids_of_the_vocabulary_pass(gpt):
    for tokens in (torch.arange(50), torch.arange(50, dtype=torch.int32), np.arange(50, dtype=np.uint16)):
        inputs, targets = gpt.RandomWindows(tokens, 8, 2, vocab_size=50).next_batch()
        close(targets, inputs + 1)
        assert inputs.dtype == torch.int64


@pytest.mark.parametrize("tokens", [list(range(50)), torch.rand(50), torch.ones(50, dtype=torch.bool), np.ones(50)])
def test_what_are_not_ids_cannot_be_cut_into_windows(gpt, tokens):
    with pytest.raises(TypeError, match=r"tokens .*integers, got (list|torch\.float32|torch\.bool|float64)"):
        gpt.RandomWindows(tokens, 8, 2)


def test_a_corpus_needs_a_text_and_a_whole_tokenizer(gpt):
    class HalfATokenizer:
        vocab_size = 256

        def encode(self, text):
            return list(text.encode())

    with pytest.raises(TypeError, match=r"tokenizer .*got HalfATokenizer"):
        gpt.Corpus.from_text("abc" * 100, HalfATokenizer())
    with pytest.raises(TypeError, match=r"text .*got bytes"):
        gpt.Corpus.from_text(b"abc" * 100, gpt.CharTokenizer("abc"))
