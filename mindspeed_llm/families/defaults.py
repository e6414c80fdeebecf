"""Defaults of config.json that transformers' config classes of all families share."""

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
