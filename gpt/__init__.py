"""GPT-2, worked out: the package behind the guides and notebooks. One module a concept; this file hands on the names."""

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
from gpt.generation import generate, next_token_probabilities, stream
from gpt.model import GPT
from gpt.positions import LearnedPositionalEncoding, PositionalEncoding, sinusoids
from gpt.tokens import BPETokenizer, CharTokenizer, gpt2_tokenizer, ids_to_text, text_to_ids
