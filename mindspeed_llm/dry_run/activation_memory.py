"""Estimate the peak activation memory of a rank in bytes, from the shapes of the layers as built.

The approach is that of Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models":
add up the tensors that the backward pass needs, each storage once. Our layers differ from theirs (no S² scores, SwiGLU,
RMSNorm, grouped queries), so this module lists the tensors itself. Tests compare the sum with what autograd saves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindspeed_llm.adapters import LoraSettings
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.dry_run.adapter_memory import adapter_memory

if TYPE_CHECKING:
    from mindspeed_llm.model import FusedOps

FLOAT32 = 4
INT64 = 8


@dataclass(frozen=True)
class SavedByOps:
    """Operators that save less for the backward pass than the same computation in plain PyTorch.

    Attributes:
        norm: RMSNorm saves its input as it is. Plain: the input and the normalized input, both in float32. LayerNorm is
            one operator on every device.
        swiglu: SwiGLU saves its input only.
        dropout: dropout saves one byte per element. Plain: one number of the model's data type.
        attention: the attention kernel writes the joined output directly. Plain: one output per segment is saved, and
            the joined output as well.
        rotary: one operator each rotates query and key and saves its input; cosine and sine are shared by all layers.
            Plain: each layer computes them for query and for key.
        row: bytes that attention saves per row of scores: the log-sum-exp in float32, or on Ascend the maximum and the
            sum, each stored eight times.
    """

    norm: bool = False
    swiglu: bool = False
    dropout: bool = False
    attention: bool = False
    rotary: bool = False
    row: int = FLOAT32

    @classmethod
    def of(cls, operators: FusedOps, kernel: str | None) -> SavedByOps:
        """Return the values for the operators and the attention kernel of a run.

        Args:
            operators: result of `select_fused_ops`.
            kernel: name of the attention kernel; None if this machine does not have the device.
        """
        from mindspeed_llm.attention import saved_bytes_per_row  # imports torch

        return cls(
            norm=operators.fuses_norm,
            swiglu=operators.fuses_swiglu,
            dropout=operators.bias_dropout,
            attention=kernel != "segments",
            rotary=operators.rotary,
            row=saved_bytes_per_row(operators.device, kernel),
        )

    @property
    def fused(self) -> list[str]:
        """Names of the operators that are fused."""
        return [name for name in ("norm", "swiglu", "dropout", "attention", "rotary") if getattr(self, name)]


@dataclass(frozen=True)
class PipelineStage:
    """Part of the pipeline that one rank holds.

    Attributes:
        layers: number of transformer layers of each model chunk.
        in_flight: maximum number of chunk forward passes whose backward pass has not started.
        first: whether the stage holds the embedding.
        last: whether the stage holds the output layer.
    """

    layers: tuple[int, ...]
    in_flight: int
    first: bool
    last: bool


class ActivationMemory:
    """Estimates the bytes that one micro-batch saves for its backward pass on one rank.

    All methods return bytes, except `rotated_size`. Symbols in the shapes: T slots of a micro-batch, h hidden size,
    f MLP size, a query heads, g groups, d head size, V padded vocabulary, t tensor-parallel size; s = t with sequence
    parallelism, else 1. Activations between the tensor-parallel layers are divided by s, activations inside them by t.

    Not counted: gradients of activations, workspaces of kernels, buffers of collectives (with sequence parallelism the
    gathered [T, h] is one) and fragmentation.

    Args:
        arguments: checked arguments.
        padded_vocab_size: V.
        operators: fused operators of the device that the job will train on.
        loss_chunk_size: trained slots per chunk of the loss; 0 for the dense loss.
        trained_share: trained slots ÷ slots.
    """

    def __init__(
        self,
        arguments: PretrainArguments,
        padded_vocab_size: int,
        operators: SavedByOps,
        loss_chunk_size: int = 0,
        trained_share: float = 1.0,
    ) -> None:
        model, parallel, training = arguments.model, arguments.parallel, arguments.training
        self.model = model
        self.training = training
        self.operators = operators
        self.vocabulary = padded_vocab_size
        self.tokens = arguments.data.seq_length * training.micro_batch_size
        self.bytes = FLOAT32 if training.precision == "fp32" else 2
        self.chunk_rows = loss_chunk_size
        self.trained = math.ceil(self.tokens * trained_share)  # R
        self.tensor = parallel.tensor_model_parallel_size
        self.rows = self.tokens // self.tensor if parallel.sequence_parallel else self.tokens  # T / s
        self.dropout_bytes = 1 if operators.dropout else self.bytes  # per element of a mask
        self.adapter = arguments.adapter
        self.has_prefix = self.adapter is not None and self.adapter.method == "prefix"
        self.branches = adapter_memory(self.adapter, model, self) if self.adapter is not None else None
        self.norm_is_fused = operators.norm or model.normalization == "LayerNorm"

    def residual(self) -> int:
        """Return the size in bytes of the residual stream, [T/s, h]."""
        return self.rows * self.model.hidden_size * self.bytes

    def norm(self) -> int:
        """Return the bytes of what one norm of the residual stream saves, [T/s, h]."""
        return self._norm(self.rows, self.model.hidden_size)

    def head_norms(self) -> int:
        """Return the bytes of the norms of query and key with --qk-layernorm, [T, (a + g)/t, d]; 0 without it."""
        if not self.model.qk_layernorm:
            return 0
        groups, size = max(self.model.query_groups // self.tensor, 1), self.model.head_size
        # A norm that saves its input unchanged saves the key as a view of the projection, which counts already.
        saves_view = self.norm_is_fused or self.bytes == FLOAT32
        views = self.tokens * groups * size * self.bytes if saves_view else 0
        return self._norm(self.tokens * (self.model.num_attention_heads // self.tensor + groups), size) - views

    def _norm(self, rows: int, size: int) -> int:
        """Return the bytes of what a norm saves for `rows` rows of `size` numbers."""
        # The reciprocal root of each row in float32 (LayerNorm: the mean as well), and the input; RMSNorm in plain
        # PyTorch the input and the normalized input, both in float32.
        # A frozen weight does not need the normalized input.
        copies = 1 if self.adapter is not None else 2
        statistics = 2 if self.model.normalization == "LayerNorm" else 1
        return rows * statistics * FLOAT32 + rows * size * (self.bytes if self.norm_is_fused else copies * FLOAT32)

    def input_of(self, linear: str) -> int:
        """Return the bytes of the input of a linear layer, if that layer saves it.

        A frozen weight needs no input; the factors A of an adapter do.

        Args:
            linear: name in megatron-core, such as 'linear_qkv'.
        """
        if self.adapter is not None and linear not in self.adapter.layers:
            return 0
        return {
            "linear_qkv": self.residual,
            "linear_proj": self._joined_output,
            "linear_fc1": self.residual,
            "linear_fc2": self._mlp_width,
        }[linear]()

    def _saves_input_itself(self, linear: str) -> bool:
        """Return whether a linear layer saves its input, and not a copy made by the dropout of an adapter."""
        if not isinstance(self.adapter, LoraSettings):
            return self.adapter is None
        return linear in self.adapter.layers and not self.adapter.dropout

    def dropout(self) -> int:
        """Return the size in bytes of the mask of one --hidden-dropout, [T/s, h]."""
        if not self.model.hidden_dropout:
            return 0
        return self.rows * self.model.hidden_size * self.dropout_bytes

    def rotary(self) -> int:
        """Return the bytes of what the rotary embedding of one layer saves.

        In plain PyTorch each layer computes cosine and sine for query and for key: 4 · [T, rotated size]. A fused
        operator saves its inputs instead, unless they are views: [T, a/t, d] for the query, [T, g/t, d] for the key.
        """
        size = self.rotated_size()
        if not size:
            return 0
        if not self.operators.rotary:
            return 4 * self.tokens * size * self.bytes
        heads = self.model.num_attention_heads // self.tensor
        groups = max(self.model.query_groups // self.tensor, 1)
        # Only a part of each head is rotated, or the inputs are outputs of a norm: both are copies.
        if size < self.model.head_size or self.model.qk_layernorm:
            return self.tokens * (heads + groups) * size * self.bytes
        # The key is a view of the projection, and so is the query if there is a single group.
        return self.tokens * heads * size * self.bytes if groups > 1 else 0

    def rotated_size(self) -> int:
        """Return how many of the d numbers of each head are rotated; 0 for learned positions."""
        return 0 if self.model.learns_positions else int(self.model.head_size * self.model.rotary_percent)

    def shared_rotary(self) -> int:
        """Return the bytes of cosine and sine that all layers share with a fused operator, 2 · [T, rotated size]."""
        return 2 * self.tokens * self.rotated_size() * self.bytes if self.operators.rotary else 0

    def queries_and_keys(self) -> int:
        """Return the size in bytes of the query-key-value projection and of the rotated query and key.

        The projection is [T, (a + 2g) d/t], and the values are a view of it. The rotated copies are [T, (a + g) d/t].
        Without rotation, query and key are views as well, except that several queries per group are copied.
        A prefix makes the values a copy, which counts in `branches`.
        """
        heads, groups, size = self.model.num_attention_heads, self.model.query_groups, self.model.head_size
        # With fewer groups than tensor-parallel ranks, megatron-core gathers the complete projection on every rank, and
        # each rank uses its part of one group.
        divided = groups >= self.tensor
        projection = (heads + 2 * groups) * size // (self.tensor if divided else 1)
        rotated = (heads // self.tensor + (groups // self.tensor if divided else 1)) * size
        if self.model.learns_positions:
            rotated = heads // self.tensor * size if groups < heads else 0
        return self.tokens * ((projection if self._keeps_projection() else 0) + rotated) * self.bytes

    def _keeps_projection(self) -> bool:
        """Return whether a view of the query-key-value projection is saved."""
        if not self.has_prefix or self.training.recompute == "selective":
            return True
        norm_saves_view = self.model.qk_layernorm and (self.operators.norm or self.bytes == FLOAT32)
        return self.operators.rotary or norm_saves_view

    def kernel(self) -> int:
        """Return the bytes of what the attention kernel alone saves besides query, key and value.

        A few numbers per row of scores, [T, a/t], and its output [T, a d/t], unless the output projection saves the
        same storage; segment by segment in plain PyTorch the outputs of the segments. No kernel saves the scores
        themselves.
        """
        heads = self.model.num_attention_heads // self.tensor
        is_shared = self.operators.attention and self._saves_input_itself("linear_proj")
        return self.tokens * heads * self.operators.row + (0 if is_shared else self._joined_output())

    def context(self) -> int:
        """Return the bytes of the joined output of attention, [T, a d/t], if the output projection saves it."""
        return self.input_of("linear_proj")

    def _joined_output(self) -> int:
        """Return the size in bytes of the joined output of attention, [T, a d/t]."""
        return self.tokens * self.model.num_attention_heads // self.tensor * self.model.head_size * self.bytes

    def mlp(self) -> int:
        """Return the bytes of what the MLP saves between its two linear layers.

        With SwiGLU its input [T, 2f/t] and the input of the second layer [T, f/t]; in plain PyTorch also silu(gate) and
        the other half, [T, f/t] each. With GELU its input and output, [T, f/t] each.
        """
        widths = 1 if not self.model.swiglu else 2 if self.operators.swiglu else 4
        return widths * self._mlp_width() + self.input_of("linear_fc2")

    def _mlp_width(self) -> int:
        """Return the size in bytes of the activation of the MLP, [T, f/t]."""
        return self.tokens * self.model.ffn_size // self.tensor * self.bytes

    def activation_function(self) -> int:
        """Return the bytes of `mlp` that --recompute-activation-function frees: all but the input of the function.

        With dropout, the input of the adapter of linear_fc2 is a copy, which is not recomputed.
        """
        copied = 0 if self._saves_input_itself("linear_fc2") else self.input_of("linear_fc2")
        return self.mlp() - (2 if self.model.swiglu else 1) * self._mlp_width() - copied

    def _freed(self, layers: int) -> int:
        """Return the bytes that --recompute-activation-function frees in a chunk of `layers` layers."""
        recomputed = sum(self.training.recomputes_activation_function(layer) for layer in range(layers))
        return recomputed * self.activation_function()

    def layer(self) -> int:
        """Return the bytes of what one transformer layer saves.

            norm → x → projection → rotary → kernel → context → out  (+)  norm → x → first layer → SwiGLU → second  (+)

        Both x are [T/s, h], saved by the linear layer that reads them.
        """
        between = 2 * (self.norm() + self.dropout()) + self.input_of("linear_qkv") + self.input_of("linear_fc1")
        attention = self.queries_and_keys() + self.head_norms() + self.rotary() + self.kernel() + self.context()
        return between + attention + self.mlp() + (self.branches.layer() if self.branches is not None else 0)

    def embedding(self) -> int:
        """Return the bytes of the embedding: ids [T], with t > 1 a mask of the ids of this rank [T], and dropout.

        With learned positions also the position ids [T]. A frozen embedding saves none of them.
        """
        if self.adapter is not None:
            return 0
        ids = 2 if self.model.learns_positions else 1
        return self.tokens * (ids * INT64 + (1 if self.tensor > 1 else 0)) + self.dropout()

    def head(self) -> int:
        """Return the bytes of what the last norm, the output layer and the cross entropy save.

        The dense cross entropy saves the softmax [T, V/t], in float32 for every data type of the model, the target ids
        [T] and a mask of the ids of this rank [T]. The chunked one saves the R trained rows of the hidden states,
        [R, h], and for each of them its slot, its target id, a mask and three numbers in float32.
        """
        if self.chunk_rows:
            rows = self.trained * (self.model.hidden_size * self.bytes + 2 * INT64 + 1 + 3 * FLOAT32)
            return self.norm() + rows
        # megatron-core's vocab-parallel cross entropy converts the logits to float32.
        softmax = self.tokens * self.vocabulary // self.tensor * FLOAT32
        hidden = 0 if self.adapter is not None else self.residual()
        return self.norm() + hidden + softmax + self.tokens * (INT64 + 1)

    def transient_head_memory(self) -> int:
        """Return the bytes of what the output layer needs for a moment besides what it saves.

        Dense: the logits or their gradient in the model's data type, [T, V/t]. Chunked: the logits of one chunk
        [C, V/t] in float32, and in 16-bit precision also in the model's data type.
        """
        if self.chunk_rows:
            rows = min(self.chunk_rows, self.trained)
            numbers = rows * self.vocabulary // self.tensor
            return numbers * (FLOAT32 + (self.bytes if self.bytes < FLOAT32 else 0))
        return self.tokens * self.vocabulary // self.tensor * self.bytes if self.bytes < FLOAT32 else 0

    def chunk(self, layers: int) -> int:
        """Return the bytes of what one micro-batch saves in the layers of one model chunk.

        With --recompute-granularity selective, attention saves only its inputs and output. With full, a layer (or with
        'uniform' a group of layers) saves only its input, and all of them share one copy of the rotary angles.

        Args:
            layers: number of transformer layers of the chunk.
        """
        recompute, group = self.training.recompute, self.training.recompute_num_layers or 1
        freed = self._freed(layers)
        if recompute is None:
            return layers * self.layer() - freed + self.shared_rotary()
        # Selective recomputation repeats the attention kernel, whose inputs are saved anyway.
        if recompute == "selective":
            recomputed = self.kernel() + self._prefix_values()
            return layers * (self.layer() - recomputed) - freed + self.shared_rotary()
        angles = self.shared_rotary() or self.tokens * self.rotated_size() * FLOAT32
        if self.training.recompute_method == "uniform":
            return math.ceil(layers / group) * self.residual() + angles
        # The method 'block' recomputes only the first `group` layers of the chunk.
        group = min(group, layers)
        return group * self.residual() + (layers - group) * self.layer() - freed + angles

    def recomputed(self, layers: int) -> int:
        """Return the bytes that recomputation restores at one time: a kernel, an activation, or one or more layers.

        Args:
            layers: number of transformer layers of the chunk.
        """
        recompute, group = self.training.recompute, self.training.recompute_num_layers or 1
        activation = self.activation_function() if self._freed(layers) else 0
        if recompute is None:
            return activation
        if recompute == "selective":
            # The activation of a layer is used up before its attention is recomputed.
            return max(self.kernel() + 2 * self._prefix_values(), activation)
        return min(group, layers) * self.layer() if self.training.recompute_method == "uniform" else self.layer()

    def _prefix_values(self) -> int:
        """Return the bytes of the values with a prefix, [T, g/t, d]; 0 without a prefix. The keys have as many."""
        return self.branches.layer() if self.branches is not None and self.has_prefix else 0

    def stage_input(self) -> int:
        """Return the size in bytes of the input from the previous stage, if no layer saves the same storage."""
        # A plain norm in 16-bit precision saves a float32 copy of its input, so the input itself stays as well.
        saved_by_layer = self.norm_is_fused or self.bytes == FLOAT32 or self.training.recompute == "full"
        return 0 if saved_by_layer else self.residual()

    def peak(self, stage: PipelineStage) -> int:
        """Return the peak activation memory of a pipeline stage.

        The micro-batches in flight, plus the larger of two parts that never exist at the same time: the output layer of
        one micro-batch, and the layers recomputed after the memory of the output layer is free again.
        """
        chunk = max(self.chunk(layers) for layers in stage.layers)
        chunks = len(stage.layers)
        # Chunks of a stage may differ in their layers. The largest one counts for all, which is an upper bound.
        total = stage.in_flight * chunk
        # On an interleaved first stage, one of `chunks` passes in flight belongs to the chunk with the embedding.
        from_embedding = math.ceil(stage.in_flight / chunks) if stage.first else 0
        total += from_embedding * self.embedding() + (stage.in_flight - from_embedding) * self.stage_input()
        head = self.head() + self.transient_head_memory() if stage.last else 0
        return total + max(head, self.recomputed(max(stage.layers)))
