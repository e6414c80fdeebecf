"""How many bytes of activations a rank holds at its fullest: an estimate from the shapes of our layers as built.

The approach is that of Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models":
add up the tensors that the backward pass needs, each storage once. The layers differ from theirs (no scores of S²,
SwiGLU, RMSNorm, grouped queries), so the sum is written out here tensor by tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments

if TYPE_CHECKING:
    from mindspeed_llm.model import FusedOps

FLOAT32 = 4
INT64 = 8


@dataclass(frozen=True)
class SavedByOps:
    """Which operators keep less for the backward pass than the same thing written out in PyTorch.

    Attributes:
        norm: RMSNorm keeps its input as it is, not in float32 with the normalised input beside it.
        swiglu: keeps its input alone.
        dropout: keeps a byte for each element, not a number of the model's type.
        attention: its output is the joined one. Segment by segment through autograd there are two.
        rotary: query and key are turned by one operator each, which keeps its input; cosine and sine are the same for
            all layers. Written out, each layer makes them for query and for key.
        row: bytes that attention keeps of each row of scores: the logarithm of its sum in float32; Ascend's kernel its
            maximum and its sum, each eight times.
    """

    norm: bool = False
    swiglu: bool = False
    dropout: bool = False
    attention: bool = False
    rotary: bool = False
    row: int = FLOAT32

    @classmethod
    def of(cls, operators: FusedOps, kernel: str | None) -> SavedByOps:
        """Of the operators and the attention kernel of a run.

        Args:
            operators: from `select_fused_ops`.
            kernel: name of the attention kernel; None where it is that of a device that is not here.
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
        """Names of those that are fused."""
        return [name for name in ("norm", "swiglu", "dropout", "attention", "rotary") if getattr(self, name)]


@dataclass(frozen=True)
class PipelineStage:
    """What one rank has of the pipeline.

    Attributes:
        layers: transformer layers of each of its chunks.
        in_flight: forward passes of chunks whose backward pass has not begun, at most.
        first, last: it holds the embedding, the output layer.
    """

    layers: tuple[int, ...]
    in_flight: int
    first: bool
    last: bool


