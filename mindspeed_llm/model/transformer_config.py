"""Build megatron-core's TransformerConfig from the arguments."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.devices import traits_of
from mindspeed_llm.model.fused_ops import FusedOps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def transformer_config(arguments: PretrainArguments, operators: FusedOps, **overrides: Any) -> TransformerConfig:
    """Build the configuration of the model and of its parallel layout.

    Args:
        arguments: checked arguments.
        operators: operators from `select_fused_ops`.
        overrides: fields of TransformerConfig that replace the computed ones, for tests.
    """
    interleaved = arguments.virtual_stages is not None
    fields = {
        **_shape_fields(arguments.model),
        **_layout_fields(arguments.parallel, arguments.virtual_stages),
        "pipeline_model_parallel_layout": _uneven_stages(arguments.parallel),
        **_training_fields(arguments.training),
        **_operator_fields(operators),
        # An interleaved pipeline frees outputs while they are being sent. The stream of an accelerator orders the two;
        # gloo has no streams.
        "deallocate_pipeline_outputs": traits_of(operators.device).has_streams or not interleaved,
    }
    if arguments.data.variable_seq_lengths:
        # megatron-core requires this dispatcher for variable lengths, also for dense models, which do not use it.
        fields.update(variable_seq_lengths=True, moe_token_dispatcher_type="alltoall")
    return TransformerConfig(**{**fields, **overrides})


def tanh_gelu(values: torch.Tensor) -> torch.Tensor:
    """Return GELU of `values`, [...], in its tanh approximation: "gelu_new" of GPT-2, and Megatron's fused kernel."""
    return torch.nn.functional.gelu(values, approximate="tanh")


def _shape_fields(model: ModelArguments) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_size,
        "add_bias_linear": not model.disable_bias_linear,
        "add_qkv_bias": model.add_qkv_bias,
        "qk_layernorm": model.qk_layernorm,
        "gated_linear_unit": model.swiglu,
        "activation_func": torch.nn.functional.silu if model.swiglu else tanh_gelu,
        "normalization": model.normalization,
        "layernorm_epsilon": model.norm_epsilon,
        "init_method_std": model.init_method_std,
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
    }


def _layout_fields(parallel: ParallelArguments, virtual_stages: int | None) -> dict[str, Any]:
    # With two stages, the next and the previous stage of an interleaved pipeline are the same rank, and batched
    # messages to the two could not be distinguished. Overlapped messages can (the same rule as in Megatron-LM).
    interleaved = virtual_stages is not None
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual_stages,
        "sequence_parallel": parallel.sequence_parallel,
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
    }


def _uneven_stages(parallel: ParallelArguments) -> list[list[str]] | None:
    """Return the modules of each pipeline stage for --num-layer-list, in megatron-core's form; None without it."""
    if parallel.layers_of_stages is None:
        return None
    stages = [["decoder"] * layers for layers in parallel.layers_of_stages]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _training_fields(training: TrainingArguments) -> dict[str, Any]:
    """Return the fields of precision, recomputation and loss."""
    dtype = DTYPES[training.precision]
    return {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "fp16": training.fp16,
        "bf16": training.bf16,
        "attention_softmax_in_fp32": True,
        "recompute_granularity": training.recompute,
        # Without complete layers to recompute, megatron-core refuses a method.
        "recompute_method": training.recompute_method if training.recompute == "full" else None,
        "recompute_num_layers": training.recompute_num_layers,
        # The loss is a sum, and finalize_model_grads divides by the weight of the complete global batch. This makes it
        # independent of how samples are distributed over packs, micro-batches and ranks.
        "calculate_per_token_loss": True,
    }


def _operator_fields(operators: FusedOps) -> dict[str, Any]:
    return {
        "bias_activation_fusion": operators.bias_swiglu,
        # In megatron-core this field selects the activation class of the ModuleSpec (model/fused_ops.py).
        "use_te_activation_func": operators.activation is not None,
        "bias_dropout_fusion": operators.bias_dropout,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
        "use_cpu_initialization": traits_of(operators.device).is_host,
        "cuda_graph_scope": [],
    }
