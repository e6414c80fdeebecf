"""Settings of bottleneck adapters (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751).

The output x of attention and the output x of the MLP, before they are added to the residual stream, become

    x + U · gelu(D x + d) + u        D [m, h], d [m], U [h, m], u [h]

and only D, d, U and u are trained. U and u are zero at the start, so that the base model is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mindspeed_llm.adapters.lora_settings import LayerAdapter
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class BottleneckSettings:
    """Settings of bottleneck adapters.

    Attributes:
        size: size of the bottleneck, m.

    Raises:
        ConfigError: the size is out of range.
    """

    size: int
    method: ClassVar[str] = "adapter"
    virtual_tokens: ClassVar[int] = 0
    layers: ClassVar[Mapping[str, LayerAdapter]] = {}

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"bottleneck adapters of size {self.size} are not supported")

    @property
    def description(self) -> str:
        """Settings in words."""
        return f"size {self.size}, after attention and MLP"
