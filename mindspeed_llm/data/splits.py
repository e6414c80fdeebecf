"""Which packs train, validate and test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from mindspeed_llm.data.sample_order import SPLIT_STREAM, seeded_permutation
from mindspeed_llm.errors import DataError

SPLITS = ("train", "valid", "test")


def split_packs(
    n: int, split: Sequence[float], seed: int, needed: Collection[str] = SPLITS, source: str = "the data"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a seeded permutation of `n` packs by the shares of --split.

    Six packs, shares 4,1,1: the permutation, say 5 0 3 1 | 4 | 2, is cut, and each part is put back into file order:
    train 0 1 3 5, valid 4, test 2. So validation resembles training even where a file was written longest pack
    first, as MindSpeed-LLM writes it. The cuts are rounded as Megatron rounds them
    (`megatron.core.datasets.blended_megatron_dataset_builder`).

    Args:
        n: number of packs.
        split: three shares, not negative, of any sum above 0: (949, 50, 1).
        seed: of the run.
        needed: the splits that will be read; a part that is not may come out empty.
        source: the data's name for the error.

    Returns: train, valid and test: numbers of packs, int64, rising; each pack is in at most one.

    Raises:
        DataError: a needed split has a share but is left with no pack.
    """
    if len(split) != 3 or min(split) < 0 or sum(split) <= 0:
        raise ValueError(f"a split is three shares that are not negative and not all 0, not {split}")
    cuts = _cuts(n, split)
    empty = [
        name
        for name, share, (first, last) in zip(SPLITS, split, pairwise(cuts), strict=True)
        if share > 0 and first == last and name in needed
    ]
    if empty:
        shares = ",".join(f"{share:g}" for share in split)
        raise DataError(
            f"--split {shares} leaves no pack for {' and '.join(empty)}: {source} has {n} pack{'' if n == 1 else 's'}; "
            f"give {' and '.join(empty)} a larger share, or 0"
        )
    order = seeded_permutation(n, seed, SPLIT_STREAM)
    train, valid, test = (np.sort(order[first:last]) for first, last in pairwise(cuts))
    return train, valid, test


def _cuts(n: int, split: Sequence[float]) -> list[int]:
    """Where the permutation is cut: four rising numbers from 0 to at most n."""
    total = sum(split)
    reached = 0.0
    cuts = [0]
    for share in split:
        reached += share / total
        cuts.append(round(reached * n))
    return cuts
