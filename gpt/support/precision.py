"""Which number format trains this model fastest on this machine? Measured, because no table of processors knows.

bfloat16 halves what is read and written, and processors with instructions for it multiply several times as fast. Others
emulate it and lose, and a small model may lose on a good processor, because the conversions cost more than the products
save. So a block of the very model runs forward and backward in both formats. The formats themselves:
DEEP_THEORY_GUIDE.md, Part 7.
"""

from __future__ import annotations

import time

import torch

from gpt.model import GPT

ROUNDS = 3
TOKENS = 256  # enough for the matrix products to reach their rate
WORTH = 1.1  # bfloat16 rounds to 8 bits; for less than a tenth of the time, that is not worth it


def fastest_precision(model: GPT) -> str:
    """ "bfloat16" or "float32" for training this model on the device where it is: the faster under autocast.

    Takes a second at most for the 124M model on two cores. Neither the model's gradients nor the random numbers of the
    run change. float16 is not tried: it needs a loss scaler, and hardware that has it has bfloat16.
    """
    device = model.token_embedding.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds = {True: [], False: []}
        for _ in range(1 + ROUNDS):  # interleaved, so that both meet the same neighbours; the first only warms up
            for narrow, times in seconds.items():
                times.append(_seconds(model, narrow))
    narrow, wide = (min(seconds[format][1:]) for format in (True, False))
    return "bfloat16" if narrow * WORTH < wide else "float32"


def _seconds(model: GPT, narrow: bool) -> float:
    """One block and a part of the head, forward and backward."""
    table = model.token_embedding.weight
    length = min(TOKENS, model.config.context_size)
    x = torch.randn(max(1, TOKENS // length), length, model.config.n_embd, device=table.device, requires_grad=True)
    start = time.perf_counter()
    with torch.autocast(table.device.type, torch.bfloat16, enabled=narrow):
        y = torch.nn.functional.linear(model.blocks[0](x), table[:4096]).sum()
    gradients = torch.autograd.grad(y, [x, table, *model.blocks[0].parameters()])
    gradients[0].sum().item()  # waits for an accelerator
    return time.perf_counter() - start
