"""`python -m gpt generate`: continue a prompt."""

from __future__ import annotations

from argparse import ArgumentParser

from gpt.commands.output import say, stream_text
from gpt.commands.parsing import Options, add_device, add_model, at_least
from gpt.commands.tokenizers import given

HELP = "continue a prompt"
EXAMPLES = (
    '--prompt "ROMEO:" --tokens 300',
    '--model gpt2 --prompt "Hello, world" --top-k 40 --temperature 0.8',
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
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--samples", type=at_least(1), default=1)
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)


def run(options: Options) -> None:
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer
    from gpt.training import pick_device

    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    model.to(pick_device(options.device))
    prompt = given(options.prompt)
    for sample in range(options.samples):
        if sample:
            say("-" * 40)
        stream_text(
            model,
            tokenizer,
            prompt,
            options.tokens,
            options.seed + sample,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            eos_token=tokenizer.end_of_text,
        )
