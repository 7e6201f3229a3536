"""The cards that `python -m gpt plan` knows, as data with their sources."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A processor, its memory and its wires. Bytes, seconds, and bytes or FLOPs a second.

    memory     bytes
    flops      its peak for dense products in 16 bits, pi
    bandwidth  between its memory and its processor, beta
    wire       one way to the other cards of its node, beta_l in (10.17)
    network    one way to the other nodes
    node       how many cards share a node
    latency    before the first byte of a message arrives, alpha
    price      dollars an hour; None where no source names one
    """

    memory: float
    flops: float
    bandwidth: float
    wire: float
    network: float
    node: int = 8
    latency: float = 6e-6
    price: float | None = None

    def link(self, members: int) -> float:
        """Bytes a second, one way, of a ring through many nodes with `members` cards in each.

        A ring enters a node at one card and leaves it at another. As many rings as there are members, each with its
        share of the bytes and its own card at the door, use all their network cards at once.
        """
        return min(self.wire, members * self.network)


# Peaks and memory: the vendor's figures, as Part 10 quotes them. Wires: the systems' own descriptions in MLPerf,
# Training 2.0 (dgxa100_n8), Training 3.0 (dgxh100_n64) and Inference 4.1 (H200-SXM-141GBx8): NVLink of 600 and
# 900 GB/s for both ways together, one network card of 200 or 400 Gbit/s for each of 8. Latency: what NCCL's tuning file
# takes for a step of a ring with large messages, 5.7 in a node and 6.6 microseconds between nodes. Prices: what llm.c's
# author paid, $20 for 94 minutes on 8 A100 and $672 for a day on 8 H100.
CARDS = {
    "a100-40gb": Card(40e9, 312e12, 1.555e12, 300e9, 25e9),
    "a100-80gb": Card(80e9, 312e12, 2.039e12, 300e9, 25e9, price=1.60),
    "h100": Card(80e9, 989.4e12, 3.35e12, 450e9, 50e9, price=3.50),
    "h200": Card(141e9, 989.4e12, 4.8e12, 450e9, 50e9),
}
