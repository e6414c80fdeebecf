"""Define the Llama family: Llama 2, 3, 3.1 and 3.2."""

from mindspeed_llm.families.defaults import COMMON
from mindspeed_llm.families.family import FamilyFeatures, ModelFamily
from mindspeed_llm.families.tensor_rows import NORMS_AND_MLP, QKV

FAMILY = ModelFamily(
    model_type="llama",
    architecture="LlamaForCausalLM",
    names=("llama3", "llama"),
    features=FamilyFeatures(),
    defaults={
        **COMMON,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    layer=(QKV, *NORMS_AND_MLP),
    for_flags=True,
)
