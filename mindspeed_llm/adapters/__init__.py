"""LoRA adapters without tensors: projections, settings, and the JSON files that describe an adapter. No torch.

projections      the projections of a layer: names in Hugging Face's format and in megatron-core's
lora_settings    settings of an adapter, and what it adds to each linear layer
adapter_config   adapter_config.json of peft
adapter_record   adapter.json of our checkpoints
adapter_folder   the adapter that a directory contains
"""

from mindspeed_llm.adapters.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_peft_folder,
    peft_config,
    read_peft_config,
)
from mindspeed_llm.adapters.adapter_folder import AdapterFolder, adapter_settings, find_adapter, is_adapter_folder
from mindspeed_llm.adapters.adapter_record import AdapterRecord, BaseModel
from mindspeed_llm.adapters.lora_settings import SHARED, LayerAdapter, LoraSettings
from mindspeed_llm.adapters.projections import ALL_LINEAR, LINEAR_LAYERS, LinearLayer

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ALL_LINEAR",
    "LINEAR_LAYERS",
    "SHARED",
    "AdapterFolder",
    "AdapterRecord",
    "BaseModel",
    "LayerAdapter",
    "LinearLayer",
    "LoraSettings",
    "adapter_settings",
    "find_adapter",
    "is_adapter_folder",
    "is_peft_folder",
    "peft_config",
    "read_peft_config",
]
