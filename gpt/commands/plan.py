"""`python -m gpt plan`: what would it take to train this, on many cards or on this machine in half an hour?"""

from __future__ import annotations

import argparse
import json
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from gpt.commands.cards import CARDS, Card
from gpt.commands.output import say
from gpt.commands.parsing import PRESETS, PYTHON_DOCS, TEXTS, Options, at_least
from gpt.commands.tokenizers import CHOICES
from gpt.config import GPTConfig

if TYPE_CHECKING:
    from gpt.commands.cluster import Estimate

HELP = "memory, time and cost of a training run, before it starts"
EXAMPLES = (
    "gpt2_xl --gpus 256",
    "gpt2_small --gpus 8 --card a100-80gb --batch-tokens 524288 --tokens 9891000000",
    "gpt2_large --gpus 4 --memory 24 --flops 120 --wire 25 --network 1 --node 4",
    f"--file {PYTHON_DOCS} --minutes 30",
)
CLUSTERS = (1, 8, 64, 256, 1024)  # cards of the overview
CARD_OPTIONS = {  # option -> (how many of Card's unit one is, help)
    "memory": (1e9, "GB of a card"),
    "flops": (1e12, "its peak in 16 bits, TFLOP/s"),
    "bandwidth": (1e9, "between its memory and its processor, GB/s"),
    "wire": (1e9, "to the cards of its node, GB/s one way"),
    "network": (1e9, "to other nodes, GB/s one way"),
    "latency": (1e-6, "before a message arrives, microseconds"),
    "price": (1.0, "dollars an hour and card"),
}


def within(lowest: float, highest: float) -> Callable[[str], float]:
    """For argparse: a number between these. (nan is not.)"""

    def parse(text: str) -> float:
        if not lowest <= float(text) <= highest:
            raise argparse.ArgumentTypeError(f"must be in {lowest:g}..{highest:g}, got {text[:40]}")
        return float(text)

    parse.__name__ = "float"
    return parse


def options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("preset", nargs="?", choices=PRESETS, help="sizes of the model, to be trained on cards")
    add("--gpus", type=at_least(1), help=f"cards (default: an overview of {', '.join(f'{k:,}' for k in CLUSTERS)})")
    add("--card", choices=tuple(CARDS), default="h100", help="(default: h100); the next options change it")
    for name, (_, text) in CARD_OPTIONS.items():
        add(f"--{name}", type=within(1e-6, 1e9), help=text)
    add("--node", type=at_least(1), help="cards in a node")
    add("--batch-tokens", type=at_least(1), default=512 * 1024, help="tokens of an update (default: 524288)")
    add("--tokens", type=within(1, 1e18), help="tokens of the run (default: 20 a parameter)")
    add("--context-size", type=at_least(1), help="tokens of a sequence (default: the preset's)")
    add("--efficiency", type=within(0.01, 1), help="share of its peak that a card alone reaches (default: 0.5)")
    add("--json", action="store_true", help="all numbers, for a program")
    add("--file", help=f"instead of a preset: {', '.join(TEXTS)} or a text file, to be learned on this machine")
    add("--minutes", type=within(0.1, 1e5), help="time for --file (default: 30)")
    add("--tokenizer", help=f"for --file: {CHOICES} (default: char)")


def run(options: Options) -> None:
    if (options.preset is None) == (options.file is None):
        raise ValueError("give either a preset, to plan a run on cards, or --file, to plan one on this machine")
    if options.file is not None:
        from gpt.commands.plan_text import plan_text

        plan_text(options.file, options.minutes or 30.0, options.tokenizer or "char", options.json)
        return
    if options.minutes or options.tokenizer:
        raise ValueError("--minutes and --tokenizer belong to --file")
    plan_cluster(options)


