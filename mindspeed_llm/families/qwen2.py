"""Qwen2 and Qwen2.5: a bias in query, key and value, whatever `attention_bias` is."""

from mindspeed_llm.families.defaults import COMMON
from mindspeed_llm.families.record import Family, Features
from mindspeed_llm.families.tensors import NORMS_AND_MLP, QKV, QKV_BIAS

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    names=("qwen2", "qwen25"),
    features=Features(qkv_bias=True, sliding_window="optional"),
    defaults={
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
    },
    ignored=("attention_bias",),
    layer=(QKV, QKV_BIAS, *NORMS_AND_MLP),
    for_flags=True,
)
