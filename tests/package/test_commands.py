"""The command line: what each command prints and writes, and how it takes a mistake."""

import importlib
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt.commands import material, parsing, tokenize
from gpt.commands.data import chunks
from gpt.commands.output import stream_text
from gpt.storage.corpora import load_text
from gpt.storage.preparation import encoded


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat. " * 40)
    return path


TINY = ["--preset", "tiny", "--context-size", "16", "--n-embd", "16", "--n-head", "2", "--batch-size", "4"]


@pytest.fixture(scope="module")
def run_folder(gpt, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cat"
    arguments = ["train", str(text_file), *TINY, "--steps", "30", "--eval-interval", "10", "--lr", "0.01"]
    assert gpt.__main__.main([*arguments, "--out", str(out)]) == 0
    return out


def test_train_leaves_a_model_its_record_and_a_curve(gpt, run_folder, text_file):
    record = json.loads((run_folder / "best" / "record.json").read_text())
    assert record["command"].startswith(f"python -m gpt train {text_file} --preset tiny")
    assert record["data"]["characters"] == len(text_file.read_text())
    assert record["curve"]["validation"][-1][0] == 30
    model = gpt.GPT.from_pretrained(run_folder / "best")
    corpus = gpt.Corpus.from_text(text_file.read_text(), gpt.load_pretrained_tokenizer(run_folder / "best"))
    score = gpt.evaluate(model, corpus.validation)
    assert record["held_out"]["loss"] == pytest.approx(score.loss, abs=1e-6)
    assert score.loss < 2.5  # it has learned something: ln 11 = 2.40 is the guess, 30 updates reach about 1.7
    assert (run_folder / "curve.png").stat().st_size > 1000


def test_train_goes_on_where_it_stopped(command, text_file, tmp_path):
    arguments = ["train", text_file, *TINY, "--out", tmp_path / "run", "--checkpoint-interval", 5]
    assert command(*arguments, "--steps", 5)[0] == 0
    code, _, err = command(*arguments, "--steps", 9, "--resume")
    assert (code, "steps is 5 there, 9 here" in err) == (2, True)
    code, out, _ = command(*arguments, "--steps", 9, "--resume", "--allow-changes", "--log-interval", 1)
    assert code == 0
    assert "resuming after step 5/9" in out
    assert "step 6/9" in out
    assert "step 5/9  train" not in out


def test_train_goes_on_from_another_model(gpt, command, run_folder, text_file, tmp_path):
    """At rate 0 nothing moves: what comes out is the model that went in, with its tokenizer."""
    arguments = ["train", text_file, "--init", run_folder / "best", "--steps", 1, "--lr", 0, "--dropout", 0.3]
    assert command(*arguments, "--out", tmp_path)[0] == 0
    start, end = (gpt.GPT.from_pretrained(folder / "best") for folder in (run_folder, tmp_path))
    assert torch.equal(end.token_embedding.weight, start.token_embedding.weight)
    assert end.config.dropout == 0.3
    assert (tmp_path / "best" / "tokenizer.json").read_text() == (run_folder / "best" / "tokenizer.json").read_text()


def test_the_tour_does_what_it_says(command, tmp_path):
    code, out, _ = command("tour", "--seconds", 2, "--prompt", "JULIET:", "--out", tmp_path / "tour")
    assert code == 0
    assert "\nJULIET:\n" in out
    before, after = map(float, re.findall(r"^(?:before|after).*?: loss ([\d.]+)", out, re.MULTILINE))
    assert after < before - 0.5  # measured: 4.4 and about 2.7
    written = re.findall(r"^  (\S+\.png)$", out, re.MULTILINE)
    assert [Path(path).name for path in written] == ["all_heads.png", "layer_0.png", "layer_1.png", "training.png"]
    assert all(Path(path).stat().st_size > 1000 for path in written)


def test_bits_per_character_do_not_count_the_first_token_which_is_only_read(gpt):
    tokenizer = gpt.BPETokenizer([(b"a", b"b")], special_tokens=())
    data = material.from_text("name", "abcd" * 10, tokenizer)
    held_out = replace(data, validation=torch.tensor(tokenizer.encode("abcd")), characters=4)
    model = gpt.GPT(gpt.GPTConfig(context_size=4, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=4))
    score = held_out.score(model)  # "ab" is only read, "c" and "d" are predicted
    assert score.bits_per_character == pytest.approx(score.loss / math.log(2), abs=1e-9)


def test_a_run_that_diverges_says_so_in_one_line(command, text_file, tmp_path):
    code, _, error = command("train", text_file, *TINY, "--steps", 3, "--lr", "1e30", "--warmup", 0, "--out", tmp_path)
    assert code == 2
    assert error.endswith("training diverged: after 1 steps the loss is nan; try a lower learning rate\n")


def test_evaluate_prints_the_three_scores(command, run_folder, text_file):
    code, out, _ = command("evaluate", text_file, "--model", run_folder / "best")
    assert code == 0
    assert "nats per token, perplexity" in out
    assert "bits per character" in out


def test_generate_repeats_itself_with_the_same_seed(command, run_folder):
    arguments = ["generate", "--model", run_folder / "best", "--prompt", "the ", "--tokens", 40, "--samples", 2]
    code, out, _ = command(*arguments)
    assert code == 0
    first, second = out.split("-" * 40)
    assert first.startswith("the ")
    assert len(first.removesuffix("\n")) == len("the ") + 40
    assert first.strip() != second.strip()
    assert command(*arguments)[1] == out


def test_attend_draws_all_heads_or_one(gpt, command, run_folder, tmp_path):
    arguments = ["attend", "--text", "the cat sat", "--model", run_folder / "best"]
    for more, names in (
        ([], {"all_heads", "layer_0", "layer_1"}),
        (["--layer", 1, "--head", 0], {"layer_1_head_0"}),
    ):
        out = tmp_path / str(len(more))
        code, printed, _ = command(*arguments, *more, "--out", out)
        assert code == 0
        files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")} | {"attention.html"}
        assert {path.name for path in out.iterdir()} == files
        assert sorted(printed.splitlines()) == sorted(f"wrote {out / name}" for name in files)
        for path in out.iterdir():
            starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!DOCTYPE html>"}
            assert path.read_bytes().startswith(starts[path.suffix])
    ids = gpt.load_pretrained_tokenizer(run_folder / "best").encode("the cat sat")
    attention = gpt.trace(gpt.GPT.from_pretrained(run_folder / "best"), torch.tensor([ids])).attention[:, 0]
    assert (out / "attention.html").read_text(encoding="utf-8") == gpt.pages.attention.attention_page(
        attention, "the cat sat"
    ), "the page is of the whole model, whatever the figures show"


def test_attend_draws_what_is_too_large_for_a_page(gpt, command, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.pages.attention, "LARGEST", 100)
    arguments = ["attend", "--text", "the cat sat", "--model", run_folder / "best", "--layer", 0, "--head", 0]
    code, out, _ = command(*arguments, "--out", tmp_path)
    assert code == 0
    assert re.search("no attention.html: attention of 2 layers, 2 heads and 11 tokens would make a page of", out)
    assert {path.name for path in tmp_path.iterdir()} == {"layer_0_head_0.png", "layer_0_head_0.svg"}


def test_stats_of_the_smallest_released_model(command):
    code, out, _ = command("stats", "gpt2_small")
    assert code == 0
    assert "124,439,808" in out


def test_data_says_what_needs_no_download(command):
    code, out, _ = command("data", "python-docs")
    assert code == 0
    assert "needs no download" in out


def test_a_multibyte_character_is_shown_when_it_is_whole(gpt, capsys, monkeypatch):
    """A model that draws the bytes of "é" one token at a time, whatever it reads."""
    tokenizer = gpt.BPETokenizer([], special_tokens=())
    drawn = iter("aé€".encode())

    class Speller(gpt.GPT):
        def head(self, hidden):
            return torch.full((*hidden.shape[:-1], 256), -1e9).index_fill(-1, torch.tensor([next(drawn)]), 0.0)

    lengths, decode = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: lengths.append(len(ids)) or decode(ids))
    text = stream_text(Speller(gpt.GPTConfig.tiny()), tokenizer, "x", 6, gpt.Sampling(), seed=0)
    assert text == "xaé€"
    assert lengths == [1, 1, 2, 1, 2, 3]  # only what is not printed yet
    assert capsys.readouterr().out == "xaé€\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--temperature", "-1"], "temperature must be at least 0"),
        (["generate", "--top-k", "0"], "top_k must be an int of at least 1"),
        (["generate", "--top-p", "1.5"], r"top_p must be in \(0, 1\]"),
        (["generate", "--min-p", "2"], r"min_p must be in \[0, 1\].*got 2"),
        (["generate", "--repetition-penalty", "0"], "repetition_penalty must be above 0.*got 0"),
        (["generate", "--prompt", ""], "prompt must not be empty"),
        (["generate", "--prompt", "7"], "'7'"),
        (["generate", "--model", "nowhere"], "nowhere"),
        (["attend", "--text", ""], "text must not be empty"),
        (["attend", "--text", "the", "--layer", "2"], r"--layer must be in 0\.\.1 for this model, got 2"),
        (["attend", "--text", "the cat sat on the mat."], "context_size=16"),
        (["train", "no-such-text"], "no-such-text"),
        (["train", "TEXT", "--tokenizer", "words"], "--tokenizer must be char, gpt2, bpe:MERGES"),
        (["train", "TEXT", "--n-head", "3"], "n_embd must be divisible by n_head"),
        (["train", "TEXT", "--batch-size", "0"], "--batch-size"),
        (["train", "TEXT", "--context-size", "2000"], "context_size"),
        (["train", "TEXT", "--steps", "0"], "n_steps must be at least 1"),
        (["train", "TEXT", "--device", "tpu"], "tpu"),
        (["train", "TEXT", "--precision", "float8"], "precision must be one of .*'float8'"),
        (["tokenize", "no", "--tokenizer", "words"], "--tokenizer must be char, gpt2, bpe:MERGES.*'words'"),
        (["tokenize", "no", "--tokenizer", "."], r"--tokenizer must be .*'\.'"),
        (["tokenize", "7", "--model", "tinyshakespeare"], "'7'"),
        (["tokenize", "--file", "no-such-text"], "no-such-text"),
        (["data", "no-such-text"], "no-such-text.*python-docs, tinyshakespeare, the-verdict"),
        (["data", "no-such-text", "--tokens", "it.tokens", "--tokenizer", "char"], "no-such-text"),
        (["data", "TEXT", "--tokens", "it.tokens", "--tokenizer", "words"], "'words'"),
        (["train", "TEXT", "--init", "tinyshakespeare", "--n-layer", "3"], "with --init the sizes and the tokenizer"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line(
    command, run_folder, text_file, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    arguments = [text_file if argument == "TEXT" else argument for argument in arguments]
    if arguments[0] in ("generate", "attend") and "--model" not in arguments:
        arguments[1:1] = ["--model", run_folder / "best"]
    if arguments[0] == "generate" and "--prompt" not in arguments:
        arguments += ["--prompt", "the"]
    code, _, error = command(*arguments)
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == [], "a mistake must leave nothing on the disk"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "python -m gpt: argument command: invalid choice: 'fly'.* \\(see python -m gpt --help\\)"),
        ([], "python -m gpt: .*required: command"),
        (["stats", "gpt3"], "python -m gpt stats: argument preset: .*gpt3.* \\(see python -m gpt stats --help\\)"),
        (["train"], "python -m gpt train: .*required: text"),
        (["stats", "tiny", "--context", "0"], "--context: must be at least 1, got 0"),
        (["generate", "--samples", "0"], "--samples: must be at least 1, got 0"),
        (["tour", "--seconds", "nan"], "--seconds must be above 0 and finite, got nan"),
    ],
)
def test_what_the_parser_refuses_has_code_2_and_one_line(command, arguments, message):
    code, out, error = command(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert re.search(message, error)


@pytest.mark.parametrize(
    "name", ["tour", "train", "evaluate", "generate", "tokenize", "attend", "stats", "data", "download"]
)
def test_help_shows_examples(gpt, name, capsys):
    with pytest.raises(SystemExit):
        gpt.__main__.main([name, "--help"])
    assert f"examples:\n  python -m gpt {name}" in capsys.readouterr().out


def test_python_m_gpt_shows_no_traceback():
    arguments = [sys.executable, "-m", "gpt", "generate", "--model", "nowhere"]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("python -m gpt generate: ")


# --- the command line itself


def test_names_that_the_parser_knows_are_those_of_the_modules(gpt):
    assert (gpt.corpora.PYTHON_DOCS, *gpt.corpora.DOWNLOADS) == parsing.TEXTS
    assert parsing.RELEASED == gpt.pretrained.RELEASED
    assert list(gpt.pretrained.BUNDLED) == [parsing.DEFAULT_MODEL]
    assert all(isinstance(getattr(gpt.GPTConfig, name)(), gpt.GPTConfig) for name in parsing.PRESETS)
    assert {"tiny", "char", "gpt2_small", "gpt2_xl"} < set(parsing.PRESETS)


def test_each_file_in_commands_that_has_a_run_is_a_command(gpt):
    folder = Path(gpt.__main__.__file__).parent / "commands"
    runs = {path.stem for path in folder.glob("*.py") if "\ndef run(" in path.read_text()}
    assert runs == set(gpt.__main__.COMMANDS)


def test_commands_alone_load_no_torch_and_no_matplotlib():
    """--help must come at once: the public names are imported when one of them is used."""
    program = """
        import sys
        from gpt.__main__ import COMMANDS, main
        for name in COMMANDS:
            try:
                main([name, "--help"])
            except SystemExit as end:
                assert end.code == 0
        import gpt
        print("loaded:", {"torch", "numpy", "matplotlib", "tiktoken"} & set(sys.modules))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert process.stdout.endswith("\nloaded: set()\n")


def test_the_package_gives_its_names_and_modules_and_no_others():
    first = "import gpt; print(gpt.tokens.__name__)"  # in a new process, where no name has been used yet
    process = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True)
    assert process.stdout == "gpt.tokens\n"
    package = importlib.import_module("gpt")
    assert package.GPT is importlib.import_module("gpt.model").GPT
    assert package.tokens is importlib.import_module("gpt.tokens")
    assert {"GPT", "Tokenizer", "train"} <= set(dir(package))
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = package.nothing


def test_what_draws_nothing_needs_no_matplotlib(run_folder, text_file, tmp_path):
    """A training run succeeds without, but for its picture; attend says what is missing."""
    program = """
        import sys
        from importlib.machinery import PathFinder
        find = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *more: None if name == "matplotlib" else find(name, *more)
        from gpt.__main__ import main
        text, model, out = sys.argv[1:]
        tiny = "--preset tiny --context-size 16 --n-embd 16 --n-head 2 --batch-size 4 --steps 2".split()
        assert main(["generate", "--model", model, "--prompt", "the", "--tokens", "3"]) == 0
        assert main(["evaluate", text, "--model", model]) == 0
        assert main(["tokenize", "the cat", "--model", model]) == 0
        assert main(["train", text, *tiny, "--out", out]) == 0
        assert main(["attend", "--model", model, "--text", "the"]) == 2
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), text_file, run_folder / "best", tmp_path / "run"]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert re.search("^no curve.png: .*matplotlib", process.stdout, re.MULTILINE)
    assert re.fullmatch("python -m gpt attend: .*matplotlib.*\n", process.stderr)
    assert (tmp_path / "run" / "best" / "record.json").is_file()
    assert not (tmp_path / "run" / "curve.png").exists()


