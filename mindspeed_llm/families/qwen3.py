"""Define the family of dense Qwen3 models: a norm on the query and key of each head instead of Qwen2's biases."""

from mindspeed_llm.families.defaults import QWEN
from mindspeed_llm.families.family import FamilyFeatures, ModelFamily
from mindspeed_llm.families.tensor_rows import K_NORM, NORMS_AND_MLP, Q_NORM, QKV

FAMILY = ModelFamily(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    names=("qwen3",),
    features=FamilyFeatures(qk_norm=True, sliding_window="optional"),
    defaults={**QWEN, "head_dim": 128, "attention_bias": False},
    layer=(QKV, Q_NORM, K_NORM, *NORMS_AND_MLP),
    for_flags=True,
)
