"""Where the samples of a pack begin and end, and the labels, positions and padding that follow. Numpy only.

A pack of three samples (a a a, b b, c) in eight slots; `.` is padding, `-` is the label -100:

    slot             0  1  2  3  4  5  6  7
    input_ids        a0 a1 a2 b0 b1 c0 .  .
    attention_mask   1  1  1  2  2  3  0  0
    labels (file)    -  a1 a2 -  b1 c0 -  -
    ends             3, 5, 6, 8                 the padding is one segment, and the last
    labels (batch)   a1 a2 -  b1 -  -  -  -     shifted inside each segment
    positions        0  1  2  0  1  0  0  1     restarted in each segment

Sources: the boundary list is what npu_fusion_attention (layout TND) and flash-attention's varlen kernels call
actual_seq_len and cu_seqlens[1:]; the numbering of the mask is LLaMA-Factory's and MindSpeed-LLM's neat packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.errors import DataError

IGNORED = -100  # the label of a token that is not trained


@dataclass(frozen=True)
class Boundaries:
    """The segments of one pack.

    Attributes:
        ends: where each segment ends, rising; the last is the length of the pack.
        padding: slots of padding at the end; if any, they are the last segment.
    """

    ends: tuple[int, ...]
    padding: int

    @property
    def samples(self) -> int:
        """Segments that are not padding."""
        return len(self.ends) - (self.padding > 0)

    @property
    def tokens(self) -> int:
        """Slots that are not padding."""
        return self.ends[-1] - self.padding


def segment_ends(numbers: np.ndarray) -> NDArray[np.int64]:
    """Return where each run of equal numbers ends: 1 1 1 2 2 3 0 0 → 3, 5, 6, 8.

    Args:
        numbers: [S], such as the attention_mask of a neat pack.

    Returns: int64 [segments]; the last is S. Empty if S is 0.
    """
    if not len(numbers):
        return np.zeros(0, np.int64)
    return np.append(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1, len(numbers)).astype(np.int64, copy=False)


def segment_starts(ends: Sequence[int]) -> NDArray[np.int64]:
    """Return where each segment begins: ends 3, 5, 6 → 0, 3, 5. int64 [segments]."""
    return np.concatenate(([0], ends[:-1])).astype(np.int64)


def segment_lengths(ends: Sequence[int]) -> list[int]:
    """Return the length of each segment: ends 3, 5, 6 → [3, 2, 1]."""
    return [end - start for start, end in zip((0, *ends[:-1]), ends, strict=True)]


def boundaries_from_neat_mask(mask: np.ndarray) -> Boundaries:
    """Boundaries of a neat pack, from its attention_mask alone.

    Six tokens and two of padding: 1 1 1 2 2 3 0 0 → ends 3, 5, 6, 8.

    Args:
        mask: integers [S]; numbers the samples 1 … k in order, 0 on the padding at the end.

    Raises:
        DataError: the numbering does not begin at 1, skips, repeats or falls, or padding comes before a sample.
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
            f"attention_mask numbers no neat pack: slot {at} belongs to sample {int(numbers[segment])} where sample "
            f"{segment + 1} should begin (samples are numbered 1, 2, 3, … and padding, 0, comes last)"
        )
    return Boundaries(tuple(ends.tolist()), int(ends[-1] - (ends[-2] if samples else 0)) if padded else 0)


def count_trailing(empty: np.ndarray) -> int:
    """Return how many slots at the end are empty. `empty` is bool [S]."""
    filled = np.flatnonzero(~empty)
    return len(empty) - (int(filled[-1]) + 1 if len(filled) else 0)


def trailing_padding(input_ids: np.ndarray, labels: np.ndarray, pad: int) -> int:
    """Return how many slots at the end hold `pad` and are not trained.

    The pad may be the end token: a last end token that is trained is the sample's own and ends the run.
    """
    return count_trailing((input_ids == pad) & (labels == IGNORED))


def padding_after_samples(
    input_ids: np.ndarray, mask: np.ndarray, labels: np.ndarray, pad: int | None, multiple: int
) -> NDArray[np.int64]:
    """Return how many slots of padding each sample of a neat pack has at its end (--pad-to-multiple-of).

        input_ids       5  7  2  0 | 9  2  0  0 | 0  0  0  0        multiple 4, padding 0: one slot, then two
        attention_mask  1  1  1  1 | 2  2  2  2 | 0  0  0  0        the last four are the padding of the pack

    These are the sample's last slots that hold `pad` and are not trained, fewer than the multiple.

    Args:
        input_ids, mask, labels: integers [S].
        pad: the padding token, if there is one.
        multiple: what the slots of a sample are filled up to.

    Returns: int64 [samples].
    """
    ends = segment_ends(mask)
    ends = ends[mask[ends - 1] != 0]
    if multiple == 1 or pad is None:
        return np.zeros(len(ends), np.int64)
    tokens = (input_ids != pad) | (labels != IGNORED)
    last = np.maximum.accumulate(np.where(tokens, np.arange(len(mask)), -1))
    return np.minimum(ends - 1 - last[ends - 1], multiple - 1)


def ends_after_end_tokens(input_ids: np.ndarray, eod: int) -> list[int]:
    """Return the slot after each end token: a a E b E, E the end token → [3, 5]."""
    return (np.flatnonzero(input_ids == eod) + 1).tolist()


def boundaries_from_end_tokens(input_ids: np.ndarray, labels: np.ndarray, eod: int, pad: int) -> Boundaries:
    """Boundaries of a plain pack under --reset-position-ids: a segment ends after every end token.

    a a E b E P P (P may equal E) → ends 3, 5, 7.

    Args:
        input_ids, labels: integers [S].
        eod: the end token.
        pad: the padding token.
    """
    padding = trailing_padding(input_ids, labels, pad)
    tokens = len(input_ids) - padding
    return _closed(ends_after_end_tokens(input_ids[:tokens], eod), len(input_ids), padding)


def boundaries_of_one_segment(size: int, padding: int) -> Boundaries:
    """A pack or sample that is one causal sequence: `size` slots, of which the last `padding` are their own segment."""
    return _closed([], size, padding)


def _closed(ends: list[int], size: int, padding: int) -> Boundaries:
    """`ends` and, where they are not among them, the last token's end and the end of the padding."""
    for end in (size - padding, size):
        if end > (ends[-1] if ends else 0):
            ends.append(end)
    return Boundaries(tuple(ends), padding)


def shift_labels(labels: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Labels as the loss wants them: the label of slot i is that of slot i + 1 of the same segment.

    The last slot of a segment predicts nothing (-100), so no sample is trained to predict the next one's first token.

    Args:
        labels: integers [T], not shifted.
        ends: where each segment ends; the last is T.

    Returns: a new array of the same shape and type.
    """
    shifted = np.empty_like(labels)
    shifted[:-1] = labels[1:]
    shifted[np.asarray(ends) - 1] = IGNORED
    return shifted


def position_ids(ends: Sequence[int]) -> np.ndarray:
    """0, 1, 2, … restarted after every end: ends 3, 5, 6 → 0 1 2 0 1 0. int64 [T], T = the last end."""
    starts = segment_starts(ends)
    lengths = np.diff(starts, append=ends[-1])
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(starts, lengths)
