"""Put our attention into the layers of the model that the user's model provider built.

Only modules without weights are replaced: the core_attention of each layer, and the rotary embedding of the model. All
parameters, their names and their initialization are Megatron's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer

from mindspeed_llm.attention import AttentionKernel
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.megatron.megatron_versions import MegatronVersion
from mindspeed_llm.model import PackedBoundaries
from mindspeed_llm.model.core_attention import PackedAttention


def attend_inside_samples(
    chunk: torch.nn.Module, kernel: AttentionKernel, vocabulary: int | None, version: MegatronVersion
) -> None:
    """Let every layer of a model chunk attend only inside the samples of a pack, with positions of their own.

    Args:
        chunk: model chunk from the user's model provider, before it is wrapped for data parallelism.
        kernel: attention kernel.
        vocabulary: vocabulary size; the columns of the logits from there on are padding. None if it is not known.
        version: version of Megatron.

    Raises:
        ConfigError: the model has a part for which packs were not tried; the message names it and its flag.
    """
    problems = list(_problems(chunk))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    assert isinstance(chunk, GPTModel)
    for layer in chunk.decoder.layers:
        attention = layer.self_attention
        scale = attention.core_attention.softmax_scale
        attention.core_attention = version.core_attention(PackedAttention)(
            config=layer.config,
            layer_number=layer.layer_number,
            attn_mask_type=AttnMaskType.causal,
            attention_type="self",
            softmax_scale=scale,
            kernel=kernel,
        )
    if chunk.position_embedding_type == "rope":
        chunk.rotary_pos_emb = PositionLookup(chunk.rotary_pos_emb, chunk.max_sequence_length, version)
    if chunk.post_process and vocabulary is not None:
        chunk.output_layer.register_forward_hook(_PaddingMask(vocabulary))
    # A micro-batch of B packs is one stream of B · seq_length slots, whose shape the pipeline schedule cannot know.
    # Set here, because TransformerConfig refuses the field for dense models.
    chunk.config.variable_seq_lengths = True


def _problems(chunk: torch.nn.Module) -> Iterator[str]:
    if not isinstance(chunk, GPTModel):
        yield f"the model provider returned a {type(chunk).__name__}; packs can train megatron.core's GPTModel only"
        return
    if getattr(chunk, "mtp_process", False):
        yield "--mtp-num-layers: multi-token prediction does not know sample boundaries; remove the flag"
    kind = chunk.position_embedding_type
    if kind not in ("rope", "learned_absolute", "none") or (
        kind == "rope" and type(chunk.rotary_pos_emb) is not RotaryEmbedding
    ):
        yield f"--position-embedding-type {kind}: not tried with packs; use rope or learned_absolute"
    for layer in chunk.decoder.layers:
        if not isinstance(layer, TransformerLayer) or not isinstance(layer.self_attention, SelfAttention):
            name = type(layer).__name__
            yield f"--spec: a layer is a {name} without megatron.core's SelfAttention; not tried with packs"
            continue
        core, mlp = layer.self_attention.core_attention, layer.mlp
        if not isinstance(core, DotProductAttention):
            yield (
                f"the layers have {type(core).__name__}: packs can replace megatron.core's DotProductAttention only; "
                "use --transformer-impl local"
            )
        if type(mlp) is not MLP:
            yield f"the layers have {type(mlp).__name__}: only dense models were tried with packs; remove --num-experts"


class PositionLookup(torch.nn.Module):
    """The angles of a RotaryEmbedding of megatron-core, looked up by the position of each token.

    Args:
        rotary: rotary embedding of the model.
        positions: number of positions of the table; all position ids must be less.
        version: version of Megatron.
    """

    def __init__(self, rotary: RotaryEmbedding, positions: int, version: MegatronVersion) -> None:
        super().__init__()
        self.rotary = rotary
        self.version = version
        self.positions = positions
        self._table: torch.Tensor | None = None

    def get_rotary_seq_len(self, *arguments: object, **keywords: object) -> torch.Tensor:
        """Return the position ids of the micro-batch, int64 [T], in place of a sequence length.

        Args:
            arguments: positional arguments of megatron-core's method; the last is the PackedBoundaries.
            keywords: its keyword arguments.
        """
        packed = keywords.get("packed_seq_params", arguments[-1] if arguments else None)
        assert isinstance(packed, PackedBoundaries) and packed.positions is not None
        return packed.positions

    def forward(self, positions: torch.Tensor, **_: object) -> torch.Tensor:
        """Return the angles of every token, float32 [T, 1, 1, rotary size]; [T, 1, rotary size] for 0.12.1.

        Args:
            positions: int64 [T], position id of every token.
        """
        if self._table is None or self._table.device != positions.device:
            # The table of consecutive positions is megatron-core's own.
            self._table = self.rotary(self.positions)
        return self.version.rotary_angles(self._table.index_select(0, positions))


class _PaddingMask:
    """Forward hook of the output layer: the softmax excludes the padding of the vocabulary, as in our own loop."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, layer: torch.nn.Module, _: object, output: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        logits = output[0]
        columns = logits.shape[-1]
        # Tensor-parallel ranks hold consecutive columns of the vocabulary.
        unpadded = self.vocabulary - columns * parallel_state.get_tensor_model_parallel_rank()
        if unpadded < columns:
            # Not -inf: MindSpeed multiplies logits of other ranks' labels by 0. The exponential of both is 0.
            logits[..., max(unpadded, 0) :] = torch.finfo(logits.dtype).min
