"""Split the packs of a dataset into training, validation and test packs (--split)."""

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
    """Split packs at random by the shares of --split.

    A seeded permutation of the packs is cut, and each part is sorted into file order. Six packs with shares 4,1,1 and
    the permutation 5 0 3 1 | 4 | 2 give train 0 1 3 5, valid 4 and test 2. The permutation makes the validation packs
    similar to the training packs even if a file has the longest packs first, as MindSpeed-LLM writes it. The positions
    of the cuts are rounded as in Megatron (`megatron.core.datasets.blended_megatron_dataset_builder`).

    Args:
        n: number of packs.
        split: shares of train, valid and test, such as (949, 50, 1); not negative, with a sum above 0.
        seed: seed of the run.
        needed: splits that will be read. Only these must have packs if their share is above 0.
        source: name of the dataset, for error messages.

    Returns:
        Pack numbers of train, valid and test; int64 [packs of the split], ascending. A pack is in at most one split.

    Raises:
        DataError: A needed split has a share above 0 but no packs.
    """
    if len(split) != 3 or min(split) < 0 or sum(split) <= 0:
        raise ValueError(f"a split is three shares that are not negative and not all 0, not {split}")
    cuts = cut_positions(n, split)
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


def cut_positions(n: int, split: Sequence[float]) -> list[int]:
    """Return the positions at which n elements are cut by their number: four ascending numbers from 0 to at most n.

    Args:
        n: number of elements.
        split: shares of train, valid and test; not negative, with a sum above 0.
    """
    total = sum(split)
    reached = 0.0
    cuts = [0]
    for share in split:
        # Shares are normalised before they are summed, as in Megatron: the order of operations affects the rounding.
        reached += share / total
        cuts.append(round(reached * n))
    return cuts
