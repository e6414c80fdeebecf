"""Packs with reserved slots in packed files, the micro-batches that the dataloader makes of them, and their samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from layouts_program import Case, packs_of, samples_of
from reference_qwen2 import Sample
from tiny import manifest_of

from mindspeed_llm.adapters import VirtualTokenSettings
from mindspeed_llm.data import DataLoaderSettings, PackedDataLoader, PackedDataset
from mindspeed_llm.data.packed_dataset import DatasetShare
from mindspeed_llm.indexed_dataset import PackedFiles, PackedFilesWriter

PACKS = 4  # of a global batch
STEPS = 8


def slots_of(virtual_tokens: int) -> int:
    """Slots of a pack. Without reserved slots its samples fill it, so that every part of it has some."""
    return 64 if virtual_tokens else 32


def write_packs(prefix: Path, virtual_tokens: int) -> Path:
    """Write STEPS global batches of PACKS packs, each sample behind its reserved slots."""
    samples = tokens = trained = 0
    size = slots_of(virtual_tokens)
    with PackedFilesWriter(prefix) as writer:
        for step in range(STEPS):
            for pack in packs_of(step, PACKS):
                ids, mask, labels = np.full(size, 7), np.zeros(size, np.int64), np.full(size, -100)
                slot = 0
                for number, (own_ids, own_labels) in enumerate(samples_of([pack]), 1):
                    start, end = slot + virtual_tokens, slot + virtual_tokens + len(own_ids)
                    ids[start:end], labels[start:end], mask[slot:end] = own_ids, own_labels, number
                    samples, tokens, slot = samples + 1, tokens + len(own_ids), end
                    trained += int((own_labels != -100).sum())
                writer.add(*(column.astype(np.int32) for column in (ids, mask, labels)))
        manifest = manifest_of(
            packed=True,
            neat=True,
            seq_length=slots_of(virtual_tokens),
            samples=samples,
            tokens=tokens,
            trained=trained,
            packs=STEPS * PACKS,
        )
        writer.commit(dataclasses.replace(manifest, virtual_tokens=virtual_tokens))
    return prefix


def loaded_batches(prefix: Path, settings: object, case: Case, step: int, replica: int) -> list:
    """This replica's micro-batches of a step, from the dataloader."""
    files = PackedFiles.open(prefix)
    dataset = PackedDataset([DatasetShare(files, np.arange(len(files)))])
    is_virtual = isinstance(settings, VirtualTokenSettings)
    virtual_tokens = settings.virtual_tokens if is_virtual else 0
    how = DataLoaderSettings(
        seq_length=slots_of(virtual_tokens),
        micro_batch_size=case.micro_batch,
        global_batch_size=PACKS,
        data_parallel_rank=replica,
        data_parallel_size=case.replicas,
        virtual_tokens=virtual_tokens,
        trains_first_token=not is_virtual or settings.trains_first_token,
    )
    loader = PackedDataLoader(dataset, dataset.order(0, shuffle=False), how)
    return list(loader.micro_batches(step * PACKS))


def samples_of_step(step: int, numbers: Sequence[int] = range(PACKS)) -> list[Sample]:
    """The samples of some packs of a global batch, without reserved slots, one by one."""
    packs = packs_of(step, PACKS)
    return [(ids.long(), labels.long()) for ids, labels in samples_of([packs[number] for number in numbers])]


def prediction_targets(settings: object, labels: torch.Tensor) -> torch.Tensor:
    """The labels that are predicted: peft's prompts predict the first token of a sample, nothing else does."""
    if isinstance(settings, VirtualTokenSettings) and settings.trains_first_token:
        return labels
    return labels[1:]
