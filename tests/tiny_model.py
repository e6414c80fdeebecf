"""Build tiny models and their derived settings.

This module imports megatron-core, so import it only after the patches have been applied.
"""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from tiny import VOCABULARY

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.model import build_model, select_attention, select_fused_ops, transformer_config
from mindspeed_llm.training.derived_settings import DerivedSettings, derive_settings
from mindspeed_llm.training.learning_rate_schedule import RunLength


def derived_of(
    arguments: PretrainArguments, iterations: int, vocabulary: int | None = VOCABULARY, device: str = "cpu"
) -> DerivedSettings:
    """Derived settings of a run of so many iterations without data."""
    return derive_settings(arguments, device, arguments.vocabulary(vocabulary), RunLength(iterations, 0))


def build_tiny_model(
    arguments: PretrainArguments, device: str = "cpu", vocabulary: int | None = VOCABULARY, **overrides: Any
) -> list[GPTModel]:
    """The model chunks of this pipeline stage, with `overrides` in the TransformerConfig."""
    operators = select_fused_ops(arguments.device, arguments.model, device)
    config = transformer_config(arguments, operators, **overrides)
    kernel = select_attention(arguments.model, arguments.training, device).kernel
    seq_length, vocabulary_of_model = arguments.data.seq_length, arguments.vocabulary(vocabulary)
    recomputed = arguments.training.recomputes_activation_function
    return build_model(
        arguments.model, seq_length, config, vocabulary_of_model, operators, kernel, recomputes_activation=recomputed
    )
