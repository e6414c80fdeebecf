"""Arguments → TransformerConfig → GPTModel with our attention, rotary positions and norm in its ModuleSpec.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.model.attention import choose_attention
from mindspeed_llm.model.boundaries import PackedBoundaries
from mindspeed_llm.model.build import build_model
from mindspeed_llm.model.config import transformer_config
from mindspeed_llm.model.operators import Operators, choose_operators

__all__ = [
    "Operators",
    "PackedBoundaries",
    "build_model",
    "choose_attention",
    "choose_operators",
    "transformer_config",
]
