"""How fast do many cards train one model? Memory, traffic and time of a split, and the search for the quickest.

The formulas are those of gpt.scale, (10.6) and (10.15) to (10.19); this puts them together. Numbers take 2 bytes, as in
mixed precision, and sizes are those of the card that has most to do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from gpt.commands.cards import Card
from gpt.config import GPTConfig
from gpt.scale import flops_by_component, kept_numbers, largest_share, parameter_count, ring_seconds, state_bytes
from gpt.support.checks import check_size

USABLE = 0.9  # of a card's memory; the rest is the allocator's gaps and the libraries' own
EFFICIENCY = 0.5  # of its peak a card alone turns into training FLOPs; published runs: 0.29 to 0.60


@dataclass(frozen=True)
class Split:
    """How cards share the training of one model: tensor * stages * data of them.

    data         copies of the model, each with its own part of the batch
    shard        how many copies keep one set of parameters between them (FSDP); 1: each its own (DDP)
    tensor       cards that share every block
    stages       of a pipeline, each with a run of blocks
    micro_batch  sequences that one copy takes at once
    checkpoint   keep a block's input only, and run the block again in the backward pass
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    stages: int = 1
    micro_batch: int = 1
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "shard", "tensor", "stages", "micro_batch"):
            check_size(name, getattr(self, name))
        if self.data % self.shard:
            raise ValueError(f"shard must divide data, got shard={self.shard}, data={self.data}")

    @property
    def cards(self) -> int:
        return self.data * self.tensor * self.stages

    @property
    def kind(self) -> str:
        """Its parts by name, without their sizes."""
        ways = {"tensor": self.tensor > 1, "pipeline": self.stages > 1}
        ways |= {"FSDP": self.shard > 1, "DDP": self.data > self.shard}
        return " + ".join(name for name, used in ways.items() if used) or "one card"


@dataclass(frozen=True)
class Estimate:
    """What one split costs, for the card that has most to do.

    memory   bytes: parameters, gradients, optimizer, gathered (weights of others), activations, logits
    sent     bytes that a card sends in a step
    seconds  of a step, by what the card does: work, update, and the rest is waiting
    """

    split: Split
    memory: dict[str, float]
    sent: float
    seconds: dict[str, float]

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def waiting(self) -> dict[str, float]:
        return {name: took for name, took in self.seconds.items() if name not in ("work", "update")}

    def fits(self, card: Card) -> bool:
        return sum(self.memory.values()) <= USABLE * card.memory


