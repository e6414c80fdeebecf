"""Micro-batches as the model takes them, with loss weights in place of Megatron's loss mask.

A loss mask is 1 on trained tokens and 0 elsewhere; a loss weight also contains the loss normalization. A micro-batch of
B packs with S slots each is one stream of T = B · S slots. A stream of one pack with three samples (a a a, b b, c) and
two slots of padding (`.`), where all tokens are trained:

    slot                          0    1    2    3    4    5    6    7
    tokens                        a0   a1   a2   b0   b1   c0   .    .
    labels                        a1   a2   0    b1   0    0    0    0      shifted inside each segment
    loss_weights, "token"         1    1    0    1    0    0    0    0      divisor 3
    loss_weights, "sample"        1/2  1/2  0    1    0    0    0    0      divisor 2
    loss_weights, "micro-batch"   1/3  1/3  0    1/3  0    0    0    0      divisor 1
    positions                     0    1    2    0    1    0    0    1      with --reset-position-ids
    actual_seq_len                3, 5, 6, 8                                ends of the segments
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mindspeed_llm.boundaries import IGNORE_INDEX, segment_starts

if TYPE_CHECKING:
    import torch

Normalization = Literal["token", "sample", "micro-batch"]


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of B packs as one stream of T slots.

    Tensors that the pipeline stage of this rank does not need are None, and so are the counts that depend on labels.

    Attributes:
        tokens: token ids; int64 [1, T], or None.
        labels: labels, shifted, 0 on slots that are not trained (a valid id for any cross entropy); int64 [1, T], or
            None.
        loss_weights: weight of the loss of each slot, 0 on slots that are not trained; float32 [1, T], or None.
        loss_denominator: contribution of this micro-batch to the divisor of the global batch, or None; see the function
            `loss_weights`.
        actual_seq_len: end of each segment, ascending, without a leading zero; the last is T. Python integers on the
            host, so that the segments are never read back from a device.
        positions: position of each slot in its segment or its pack; int64 [T].
        tokens_count: number of tokens, without padding.
        slots: T.
        samples: number of samples.
        trained_slots: positions of the trained tokens in the stream, ascending; int64 [trained tokens], or None. Host
            values: the number of rows that the output layer computes follows from them.
        sample_ids: (prefix, number of the pack) of each pack that is counted.
        pack_slots: slots of each pack, S; 0 if the micro-batch is one pack.
        virtual_slots: slots that are reserved for virtual tokens, p at the beginning of each sample, ascending; int64
            [samples · p] on the host, also of packs that are not counted. None without virtual tokens.
    """

    tokens: torch.Tensor | None
    labels: torch.Tensor | None
    loss_weights: torch.Tensor | None
    loss_denominator: int | None
    actual_seq_len: tuple[int, ...]
    positions: torch.Tensor
    tokens_count: int
    slots: int
    samples: int
    trained_slots: np.ndarray | None
    sample_ids: tuple[tuple[str, int], ...]
    pack_slots: int = 0
    virtual_slots: np.ndarray | None = None

    @property
    def trained_tokens(self) -> int | None:
        """Number of trained tokens, or None."""
        return None if self.trained_slots is None else len(self.trained_slots)

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return the micro-batch with its tensors on `device`.

        The copies are asynchronous if the tensors are in pinned memory.
        """

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            tokens=moved(self.tokens),
            labels=moved(self.labels),
            loss_weights=moved(self.loss_weights),
            positions=self.positions.to(device, non_blocking=True),
        )


def loss_weights(labels: np.ndarray, ends: Sequence[int], normalization: Normalization) -> tuple[np.ndarray, int]:
    """Compute the weight of the loss of each slot, and the contribution of a micro-batch to the divisor.

    The loss of a global batch is Σ weight · loss ÷ Σ divisor, over all its micro-batches and ranks. Example: three
    samples A, B, C with losses (2, 4), (6) and (1, 1, 1, 1) on their trained tokens; A and B are in one micro-batch, C
    is in another:

        token         A 1, 1       B 1     C 1, 1, 1, 1           divisor 3 + 4    16 / 7 = 2.286
        sample        A 1/2, 1/2   B 1     C 1/4, 1/4, 1/4, 1/4   divisor 2 + 1    (3 + 6 + 1) / 3 = 3.333
        micro-batch   A 1/3, 1/3   B 1/3   C 1/4, 1/4, 1/4, 1/4   divisor 1 + 1    (4 + 1) / 2 = 2.5

    With `token`, each trained token has the same weight, with `sample`, each sample. Neither depends on how samples
    are packed or batched. `micro-batch` (the default of Megatron and MindSpeed-LLM) depends on it: with A and C in one
    micro-batch and B in another the loss is (10/6 + 6) / 2 = 3.833, with all three in one micro-batch 16/7.

    Args:
        labels: labels, shifted, -100 on slots that are not trained; integers [T].
        ends: end of each segment; the last is T.
        normalization: unit that has the same weight throughout the global batch.

    Returns:
        Weights, float32 [T], and the contribution to the divisor. All are 0 if no token is trained.

    Raises:
        ValueError: `normalization` is unknown.
    """
    trained = labels != IGNORE_INDEX
    count = int(np.count_nonzero(trained))
    weights = trained.astype(np.float32)
    if normalization == "token" or count == 0:
        return weights, count
    if normalization == "micro-batch":
        return weights / np.float32(count), 1
    if normalization != "sample":
        raise ValueError(f"unknown loss normalization: {normalization}")
    starts = segment_starts(ends)
    per_segment = np.add.reduceat(trained, starts, dtype=np.int64)
    # The maximum avoids a division by 0 in segments without trained tokens, whose weights are 0 in any case.
    share = (1.0 / np.maximum(per_segment, 1)).astype(np.float32)
    return weights * np.repeat(share, np.diff(starts, append=ends[-1])), int(np.count_nonzero(per_segment))
