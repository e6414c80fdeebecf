"""Flags of MindSpeed-LLM's scripts that describe what this program does in any case, or that have no effect here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import FLOAT32, INT32, between
from mindspeed_llm.arguments.resume_policy import FREE

QWEN3_SPEC = ["mindspeed_llm.tasks.models.spec.qwen3_spec", "layer_spec"]


@dataclass
class CompatibilityArguments:
    """Flags of MindSpeed-LLM that are accepted for its scripts.

    docs/flags-without-effect.md lists those without effect and what the run does instead.
    """

    use_rotary_position_embeddings: bool = field(default=False, metadata=FREE)
    """Older name of --position-embedding-type rope, which is the default."""
    spec: list[str] = field(default_factory=list, metadata=FREE | {"metavar": "MODULE"})
    """Module and function of the layers in MindSpeed-LLM. Only qwen3_spec is accepted; it must agree with
    --qk-layernorm. The layers follow from the flags of the model."""
    rope_scaling_type: Literal["llama3"] | None = field(
        default=None, metadata=FREE | {"not_built": ("yarn", "longrope", "plm")}
    )
    """MindSpeed-LLM's name of --use-rope-scaling: llama3."""
    low_freq_factor: float = field(default=1.0, metadata=FREE | {"above": 0, "maximum": FLOAT32})
    """Constant of Llama 3.1's rotary frequencies; only 1 is supported."""
    high_freq_factor: float = field(default=4.0, metadata=FREE | {"above": 0, "maximum": FLOAT32})
    """Constant of Llama 3.1's rotary frequencies; only 4 is supported."""
    original_max_position_embeddings: float = field(default=8192, metadata=FREE | {"above": 0, "maximum": FLOAT32})
    """Constant of Llama 3.1's rotary frequencies; only 8192 is supported."""
    attention_mask_type: Literal["causal"] = field(default="causal", metadata=FREE | {"not_built": ("general",)})
    """Attention mask: causal inside each sample."""
    no_check_for_nan_in_loss_and_grad: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: loss and gradients are always checked; see --skip-bad-steps."""
    swap_attention: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: activations are not moved to the memory of the host."""
    use_ascend_mc2: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: matrix products and tensor-parallel communication do not overlap."""
    use_ascend_coc: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: matrix products and tensor-parallel communication do not overlap."""
    coc_mode: int = field(default=-1, metadata=FREE | between(-1, INT32))
    """Accepted for compatibility; see --use-ascend-coc."""
    coc_parallel_num: int = field(default=1, metadata=FREE | between(1, INT32))
    """Accepted for compatibility; see --use-ascend-coc."""
    coc_fused_kernel: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility; see --use-ascend-coc."""
    use_cp_send_recv_overlap: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: it overlaps communication of context parallelism, which is not supported yet."""