def plan_cluster(options: Options) -> None:
    from gpt.commands.cluster import EFFICIENCY, estimates
    from gpt.scale import parameter_count

    config: GPTConfig = getattr(GPTConfig, options.preset)()
    context = options.context_size or config.context_size
    config = replace(config, context_size=context)
    card, efficiency = chosen_card(options), options.efficiency or EFFICIENCY
    tokens = options.tokens or 20 * parameter_count(config)
    sequences = options.batch_tokens // context
    if not sequences:
        raise ValueError(f"--batch-tokens must be at least one sequence of {context}, got {options.batch_tokens}")
    if max(options.gpus or 0, sequences, options.batch_tokens // 1_000_000) > 1_000_000:
        raise ValueError("at most 1,000,000 --gpus, 1,000,000 sequences and 10**12 --batch-tokens can be planned")
    found = {
        cards: estimates(config, card, cards, sequences, context, efficiency)
        for cards in ([options.gpus] if options.gpus else CLUSTERS)
    }
    rows = [row(config, card, plan, sequences * context, context, tokens) for plans in found.values() for plan in plans]
    if not rows:
        raise ValueError(
            f"{options.gpus:,} cards cannot share {sequences:,} sequences in any way that is known here: "
            "raise --batch-tokens, or take fewer --gpus"
        )
    about = {"model": options.preset, "parameters": parameter_count(config), "context": context, "tokens": tokens}
    about |= {"batch_tokens": sequences * context, "efficiency": efficiency, "card": asdict(card)}
    if options.json:
        say(json.dumps({**about, "plans": rows}, indent=1))
        return
    introduce(about, options.card if card == CARDS[options.card] else "own card", card)
    if options.gpus is None:  # the quickest of each size
        rows = [next(r for r in rows if r["cards"] == cards) for cards, plans in found.items() if plans]
    show(rows)
    for cards, plans in found.items():
        missing = [kind for kind in ("DDP", "FSDP") if cards > 1 and kind not in {plan.split.kind for plan in plans}]
        if missing:
            say(f"{cards:,} cards, {' and '.join(missing)} alone: impossible, there are only {sequences:,} sequences")
    if options.gpus is not None and rows:
        explain(config, card, found[options.gpus][0], efficiency, context)


def chosen_card(options: Options) -> Card:
    """The card that --card names, with what the other options change."""
    given = {name: getattr(options, name) for name in CARD_OPTIONS if getattr(options, name) is not None}
    changes: dict[str, Any] = {name: value * CARD_OPTIONS[name][0] for name, value in given.items()}
    if options.node is not None:
        changes["node"] = options.node
    if "flops" in changes:  # another card: what a named one cost says nothing
        changes.setdefault("price", None)
    return replace(CARDS[options.card], **changes)


def row(config: GPTConfig, card: Card, plan: Estimate, batch: int, context: int, tokens: float) -> dict[str, Any]:
    """One split in numbers. `batch` and `tokens`: of an update and of the run."""
    from gpt.scale import mfu

    split, speed = plan.split, batch / plan.step
    hours = tokens / speed / 3600
    return {
        "cards": split.cards,
        "kind": split.kind,
        **asdict(split),
        "fits": plan.fits(card),
        "memory": plan.memory,
        "memory_total": sum(plan.memory.values()),
        "sent": plan.sent,
        "seconds": plan.seconds,
        "step": plan.step,
        "waiting": sum(plan.waiting.values()) / plan.step,
        "waits_for": max(plan.waiting, key=plan.waiting.__getitem__) if any(plan.waiting.values()) else None,
        "tokens_per_second": speed,
        "mfu": mfu(speed, config, context, split.cards * card.flops),
        "days": hours / 24,
        "cost": None if card.price is None else hours * split.cards * card.price,
    }


def introduce(about: dict[str, Any], name: str, card: Card) -> None:
    say(f"{about['model']}: {about['parameters']:,} parameters, {about['context']:,} tokens a sequence")
    say(f"a run of {about['tokens']:.3g} tokens in steps of {about['batch_tokens']:,}, 16 bits, AdamW")
    say(
        f"{name}: {card.memory / 1e9:g} GB, {about['efficiency']:.0%} of {card.flops / 1e12:g} TFLOP/s, "
        f"{card.wire / 1e9:g} GB/s in a node of {card.node}, {card.network / 1e9:g} to others, "
        f"{card.latency * 1e6:g} microseconds\n"
    )


def show(rows: list[dict[str, Any]]) -> None:
    """The table: one line a split."""
    say(
        f"{'cards':>5}  {'split':<31}{'data/shard/tensor/stages':>24}{'batch':>7}{'GB':>7}{'sent GB':>9}"
        f"{'step s':>9}{'tokens/s':>12}{'MFU':>6}{'days':>8}{'cost $':>11}  waits"
    )
    for r in rows:
        sizes = "/".join(str(r[name]) for name in ("data", "shard", "tensor", "stages"))
        batch = f"{r['micro_batch']}{'*' if r['checkpoint'] else ''}"
        cost = "-" if r["cost"] is None else f"{r['cost']:,.0f}"
        waits = f"{r['waiting']:.0%} {r['waits_for']}" if r["waiting"] > 0.005 else "-"
        say(
            f"{r['cards']:>5}  {r['kind']:<31}{sizes:>24}{batch:>7}{r['memory_total'] / 1e9:>7.1f}"
            f"{r['sent'] / 1e9:>9.2f}{r['step']:>9.3f}{r['tokens_per_second']:>12,.0f}{r['mfu']:>6.0%}"
            f"{r['days']:>8.3g}{cost:>11}  {waits if r['fits'] else 'does not fit'}"
        )
    say("batch: sequences at once on a copy, * with checkpointing; GB and sent GB: of the fullest card, sent in a step")


def explain(config: GPTConfig, card: Card, best: Estimate, efficiency: float, context: int) -> None:
    """Where the memory of the quickest split goes, and where the wires set the time."""
    from gpt.commands.cluster import USABLE, activation_bytes
    from gpt.scale import cards_that_share_a_block, tokens_that_hide_the_wire

    split, rate = best.split, efficiency * card.flops
    if not best.fits(card):
        say(f"\nNothing fits into {USABLE:.0%} of {card.memory / 1e9:g} GB. More cards, or larger ones, would help.")
        return
    say(f"\nThe quickest that fits: {split.kind}. Its memory, GB:")
    say("  " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in best.memory.items()))
    kept, again = (
        sum(activation_bytes(config, replace(split, micro_batch=1, checkpoint=c), context).values()) / 1e9
        for c in (False, True)
    )
    say(f"A sequence adds {kept:.2f} GB, with checkpointing {again:.2f} GB and a third more work")
    for where, link, used in (
        ("in a node", card.wire, split.cards > 1),
        ("between nodes", card.link(card.node), split.cards > card.node),
    ):
        if used:
            plain, sharded = (tokens_that_hide_the_wire(rate, link, weights) for weights in (False, True))
            say(f"The wire {where} hides behind {plain:,.0f} tokens at once on a card, with FSDP {sharded:,.0f}")
    if split.cards > 1:
        most = cards_that_share_a_block(config, rate, card.wire)
        say(f"Cut over {most:.1f} cards of a node, a block would wait for its sums as long as it works")
