"""Arguments of parameter-efficient fine-tuning besides LoRA: prefix, prompt and P-tuning, and bottleneck adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.adapters import (
    VIRTUAL_TOKEN_METHODS,
    BottleneckSettings,
    VirtualTokenSettings,
    as_virtual_token_method,
)
from mindspeed_llm.arguments.bounds import LENGTH, between
from mindspeed_llm.arguments.resume_policy import REFUSE


@dataclass
class TuningArguments:
    """Parameter-efficient fine-tuning.

    The weights of --load are frozen, and only an adapter is trained and saved: one method per run.
    """

    tuning: Literal["lora", "prefix", "prompt", "p-tuning", "adapter"] | None = field(default=None, metadata=REFUSE)
    """Method. lora: see the flags of LoRA, which also switch it on. prompt: train the embeddings of virtual tokens
    before each sample. p-tuning: train a small network that computes them. prefix: train their keys and values in every
    layer. adapter: train bottleneck adapters after attention and MLP. Default: that of --adapter-load, or train all
    parameters."""
    virtual_tokens: int | None = field(default=None, metadata=REFUSE | between(1, LENGTH))
    """Number of virtual tokens of every sample, for --tuning prefix, prompt and p-tuning. The data must have been
    preprocessed with the same --virtual-tokens."""
    prompt_encoder_size: int | None = field(default=None, metadata=REFUSE | between(1, 2**20))
    """Size of the hidden layers of the network of --tuning p-tuning. Default: the hidden size of the model."""
    adapter_size: int | None = field(default=None, metadata=REFUSE | between(1, 2**20))
    """Size of the bottleneck of --tuning adapter."""

    @property
    def settings(self) -> VirtualTokenSettings | BottleneckSettings | None:
        """Settings of the adapter; None with LoRA, without an adapter, or if a flag is missing."""
        if self.tuning == "adapter":
            return None if self.adapter_size is None else BottleneckSettings(self.adapter_size)
        if self.tuning not in VIRTUAL_TOKEN_METHODS or self.virtual_tokens is None:
            return None
        encoder_size = self.prompt_encoder_size if self.tuning == "p-tuning" else None
        return VirtualTokenSettings(as_virtual_token_method(str(self.tuning)), self.virtual_tokens, encoder_size)
