"""A step whose loss or gradient is not finite: which packs it had, and its batch on the disk to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state

from mindspeed_llm.data import MicroBatch
from mindspeed_llm.storage.atomic_write import atomic_file


def gather_sample_ids(batches: Sequence[MicroBatch]) -> list[tuple[str, int]]:
    """(prefix, number of the pack) of a global batch, over all ranks, each once. Collective."""
    own = [sample for batch in batches for sample in batch.sample_ids]
    gathered: list[list[tuple[str, int]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, own)
    return list(dict.fromkeys((str(prefix), int(number)) for part in gathered for prefix, number in part))


def save_nonfinite_batch(folder: Path, iteration: int, batches: Sequence[MicroBatch]) -> str:
    """Write this rank's micro-batches to iteration_N_rank_R.npz: plain arrays, read with numpy.load.

    One tensor rank of the first and of the last pipeline stage writes, for these have the ids and the labels.

    Returns: the files' pattern, or why there are none; a full disk must not hide the error that led here.
    """
    rank = torch.distributed.get_rank()
    named = folder / f"iteration_{iteration:07d}_rank_{rank}.npz"
    arrays: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        parts = {
            "tokens": batch.tokens,
            "labels": batch.labels,
            "loss_weights": batch.loss_weights,
            "positions": batch.positions,
        }
        arrays.update({f"{number}_{name}": part.cpu().numpy() for name, part in parts.items() if part is not None})
        arrays[f"{number}_actual_seq_len"] = np.asarray(batch.actual_seq_len)
        arrays[f"{number}_sample_ids"] = np.asarray([f"{prefix} {pack}" for prefix, pack in batch.sample_ids])
    has_content = any(batch.tokens is not None or batch.labels is not None for batch in batches)
    if has_content and parallel_state.get_tensor_model_parallel_rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(named) as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as error:
            return f"nowhere, {error}"
    return str(folder / f"iteration_{iteration:07d}_rank_*.npz")
