"""Define the Mistral family.

Without `sliding_window` in config.json a model has a window of 4,096 tokens, which is the default in transformers.
"""

from mindspeed_llm.families.defaults import COMMON
from mindspeed_llm.families.family import FamilyFeatures, ModelFamily
from mindspeed_llm.families.tensor_rows import NORMS_AND_MLP, QKV

FAMILY = ModelFamily(
    model_type="mistral",
    architecture="MistralForCausalLM",
    names=("mistral",),
    features=FamilyFeatures(sliding_window="default"),
    defaults={
        **COMMON,
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "head_dim": None,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    layer=(QKV, *NORMS_AND_MLP),
)
