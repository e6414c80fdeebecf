"""Qwen3, dense: a norm on the query and key of each head in place of Qwen2's biases."""

from mindspeed_llm.families.defaults import COMMON
from mindspeed_llm.families.record import Family, Features
from mindspeed_llm.families.tensors import K_NORM, NORMS_AND_MLP, Q_NORM, QKV

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    names=("qwen3",),
    features=Features(qk_norm=True, sliding_window="optional"),
    defaults={
        **COMMON,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    layer=(QKV, Q_NORM, K_NORM, *NORMS_AND_MLP),
    for_flags=True,
)
