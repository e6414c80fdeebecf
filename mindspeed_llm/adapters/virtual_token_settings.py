"""Settings of prefix, prompt and P-tuning: vectors that are trained in reserved slots before the tokens of each sample.

With p virtual tokens, a sample has p reserved slots before its first token. The base model is frozen.

    prompt     (Lester et al. 2021, https://arxiv.org/abs/2104.08691)  the embeddings of these slots [p, h] are trained
    p-tuning   (Liu et al. 2021, https://arxiv.org/abs/2103.10385)     so are they, as the output of a small MLP
    prefix     (Li and Liang 2021, https://arxiv.org/abs/2101.00190)   keys and values of these slots [p, K] are trained
                                                                       in every layer; the keys are not rotated
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

from mindspeed_llm.adapters.lora_settings import LayerAdapter
from mindspeed_llm.errors import ConfigError

VirtualTokenMethod = Literal["prefix", "prompt", "p-tuning"]
VIRTUAL_TOKEN_METHODS: tuple[str, ...] = get_args(VirtualTokenMethod)


@dataclass(frozen=True)
class VirtualTokenSettings:
    """Settings of an adapter that consists of virtual tokens.

    Attributes:
        method: 'prefix', 'prompt' or 'p-tuning'.
        virtual_tokens: number of virtual tokens of every sample, p.
        encoder_size: size of the hidden layers of the MLP of P-tuning; None for the hidden size of the model, and for
            the other methods.

    Raises:
        ConfigError: a value is out of range.
    """

    method: VirtualTokenMethod
    virtual_tokens: int
    encoder_size: int | None = None
    layers: ClassVar[Mapping[str, LayerAdapter]] = {}

    def __post_init__(self) -> None:
        if self.method not in VIRTUAL_TOKEN_METHODS or self.virtual_tokens < 1:
            raise ConfigError(f"{self.method} with {self.virtual_tokens} virtual tokens is not supported")
        if self.encoder_size is not None and (self.method != "p-tuning" or self.encoder_size < 1):
            raise ConfigError(f"{self.method} with an encoder of size {self.encoder_size} is not supported")

    @property
    def description(self) -> str:
        """Settings in words."""
        encoder = f", encoder of size {self.encoder_size}" if self.encoder_size is not None else ""
        return f"{self.virtual_tokens} virtual tokens{encoder}"

    @property
    def trains_first_token(self) -> bool:
        """Whether the last virtual token predicts the first token of the sample, as in peft."""
        return self.method != "prefix"

    def encoder_width(self, hidden_size: int) -> int:
        """Return the size of the hidden layers of the MLP.

        Args:
            hidden_size: hidden size of the model.
        """
        return self.encoder_size or hidden_size


def as_virtual_token_method(method: str) -> VirtualTokenMethod:
    """Return a value of --tuning as a method with virtual tokens.

    Args:
        method: one of VIRTUAL_TOKEN_METHODS.
    """
    assert method in VIRTUAL_TOKEN_METHODS
    return cast("VirtualTokenMethod", method)
