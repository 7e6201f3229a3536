"""The steps from an empty file to GPT-2, as data: what to write, what it needs, and where it is explained.

HOW_TO_CODE_GUIDE.md explains each step, the tests that check it carry its key (`@pytest.mark.step("attention")`), and
exercises/my_gpt.py holds the signatures. A learner's file has a step's names or it has not written that step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One piece of GPT-2.

    key       the mark of its tests
    title     what is written
    names     the functions and classes that the file must define
    needs     keys of the steps that must be green before this one is checked
    guide     the section of DEEP_THEORY_GUIDE.md that derives it
    hints     two, the second of which nearly says it
    solution  where the package has it: what to read when both hints did not help
    optional  nobody is red for it
    """

    key: str
    title: str
    names: tuple[str, ...]
    needs: tuple[str, ...]
    guide: str
    hints: tuple[str, str]
    solution: str
    optional: bool = False


STEPS = (
    Step(
        "characters",
        "a tokenizer of characters",
        ("CharTokenizer",),
        (),
        "1.1",
        (
            "The alphabet is sorted(set(text)); an id is a place in it.",
            "Keep two dictionaries: stoi from character to id, itos from id to character. vocab_size is their length.",
        ),
        "gpt/tokens.py: CharTokenizer",
    ),
    Step(
        "byte pairs",
        "byte-pair encoding",
        ("pretokenize", "merge_pair", "learn_merges", "apply_merges"),
        (),
        "1.2",
        (
            "Learning: count all neighbours in all words, each word as often as it occurs; merge the most frequent "
            "pair everywhere; repeat. Of equally frequent pairs, the first in byte order.",
            "Applying: of the neighbours in a word, merge the pair that was learned earliest, until none was learned.",
        ),
        "gpt/tokens.py: learn_merges, apply_merges",
    ),
    Step(
        "positions",
        "positions that are learned",
        ("LearnedPositionalEncoding",),
        (),
        "2.5",
        (
            "A table with one row for each position; row t is added to the vector at position t.",
            "self.weight[start : start + x.shape[1]] broadcasts over the batch.",
        ),
        "gpt/positions.py: LearnedPositionalEncoding",
    ),
    Step(
        "attention",
        "the attention equation",
        ("scaled_dot_product_attention",),
        (),
        "3.1",
        (
            "Three lines: scores, softmax, average. Return the weights as well.",
            "scores = query @ key.mT / sqrt(d_k); where the mask is False, -inf; softmax over the last axis, the keys.",
        ),
        "gpt/attention.py: scaled_dot_product_attention",
    ),
    Step(
        "mask",
        "the causal mask",
        ("causal_mask",),
        (),
        "3.5",
        (
            "True where a query may look. With as many queries as keys it is a lower triangle, the diagonal included.",
            "The queries are the last of the keys: torch.ones(queries, keys).tril(keys - queries), as booleans.",
        ),
        "gpt/attention.py: causal_mask",
    ),
    Step(
        "heads",
        "many heads in one layer",
        ("CausalSelfAttention",),
        ("attention", "mask"),
        "3.7",
        (
            "One matrix gives q, k and v side by side: [B, T, 3 d_model]. Cut features first, then swap axes.",
            "view(B, T, 3, H, d_head).permute(2, 0, 3, 1, 4) gives q, k, v as [B, H, T, d_head]; after attention "
            "transpose(1, 2).reshape(B, T, d_model), then the projection.",
        ),
        "gpt/attention.py: CausalSelfAttention",
    ),
    Step(
        "norm",
        "LayerNorm",
        ("LayerNorm",),
        (),
        "4.1",
        (
            "For each token by itself: minus the mean, divided by the deviation, times gain, plus shift.",
            "The variance divides by n, not by n - 1, and eps is added to it, inside the root.",
        ),
        "gpt/block.py: layer_norm",
    ),
    Step(
        "feed-forward",
        "GELU and the feed-forward network",
        ("GELU", "FeedForward"),
        (),
        "4.4",
        (
            "Out to four times the width, GELU, and back. GPT-2 learned with the tanh form of GELU.",
            "0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
        ),
        "gpt/block.py: FeedForward",
    ),
    Step(
        "block",
        "a block",
        ("Block",),
        ("heads", "norm", "feed-forward"),
        "4.6",
        (
            "Two parts, each of which reads the stream through a norm and adds what it writes.",
            "x = x + attention(attention_norm(x)); then the same with the feed-forward network.",
        ),
        "gpt/block.py: Block",
    ),
    Step(
        "model",
        "the whole model, and where its weights begin",
        ("GPT",),
        ("block", "positions"),
        "5.1",
        (
            "Token plus position, the blocks, a last norm, and the head, which is the table of embeddings itself.",
            "N(0, 0.02) for matrices and tables, 0 for biases; the two layers of each block that write to the stream "
            "get 0.02 / sqrt(2 N).",
        ),
        "gpt/model.py: GPT",
    ),
    Step(
        "loss",
        "the loss",
        ("GPT",),
        ("model",),
        "1.5",
        (
            "With targets the model returns the mean cross-entropy beside the logits.",
            "F.cross_entropy wants a row for each prediction: logits.flatten(0, 1) and targets.flatten().",
        ),
        "gpt/model.py: GPT.forward",
    ),
    Step(
        "released weights",
        "weights from a file in the released layout",
        ("load_pretrained",),
        ("model",),
        "5.11",
        (
            "safetensors.torch.load_file gives tensors by GPT-2's names: wte, wpe, h.0.attn.c_attn, ln_f ...",
            "The released matrices are [in, out], those of nn.Linear [out, in]: transpose c_attn, c_proj, c_fc and the "
            "c_proj of the MLP. Attention's c_proj is square: without .T nothing complains.",
        ),
        "gpt/storage/pretrained.py",
    ),
    Step(
        "windows",
        "batches of windows, and a held-out part",
        ("RandomWindows",),
        (),
        "1.13",
        (
            "A window of T + 1 ids: the first T are the inputs, the last T the targets.",
            "The last start that fits is len(ids) - T - 1, itself included. The held-out part is the last tenth.",
        ),
        "gpt/storage/corpora.py: RandomWindows",
    ),
    Step(
        "optimizer",
        "AdamW with two groups",
        ("adamw",),
        (),
        "7.5",
        (
            "Only what has two axes is decayed: matrices and tables, not biases and gains.",
            "Two groups for torch.optim.AdamW, one with weight_decay, one with 0; betas (0.9, 0.95).",
        ),
        "gpt/training.py: adamw",
    ),
    Step(
        "schedule",
        "warm-up and cosine",
        ("cosine_schedule",),
        (),
        "7.6",
        (
            "A line up to the peak, then half a cosine down to the floor, which then holds.",
            "Warm-up: peak (step + 1) / (warmup + 1). Then the share (step - warmup) / (total - warmup), at most 1.",
        ),
        "gpt/training.py: cosine_schedule",
    ),
    Step(
        "training",
        "the training loop",
        ("train", "evaluate"),
        ("loss", "windows", "optimizer", "schedule"),
        "7.6",
        (
            "Rate of this step, batch, loss, zero_grad, backward, clip, step: in this order.",
            "clip_grad_norm_(model.parameters(), 1.0) stands between backward and step.",
        ),
        "gpt/training.py: Run.step",
    ),
    Step(
        "it learns",
        "it learns",
        ("GPT", "train"),
        ("training",),
        "7.6",
        (
            "Nothing new to write: one batch is learned by heart, and English beyond the frequencies of its letters.",
            "If the loss stays: is the target the next token? If it falls to 0: does a position see the future?",
        ),
        "tests/concepts/test_build.py",
    ),
    Step(
        "sampling",
        "drawing a token",
        ("next_token_probabilities", "generate"),
        (),
        "8.3",
        (
            "Temperature, then top_k, then top_p of what is left; what remains is divided by its sum.",
            "Sort; keep a token while those before it hold less than top_p: the one that crosses the line stays.",
        ),
        "gpt/generation.py: Sampling",
    ),
    Step(
        "cache",
        "keys and values that are kept",
        ("KVCache",),
        ("heads",),
        "8.6",
        (
            "append stores the new keys and values and gives back all of them; the layer attends to all.",
            "Positions and mask must know how many tokens the cache holds: start = cache.length, causal_mask(T, S).",
        ),
        "gpt/attention.py: KVCache",
    ),
    Step(
        "dropout",
        "dropout, while training only",
        ("CausalSelfAttention", "Block", "GPT"),
        ("model",),
        "6.16",
        (
            "Three places: the embeddings, the attention weights, and what each part writes to the stream.",
            "nn.Dropout asks self.training by itself; F.dropout does not: give it training=self.training.",
        ),
        "gpt/block.py: Block",
        optional=True,
    ),
    Step(
        "errors",
        "errors that say what is wrong",
        (),
        ("model",),
        "5.1",
        (
            "A ValueError names the argument, what was given, and what is allowed.",
            "d_model % num_heads, a sequence beyond the context, ids outside the vocabulary.",
        ),
        "gpt/support/checks.py",
        optional=True,
    ),
)


def step(key: str) -> Step:
    """The step of this key. ValueError for another."""
    for one in STEPS:
        if one.key == key:
            return one
    raise ValueError(f"step must be one of {', '.join(one.key for one in STEPS)}, got {key!r}")