def estimate(
    config: GPTConfig, card: Card, split: Split, sequences: int, context: int, efficiency: float = EFFICIENCY
) -> Estimate:
    """Memory, traffic and time of one step on `sequences` of `context` tokens, with 2 bytes a number.

    A stage takes m micro-batches. The work of one is its FLOPs over `efficiency` of the peak. Sums within a block are
    waited for; gathered weights travel while the card works, (10.18); gradients travel during the backward pass of the
    last micro-batch, two thirds of its work, or half if blocks run twice; the update is bound by memory, (10.7). Left
    out: the sums for a divided table, what the first and the last stage tell each other of the tied one, stragglers.
    """
    if split.data > sequences:
        raise ValueError(f"data must be at most sequences={sequences}, got {split.data}")
    tokens = split.micro_batch * context
    micro_batches = math.ceil(math.ceil(sequences / split.data) / split.micro_batch)
    layers, units = slowest_stage(config, context, split)
    share = largest_share(config, split.tensor)
    block = 12 * config.n_embd**2 + 13 * config.n_embd
    table = parameter_count(config) - config.n_layer * block
    held = (layers * block + table) * share

    memory = state_bytes(held, split.shard)
    # FSDP: weights and gradients of the tied table, of the block at work and of the next one
    memory["gathered"] = 0 if split.shard == 1 else 4 * min(held, (table + 2 * block) * share)
    memory |= activation_bytes(config, split, context, micro_batches)

    inside = min(card.node, split.tensor)  # cards of one tensor group in a node; then come the copies, then the stages
    members = max(1, min(split.shard, card.node // inside))
    tensor_link = card.wire if split.tensor <= card.node else card.link(inside)
    shard_link = card.wire if split.tensor * split.shard <= card.node else card.link(members)
    copies = split.data // split.shard
    rest = max(1, min(copies, card.node // (inside * members)))
    data_link = card.wire if split.tensor * split.data <= card.node else card.link(rest)
    stage_link = card.wire if split.cards <= card.node else card.network

    activation = 2 * tokens * config.n_embd  # bytes of what one block hands to the next
    sums = layers * (6 if split.checkpoint else 4)
    work = tokens * units * share / (efficiency * card.flops)
    tensor = sums * sum_seconds(split.tensor, activation, card.latency, tensor_link)
    # Each block is gathered twice and its gradient summed; the table, used at both ends, stays in between.
    gathered = 2 * (3 * layers * block + 2 * table) * share
    weights = ring_seconds(split.shard, gathered, card.latency, shard_link, 3 * layers + 2) / 2
    hand_on = 2 * (card.latency + activation / stage_link) if split.stages > 1 else 0.0
    gradients = sum_seconds(copies, 2 * held / split.shard, card.latency, data_link, layers + 1)
    late = max(0.0, weights - work)
    slot = work + tensor + late + hand_on
    seconds = {
        "work": micro_batches * work,
        "update": 28 * held / split.shard / card.bandwidth,
        "tensor": micro_batches * tensor,
        "weights": micro_batches * late,
        "stages": micro_batches * hand_on,
        "bubble": (split.stages - 1) * slot,
        "gradients": max(0.0, gradients - work / (2 if split.checkpoint else 1.5)),
    }
    sent = micro_batches * sums * 2 * (1 - 1 / split.tensor) * activation
    sent += micro_batches * (1 - 1 / split.shard) * gathered
    sent += 2 * (1 - 1 / copies) * 2 * held / split.shard
    sent += micro_batches * 2 * activation * (split.stages > 1)
    return Estimate(split, memory, sent, seconds)


def sum_seconds(members: int, size: float, latency: float, link: float, messages: int = 1) -> float:
    """A sum that all members get, by the quicker of two schemes, as NCCL does: the ring (10.17), or trees, which send
    as much for large K, but in ceil(log2 K) steps there and as many back."""
    trees = 2 * ((members - 1).bit_length() * messages * latency + size / link) if members > 1 else 0.0
    return min(trees, ring_seconds(members, size, latency, link, messages))


def slowest_stage(config: GPTConfig, context: int, split: Split) -> tuple[int, float]:
    """(blocks of a full stage, FLOPs a token of the slowest one).

    Every stage but the last gets the same number of blocks, the last what is left and the head: the best such number.
    """
    parts = flops_by_component(config, context)
    head = 3 * parts.pop("head")
    block = (4 if split.checkpoint else 3) * sum(parts.values()) / config.n_layer
    if split.stages == 1:
        return config.n_layer, config.n_layer * block + head

    def slowest(most: int) -> float:
        return max(most * block, max(0, config.n_layer - (split.stages - 1) * most) * block + head)

    layers = min(range(1, config.n_layer + 1), key=slowest)
    return layers, slowest(layers)


def activation_bytes(config: GPTConfig, split: Split, context: int, micro_batches: int = 1) -> dict[str, float]:
    """Of the fullest stage: 2 bytes a number, as (10.6) counts them; logits, log-probabilities and their gradient in
    float32. The first of p stages holds p micro-batches before one of them comes back; the last has the logits.
    """
    tokens, (layers, _) = split.micro_batch * context, slowest_stage(config, context, split)
    kept = kept_numbers(config, split.tensor)
    blocks, again = (layers * config.n_embd, kept) if split.checkpoint else (layers * kept, 0)
    ends = 2 * config.n_embd + 2 + 8  # the final norm, the head's input, two ids of 8 bytes
    logits = 12 * tokens * config.vocab_size * largest_share(config, split.tensor)
    first = 2 * tokens * (min(split.stages, micro_batches) * blocks + again)
    last = 2 * tokens * (blocks + again + ends)
    if first > last + logits:
        return {"activations": first, "logits": 0.0}
    return {"activations": last, "logits": logits}


def estimates(
    config: GPTConfig, card: Card, cards: int, sequences: int, context: int, efficiency: float = EFFICIENCY
) -> list[Estimate]:
    """Of each kind of split the quickest that fits the card, quickest first; then the kinds that never fit, the
    smallest of each. Tensor groups stay in a node. Empty if `sequences` are too few to keep so many cards busy."""
    best: dict[str, Estimate] = {}

    def rank(plan: Estimate) -> tuple[bool, float, int]:
        fits = plan.fits(card)
        return not fits, plan.step if fits else sum(plan.memory.values()), -plan.split.micro_batch

    for split in _splits(config, card, cards, sequences):
        plan = estimate(config, card, split, sequences, context, efficiency)
        best[split.kind] = min(best.get(split.kind, plan), plan, key=rank)
    return sorted(best.values(), key=rank)


def _splits(config: GPTConfig, card: Card, cards: int, sequences: int) -> Iterator[Split]:
    """Every way to deal `cards` out; micro-batches are powers of 2."""
    divisors = [k for k in range(1, cards + 1) if cards % k == 0]
    for tensor, stages in itertools.product(divisors, divisors):
        data = cards // (tensor * stages)
        if cards % (tensor * stages) or tensor > min(card.node, config.n_head) or stages > config.n_layer:
            continue
        if data > sequences:
            continue
        local = math.ceil(sequences / data)
        in_node = max(1, card.node // tensor)
        shards = {1, data} | ({in_node} if data % in_node == 0 else set())
        for shard, power, again in itertools.product(sorted(shards), range(local.bit_length()), (False, True)):
            yield Split(data, shard, tensor, stages, 2**power, again)
