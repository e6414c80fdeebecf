"""Settings of an adapter: what a method of parameter-efficient fine-tuning trains beside the frozen base model.

Every kind of settings has the attributes

    method           value of --tuning
    virtual_tokens   number of reserved slots at the beginning of every sample; 0 without virtual tokens
    layers           LayerAdapter of each linear layer that LoRA changes, by its name in megatron-core
    description      the settings in words
"""

from mindspeed_llm.adapters.bottleneck_settings import BottleneckSettings
from mindspeed_llm.adapters.lora_settings import LoraSettings
from mindspeed_llm.adapters.virtual_token_settings import VirtualTokenSettings

AdapterSettings = LoraSettings | VirtualTokenSettings | BottleneckSettings
