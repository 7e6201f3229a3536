"""The public names of the package, one line of imports a module: what `from gpt import ...` finds."""

from gpt.attention import (
    CausalAttention,
    CausalSelfAttention,
    KVCache,
    MultiHeadAttention,
    SelfAttention,
    causal_mask,
    scaled_dot_product_attention,
)
from gpt.block import GELU, Block, FeedForward, LayerNorm, RMSNorm, gelu, layer_norm, rms_norm
from gpt.config import GPTConfig
from gpt.generation import Sampling, generate, next_token_probabilities, stream
from gpt.inspection import Trace, ablated, attention_entropy, head_scores, logit_lens, rollout, trace
from gpt.model import GPT
from gpt.positions import LearnedPositionalEncoding, PositionalEncoding, sinusoids
from gpt.storage.corpora import Corpus, RandomWindows, load_text
from gpt.storage.pretrained import load_pretrained_tokenizer
from gpt.tokens import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, gpt2_tokenizer, ids_to_text, text_to_ids
from gpt.training import Batches, History, Run, adamw, batch_gradient, cosine_schedule, evaluate, train

__all__ = [
    "GELU",
    "GPT",
    "BPETokenizer",
    "Batches",
    "Block",
    "CausalAttention",
    "CausalSelfAttention",
    "CharTokenizer",
    "Corpus",
    "FeedForward",
    "GPT2Tokenizer",
    "GPTConfig",
    "History",
    "KVCache",
    "LayerNorm",
    "LearnedPositionalEncoding",
    "MultiHeadAttention",
    "PositionalEncoding",
    "RMSNorm",
    "RandomWindows",
    "Run",
    "Sampling",
    "SelfAttention",
    "Tokenizer",
    "Trace",
    "ablated",
    "adamw",
    "attention_entropy",
    "batch_gradient",
    "causal_mask",
    "cosine_schedule",
    "evaluate",
    "gelu",
    "generate",
    "gpt2_tokenizer",
    "head_scores",
    "ids_to_text",
    "layer_norm",
    "load_pretrained_tokenizer",
    "load_text",
    "logit_lens",
    "next_token_probabilities",
    "rms_norm",
    "rollout",
    "scaled_dot_product_attention",
    "sinusoids",
    "stream",
    "text_to_ids",
    "trace",
    "train",
]