def test_version(gpt, capsys):
    with pytest.raises(SystemExit) as end:
        gpt.__main__.main(["--version"])
    assert end.value.code == 0
    assert re.match(r"gpt-worked-out \d+\.\d+", capsys.readouterr().out)


CHEAP = ("generate", "tokenize", "attend", "stats", "data")


@pytest.mark.parametrize(
    ("name", "example"),
    [
        (name, example)
        for name in CHEAP
        for example in importlib.import_module(f"gpt.commands.{name}").EXAMPLES
        if not any(word in example for word in ("gpt2 ", "gpt2_xl", "gpt2", '"Hello', "tinyshakespeare --", "verdict"))
        and (name, example) != ("data", "tinyshakespeare")  # these need a network once
    ],
)
def test_examples_of_the_help_run(command, tmp_path, monkeypatch, name, example):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(load_text("python-docs")[:20_000])
    code, _, error = command(name, *shlex.split(example))
    assert (code, error) == (0, "")


def test_ctrl_c_ends_with_130(command, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpt.commands.stats.run", interrupted)
    assert command("stats", "tiny") == (130, "", "")


# --- tokenize


def test_tokenize_shows_tokens_ids_bytes_and_totals(gpt, command):
    code, out, _ = command("tokenize", "abab é\n", "--tokenizer", "bpe:1")
    assert code == 0
    assert out.splitlines() == [
        "     #      id  token  bytes",
        "     0     256  ab     61 62",
        "     1     256  ab     61 62",
        "     2      32  ␣      20",
        "     3     195  \\xc3   c3",
        "     4     169  \\xa9   a9",
        "     5      10  ⏎      0a",
        "6 tokens of a vocabulary of 258",
        "7 characters, 8 bytes, 1.17 characters per token",
    ]


def test_tokenize_reads_an_argument_a_file_and_standard_input(command, text_file, monkeypatch):
    outputs = []
    for arguments in ([text_file.read_text()], ["--file", text_file], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text_file.read_text()))
        code, out, _ = command("tokenize", *arguments, "--tokenizer", "char")
        assert code == 0
        outputs.append(out)
    assert outputs[0] == outputs[1] == outputs[2]
    assert "960 tokens of a vocabulary of 11\n" in outputs[0]


