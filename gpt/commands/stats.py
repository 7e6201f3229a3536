"""`python -m gpt stats`: how large is a model, and what does it cost?"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import asdict

from gpt.commands.output import say
from gpt.commands.parsing import PRESETS, Options, at_least
from gpt.config import GPTConfig

HELP = "parameters, FLOPs and memory of a size"
EXAMPLES = ("gpt2_small", "gpt2_xl --batch-size 8")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--batch-size", type=at_least(1), default=1)
    parser.add_argument("--context", type=at_least(1), help="tokens per sequence (default: the model's context)")


def run(options: Options) -> None:
    from gpt.scale import flops_per_token, memory_table, parameter_count, parameters_by_component

    config: GPTConfig = getattr(GPTConfig, options.preset)()
    context = config.context_size if options.context is None else options.context
    total, memory = parameter_count(config), memory_table(config, options.batch_size, context)
    forward, training = flops_per_token(config, context), flops_per_token(config, context, training=True)
    say(f"{options.preset}: {asdict(config)}\n")
    for name, count in parameters_by_component(config).items():
        say(f"  {name:<24}{count:>16,}  {count / total:6.1%}")
    say(f"  {'parameters':<24}{total:>16,}\n")
    say(f"FLOPs per token at context {context}: {forward:,} forward, {training:,} in training\n")
    say(f"Memory in float32, batch {options.batch_size}, context {context}, without dropout:")
    for name, size in memory.items():
        say(f"  {name:<24}{size / 2**20:>12,.1f} MiB")
