"""Arguments of low-rank adapters (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_llm.adapters import LoraSettings
from mindspeed_llm.arguments.bounds import FLOAT32, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE


@dataclass
class LoraArguments:
    """LoRA: low-rank adapters.

    --lora-target-modules or --lora-load switches it on: the weights of --load are frozen, and only the adapter is
    trained and saved.
    """

    lora_target_modules: list[str] = field(default_factory=list, metadata=REFUSE | {"metavar": "NAME"})
    """Layers that get an adapter: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, with one matrix A
    each, as in peft; linear_qkv, linear_proj, linear_fc1, linear_fc2, with one matrix A for all projections of the
    layer, as in MindSpeed-LLM; or all-linear, which is all seven projections."""
    lora_r: int = field(default=16, metadata=REFUSE | between(1, 2**16))
    """Rank of the adapter."""
    lora_alpha: float = field(default=32.0, metadata=REFUSE | {"above": 0, "maximum": FLOAT32})
    """Numerator of the scale: the product of the two matrices is multiplied by alpha / r."""
    lora_dropout: float = field(default=0.0, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Probability of dropping an element of the input of an adapter during training."""
    use_rslora: bool = field(default=False, metadata=REFUSE)
    """Multiply by alpha / sqrt(r) instead of alpha / r (rank-stabilized LoRA)."""
    lora_plus_ratio: float = field(default=1.0, metadata=REFUSE | {"above": 0, "maximum": FLOAT32})
    """Learning rate of the matrices B divided by that of the matrices A (LoRA+)."""
    lora_load: str | None = field(default=None, metadata=NOTICE | {"metavar": "DIR", "flags": ("--adapter-load",)})
    """Adapter of any method to start from: a folder of peft, or a --save directory with an adapter. Its settings
    replace the defaults of the other flags, which must agree if they are given."""
    lora_fusion: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: the adapter is always added to the output of the projection."""
    lora_ckpt_filter: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: checkpoints of an adapter never contain the base model."""
    lora_register_forward_hook: list[str] = field(default_factory=list, metadata=FREE | {"metavar": "MODULE"})
    """Accepted for compatibility: modules whose output requires a gradient in MindSpeed-LLM, so that recomputed layers
    get one. The output of a frozen embedding always does."""

    @property
    def settings(self) -> LoraSettings | None:
        """Settings of the adapter; None if the run trains all parameters.

        Raises:
            ConfigError: a target is unknown or given twice.
        """
        if not self.lora_target_modules:
            return None
        return LoraSettings.of(
            self.lora_target_modules, self.lora_r, self.lora_alpha, self.lora_dropout, self.use_rslora
        )