def test_columns_stay_aligned_under_wide_characters():
    assert tokenize.columns("a好🙂") == 5
    assert [tokenize.visible(piece) for piece in (b" a\t", "好".encode(), b"\xff\r", "\u0301\x07".encode())] == [
        "␣a⇥", "好", "\\xff\\r", "U+0301\\x07"
    ]  # fmt: skip


def test_a_tokenizer_of_two_files_in_gpt2s_layout(gpt, command, tmp_path):
    letters = gpt.tokenizer_files.CHARACTER_OF
    vocabulary = {letters[byte]: byte for byte in range(256)} | {"th": 256, "<|endoftext|>": 257}
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\n")
    two = f"{tmp_path / 'encoder.json'}+{tmp_path / 'vocab.bpe'}"
    for name in (two, tmp_path):
        code, out, _ = command("tokenize", "the", "--tokenizer", name)
        assert code == 0
        assert "     0     256  th     74 68\n" in out
        assert "2 tokens of a vocabulary of 258\n" in out


# --- generate


def test_generate_reads_its_prompt_from_standard_input(command, run_folder, monkeypatch):
    outputs = []
    for prompt in ("the cat ", "-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the cat "))
        code, out, _ = command("generate", "--model", run_folder / "best", "--prompt", prompt, "--tokens", 10)
        assert code == 0
        outputs.append(out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("settings", [{"min_p": 0.9}, {"repetition_penalty": 30.0}, {"top_k": 2}, {"top_p": 0.2}])
def test_each_setting_of_generate_reaches_the_draw(gpt, command, run_folder, settings):
    option = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    common = ["generate", "--model", run_folder / "best", "--prompt", "the ", "--tokens", 30, "--temperature", 2]
    model, tokenizer = (load(run_folder / "best") for load in (gpt.GPT.from_pretrained, gpt.load_pretrained_tokenizer))
    ids = torch.tensor([tokenizer.encode("the ")])
    expected = gpt.generate(model, ids, 30, 2.0, generator=torch.Generator().manual_seed(0), **settings)
    out = command(*common, *option)[1]
    assert out == tokenizer.decode(expected[0].tolist()) + "\n"
    assert out != command(*common)[1]


# --- token files


def test_a_token_file_holds_the_text_and_trains_a_model(gpt, command, text_file, tmp_path):
    path = tmp_path / "cat.tokens"
    code, out, _ = command("data", text_file, "--tokens", path, "--tokenizer", "bpe:10")
    assert code == 0
    saved = tmp_path / "cat.tokens.tokenizer.json"
    assert out.splitlines()[-1].endswith(f"python -m gpt train {path} --tokenizer {saved}")
    tokenizer = gpt.tokenizer_files.load_tokenizer(saved)
    ids = gpt.token_file.read_tokens(path, tokenizer.vocab_size)
    assert ids.tolist() == tokenizer.encode(text_file.read_text())

    code, out, _ = command("train", path, "--tokenizer", saved, *TINY, "--steps", 3, "--out", tmp_path / "run")
    assert code == 0
    assert f"{len(ids) * 9 // 10:,} tokens to learn from" in out
    record = json.loads((tmp_path / "run" / "best" / "record.json").read_text())
    assert record["data"] == {"name": str(path), "sha256": gpt.files.sha256(path), "tokens": len(ids)}
    held_out = torch.tensor(ids[len(ids) * 9 // 10 :].astype(int))
    model = gpt.GPT.from_pretrained(tmp_path / "run" / "best")
    assert record["held_out"]["loss"] == pytest.approx(gpt.evaluate(model, held_out).loss, abs=1e-6)
    code, out, _ = command("evaluate", path, "--model", tmp_path / "run" / "best")
    assert code == 0
    assert f"loss {record['held_out']['loss']:.4f} " in out


def test_a_token_file_is_refused_with_another_tokenizer(command, text_file, tmp_path):
    path = tmp_path / "cat.tokens"
    assert command("data", text_file, "--tokens", path, "--tokenizer", "char")[0] == 0
    for name, message in (("char", "tokenizer must be the one that made.*'char'"), ("bpe:5", "'bpe:5'")):
        code, _, error = command("train", path, "--tokenizer", name, *TINY, "--out", tmp_path / "run")
        assert code == 2
        assert re.search(message, error)
    code, _, error = command("train", path, "--init", "tinyshakespeare", "--out", tmp_path / "run")
    assert code == 2
    assert re.search("vocabulary of 11 tokens, not 65", error)


def test_a_text_in_chunks_has_the_ids_of_the_whole(gpt, tmp_path, monkeypatch):
    text = "to be, or not<|endoftext|> to be: é 好 " * 20
    path = tmp_path / "text.txt"
    path.write_text(text)
    monkeypatch.setattr("gpt.storage.preparation.CHUNK", 7)
    tokenizer = gpt.BPETokenizer.train(text, 10)
    assert "".join(chunks(str(path))) == text
    assert list(encoded(tokenizer, chunks(str(path)))) == tokenizer.encode(text, allowed_special="all")


def test_resume_without_a_checkpoint_says_so(command, text_file, tmp_path):
    code, out, _ = command("train", text_file, *TINY, "--steps", 1, "--resume", "--out", tmp_path / "run")
    assert code == 0
    assert f"no checkpoint in {tmp_path / 'run'}: starting from the beginning\n" in out


# --- a run that is cut off


def heeds_its_terminal():
    """Also where the tests themselves run under nohup, or behind a `&`, which ignores Ctrl-C."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def training(text_file, tmp_path):
    """Start `train` of many steps in a process of its own; returns it once it has begun, and its folder."""

    def start(**streams):
        arguments = ["train", text_file, *TINY, "--steps", 100_000, "--log-interval", 5, "--out", tmp_path / "run"]
        program = [sys.executable, "-u", "-m", "gpt", *map(str, arguments)]
        process = subprocess.Popen(program, preexec_fn=heeds_its_terminal, **streams)
        while not (tmp_path / "run" / ".lock").exists():
            assert process.poll() is None
            time.sleep(0.05)
        return process, tmp_path / "run"

    return start


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_and_ends_with_its_own_code(training, number, code):
    process, folder = training(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not process.stdout.readline().startswith("step"):
        pass
    process.send_signal(getattr(signal, number))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Nothing is lost" in said
    assert list((folder / "checkpoints").glob("step-*/SHA256SUMS"))


def test_nobody_has_to_read_what_training_says(training):
    """As with `train ... | head -1`: after the first line the pipe is closed, and training continues."""
    process, folder = training(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process.stdout.readline()
    process.stdout.close()
    time.sleep(2)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 143
    assert list((folder / "checkpoints").glob("step-*/SHA256SUMS"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_log_loses_no_run(text_file, tmp_path):
    arguments = ["train", text_file, *TINY, "--steps", 4, "--log-interval", 1, "--out", tmp_path]
    with open("/dev/full", "w") as full:
        program = [sys.executable, "-m", "gpt", *map(str, arguments)]
        ended = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ended.returncode, "standard output could not be written (No space left" in ended.stderr) == (0, True)
    assert (tmp_path / "checkpoints" / "step-00000004" / "SHA256SUMS").exists()
    assert (tmp_path / "best" / "record.json").exists()


def test_two_runs_do_not_share_a_folder(training, command, text_file):
    process, folder = training(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code, _, error = command("train", text_file, *TINY, "--steps", 1, "--out", folder)
    process.kill()
    process.wait()
    assert (code, f"{folder} is in use" in error) == (2, True)
    assert command("train", text_file, *TINY, "--steps", 1, "--out", folder)[0] == 0, "a dead process holds no lock"


def test_resume_refuses_another_text_and_names_it(command, text_file, tmp_path):
    arguments = [*TINY, "--steps", 2, "--out", tmp_path / "run"]
    assert command("train", text_file, *arguments)[0] == 0
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().swapcase().swapcase()[::-1])  # the same characters
    code, _, error = command("train", other, *arguments, "--resume")
    assert (code, "text is " in error) == (2, True)


def test_a_model_with_more_ids_than_its_tokenizer_has_tokens_still_writes_text(gpt, command, tmp_path):
    tokenizer = gpt.CharTokenizer("\nab")
    model = gpt.GPT(gpt.GPTConfig(context_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=4))
    gpt.pretrained.save_pretrained(model, tmp_path, tokenizer)
    code, out, err = command("generate", "--model", tmp_path, "--prompt", "ab", "--tokens", 30)
    assert (code, err) == (0, "")
    assert len(out) == len("ab") + 30 + 1


# --- how a command ends


def python_m_gpt(*arguments, **options):
    line = [sys.executable, "-m", "gpt", *map(str, arguments)]
    return subprocess.run(line, text=True, stderr=subprocess.PIPE, check=False, timeout=100, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["--version"], ["stats", "tiny"], ["generate", "--tokens", "3"]]
)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_one_line(arguments, buffered):
    with open("/dev/full", "w") as full:
        done = python_m_gpt(*arguments, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": buffered})
    assert done.returncode == 2
    assert re.fullmatch("python -m gpt.*: .*standard output could not be written.*\n", done.stderr)


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_with_128_and_its_number(signal_name):
    number = getattr(signal, signal_name, None)
    if number is None or sys.platform == "win32":
        pytest.skip("Windows has other signals")
    line = [sys.executable, "-m", "gpt", "generate", "--prompt", "ROMEO:", "--tokens", "1000000"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(line, preexec_fn=heeds_its_terminal, text=True, **streams)
    assert process.stdout is not None
    assert process.stdout.read(8).startswith("ROMEO:")  # it is drawing now
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + number, "")


def test_a_signal_removes_the_files_in_progress_and_the_handlers_are_put_back(gpt, command, monkeypatch, tmp_path):
    def written(options):
        with gpt.files.atomic_file(tmp_path / "file"):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("gpt.commands.stats.run", written)
    with pytest.raises(SystemExit) as end:
        command("stats", "tiny")
    assert end.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_ignored(command, monkeypatch):
    monkeypatch.setattr("gpt.commands.stats.run", lambda options: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert command("stats", "tiny") == (0, "", "")
    finally:
        signal.signal(signal.SIGTERM, before)


class PanicException(BaseException):
    """What pyo3 makes of a panic in Rust."""

    __module__ = "pyo3_runtime"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory: choose smaller sizes or another device"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "out of memory.*Tried 2 GiB"),
        (RuntimeError("[enforce fail at x.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory.*enforce"),
        (PanicException("called `Option::unwrap()`"), "a library gave up on this input .*unwrap"),
        (ValueError("a\nb\x1b[2J\u202ec\udcff"), r"stats: a b\\x1b\[2JU\+202Ec\\xff$"),
        (ValueError("start" + "x" * 10_000 + "end"), r"stats: startx+ \.\.\. x+end$"),
        (ValueError(), "stats: ValueError$"),
    ],
)
def test_an_error_is_one_short_line_that_a_terminal_shows_and_does_not_obey(command, monkeypatch, error, message):
    def fails(options):
        raise error

    monkeypatch.setattr("gpt.commands.stats.run", fails)
    code, out, said = command("stats", "tiny")
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert len(said) < 700
    assert re.search(message, said)


def test_a_fault_of_the_package_itself_keeps_its_traceback(command, monkeypatch):
    def fails(options):
        raise KeyError("config")

    monkeypatch.setattr("gpt.commands.stats.run", fails)
    with pytest.raises(KeyError):
        command("stats", "tiny")


def test_real_memory_that_runs_out_is_one_line():
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux holds a process to RLIMIT_AS")
    program = """
        import resource, sys, torch, gpt.training, gpt.storage.pretrained
        from gpt.__main__ import main
        resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
        sys.exit(main(["train", "python-docs", "--n-embd", "65536", "--n-layer", "2", "--out", sys.argv[1]]))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), os.devnull]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch("python -m gpt train: out of memory: .*\n", done.stderr)


@pytest.mark.parametrize("terminal", [False, True])
def test_generated_text_is_shown_to_a_terminal_and_given_exactly_to_a_file(gpt, terminal, monkeypatch):
    drawn = iter("\x1b[2J\u202e".encode())

    class Speller(gpt.GPT):
        def head(self, hidden):
            return torch.full((*hidden.shape[:-1], 256), -1e9).index_fill(-1, torch.tensor([next(drawn)]), 0.0)

    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", out)
    text = stream_text(
        Speller(gpt.GPTConfig.tiny()), gpt.BPETokenizer([], special_tokens=()), "x\n", 7, gpt.Sampling(), 0
    )
    assert text == "x\n\x1b[2J\u202e"
    assert out.getvalue() == ("x\n\\x1b[2JU+202E\n" if terminal else "x\n\x1b[2J\u202e\n")


def test_a_name_that_would_steer_the_terminal_is_shown(command, tmp_path):
    path = tmp_path / "a\x1b]0;title\x07.txt"
    path.write_text("abc")
    assert command("data", path) == (0, f"{tmp_path}/a\\x1b]0;title\\x07.txt: 3 characters\n", "")


@pytest.mark.parametrize(("stdin", "message"), [(b"a\xff", "UTF-8|Unicode"), (None, "standard input is closed")])
def test_standard_input_that_is_no_text_is_one_line(command, monkeypatch, stdin, message):
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
    code, _, error = command("tokenize", "-", "--tokenizer", "char")
    assert (code, error.count("\n")) == (2, 1)
    assert re.search(message, error)


def test_closed_streams_end_as_open_ones(tmp_path):
    for redirect, arguments, code in ((">&-", "stats tiny", 0), ("2>&-", "stats no", 2), (">&- 2>&-", "stats no", 2)):
        line = f"{shlex.quote(sys.executable)} -m gpt {arguments} {redirect}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_the_tour_ends_with_130_when_its_training_is_interrupted(command, monkeypatch, tmp_path):
    def interrupted(*arguments, history, **options):
        history.stopped_by = signal.SIGINT

    monkeypatch.setattr("gpt.training.train", interrupted)
    monkeypatch.setattr("gpt.commands.tour.steps_in", lambda seconds, config: 20)
    assert command("tour", "--out", tmp_path)[0] == 130


def test_a_token_file_of_which_only_the_first_bytes_are_left_is_named(command, tmp_path):
    path = tmp_path / "text.tokens"
    path.write_bytes(b"GPTT")
    code, _, error = command("evaluate", path)
    assert (code, str(path) in error) == (2, True)
