"""Define the defaults of config.json that the config classes of several families in transformers share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_parameters": None,
        "rope_scaling": None,
        "partial_rotary_factor": None,
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
)

# Shared by Qwen2 and Qwen3.
QWEN: Mapping[str, Any] = MappingProxyType(
    {
        **COMMON,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
)
