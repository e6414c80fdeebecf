"""Write packs: copy the stored tokens of the samples into the three columns of the packed files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.indexed_dataset import PackedFilesWriter
from mindspeed_llm.packing import PackPlan
from mindspeed_llm.tokenization import TokenStore

# Packs are built and written a million tokens at a time, so that memory does not grow with the data.
TOKENS_AT_ONCE = 1 << 20
SAMPLES_AT_ONCE = 1 << 10  # samples written at a time without --pack
Column = NDArray[np.int32]


def write_packed_columns(
    arguments: PreprocessArguments, out: PackedFilesWriter, store: TokenStore, plan: PackPlan | None, pad_id: int
) -> None:
    """Write the packs of a plan, or without a plan one document per sample.

    Args:
        arguments: the command line.
        out: writer of the packed files.
        store: tokens of all samples.
        plan: which samples form each pack; None without --pack.
        pad_id: token id of padding.
    """
    if plan is None:
        _write_documents(out, store)
        return
    capacity, output = arguments.sample.seq_length, arguments.output
    assert capacity is not None
    at_once = max(1, TOKENS_AT_ONCE // capacity)
    for first in range(0, len(plan), at_once):
        last = min(len(plan), first + at_once)
        packs = PackPlan(
            plan.order[plan.pack_starts[first] : plan.pack_starts[last]],
            plan.pack_starts[first : last + 1] - plan.pack_starts[first],
        )
        virtual, multiple = arguments.sample.virtual_tokens, output.pad_to_multiple_of
        out.add_rows(*build_packs(store, packs, capacity, pad_id, output.neat_pack, multiple, virtual))


def _write_documents(out: PackedFilesWriter, store: TokenStore) -> None:
    for first in range(0, len(store.lengths), SAMPLES_AT_ONCE):
        last = min(len(store.lengths), first + SAMPLES_AT_ONCE)
        ids, labels = store.samples(first, last)
        mask = np.ones_like(ids)
        end = 0
        for length in store.lengths[first:last].tolist():
            start, end = end, end + length
            out.add(ids[start:end], mask[start:end], labels[start:end])


def slots_of_samples(lengths: NDArray[np.int32], virtual_tokens: int = 0, multiple: int = 1) -> NDArray[np.int64]:
    """Return the number of slots of each sample in a pack, int64 [samples].

    Args:
        lengths: number of tokens of each sample, int32 [samples].
        virtual_tokens: reserved slots before its tokens (--virtual-tokens).
        multiple: its slots are a multiple of this (--pad-to-multiple-of).
    """
    return -(-(lengths.astype(np.int64) + virtual_tokens) // multiple) * multiple


def build_packs(
    store: TokenStore,
    packs: PackPlan,
    capacity: int,
    pad_id: int,
    neat: bool,
    multiple: int = 1,
    virtual_tokens: int = 0,
) -> tuple[Column, Column, Column]:
    """Build the columns of some packs.

    Samples 5 6 7 and 8 9 in a pack of six slots, pad id 0, all but the first token of each trained:

        input_ids        5    6  7    8  9     0
        attention_mask   1    1  1    2  2     0      without `neat` 1 in place of 2
        labels        -100    6  7 -100  9  -100

    With `multiple` 4 in a pack of eight slots the second sample begins at slot 4. The padding before it belongs to the
    first sample. It does not change attention or loss: all tokens of the sample precede it, and it is not trained.

        input_ids        5    6  7    0    8  9    0    0
        attention_mask   1    1  1    1    2  2    2    2
        labels        -100    6  7 -100 -100  9 -100 -100

    With `virtual_tokens` 1 in a pack of eight slots, each sample begins with a reserved slot:

        input_ids        0    5  6  7    0    8  9    0
        attention_mask   1    1  1  1    2    2  2    0
        labels        -100 -100  6  7 -100 -100  9 -100

    Args:
        store: tokens of all samples.
        packs: the packs to build.
        capacity: slots per pack (--seq-length).
        pad_id: token id of padding.
        neat: number the samples 1, 2, 3, ... in attention_mask (--neat-pack).
        multiple: pad each sample to a multiple of this (--pad-to-multiple-of).
        virtual_tokens: reserved slots before the tokens of each sample (--virtual-tokens).

    Returns:
        input_ids, attention_mask and labels, each int32 [packs, capacity].
    """
    starts, held = packs.pack_starts[:-1], packs.samples_per_pack  # reduceat needs at least one sample per pack
    slots = slots_of_samples(store.lengths[packs.order], virtual_tokens, multiple)
    filled = np.add.reduceat(slots, starts)
    pack_of = np.repeat(np.arange(len(packs)), held)
    before = np.cumsum(slots) - slots
    offsets = before - before[starts][pack_of] + pack_of * capacity + virtual_tokens
    words = np.full(len(packs) * capacity, pad_id, np.uint32)
    store.read_into(words, packs.order, offsets)
    ids, labels = store.decoded(words)
    shape = (len(packs), capacity)
    mask = np.zeros(shape, np.int32)
    number = (np.arange(len(slots)) - starts[pack_of] + 1).astype(np.int32)
    mask[np.arange(capacity) < filled[:, None]] = np.repeat(number, slots) if neat else 1
    return ids.reshape(shape), mask, labels.reshape(shape)
