"""Arguments → TransformerConfig → GPTModel with our attention, rotary positions and norm in its ModuleSpec.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.model.core_attention import select_attention
from mindspeed_llm.model.fused_ops import FusedOps, select_fused_ops
from mindspeed_llm.model.gpt_model import build_model
from mindspeed_llm.model.packed_seq_params import PackedBoundaries
from mindspeed_llm.model.transformer_config import transformer_config

__all__ = [
    "FusedOps",
    "PackedBoundaries",
    "build_model",
    "select_attention",
    "select_fused_ops",
    "transformer_config",
]
