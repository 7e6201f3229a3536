"""`python -m gpt generate`: continue a prompt."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import fields

from gpt.commands.output import say, stream_text
from gpt.commands.parsing import Options, add_device, add_model, at_least, seed
from gpt.commands.tokenizers import given

HELP = "continue a prompt"
EXAMPLES = (
    '--prompt "ROMEO:" --tokens 300',
    '--model gpt2 --prompt "Hello, world" --top-k 40 --temperature 0.8',
    '--prompt "JULIET:" --min-p 0.1 --repetition-penalty 1.2',
)


def options(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--prompt",
        default="\n",
        help='the text to continue, or "-" to read it from standard input (default: a line break)',
    )
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to add (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="keep the k most likely tokens")
    parser.add_argument("--top-p", type=float, help="keep the smallest set of tokens that has probability p together")
    parser.add_argument("--min-p", type=float, help="keep tokens at least this times as likely as the most likely one")
    parser.add_argument(
        "--repetition-penalty", type=float, help="above 1: tokens that have occurred become less likely"
    )
    parser.add_argument("--samples", type=at_least(1), default=1, help="how many continuations (default: 1)")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="fewer bits: faster on a CPU, a slightly higher loss (default: float32)",
    )
    add_device(parser)


def run(options: Options) -> None:
    from gpt.generation import Sampling
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer
    from gpt.support.kernels import narrow
    from gpt.support.machine import pick_device

    sampling = Sampling(**{setting.name: getattr(options, setting.name) for setting in fields(Sampling)})
    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    model = narrow(model.to(pick_device(options.device)), options.weights)
    prompt = given(options.prompt)
    for sample in range(options.samples):
        if sample:
            say("-" * 40)
        stream_text(model, tokenizer, prompt, options.tokens, sampling, options.seed + sample)
