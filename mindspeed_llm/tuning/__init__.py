"""Parameter-efficient fine-tuning: modules with trainable parameters beside the frozen weights of a base model.

lora_linear         linear layers of megatron-core with a LoRA branch
adapted_model       choose the linear layers of a model, freeze the base, initialise the adapter
"""

from mindspeed_llm.tuning.adapted_model import (
    FACTOR_B_NAMES,
    freeze_base,
    initialize_adapter,
    is_adapter_parameter,
    lora_layers,
)
from mindspeed_llm.tuning.lora_linear import LoraColumnParallelLinear, LoraRowParallelLinear

__all__ = [
    "FACTOR_B_NAMES",
    "LoraColumnParallelLinear",
    "LoraRowParallelLinear",
    "freeze_base",
    "initialize_adapter",
    "is_adapter_parameter",
    "lora_layers",
]
