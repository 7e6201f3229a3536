"""`python -m gpt evaluate`: how well does a model predict the end of a text?"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import TYPE_CHECKING

from gpt.commands.output import say, scores
from gpt.commands.parsing import TEXTS, Options, add_device, add_model

if TYPE_CHECKING:
    from gpt.model import GPT
    from gpt.storage.corpora import Corpus
    from gpt.training import Evaluation

HELP = "loss, perplexity and bits per character on the held-out tenth of a text"
EXAMPLES = ("tinyshakespeare", "my.txt --model runs/mine/best")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("text", help=f"{', '.join(TEXTS)} or a file")
    add_model(parser)
    add_device(parser)


def run(options: Options) -> None:
    from gpt.storage.corpora import Corpus, load_text
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer
    from gpt.training import pick_device

    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    corpus = Corpus.from_text(load_text(options.text), tokenizer)
    model.to(pick_device(options.device))
    say(f"last tenth of {options.text}: {scores(held_out_score(model, corpus))}")


def held_out_score(model: GPT, corpus: Corpus) -> Evaluation:
    """The whole validation split. Its first token is only read, so its characters are not counted."""
    from gpt.training import evaluate

    first = corpus.tokenizer.decode(corpus.validation[:1].tolist())
    return evaluate(model, corpus.validation, corpus.validation_characters - len(first))
