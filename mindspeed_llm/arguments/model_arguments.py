"""The shape of the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import FLOAT32, INT32, between
from mindspeed_llm.arguments.resume_policy import FREE, REFUSE
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a model.

    Attributes:
        size: tokens of the model. The rows after them are padding, which is masked out of the softmax.
        padded: rows of the embedding.
    """

    size: int
    padded: int


def pad_vocab_size(size: int, divisor: int, tensor_parallel: int) -> int:
    """Rows of the embedding: the vocabulary, filled up to a multiple of divisor × tensor-parallel size.

    32,003 tokens, a divisor of 128 and a tensor-parallel size of 2: the next multiple of 256, 32,256.
    """
    multiple = divisor * tensor_parallel
    return -(-size // multiple) * multiple


@dataclass
class ModelArguments:
    """Model.

    The names and meanings are Megatron's. Where a default differs from Megatron's, the help of the flag says so.
    """

    num_layers: int = field(metadata=REFUSE | between(1, 10_000))
    """Transformer layers of the whole model."""
    hidden_size: int = field(metadata=REFUSE | between(1, 2**20))
    """Width of the residual stream."""
    num_attention_heads: int = field(metadata=REFUSE | between(1, 2**16))
    """Query heads of each layer."""
    ffn_hidden_size: int | None = field(default=None, metadata=REFUSE | between(1, 2**24))
    """Width inside the MLP. Without it 4 times the hidden size; with --swiglu two thirds of that, cut to a multiple
    of 64."""
    kv_channels: int | None = field(default=None, metadata=REFUSE | between(1, 2**16))
    """Width of one head. Without it hidden size / heads."""
    group_query_attention: bool = field(default=False, metadata=REFUSE)
    """Several query heads share one key and value head; --num-query-groups says how many of those there are."""
    num_query_groups: int | None = field(default=None, metadata=REFUSE | between(1, 2**16))
    """Key and value heads of each layer, with --group-query-attention."""
    max_position_embeddings: int | None = field(default=None, metadata=REFUSE | between(1, 2**40))
    """Longest sequence that the model is meant for; a bound on --seq-length. Without it the sequence length."""
    disable_bias_linear: bool = field(default=False, metadata=REFUSE)
    """No bias in the linear layers."""
    add_qkv_bias: bool = field(default=False, metadata=REFUSE)
    """A bias in the query, key and value projection, also with --disable-bias-linear."""
    qk_layernorm: bool = field(default=False, metadata=REFUSE)
    """Normalise query and key of each head before they are rotated, as Qwen3 does."""
    swiglu: bool = field(default=False, metadata=REFUSE)
    """SwiGLU in the MLP in place of GELU."""
    normalization: Literal["RMSNorm"] = field(default="RMSNorm", metadata=REFUSE | {"not_built": ("LayerNorm",)})
    """Normalisation. Megatron's default, LayerNorm, is not built."""
    norm_epsilon: float = field(default=1e-5, metadata=REFUSE | {"above": 0, "below": 1})
    """Epsilon of the normalisation."""
    position_embedding_type: Literal["rope"] = field(
        default="rope", metadata=REFUSE | {"not_built": ("learned_absolute", "yarn", "mrope", "relative", "none")}
    )
    """Position embedding. Megatron's default, learned_absolute, is not built."""
    rotary_base: float = field(default=10000.0, metadata=REFUSE | {"above": 0, "maximum": FLOAT32})
    """Base of the rotary frequencies."""
    rotary_percent: float = field(default=1.0, metadata=REFUSE | {"above": 0, "maximum": 1})
    """Share of each head that is rotated."""
    use_rope_scaling: bool = field(default=False, metadata=REFUSE)
    """Stretch the low rotary frequencies as Llama 3.1 does."""
    rope_scaling_factor: float = field(default=8.0, metadata=REFUSE | between(1, FLOAT32))
    """How far --use-rope-scaling stretches them."""
    untie_embeddings_and_output_weights: bool = field(default=False, metadata=REFUSE)
    """Separate weights for the input embedding and the output layer."""
    vocab_size: int | None = field(default=None, metadata=REFUSE | between(1, INT32))
    """Vocabulary before padding. Without it the tokenizer's."""
    make_vocab_size_divisible_by: int = field(default=128, metadata=REFUSE | between(1, 2**16))
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""
    padded_vocab_size: int | None = field(default=None, metadata=REFUSE | between(1, INT32))
    """Vocabulary after padding, for a checkpoint that has its own; --make-vocab-size-divisible-by is then not used."""
    init_method_std: float = field(default=0.02, metadata=REFUSE | between(0, FLOAT32))
    """Standard deviation of the initial weights."""
    attention_dropout: float = field(default=0.0, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Dropout of attention weights; above 0 is not built yet. Megatron's default is 0.1."""
    hidden_dropout: float = field(default=0.0, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Dropout of the residual branches. Megatron's default is 0.1."""
    attention_softmax_in_fp32: bool = field(default=False, metadata=FREE)
    """Attention softmax in float32: always so here."""
    transformer_impl: Literal["local", "transformer_engine"] = field(
        default="local", metadata=FREE | {"not_built": ("inference_optimized",)}
    )
    """Layers of megatron-core; TransformerEngine's are not used. Megatron's default is transformer_engine."""
    use_mcore_models: bool = field(default=False, metadata=FREE)
    """Models of megatron-core: always so here."""

    @property
    def ffn_size(self) -> int:
        """Width inside the MLP, given or by Megatron's rule."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return int(4 * self.hidden_size * 2 / 3 / 64) * 64 if self.swiglu else 4 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Key and value heads of each layer: as many as query heads without --group-query-attention."""
        if not self.group_query_attention or self.num_query_groups is None:
            return self.num_attention_heads
        return self.num_query_groups

    def vocabulary_size(self, tokenizer_vocabulary: int | None) -> int | None:
        """Tokens of the model; None if neither a flag nor a tokenizer tells.

        All rows of --padded-vocab-size, a converted model's own size, belong to the model.
        """
        return self.padded_vocab_size or self.vocab_size or tokenizer_vocabulary

    def vocabulary(self, tokenizer_vocabulary: int | None, tensor_parallel: int) -> Vocabulary:
        """The vocabulary and its padding.

        Args:
            tokenizer_vocabulary: tokens that the tokenizer can give, None where there is none.
            tensor_parallel: tensor-parallel size.

        Raises:
            ConfigError: --padded-vocab-size or --vocab-size is smaller than the tokenizer's vocabulary, or nothing
                says how many tokens there are.
        """
        if self.vocab_size is not None and (tokenizer_vocabulary or 0) > self.vocab_size:
            raise ConfigError(
                f"--vocab-size {self.vocab_size}: the tokenizer has {tokenizer_vocabulary} tokens; "
                "raise it, or leave it out"
            )
        size = self.vocabulary_size(tokenizer_vocabulary)
        if size is None:
            raise ConfigError("the vocabulary is unknown: give a tokenizer, --vocab-size or --padded-vocab-size")
        if self.padded_vocab_size is None:
            return Vocabulary(size, pad_vocab_size(size, self.make_vocab_size_divisible_by, tensor_parallel))
        tokens = self.vocab_size or tokenizer_vocabulary
        if size < (tokens or 0):
            raise ConfigError(
                f"--padded-vocab-size {size}: the vocabulary has {tokens} tokens; give at least that many"
            )
        return Vocabulary(size, size)
