"""`python -m gpt evaluate`: how well does a model predict the end of a text?"""

from __future__ import annotations

from argparse import ArgumentParser

from gpt.commands.material import material
from gpt.commands.output import say, scores
from gpt.commands.parsing import TEXTS, Options, add_device, add_model

HELP = "loss, perplexity and bits per character on the held-out tenth of a text"
EXAMPLES = ("tinyshakespeare", "my.txt --model runs/mine/best")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("text", help=f"{', '.join(TEXTS)} a file of text or tokens, or a folder of shards")
    add_model(parser)
    add_device(parser)


def run(options: Options) -> None:
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer
    from gpt.support.machine import pick_device

    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    held_out = material(options.text, tokenizer)
    model.to(pick_device(options.device))
    say(f"last tenth of {options.text}: {scores(held_out.score(model))}")
