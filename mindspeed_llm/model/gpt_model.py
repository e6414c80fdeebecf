"""Build the GPTModel chunks of a pipeline stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from mindspeed_llm.arguments.model_arguments import ModelArguments, Vocabulary
from mindspeed_llm.attention import AttentionKernel
from mindspeed_llm.model.activation_recompute import activation_recompute_mlp
from mindspeed_llm.model.chunked_cross_entropy import (
    AnswerSlots,
    OutputLayer,
    TrainedSlots,
    chunked_cross_entropy,
    logits_of_slots,
)
from mindspeed_llm.model.core_attention import PackedAttention
from mindspeed_llm.model.fused_ops import FusedOps, NpuRotaryEmbedding
from mindspeed_llm.model.packed_seq_params import PackedBoundaries
from mindspeed_llm.model.rotary_embedding import PackedRotaryEmbedding

VirtualTokensBuilder = Callable[[TransformerConfig], torch.nn.Module]


@dataclass(frozen=True)
class LayerModules:
    """Classes of those modules of a transformer layer that an adapter can replace.

    Attributes:
        core_attention: attention between the projections; a subclass of PackedAttention.
        linear_qkv: query, key and value projection.
        linear_proj: output projection of attention.
        linear_fc1: first layer of the MLP, with SwiGLU the gate and up projections.
        linear_fc2: second layer of the MLP.
    """

    core_attention: type[PackedAttention] = PackedAttention
    linear_qkv: type = ColumnParallelLinear
    linear_proj: type = RowParallelLinear
    linear_fc1: type = ColumnParallelLinear
    linear_fc2: type = RowParallelLinear


def layer_spec(
    operators: FusedOps,
    kernel: AttentionKernel,
    qk_layernorm: bool = False,
    recomputes_activation: bool = False,
    modules: LayerModules = LayerModules(),
) -> ModuleSpec:
    """Build the ModuleSpec of a transformer layer: megatron-core's modules with our core_attention and norm.

    Args:
        operators: norm and activation of the layer.
        kernel: attention kernel of the layer.
        qk_layernorm: whether query and key are normalized.
        recomputes_activation: whether the activation function of the MLP is recomputed in the backward pass.
        modules: classes of the modules that an adapter can replace.
    """
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=modules.linear_qkv,
            core_attention=ModuleSpec(module=modules.core_attention, params={"kernel": kernel}),
            linear_proj=modules.linear_proj,
            q_layernorm=operators.norm if qk_layernorm else IdentityOp,
            k_layernorm=operators.norm if qk_layernorm else IdentityOp,
        ),
    )
    parts = MLPSubmodules(
        linear_fc1=modules.linear_fc1, linear_fc2=modules.linear_fc2, activation_func=operators.activation
    )
    mlp = activation_recompute_mlp(parts) if recomputes_activation else ModuleSpec(module=MLP, submodules=parts)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=operators.norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=operators.norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            # In checkpoints the norms have the names of TransformerEngine's layers, as in megatron-core's local spec.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )


class PackedGPTModel(GPTModel):
    """GPTModel with our rotary embedding or a position table, whose softmax excludes the padding of the vocabulary.

    Args:
        arguments: positional arguments of GPTModel.
        vocabulary: size of the vocabulary without padding. The rows from there to `vocab_size` are padding.
        rotary: rotary embedding of the layers. An NpuRotaryEmbedding is applied by core_attention, any other by
            megatron-core. None for learned positions: a table of `max_sequence_length` rows.
        loss_chunk_size: trained slots whose logits are computed at a time; 0 computes the logits of all slots.
        virtual_tokens: module (embeddings, boundaries) → embeddings, which fills the reserved slots of the samples; it
            is built on the first pipeline stage. None without virtual tokens.
        others: keyword arguments of GPTModel.
    """

    def __init__(
        self,
        *arguments: object,
        vocabulary: int,
        rotary: PackedRotaryEmbedding | None,
        loss_chunk_size: int = 0,
        virtual_tokens: VirtualTokensBuilder | None = None,
        **others: object,
    ) -> None:
        # 'none', so that megatron-core does not rotate query and key in addition to core_attention.
        in_attention = isinstance(rotary, NpuRotaryEmbedding)
        kind = "learned_absolute" if rotary is None else "none" if in_attention else "rope"
        super().__init__(*arguments, position_embedding_type=kind, **others)
        self.vocabulary = vocabulary
        self.loss_chunk_size = loss_chunk_size
        self.npu_rotary = rotary if in_attention else None
        if kind == "rope":
            self.rotary_pos_emb = rotary
        is_first = virtual_tokens is not None and self.pre_process
        self.virtual_tokens = virtual_tokens(self.config) if is_first and virtual_tokens is not None else None

    def forward(self, *arguments: Any, packed_seq_params: PackedBoundaries, **others: Any) -> torch.Tensor:
        """Run GPTModel.forward, with cosine and sine in the boundaries if core_attention rotates query and key.

        Args:
            arguments: positional arguments of GPTModel.forward, at least the tokens and positions.
            packed_seq_params: boundaries of the micro-batch, with its positions.
            others: keyword arguments of GPTModel.forward.

        Returns:
            The output of GPTModel.forward: the loss of every token [1, T] on the last pipeline stage if labels are
            given, hidden states [T, 1, hidden size] on the other stages.
        """
        if self.npu_rotary is not None:
            assert packed_seq_params.positions is not None
            tables = self.npu_rotary.cosine_and_sine(packed_seq_params.positions)
            # A copy, so that the argument of the caller does not change.
            packed_seq_params = replace(packed_seq_params, rotary=tables)
        if self.virtual_tokens is not None:
            embeddings = self.embedding(input_ids=arguments[0], position_ids=arguments[1])
            others["decoder_input"] = self.virtual_tokens(embeddings, packed_seq_params)
        output: torch.Tensor = super().forward(*arguments, packed_seq_params=packed_seq_params, **others)
        return output

    def _postprocess(
        self, hidden_states: torch.Tensor, *arguments: Any, labels: Any = None, **others: Any
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss of the trained slots, or the logits of a few slots; everything else is GPTModel's.

        megatron-core 0.16.1 has no public seam for the output layer: `GPTModel.forward` ends with this method.

        Args:
            hidden_states: [T, 1, h], or [T / t, 1, h] under sequence parallelism.
            arguments: as in GPTModel.
            labels: TrainedSlots for the loss of the trained slots; AnswerSlots for their logits; int64 [1, T] for the
                loss of every slot; None for the logits of every slot.
            others: as in GPTModel.

        Returns:
            With TrainedSlots the weighted sum of the losses [] and the losses of the trained slots [R] without a
            gradient; with AnswerSlots the logits of this tensor-parallel rank [R, columns without padding]; otherwise
            as GPTModel.
        """
        if not self.post_process or not isinstance(labels, TrainedSlots | AnswerSlots):
            return super()._postprocess(hidden_states, *arguments, labels=labels, **others)
        if self.loss_chunk_size == 0 and isinstance(labels, TrainedSlots):
            losses = super()._postprocess(hidden_states, *arguments, labels=labels.labels, **others)
            return labels.weighted_sum(losses)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        ranks = self.config.tensor_model_parallel_size
        layer = OutputLayer(
            vocabulary=self.vocabulary,
            chunk_size=self.loss_chunk_size,
            group=parallel_state.get_tensor_model_parallel_group() if ranks > 1 else None,
            sequence_parallel=self.config.sequence_parallel,
            weight_is_shared=weight is not None and self.pre_process,
        )
        weight = self.output_layer.weight if weight is None else weight
        # The output layer itself is not called. With --overlap-param-gather, DistributedDataParallel waits for the
        # weight in a pre-hook of this module, and starts the next all-gather there.
        for hook in self.output_layer._forward_pre_hooks.values():
            hook(self.output_layer, ())
        if isinstance(labels, AnswerSlots):
            return logits_of_slots(hidden_states, weight, labels, layer)
        return chunked_cross_entropy(hidden_states, weight, labels, layer)

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Compute the cross entropy of every token over the vocabulary without its padding.

        Args:
            labels: int64 [1, T].
            logits: [T, 1, columns of this tensor-parallel rank]; those of the padding are overwritten with -inf.

        Returns:
            [1, T].
        """
        columns = logits.shape[-1]
        # Columns of this rank that are not padding; tensor-parallel ranks hold consecutive columns of the vocabulary.
        unpadded = self.vocabulary - columns * parallel_state.get_tensor_model_parallel_rank()
        if unpadded < columns:
            logits[..., max(unpadded, 0) :] = float("-inf")
        return super().compute_language_model_loss(labels, logits)


def build_model(
    model: ModelArguments,
    seq_length: int,
    config: TransformerConfig,
    vocabulary: Vocabulary,
    operators: FusedOps,
    kernel: AttentionKernel,
    loss_chunk_size: int = 0,
    recomputes_activation: Callable[[int], bool] = lambda layer: False,
    modules: LayerModules = LayerModules(),
    virtual_tokens: VirtualTokensBuilder | None = None,
) -> list[GPTModel]:
    """Build the model chunks of this pipeline stage: one chunk, or one per virtual stage.

    Args:
        model: shape of the model.
        seq_length: maximum length of a sample in tokens.
        config: configuration from `transformer_config`.
        vocabulary: size of the vocabulary with and without padding.
        operators: norm, activation and rotary embedding of the layers.
        kernel: attention kernel of the layers.
        loss_chunk_size: trained slots whose logits are computed at a time; 0 computes the logits of all slots.
        recomputes_activation: whether a layer, given its index in the chunk, recomputes its activation function in the
            backward pass.
        modules: classes of the modules that an adapter can replace.
        virtual_tokens: builds the module with the virtual tokens of an adapter; None without.
    """

    def build_chunk(virtual_stage: int | None) -> GPTModel:
        layers = get_num_layers_to_build(config, vp_stage=virtual_stage)
        return PackedGPTModel(
            config=config,
            # Not the layer spec alone: the submodules of the block set the class of the final norm as well.
            transformer_layer_spec=TransformerBlockSubmodules(
                layer_specs=[
                    layer_spec(operators, kernel, model.qk_layernorm, recomputes_activation(layer), modules)
                    for layer in range(layers)
                ],
                layer_norm=operators.norm,
            ),
            vocab_size=vocabulary.padded,
            vocabulary=vocabulary.size,
            max_sequence_length=model.max_position_embeddings if model.learns_positions else seq_length,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual_stage),
            share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
            loss_chunk_size=loss_chunk_size,
            virtual_tokens=virtual_tokens,
            rotary=None if model.learns_positions else _rotary_embedding(model, seq_length, config, operators),
            rotary_percent=model.rotary_percent,
            rotary_base=model.rotary_base,
            rope_scaling=model.use_rope_scaling,
            rope_scaling_factor=model.rope_scaling_factor,
            vp_stage=virtual_stage,
        )

    virtual_stages = config.virtual_pipeline_model_parallel_size
    return [build_chunk(stage) for stage in ([None] if virtual_stages is None else range(virtual_stages))]


def _rotary_embedding(
    model: ModelArguments, seq_length: int, config: TransformerConfig, operators: FusedOps
) -> PackedRotaryEmbedding:
    settings = {
        "max_positions": seq_length,
        "kv_channels": config.kv_channels,
        "rotary_percent": model.rotary_percent,
        "rotary_base": model.rotary_base,
        "rope_scaling": model.use_rope_scaling,
        "rope_scaling_factor": model.rope_scaling_factor,
        "use_cpu_initialization": config.use_cpu_initialization,
    }
    if operators.rotary:
        return NpuRotaryEmbedding(config.params_dtype, **settings)
    return PackedRotaryEmbedding(**settings)
