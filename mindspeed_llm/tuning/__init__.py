"""Parameter-efficient fine-tuning: modules with trainable parameters beside the frozen weights of a base model.

lora_linear         linear layers of megatron-core with a LoRA branch
virtual_tokens      trained embeddings in reserved slots (prompt tuning, P-tuning)
prefix_attention    attention with trained keys and values in reserved slots (prefix tuning)
bottleneck          row-parallel layers with a bottleneck adapter after them
adapted_model       choose the modules of a model, freeze the base
initial_values      initialise the adapter
"""

from mindspeed_llm.tuning.adapted_model import (
    FACTOR_B_NAMES,
    adapted_modules,
    freeze_base,
    is_adapter_parameter,
    virtual_tokens_of,
)
from mindspeed_llm.tuning.bottleneck import BottleneckRowParallelLinear
from mindspeed_llm.tuning.initial_values import initialize_adapter, initialize_from_vocabulary
from mindspeed_llm.tuning.lora_linear import LoraColumnParallelLinear, LoraRowParallelLinear
from mindspeed_llm.tuning.prefix_attention import PrefixAttention
from mindspeed_llm.tuning.virtual_tokens import VirtualTokens

__all__ = [
    "FACTOR_B_NAMES",
    "BottleneckRowParallelLinear",
    "LoraColumnParallelLinear",
    "LoraRowParallelLinear",
    "PrefixAttention",
    "VirtualTokens",
    "adapted_modules",
    "freeze_base",
    "initialize_adapter",
    "initialize_from_vocabulary",
    "is_adapter_parameter",
    "virtual_tokens_of",
]
