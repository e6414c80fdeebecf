"""Compute the sample boundaries of a pack, and the shifted labels, position ids and padding that follow from them.

A pack of three samples (a0 a1 a2, b0 b1, c0) in eight slots; `.` is padding, `-` is the label -100:

    slot             0  1  2  3  4  5  6  7
    input_ids        a0 a1 a2 b0 b1 c0 .  .
    attention mask   1  1  1  2  2  3  0  0     the number of the sample, 0 on padding
    labels (file)    -  a1 a2 -  b1 c0 -  -     not shifted
    ends             3, 5, 6, 8                 the padding is the last segment
    labels (batch)   a1 a2 -  b1 -  -  -  -     shifted inside each segment
    position ids     0  1  2  0  1  0  0  1     restarted in each segment

This module needs numpy only, because preprocessing and the pack viewer import it without torch.

Sources: the list of ends is called actual_seq_len by npu_fusion_attention (layout TND) and cu_seqlens[1:] by the varlen
kernels of flash-attention. The attention mask is numbered as in the neat packing of LLaMA-Factory and MindSpeed-LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.errors import DataError

IGNORED = -100  # label of a token that is not trained; the ignore_index of torch's cross entropy


@dataclass(frozen=True)
class Boundaries:
    """Sample boundaries of one pack: the segments that attend only to themselves.

    The pack a0 a1 a2 b0 b1 c0 . . has ends (3, 5, 6, 8) and padding 2: 3 samples with 6 tokens.

    Attributes:
        ends: cumulative ends of the segments in slots, strictly increasing; the last is the length of the pack.
        padding: number of padding slots at the end of the pack. If it is not 0, they form the last segment.
    """

    ends: tuple[int, ...]
    padding: int

    @property
    def samples(self) -> int:
        """Number of segments that are not padding."""
        return len(self.ends) - (self.padding > 0)

    @property
    def tokens(self) -> int:
        """Number of slots that are not padding at the end of the pack."""
        return self.ends[-1] - self.padding


def segment_ends(numbers: np.ndarray) -> NDArray[np.int64]:
    """Return the end of each run of equal numbers: 1 1 1 2 2 3 0 0 → 3, 5, 6, 8.

    Args:
        numbers: [S], such as the attention mask of a neat pack.

    Returns:
        int64 [segments], where the last value is S; empty if S is 0.
    """
    if not len(numbers):
        return np.zeros(0, np.int64)
    return np.append(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1, len(numbers)).astype(np.int64, copy=False)


def segment_starts(ends: Sequence[int]) -> NDArray[np.int64]:
    """Return the start of each segment as int64 [segments]: ends 3, 5, 6 → 0, 3, 5."""
    return np.concatenate(([0], ends[:-1])).astype(np.int64)


def segment_lengths(ends: Sequence[int]) -> list[int]:
    """Return the length of each segment in slots: ends 3, 5, 6 → [3, 2, 1]."""
    return [end - start for start, end in zip((0, *ends[:-1]), ends, strict=True)]


def boundaries_from_neat_mask(mask: np.ndarray) -> Boundaries:
    """Compute the boundaries of a neat pack from its attention mask alone.

        input_ids        a0 a1 a2 b0 b1 c0 .  .
        attention mask   1  1  1  2  2  3  0  0    → ends 3, 5, 6, 8 and padding 2

    Args:
        mask: integers [S], S > 0: the samples are numbered 1 … k in order, and the padding at the end is 0.

    Returns:
        The segments of the pack; the padding is the last segment.

    Raises:
        DataError: The numbers do not begin at 1, skip or repeat a number or decrease, or padding comes before a sample.
    """
    ends = segment_ends(mask)
    numbers = mask[ends - 1]
    padded = bool(numbers[-1] == 0)
    samples = len(numbers) - padded
    wrong = np.flatnonzero(numbers[:samples] != np.arange(1, samples + 1))
    if len(wrong):
        segment = int(wrong[0])
        at = int(ends[segment - 1]) if segment else 0
        raise DataError(
            f"attention_mask is not that of a neat pack: slot {at} has number {int(numbers[segment])}, but sample "
            f"{segment + 1} should begin there (samples are numbered 1, 2, 3, …, and padding, 0, comes last)"
        )
    return Boundaries(tuple(ends.tolist()), int(ends[-1] - (ends[-2] if samples else 0)) if padded else 0)


def count_trailing(empty: np.ndarray) -> int:
    """Return the number of True values at the end of `empty`, bool [S]."""
    filled = np.flatnonzero(~empty)
    return len(empty) - (int(filled[-1]) + 1 if len(filled) else 0)


def trailing_padding(input_ids: np.ndarray, labels: np.ndarray, pad: int) -> int:
    """Return the number of slots at the end of a pack that hold `pad` and are not trained.

    Args:
        input_ids: integers [S].
        labels: integers [S], not shifted.
        pad: id of the padding token. It may be the end token as well.

    Returns:
        The number of padding slots.
    """
    # Labels decide where the end token is also the padding token: a trained end token belongs to the last sample.
    return count_trailing((input_ids == pad) & (labels == IGNORED))


def padding_after_samples(
    input_ids: np.ndarray, mask: np.ndarray, labels: np.ndarray, pad: int | None, multiple: int
) -> NDArray[np.int64]:
    """Return the number of padding slots at the end of each sample of a neat pack (--pad-to-multiple-of).

        input_ids       5  7  2  0 | 9  2  0  0 | 0  0  0  0        multiple 4, pad 0: 1 slot, then 2 slots
        attention mask  1  1  1  1 | 2  2  2  2 | 0  0  0  0        the last four slots are the padding of the pack

    They are the last slots of the sample that hold `pad` and are not trained, at most `multiple` - 1 of them.

    Args:
        input_ids: integers [S].
        mask: integers [S], the attention mask of a neat pack.
        labels: integers [S], not shifted.
        pad: id of the padding token; None if there is none.
        multiple: number of slots to a multiple of which each sample was padded; 1 for no padding.

    Returns:
        int64 [samples].
    """
    ends = segment_ends(mask)
    ends = ends[mask[ends - 1] != 0]
    if multiple == 1 or pad is None:
        return np.zeros(len(ends), np.int64)
    tokens = (input_ids != pad) | (labels != IGNORED)
    # For each slot, the last token at or before it: one pass over the pack, without a loop over the samples.
    last = np.maximum.accumulate(np.where(tokens, np.arange(len(mask)), -1))
    # Untrained tokens with the id of the padding may precede the padding itself, which is at most multiple - 1 slots.
    return np.minimum(ends - 1 - last[ends - 1], multiple - 1)


def ends_after_end_tokens(input_ids: np.ndarray, eod: int) -> list[int]:
    """Return the slot after each end token E: a0 a1 E b0 E → [3, 5].

    Args:
        input_ids: integers [S].
        eod: id of the end token.
    """
    return (np.flatnonzero(input_ids == eod) + 1).tolist()


def boundaries_from_end_tokens(input_ids: np.ndarray, labels: np.ndarray, eod: int, pad: int) -> Boundaries:
    """Compute the boundaries of a plain pack for --reset-position-ids: a segment ends after every end token.

        input_ids   a0 a1 E  b0 E  P  P    → ends 3, 5, 7 and padding 2; the ids of P and E may be equal

    Args:
        input_ids: integers [S].
        labels: integers [S], not shifted.
        eod: id of the end token E.
        pad: id of the padding token P.

    Returns:
        The segments of the pack; the padding is the last segment.
    """
    padding = trailing_padding(input_ids, labels, pad)
    tokens = len(input_ids) - padding
    # Only the tokens are searched: where padding and end token have the same id, each padding slot would be a segment.
    return _add_last_ends(ends_after_end_tokens(input_ids[:tokens], eod), len(input_ids), padding)


def boundaries_of_one_segment(size: int, padding: int) -> Boundaries:
    """Return the boundaries of a pack or sample that is one causal sequence: size 8, padding 2 → ends 6, 8.

    Args:
        size: number of slots.
        padding: number of padding slots at the end, which form a segment.
    """
    return _add_last_ends([], size, padding)


def _add_last_ends(ends: list[int], size: int, padding: int) -> Boundaries:
    """Append the end of the last token and the end of the padding to `ends` where they are missing."""
    for end in (size - padding, size):
        if end > (ends[-1] if ends else 0):
            ends.append(end)
    return Boundaries(tuple(ends), padding)


def shift_labels(labels: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Shift labels for next-token prediction: slot i gets the label of slot i + 1 of the same segment.

    The last slot of a segment gets -100, so that no sample is trained to predict the first token of the next sample.

        input_ids   a0 a1 a2 b0 b1 c0
        labels      a0 a1 a2 b0 b1 c0    → a1 a2 -  b1 -  -  with ends 3, 5, 6

    Args:
        labels: integers [T], not shifted.
        ends: cumulative ends of the segments; the last is T.

    Returns:
        A new array of the same shape and dtype.
    """
    shifted = np.empty_like(labels)
    shifted[:-1] = labels[1:]
    shifted[np.asarray(ends) - 1] = IGNORED
    return shifted


def position_ids(ends: Sequence[int]) -> np.ndarray:
    """Return position ids that restart at 0 in every segment: ends 3, 5, 6 → 0 1 2 0 1 0.

    Args:
        ends: cumulative ends of the segments; the last is T.

    Returns:
        int64 [T].
    """
    starts = segment_starts(ends)
    lengths = np.diff(starts, append=ends[-1])
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(starts, lengths)
