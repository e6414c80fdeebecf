"""Adapters without tensors: their settings, and the JSON files that describe an adapter. No torch.

An adapter is what a method of parameter-efficient fine-tuning trains: LoRA's matrices, virtual tokens, or bottleneck
adapters.

projections              the projections of a layer: names in Hugging Face's format and in megatron-core's
lora_settings            settings of LoRA, and what it adds to each linear layer
virtual_token_settings   settings of prefix, prompt and P-tuning
bottleneck_settings      settings of bottleneck adapters
adapter_kinds            what all settings have in common
adapter_config           adapter_config.json of peft, and of LoRA
prompt_config            adapter_config.json of virtual tokens and bottleneck adapters
adapter_record           adapter.json of our checkpoints
adapter_folder           the adapter that a directory contains
"""

from mindspeed_llm.adapters.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_peft_folder,
    peft_config,
    peft_folder_notice,
    read_peft_config,
)
from mindspeed_llm.adapters.adapter_folder import AdapterFolder, adapter_settings, find_adapter, is_adapter_folder
from mindspeed_llm.adapters.adapter_kinds import AdapterSettings
from mindspeed_llm.adapters.adapter_record import AdapterRecord, BaseModel
from mindspeed_llm.adapters.bottleneck_settings import BottleneckSettings
from mindspeed_llm.adapters.lora_settings import SHARED, LayerAdapter, LoraSettings
from mindspeed_llm.adapters.projections import ALL_LINEAR, LINEAR_LAYERS, LinearLayer
from mindspeed_llm.adapters.prompt_config import BaseShape
from mindspeed_llm.adapters.virtual_token_settings import (
    VIRTUAL_TOKEN_METHODS,
    VirtualTokenSettings,
    as_virtual_token_method,
)

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ALL_LINEAR",
    "LINEAR_LAYERS",
    "SHARED",
    "VIRTUAL_TOKEN_METHODS",
    "AdapterFolder",
    "AdapterRecord",
    "AdapterSettings",
    "BaseModel",
    "BaseShape",
    "BottleneckSettings",
    "LayerAdapter",
    "LinearLayer",
    "LoraSettings",
    "VirtualTokenSettings",
    "adapter_settings",
    "as_virtual_token_method",
    "find_adapter",
    "is_adapter_folder",
    "is_peft_folder",
    "peft_config",
    "peft_folder_notice",
    "read_peft_config",
]
