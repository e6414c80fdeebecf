"""One micro-batch as the model takes it, and what each token weighs in the loss.

Shape legend: T slots of the flattened micro-batch = B packs · S slots, pack after pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mindspeed_llm.boundaries import IGNORED, segment_starts

if TYPE_CHECKING:
    import torch

Normalization = Literal["token", "sample", "micro-batch"]


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of B packs as one stream of T slots.

    Tensors that this rank's pipeline stage does not need are None, and so are the numbers that only labels tell.

    Attributes:
        tokens: int64 [1, T], or None.
        labels: int64 [1, T], shifted, 0 where nothing is trained (safe for any cross entropy), or None.
        loss_weights: float32 [1, T], 0 where nothing is trained, or None.
        loss_denominator: what this micro-batch adds to the divisor of the global batch, or None; see `loss_weights`.
        actual_seq_len: end of every segment, rising, no leading zero, last = T. Plain host ints, never on a device.
        positions: int64 [T].
        tokens_count: slots that are not padding.
        slots: T.
        samples: segments that are not padding.
        trained_tokens: slots with a loss, or None.
        sample_ids: (prefix, number of the pack) of each of the B packs.
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
    trained_tokens: int | None
    sample_ids: tuple[tuple[str, int], ...]

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same batch with its tensors on `device`; the copies do not wait where the host memory is pinned."""

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
    """What each slot's loss is multiplied by, and what this micro-batch adds to the divisor.

    The loss of a global batch is Σ weight · loss ÷ Σ divisor, both over all its micro-batches and ranks.

    Three samples with losses (2, 4), (6) and (1, 1, 1, 1) on their trained tokens, the first two in one micro-batch
    (A B), the third in another (C):

        token         A 1, 1       B 1     C 1, 1, 1, 1           divisor 3 + 4    16 / 7 = 2.286
        sample        A 1/2, 1/2   B 1     C 1/4, 1/4, 1/4, 1/4   divisor 2 + 1    (3 + 6 + 1) / 3 = 3.333
        micro-batch   A 1/3, 1/3   B 1/3   C 1/4, 1/4, 1/4, 1/4   divisor 1 + 1    (4 + 1) / 2 = 2.5

    With `token` each trained token weighs the same, with `sample` each sample; neither depends on how samples were
    packed or batched. `micro-batch` (the default of Megatron and MindSpeed-LLM) does: with A and C together and B
    alone it would give (10/6 + 6) / 2 = 3.833, with all three together 16/7.
    A micro-batch with nothing to train adds 0 and 0.

    Args:
        labels: integers [T], shifted, -100 where nothing is trained.
        ends: where each segment ends; the last is T.
        normalization: what weighs the same.

    Returns: float32 [T], and the divisor.
    """
    trained = labels != IGNORED
    count = int(np.count_nonzero(trained))
    weights = trained.astype(np.float32)
    if normalization == "token" or count == 0:
        return weights, count
    if normalization == "micro-batch":
        return weights / np.float32(count), 1
    if normalization != "sample":
        raise ValueError(f"no such loss normalization: {normalization}")
    starts = segment_starts(ends)
    per_segment = np.add.reduceat(trained, starts, dtype=np.int64)
    share = (1.0 / np.maximum(per_segment, 1)).astype(np.float32)
    return weights * np.repeat(share, np.diff(starts, append=ends[-1])), int(np.count_nonzero(per_segment))
