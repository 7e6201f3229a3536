"""GPT-2, worked out."""
from gpt.config import GPTConfig
from gpt.model import GPT
