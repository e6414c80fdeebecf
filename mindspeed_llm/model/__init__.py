"""Arguments → TransformerConfig → GPTModel with our attention, rotary positions and norm in its ModuleSpec.

Importing this package imports megatron.core; an entry point applies the patches of `devices` first.
"""

from mindspeed_llm.model.boundaries import PackedBoundaries
from mindspeed_llm.model.build import build_model
from mindspeed_llm.model.config import transformer_config

__all__ = ["PackedBoundaries", "build_model", "transformer_config"]
