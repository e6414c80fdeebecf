"""Define the Qwen2 family (Qwen2 and Qwen2.5): query, key and value always have a bias, `attention_bias` is ignored."""

from mindspeed_llm.families.defaults import QWEN
from mindspeed_llm.families.family import FamilyFeatures, ModelFamily
from mindspeed_llm.families.tensor_rows import NORMS_AND_MLP, QKV, QKV_BIAS

FAMILY = ModelFamily(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    names=("qwen2", "qwen25"),
    features=FamilyFeatures(qkv_bias=True, sliding_window="optional"),
    defaults=QWEN,
    ignored=("attention_bias",),
    layer=(QKV, QKV_BIAS, *NORMS_AND_MLP),
    for_flags=True,
)
