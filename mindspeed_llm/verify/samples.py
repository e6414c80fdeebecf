"""Samples of the first packs, read from the files without the code that training uses.

Training computes boundaries and shifted labels in `boundaries.py`. The reference must not share a fault with it, so
that this module finds the samples of a pack in its own way: slot by slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindspeed_llm.data import PackedDataset

IGNORED = -100  # label of a token that is not trained


@dataclass(frozen=True)
class Sample:
    """One sample of a pack.

    Attributes:
        number: number of the sample over all compared packs, from 0.
        pack: number of the compared pack, from 0.
        start: first slot of the sample in its pack.
        ids: token ids; int64 [tokens].
        labels: labels, not shifted, -100 on tokens that are not trained; int64 [tokens].
    """

    number: int
    pack: int
    start: int
    ids: np.ndarray
    labels: np.ndarray

    @property
    def end(self) -> int:
        """First slot after the sample."""
        return self.start + len(self.ids)

    @property
    def name(self) -> str:
        """Name for the table."""
        return f"pack {self.pack}, slots {self.start}–{self.end - 1}"

    @property
    def predicting(self) -> np.ndarray:
        """Positions whose next token is trained; int64 [trained tokens]."""
        return np.flatnonzero(self.labels[1:] != IGNORED)

    @property
    def targets(self) -> np.ndarray:
        """The tokens that follow these positions; int64 [trained tokens]."""
        return self.labels[1:][self.predicting]


def read_samples(
    dataset: PackedDataset, packs: int, *, ends_at_end_tokens: bool, eod: int | None, pad: int | None
) -> list[Sample]:
    """Read the samples of the first packs of a dataset.

    Args:
        dataset: the packs, in file order.
        packs: number of packs.
        ends_at_end_tokens: whether an end token ends a sample in plain packs (--reset-position-ids).
        eod: end token of plain packs.
        pad: padding token of plain packs.
    """
    samples: list[Sample] = []
    for number in range(packs):
        pack = dataset[number]
        ids, labels, mask = (np.asarray(a, np.int64) for a in (pack.input_ids, pack.labels, pack.attention_mask))
        if not dataset.packed:
            ends = [len(ids)]
        elif dataset.neat:
            ends = _ends_of_numbers(mask)
        else:
            ends = _ends_of_plain_pack(ids, labels, eod if ends_at_end_tokens else None, pad)
        start = 0
        for end in ends:
            samples.append(Sample(len(samples), number, start, ids[start:end], labels[start:end]))
            start = end
    return samples


def _ends_of_numbers(mask: np.ndarray) -> list[int]:
    """Return the end of each sample of a neat pack, whose mask [slots] numbers them; padding, 0, is none."""
    ends = []
    for slot, number in enumerate(mask):
        following = mask[slot + 1] if slot + 1 < len(mask) else 0
        if number != 0 and following != number:
            ends.append(slot + 1)
    return ends


def _ends_of_plain_pack(ids: np.ndarray, labels: np.ndarray, eod: int | None, pad: int | None) -> list[int]:
    """Return the end of each sample of a plain pack, ids and labels [slots]: one sample without an end token."""
    tokens = len(ids)
    while tokens and ids[tokens - 1] == pad and labels[tokens - 1] == IGNORED:
        tokens -= 1
    ends = [slot + 1 for slot in range(tokens) if ids[slot] == eod]
    return ends if ends and ends[-1] == tokens else [*ends, *([tokens] if tokens else [])]
