"""Batch builders of this rank, one for each split that has packs."""

from __future__ import annotations

from megatron.core import parallel_state

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.data import DataLoaderSettings, Datasets, PackedDataLoader
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
) -> dict[str, PackedDataLoader]:
    """'train', and 'valid' and 'test' where there are any.

    Training follows the order of the run. Held-out splits are read in file order, every time from the start, and each
    pack counts once, so that the loss of a whole split does not depend on its packing: what fills up the last batch, so
    that every rank has as much to do, is not counted.

    Args:
        data: what packs are made into.
        training: batch sizes, loss normalization and evaluation.
        datasets: the splits.
        derived: order of the training packs, where the run ends in it, vocabulary and padding multiple.
        device: pinned host memory is used where the device copies from it.
        tokenizer: names end and padding token where the files' manifest does not.

    Raises:
        ConfigError: the data needs a token that nobody names.
    """
    eod, pad = (tokenizer.eos_id, tokenizer.pad_id) if tokenizer is not None else (None, None)
    assert derived.order is not None, "the data is here"
    settings = DataLoaderSettings(
        seq_length=data.seq_length,
        micro_batch_size=training.micro_batch_size,
        global_batch_size=derived.global_batch_size,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        needs_tokens=parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        needs_labels=parallel_state.is_pipeline_last_stage(ignore_virtual=True),
        normalization=training.loss_normalization,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod=datasets.eod if datasets.eod is not None else eod,
        pad=datasets.pad if datasets.pad is not None else pad,
        variable_seq_lengths=data.variable_seq_lengths,
        multiple=derived.padding_multiple,
        vocabulary=derived.vocabulary.padded,
        pin_memory=device.traits.pins_host_memory,
    )
    dataloaders = {"train": PackedDataLoader(datasets.train, derived.order, settings, derived.length.samples)}
    for name in ("valid", "test"):
        split = datasets.split(name)
        if split is not None and training.eval_iters > 0:
            in_file_order = split.order(0, shuffle=False, round_up_to=derived.global_batch_size)
            dataloaders[name] = PackedDataLoader(split, in_file_order, settings, end=len(split))
    return dataloaders
