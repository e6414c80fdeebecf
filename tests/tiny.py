"""A tiny Qwen2.5-shaped model and packs of random samples, for tests of the model, training and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.boundaries import Boundaries, position_ids, shift_labels
from mindspeed_llm.data import MicroBatch, loss_weights
from mindspeed_llm.data.micro_batch import Normalization
from mindspeed_llm.manifest import Histograms, Manifest, PackingInfo, RowCounts, TemplateInfo, TokenizerInfo

VOCABULARY = 300

# The components of Qwen2.5 (GQA, QKV bias, RMSNorm, SwiGLU, RoPE) at a size where a step takes milliseconds.
SHAPE = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 4 --group-query-attention "
    "--num-query-groups 2 --disable-bias-linear --add-qkv-bias --swiglu --normalization RMSNorm --norm-epsilon 1e-6 "
    "--position-embedding-type rope --rotary-base 1000000 --untie-embeddings-and-output-weights "
    f"--vocab-size {VOCABULARY} --make-vocab-size-divisible-by 1 --init-method-std 0.05"
)
RUN = (
    "--seq-length 32 --micro-batch-size 1 --lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine --weight-decay 0.1 "
    "--adam-beta2 0.95 --train-iters 3 --data-path none --split 100,0,0 --is-instruction-dataset --neat-pack "
    "--reset-position-ids --eval-iters 0 --no-save-model"
)


# The components of GPT-2: LayerNorm, a position table of 40 rows, GELU, and a bias in every linear layer.
GPT2_SHAPE = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 4 --normalization LayerNorm "
    "--norm-epsilon 1e-5 --position-embedding-type learned_absolute --max-position-embeddings 40 "
    f"--vocab-size {VOCABULARY} --make-vocab-size-divisible-by 1 --init-method-std 0.05"
)


def tiny_arguments(extra: str = "", world_size: int = 1, shape: str = SHAPE) -> PretrainArguments:
    """Return the arguments of a tiny run; `extra` overrides the defaults."""
    return parse_pretrain_arguments(f"{shape} {RUN} {extra}".split(), world_size)


def manifest_of(
    *, packed: bool, neat: bool, seq_length: int, samples: int, tokens: int, trained: int, packs: int
) -> Manifest:
    """Return a manifest with the template qwen and a fictitious tokenizer of VOCABULARY tokens."""
    return Manifest(
        packed=packed,
        neat=neat,
        seq_length=seq_length,
        append_eod=False,
        eod_inside_sample=False,
        tokenizer=TokenizerInfo("PretrainedFromHF", "0" * 64, VOCABULARY, 0, 1),
        template=TemplateInfo("qwen", "0" * 64),
        handler="AlpacaStyleInstructionHandler",
        sources=[],
        counts=RowCounts(rows_read=samples, kept=samples),
        samples=samples,
        tokens=tokens,
        trained_tokens=trained,
        packs=packs,
        fill=tokens / (packs * seq_length),
        packing=PackingInfo("test", 0) if packed else None,
        histograms=Histograms([], []),
    )


def pack(lengths: Sequence[int], seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray, Boundaries]:
    """Return input_ids and labels, int [size], and boundaries of a pack of random samples, half of which is trained."""
    draw = np.random.default_rng(seed)
    padding = size - sum(lengths)
    assert padding >= 0
    input_ids = draw.integers(0, VOCABULARY, size).astype(np.int64)
    labels = input_ids.copy()
    start = 0
    for length in lengths:
        labels[start : start + length // 2] = -100
        start += length
    labels[start:] = -100
    ends = np.cumsum([*lengths, padding] if padding else lengths)
    return input_ids, labels, Boundaries(tuple(ends.tolist()), padding)


def batch_of(
    packs: Sequence[tuple[np.ndarray, np.ndarray, Boundaries]], normalization: Normalization = "token"
) -> MicroBatch:
    """One micro-batch of packs, pack after pack."""
    ids = np.concatenate([input_ids for input_ids, _, _ in packs])
    raw = np.concatenate([labels for _, labels, _ in packs])
    offsets = np.cumsum([0, *(bounds.ends[-1] for _, _, bounds in packs)])
    ends = tuple(int(offset + end) for offset, (_, _, b) in zip(offsets, packs, strict=False) for end in b.ends)
    shifted = shift_labels(raw, ends)
    weights, denominator = loss_weights(shifted, ends, normalization)
    return MicroBatch(
        tokens=torch.from_numpy(ids)[None],
        labels=torch.from_numpy(np.where(shifted == -100, 0, shifted))[None],
        loss_weights=torch.from_numpy(weights)[None],
        loss_denominator=denominator,
        actual_seq_len=ends,
        positions=torch.from_numpy(position_ids(ends)),
        tokens_count=sum(bounds.tokens for _, _, bounds in packs),
        slots=len(ids),
        samples=sum(bounds.samples for _, _, bounds in packs),
        trained_slots=np.flatnonzero(shifted != -100),
        sample_ids=tuple(("tiny", number) for number in range(len(packs))),
    )
