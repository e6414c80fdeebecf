"""Arguments → TransformerConfig → GPTModel with our attention, rotary positions and norm in its ModuleSpec.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.model.core_attention import choose_attention
from mindspeed_llm.model.fused_ops import Operators, choose_operators
from mindspeed_llm.model.gpt_model import build_model
from mindspeed_llm.model.packed_seq_params import PackedBoundaries
from mindspeed_llm.model.transformer_config import transformer_config

__all__ = [
    "Operators",
    "PackedBoundaries",
    "build_model",
    "choose_attention",
    "choose_operators",
    "transformer_config",
]
