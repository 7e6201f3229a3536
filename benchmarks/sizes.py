"""What a row asks of each side, in words that a child process can be told: model, batch, precision and so on."""

from __future__ import annotations

from dataclasses import dataclass

from gpt import GPTConfig

PRESETS = {
    "124M": GPTConfig.gpt2_small(),
    "char": GPTConfig.char(),
    "toy": GPTConfig(context_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128),
    "smoke": GPTConfig(context_size=1024, vocab_size=512, n_layer=2, n_head=2, n_embd=64),
}


@dataclass(frozen=True)
class Sizes:
    """model: a name in PRESETS. prompt, new: tokens; weights: their format. megabytes: of text."""

    model: str = "124M"
    batch: int = 1
    context: int = 256
    dropout: float = 0.0
    precision: str = "float32"
    compiled: bool = False
    prompt: int = 32
    new: int = 64
    weights: str = "float32"
    device: str = "cpu"
    megabytes: int = 1

    @property
    def config(self) -> GPTConfig:
        """The model's, with this dropout."""
        c = PRESETS[self.model]
        return GPTConfig(c.context_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, self.dropout)


@dataclass(frozen=True)
class Places:
    """Where the sides find things: a released-layout `model` folder, room for files, and the peers' sources."""

    work: str
    nanogpt: str = "build/peers/nanoGPT"
    llmc: str = "build/peers/llm.c"
    threads: int = 1
