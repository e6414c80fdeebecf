"""Build the dataloaders of this rank, one per split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron.core import parallel_state

from mindspeed_llm.adapters import AdapterSettings, VirtualTokenSettings
from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.data import (
    BlockDataLoader,
    BlockDataset,
    DataLoaderSettings,
    Datasets,
    PackedDataLoader,
    PackedDataset,
    SampleOrder,
    TokenDataLoader,
)
from mindspeed_llm.devices import Device
from mindspeed_llm.tokenization import Tokenizer
from mindspeed_llm.training.derived_settings import DerivedSettings


def build_dataloaders(
    data: DataArguments,
    training: TrainingArguments,
    datasets: Datasets,
    derived: DerivedSettings,
    device: Device,
    tokenizer: Tokenizer | None = None,
    adapter: AdapterSettings | None = None,
) -> dict[str, TokenDataLoader[Any]]:
    """Build the dataloaders of this rank: 'train', and 'valid' and 'test' if these splits have packs.

    The training split is read in the order of the run, the other splits in file order and from the start at every
    evaluation.

    Args:
        data: flags for sequence length, positions and attention mask.
        training: flags for batch sizes, loss normalization and evaluation.
        datasets: the splits.
        derived: order of the training packs, end of the run, vocabulary and padding multiple.
        device: decides whether batches are put into pinned host memory.
        tokenizer: source of the end and padding tokens if the manifest of the files does not name them.
        adapter: settings of the adapter, for the slots of its virtual tokens; None without one.

    Returns:
        Split name → dataloader.

    Raises:
        ConfigError: the data needs an end or padding token, and neither a manifest nor the tokenizer names it.
    """
    settings = replace(
        dataloader_settings(data, training, datasets, derived, tokenizer, adapter),
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        needs_tokens=parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        needs_labels=parallel_state.is_pipeline_last_stage(ignore_virtual=True),
        pin_memory=device.traits.pins_host_memory,
    )
    assert derived.order is not None, "the data is open when dataloaders are built"
    dataloaders = {"train": dataloader_of(datasets.train, derived.order, settings, derived.length.samples)}
    for name in ("valid", "test"):
        split = datasets.split(name)
        if split is not None and training.eval_iters > 0:
            # The last global batch is filled up so that every rank has the same number of micro-batches. `end` excludes
            # these repeated packs from loss and counts: each pack counts once, and the loss of a split does not depend
            # on how it was packed.
            in_file_order = split.order(0, shuffle=False, round_up_to=derived.global_batch_size)
            dataloaders[name] = dataloader_of(split, in_file_order, settings, end=len(split))
    return dataloaders


def dataloader_settings(
    data: DataArguments,
    training: TrainingArguments,
    datasets: Datasets,
    derived: DerivedSettings,
    tokenizer: Tokenizer | None = None,
    adapter: AdapterSettings | None = None,
) -> DataLoaderSettings:
    """Return the settings of a dataloader that reads the complete global batch, for one rank without a pipeline.

    Args:
        data: as for `build_dataloaders`.
        training: as for `build_dataloaders`.
        datasets: as for `build_dataloaders`.
        derived: as for `build_dataloaders`.
        tokenizer: as for `build_dataloaders`.
        adapter: as for `build_dataloaders`.
    """
    eod, pad = (tokenizer.eos_id, tokenizer.pad_id) if tokenizer is not None else (None, None)
    return DataLoaderSettings(
        seq_length=data.seq_length,
        micro_batch_size=training.micro_batch_size,
        global_batch_size=derived.global_batch_size,
        normalization=training.loss_normalization,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        # The manifest comes first: it names the tokens that the data were made with.
        eod=datasets.eod if datasets.eod is not None else eod,
        pad=datasets.pad if datasets.pad is not None else pad,
        variable_seq_lengths=data.variable_seq_lengths,
        multiple=derived.padding_multiple,
        vocabulary=derived.vocabulary.size,
        virtual_tokens=0 if adapter is None else adapter.virtual_tokens,
        trains_first_token=not isinstance(adapter, VirtualTokenSettings) or adapter.trains_first_token,
    )


def dataloader_of(
    dataset: PackedDataset | BlockDataset, order: SampleOrder, settings: DataLoaderSettings, end: int | None
) -> TokenDataLoader[Any]:
    """Return the dataloader for the kind of a dataset; the arguments are those of `TokenDataLoader`."""
    if isinstance(dataset, BlockDataset):
        return BlockDataLoader(dataset, order, settings, end)
    return PackedDataLoader(dataset, order, settings, end)
