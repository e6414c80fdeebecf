"""Build megatron-core's GPTModel with our attention, rotary embedding and norm in its ModuleSpec.

Importing this package imports megatron.core, so an entry point calls `devices.apply_patches` first.
"""

from mindspeed_llm.model.chunked_cross_entropy import AnswerSlots, TrainedSlots
from mindspeed_llm.model.core_attention import PackedAttention, select_attention
from mindspeed_llm.model.fused_ops import FusedOps, select_fused_ops
from mindspeed_llm.model.gpt_model import LayerModules, VirtualTokensBuilder, build_model
from mindspeed_llm.model.loss_selection import LossChoice, select_loss
from mindspeed_llm.model.packed_seq_params import PackedBoundaries, VirtualSlots
from mindspeed_llm.model.transformer_config import transformer_config

__all__ = [
    "AnswerSlots",
    "FusedOps",
    "LayerModules",
    "LossChoice",
    "PackedAttention",
    "PackedBoundaries",
    "TrainedSlots",
    "VirtualSlots",
    "VirtualTokensBuilder",
    "build_model",
    "select_attention",
    "select_fused_ops",
    "select_loss",
    "transformer_config",
]