class ActivationMemory:
    """Bytes that one micro-batch leaves behind for its backward pass, on one rank.

    Legend: T slots of a micro-batch, h hidden size, f MLP size, a query heads, g groups, d head size, V padded
    vocabulary, e bytes of a number, t tensor-parallel size; s = t under sequence parallelism, else 1. What is linear
    in the sequence between the tensor-parallel layers is divided by s, what is inside them by t.

    Not counted: gradients of activations while they are passed back, workspaces of kernels, buffers of collectives
    (under sequence parallelism the gathered [T, h] is one), fragmentation.

    Args:
        arguments: checked arguments.
        padded_vocab_size: V.
        operators: of the device that is to be trained on.
    """

    def __init__(self, arguments: PretrainArguments, padded_vocab_size: int, operators: SavedByOps) -> None:
        model, parallel, training = arguments.model, arguments.parallel, arguments.training
        self.model = model
        self.training = training
        self.operators = operators
        self.vocabulary = padded_vocab_size
        self.tokens = arguments.data.seq_length * training.micro_batch_size
        self.bytes = FLOAT32 if training.precision == "fp32" else 2
        self.tensor = parallel.tensor_model_parallel_size
        self.rows = self.tokens // self.tensor if parallel.sequence_parallel else self.tokens  # T / s

    def residual(self) -> int:
        """The residual stream: [T/s, h]."""
        return self.rows * self.model.hidden_size * self.bytes

    def norm(self) -> int:
        """The norm of the residual stream."""
        return self._norm(self.rows, self.model.hidden_size)

    def head_norms(self) -> int:
        """With --qk-layernorm those of query and key, a row for each head: [T, (a + g)/t, d]. A key that is kept as it
        is counts with the projection, of which it is a view."""
        if not self.model.qk_layernorm:
            return 0
        groups, size = max(self.model.query_groups // self.tensor, 1), self.model.head_size
        as_it_is = self.operators.norm or self.bytes == FLOAT32
        views = self.tokens * groups * size * self.bytes if as_it_is else 0
        return self._norm(self.tokens * (self.model.num_attention_heads // self.tensor + groups), size) - views

    def _norm(self, rows: int, size: int) -> int:
        """Its input and the reciprocal root of each row; written out, both input and normalised input in float32."""
        return rows * FLOAT32 + rows * size * (self.bytes if self.operators.norm else 2 * FLOAT32)

    def dropout(self) -> int:
        """The mask of one --hidden-dropout."""
        if not self.model.hidden_dropout:
            return 0
        return self.rows * self.model.hidden_size * (1 if self.operators.dropout else self.bytes)

    def rotary(self) -> int:
        """Sine and cosine of every position, which each layer makes for query and for key: 4 · [T, rotated size].

        An operator keeps what it turns, [T, a/t, d]; a key is a view of the projection, and so is the query of one
        group.
        """
        size = self.turned()
        if not self.operators.rotary:
            return 4 * self.tokens * size * self.bytes
        heads = self.model.num_attention_heads // self.tensor
        groups = max(self.model.query_groups // self.tensor, 1)
        if size < self.model.head_size or self.model.qk_layernorm:  # a part of each head, or what a norm has made
            return self.tokens * (heads + groups) * size * self.bytes
        return self.tokens * heads * size * self.bytes if groups > 1 else 0

    def turned(self) -> int:
        """Numbers of each head that are rotated."""
        return int(self.model.head_size * self.model.rotary_percent)

    def shared_rotary(self) -> int:
        """Cosine and sine that all layers share, 2 · [T, rotated size], where an operator applies them."""
        return 2 * self.tokens * self.turned() * self.bytes if self.operators.rotary else 0

    def queries_and_keys(self) -> int:
        """The projection, of which the values are a view: [T, (a + 2g) d/t]; rotated copies: [T, (a + g) d/t].

        With fewer groups than ranks the projection is gathered whole and every rank takes its part of one group.
        """
        heads, groups, size = self.model.num_attention_heads, self.model.query_groups, self.model.head_size
        divided = groups >= self.tensor
        projection = (heads + 2 * groups) * size // (self.tensor if divided else 1)
        rotated = (heads // self.tensor + (groups // self.tensor if divided else 1)) * size
        return self.tokens * (projection + rotated) * self.bytes

    def kernel(self) -> int:
        """What the attention kernel keeps besides query, key, value and the joined output: a few numbers of each row
        of scores, [T, a/t]; through autograd's segments also the outputs unjoined, [T, a d/t]. No scores."""
        heads = self.model.num_attention_heads // self.tensor
        return self.tokens * heads * self.operators.row + (0 if self.operators.attention else self.context())

    def context(self) -> int:
        """The joined output of attention, which the output projection keeps: [T, a d/t]."""
        return self.tokens * self.model.num_attention_heads // self.tensor * self.model.head_size * self.bytes

    def mlp(self) -> int:
        """SwiGLU's input [T, 2f/t] and the input of the second layer [T, f/t]; written out, also silu(gate) and the
        other half, [T, f/t] each. GELU's input and output without --swiglu."""
        widths = 2 if not self.model.swiglu else 3 if self.operators.swiglu else 5
        return widths * self.tokens * self.model.ffn_size // self.tensor * self.bytes

    def layer(self) -> int:
        """One transformer layer.

            norm → x → projection → rotary → kernel → context → out  (+)  norm → x → first layer → SwiGLU → second  (+)

        Both x are [T/s, h], kept by the linear layer that reads them.
        """
        between = 2 * (self.norm() + self.residual() + self.dropout())
        attention = self.queries_and_keys() + self.head_norms() + self.rotary() + self.kernel() + self.context()
        return between + attention + self.mlp()

    def embedding(self) -> int:
        """Ids, where t > 1 which of them are this rank's, and the mask of dropout."""
        return self.tokens * (INT64 + (1 if self.tensor > 1 else 0)) + self.dropout()

    def head(self) -> int:
        """The last norm, the output layer's input, and cross entropy: softmax [T, V/t] in float32 whatever the
        model's type, target ids and which of them are this rank's."""
        softmax = self.tokens * self.vocabulary // self.tensor * FLOAT32
        return self.norm() + self.residual() + softmax + self.tokens * (INT64 + 1)

    def transient_head_memory(self) -> int:
        """Logits (forward) and then their gradient (backward) in the model's type, beside the float32 softmax."""
        return self.tokens * self.vocabulary // self.tensor * self.bytes if self.bytes < FLOAT32 else 0

    def chunk(self, layers: int) -> int:
        """What one micro-batch leaves behind in the layers of one chunk.

        --recompute-granularity selective: attention keeps its input and output alone. full: a layer, or with
        'uniform' a group of layers, keeps its input alone, and all of them one copy of the rotary angles.
        """
        recompute, group = self.training.recompute, self.training.recompute_num_layers or 1
        if recompute is None:
            return layers * self.layer() + self.shared_rotary()
        if recompute == "selective":
            return layers * (self.layer() - self.kernel()) + self.shared_rotary()
        angles = self.shared_rotary() or self.tokens * self.turned() * FLOAT32
        if self.training.recompute_method == "uniform":
            return math.ceil(layers / group) * self.residual() + angles
        group = min(group, layers)
        return group * self.residual() + (layers - group) * self.layer() + angles

    def recomputed(self, layers: int) -> int:
        """What recomputation brings back at one time: one layer's kernel, a layer, or a group of layers."""
        recompute, group = self.training.recompute, self.training.recompute_num_layers or 1
        if recompute is None:
            return 0
        if recompute == "selective":
            return self.kernel()
        return min(group, layers) * self.layer() if self.training.recompute_method == "uniform" else self.layer()

    def received(self) -> int:
        """What the stage before sent, where no layer keeps the same storage: the norm has a float32 copy."""
        kept_anyway = self.operators.norm or self.bytes == FLOAT32 or self.training.recompute == "full"
        return 0 if kept_anyway else self.residual()

    def peak(self, stage: PipelineStage) -> int:
        """The fullest moment of a stage: the micro-batches in flight, and the head's part of one, or of what is
        recomputed after the head's part is given back, the larger."""
        chunk = max(self.chunk(layers) for layers in stage.layers)
        chunks = len(stage.layers)
        total = stage.in_flight * chunk
        # Of the passes in flight on an interleaved first stage, one in `chunks` is of the chunk that embeds.
        from_embedding = math.ceil(stage.in_flight / chunks) if stage.first else 0
        total += from_embedding * self.embedding() + (stage.in_flight - from_embedding) * self.received()
        head = self.head() + self.transient_head_memory() if stage.last else 0
        return total + max(head, self.recomputed(max(stage.layers)))
