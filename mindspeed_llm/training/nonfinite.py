"""Record a step whose loss or gradient is not finite: list its packs and save its batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state

from mindspeed_llm.data import MicroBatch
from mindspeed_llm.storage.atomic_write import atomic_file


def gather_sample_ids(batches: Sequence[MicroBatch]) -> list[tuple[str, int]]:
    """Gather the packs of a global batch from all ranks. Collective.

    Args:
        batches: micro-batches of this rank.

    Returns:
        (prefix, number of the pack) of each pack, without repetition, in the order of ranks.
    """
    # Tensor- and pipeline-parallel ranks of one replica report the same packs, so repetitions are removed.
    own = [sample for batch in batches for sample in batch.sample_ids]
    gathered: list[list[tuple[str, int]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, own)
    return list(dict.fromkeys((str(prefix), int(number)) for part in gathered for prefix, number in part))


def save_nonfinite_batch(folder: Path, iteration: int, batches: Sequence[MicroBatch]) -> str:
    """Save the micro-batches of this rank as plain arrays to iteration_N_rank_R.npz, for numpy.load.

    Tensor-parallel rank 0 of the first and of the last pipeline stage writes: these stages have the input ids and the
    labels. The other ranks write nothing.

    Args:
        folder: directory for the files; created if it does not exist.
        iteration: number of the iteration.
        batches: micro-batches of this rank.

    Returns:
        The path pattern of the files of all ranks, or "nowhere, " and the reason if this rank could not write its file.
    """
    rank = torch.distributed.get_rank()
    path = folder / f"iteration_{iteration:07d}_rank_{rank}.npz"
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
            with atomic_file(path) as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as error:
            # A full disk must not hide the error of the training step, so it is reported as part of that message.
            return f"nowhere, {error}"
    return str(folder / f"iteration_{iteration:07d}_rank_*.npz")
