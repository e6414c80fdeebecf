"""Arguments that describe the architecture of the model and its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import FLOAT32, INT32, between
from mindspeed_llm.arguments.resume_policy import FREE, REFUSE
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary size of a model, with and without padding.

    Attributes:
        size: number of tokens. Embedding rows from `size` on are padding, which is masked out of the softmax.
        padded: number of embedding rows.
    """

    size: int
    padded: int


def pad_vocab_size(size: int, divisor: int, tensor_parallel: int) -> int:
    """Return the number of embedding rows: `size` rounded up to a multiple of divisor × tensor-parallel size.

    Example: 32,003 tokens, a divisor of 128 and a tensor-parallel size of 2 give 32,256, a multiple of 256.

    Args:
        size: number of tokens.
        divisor: value of --make-vocab-size-divisible-by.
        tensor_parallel: tensor-parallel size.
    """
    multiple = divisor * tensor_parallel
    return -(-size // multiple) * multiple


@dataclass
class ModelArguments:
    """Model architecture.

    The flags have the names and meanings of Megatron's. The help text of a flag names a default that differs from
    Megatron's.
    """

    num_layers: int = field(metadata=REFUSE | between(1, 10_000))
    """Number of transformer layers of the complete model, over all pipeline stages."""
    hidden_size: int = field(metadata=REFUSE | between(1, 2**20))
    """Size of the hidden states (the residual stream)."""
    num_attention_heads: int = field(metadata=REFUSE | between(1, 2**16))
    """Number of query heads per layer."""
    ffn_hidden_size: int | None = field(default=None, metadata=REFUSE | between(1, 2**24))
    """Intermediate size of the MLP. Default: 4 times the hidden size; with --swiglu two thirds of that, rounded down to
    a multiple of 64."""
    kv_channels: int | None = field(default=None, metadata=REFUSE | between(1, 2**16))
    """Size of one attention head. Default: hidden size / number of heads."""
    group_query_attention: bool = field(default=False, metadata=REFUSE)
    """Use grouped-query attention: several query heads share one key and value head. Needs --num-query-groups."""
    num_query_groups: int | None = field(default=None, metadata=REFUSE | between(1, 2**16))
    """Number of key and value heads per layer, with --group-query-attention."""
    max_position_embeddings: int | None = field(default=None, metadata=REFUSE | between(1, 2**40))
    """Maximum sequence length of the model in tokens; --seq-length must not exceed it. Default: --seq-length. With
    --position-embedding-type learned_absolute it is the number of rows of the position table, and must be given."""
    disable_bias_linear: bool = field(default=False, metadata=REFUSE)
    """Do not use biases in the linear layers."""
    add_qkv_bias: bool = field(default=False, metadata=REFUSE)
    """Use a bias in the query, key and value projection, even with --disable-bias-linear."""
    qk_layernorm: bool = field(default=False, metadata=REFUSE)
    """Normalise queries and keys per head before the rotary embedding, as Qwen3 does."""
    swiglu: bool = field(default=False, metadata=REFUSE)
    """Use SwiGLU instead of GELU (tanh approximation, as in GPT-2 and in Megatron's fused kernel) in the MLP."""
    normalization: Literal["RMSNorm", "LayerNorm"] = field(default="RMSNorm", metadata=REFUSE)
    """Normalisation of the layers. Megatron's default is LayerNorm."""
    norm_epsilon: float = field(default=1e-5, metadata=REFUSE | {"above": 0, "below": 1})
    """Epsilon of the normalisation, added to the mean square or to the variance."""
    position_embedding_type: Literal["rope", "learned_absolute"] = field(
        default="rope", metadata=REFUSE | {"not_built": ("yarn", "mrope", "relative", "none")}
    )
    """Position embedding: rotated queries and keys, or a table that is added to the embedding (GPT-2). Megatron's
    default is learned_absolute."""
    rotary_base: float = field(default=10000.0, metadata=REFUSE | {"above": 0, "maximum": FLOAT32})
    """Base of the rotary frequencies (rope_theta in config.json)."""
    rotary_percent: float = field(default=1.0, metadata=REFUSE | {"above": 0, "maximum": 1})
    """Fraction of the channels of each head to which the rotary embedding is applied."""
    use_rope_scaling: bool = field(default=False, metadata=REFUSE)
    """Scale the low rotary frequencies as Llama 3.1 does."""
    rope_scaling_factor: float = field(default=8.0, metadata=REFUSE | between(1, FLOAT32))
    """Scaling factor of --use-rope-scaling."""
    untie_embeddings_and_output_weights: bool = field(default=False, metadata=REFUSE)
    """Use separate weights for the input embedding and the output layer."""
    vocab_size: int | None = field(default=None, metadata=REFUSE | between(1, INT32))
    """Vocabulary size before padding. Default: that of the tokenizer."""
    make_vocab_size_divisible_by: int = field(default=128, metadata=REFUSE | between(1, 2**16))
    """Pad the vocabulary size to a multiple of this value times the tensor-parallel size."""
    padded_vocab_size: int | None = field(default=None, metadata=REFUSE | between(1, INT32))
    """Vocabulary size after padding, for checkpoints with a fixed size. Replaces --make-vocab-size-divisible-by."""
    init_method_std: float = field(default=0.02, metadata=REFUSE | between(0, FLOAT32))
    """Standard deviation of the initial weights."""
    attention_dropout: float = field(default=0.0, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Dropout probability of the attention weights; above 0 is not supported yet. Megatron's default is 0.1."""
    hidden_dropout: float = field(default=0.0, metadata=REFUSE | {"minimum": 0, "below": 1})
    """Dropout probability of the embedding and of the residual branches. Megatron's default is 0.1."""
    attention_softmax_in_fp32: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: the attention softmax is always computed in float32."""
    transformer_impl: Literal["local", "transformer_engine"] = field(
        default="local", metadata=FREE | {"not_built": ("inference_optimized",)}
    )
    """Implementation of the layers: always megatron-core's local one. Megatron's default is transformer_engine."""
    use_mcore_models: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: models are always those of megatron-core."""

    @property
    def ffn_size(self) -> int:
        """Intermediate size of the MLP: --ffn-hidden-size or Megatron's default."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return int(4 * self.hidden_size * 2 / 3 / 64) * 64 if self.swiglu else 4 * self.hidden_size

    @property
    def learns_positions(self) -> bool:
        """Whether a position table of --max-position-embeddings rows is added to the embedding."""
        return self.position_embedding_type == "learned_absolute"

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the query, key and value projection has a bias: that of all linear layers, or --add-qkv-bias."""
        return self.add_qkv_bias or not self.disable_bias_linear

    @property
    def head_size(self) -> int:
        """Size of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Number of key and value heads per layer: without --group-query-attention the number of query heads."""
        if not self.group_query_attention or self.num_query_groups is None:
            return self.num_attention_heads
        return self.num_query_groups

    def vocabulary_size(self, tokenizer_vocabulary: int | None) -> int | None:
        """Return the number of tokens of the model; None if it is unknown.

        With --padded-vocab-size, the size of a converted model, every embedding row counts as a token.

        Args:
            tokenizer_vocabulary: number of tokens of the tokenizer; None without a tokenizer.
        """
        return self.padded_vocab_size or self.vocab_size or tokenizer_vocabulary

    def vocabulary(self, tokenizer_vocabulary: int | None, tensor_parallel: int) -> Vocabulary:
        """Return the vocabulary size with and without padding.

        Args:
            tokenizer_vocabulary: number of tokens of the tokenizer; None without a tokenizer.
            tensor_parallel: tensor-parallel size.

        Raises:
            ConfigError: --vocab-size is smaller than the vocabulary of the tokenizer; --padded-vocab-size is smaller
                than --vocab-size or, without it, than the vocabulary of the tokenizer; or neither a flag nor a
                tokenizer determines the size.
        """
        if self.vocab_size is not None and (tokenizer_vocabulary or 0) > self.vocab_size:
            raise ConfigError(
                f"--vocab-size {self.vocab_size}: the tokenizer has {tokenizer_vocabulary} tokens; "
                "raise the value, or leave the flag out"
            )
        size = self.vocabulary_size(tokenizer_vocabulary)
        if size is None:
            raise ConfigError("the vocabulary is unknown: give a tokenizer, --vocab-size or --padded-vocab-size")
        if self.padded_vocab_size is None:
            return Vocabulary(size, pad_vocab_size(size, self.make_vocab_size_divisible_by, tensor_parallel))
        tokens = self.vocab_size or tokenizer_vocabulary
        if size < (tokens or 0):
            raise ConfigError(
                f"--padded-vocab-size {size}: the vocabulary has {tokens} tokens; give at least this number"
            )
        return Vocabulary(size, size)
