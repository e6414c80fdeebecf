"""Tokenize conversations into batches of token ids and labels, each sample no longer than the sequence.

tokenizer = load_tokenizer("PretrainedFromHF", "./model_from_hf/qwen25-7b-hf/")
builder = SampleBuilder(tokenizer, template, capacity=4096)
batch = builder.build(conversations)    # batch.ids, batch.labels, batch.lengths
"""

from mindspeed_llm.tokenization.control_tokens import CONTROL_MODES, FoundControls
from mindspeed_llm.tokenization.sample_builder import SampleBuilder, TokenBatch, find_end_token
from mindspeed_llm.tokenization.stop_tokens import end_texts, find_stop_ids, token_text
from mindspeed_llm.tokenization.token_store import TokenStore, Words, encode_words
from mindspeed_llm.tokenization.tokenizer import Tokenizer
from mindspeed_llm.tokenization.tokenizer_loading import load_tokenizer, load_tokenizer_of_command
from mindspeed_llm.tokenization.truncation import LENGTH_REASONS, TOO_LONG

__all__ = [
    "CONTROL_MODES",
    "LENGTH_REASONS",
    "TOO_LONG",
    "FoundControls",
    "SampleBuilder",
    "TokenBatch",
    "TokenStore",
    "Tokenizer",
    "Words",
    "encode_words",
    "end_texts",
    "find_end_token",
    "find_stop_ids",
    "load_tokenizer",
    "load_tokenizer_of_command",
    "token_text",
]
