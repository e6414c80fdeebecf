"""Replace Megatron's GPTDataset: iterators over the micro-batches of our packs, for `--dataloader-type external`.

Every rank builds its own micro-batches, so that nothing is broadcast and every pipeline stage has the boundaries.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from megatron.core import parallel_state

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.data import DataLoaderSettings, Datasets, MicroBatch, PackedDataLoader, PackedDataset
from mindspeed_llm.errors import UserError


def build_iterators(
    args: Namespace, data: DataArguments, datasets: Datasets, vocabulary: int | None, virtual_stage: int | None
) -> tuple[Iterator[MicroBatch], Iterator[MicroBatch] | None, Iterator[MicroBatch] | None]:
    """Build the data iterators of one model chunk of this rank: training, validation and test.

    Training starts at the sample at which the checkpoint was saved. Validation and test start again at their first pack
    in every evaluation, so that each evaluation sees the same packs; packs beyond the end of a split fill the last
    global batch without being counted.

    Args:
        args: Megatron's arguments, after it has loaded the checkpoint.
        data: data arguments of the command line.
        datasets: opened and checked data sets.
        vocabulary: vocabulary size of the model, to which token ids are compared; None for no check.
        virtual_stage: number of the model chunk on this rank; None without virtual pipeline stages.

    Raises:
        ConfigError: the data needs an end or padding token, and its manifest does not name it.
    """
    settings = _settings(args, data, datasets, vocabulary, virtual_stage)
    unit = args.global_batch_size
    assert isinstance(datasets.train, PackedDataset)
    train = PackedDataLoader(datasets.train, datasets.train_order(data, args.seed, unit), settings)
    evaluations: list[Iterator[MicroBatch] | None] = []
    for split in (datasets.valid, datasets.test):
        if split is None or not args.eval_iters:
            evaluations.append(None)
            continue
        assert isinstance(split, PackedDataset)
        order = split.order(0, shuffle=False, round_up_to=unit)
        loader = PackedDataLoader(split, order, settings, end=len(split))
        evaluations.append(_repeat_evaluation(loader, args.eval_iters * unit))
    return _from_sample(train, args.consumed_train_samples), evaluations[0], evaluations[1]


def _settings(
    args: Namespace, data: DataArguments, datasets: Datasets, vocabulary: int | None, virtual_stage: int | None
) -> DataLoaderSettings:
    first_chunk = virtual_stage is None or virtual_stage == 0
    last_chunk = virtual_stage is None or virtual_stage == args.virtual_pipeline_model_parallel_size - 1
    replicas = parallel_state.get_data_parallel_world_size()
    return DataLoaderSettings(
        seq_length=data.seq_length,
        micro_batch_size=args.micro_batch_size,
        # One micro-batch per call: with --rampup-batch-size Megatron changes their number while it trains.
        global_batch_size=args.micro_batch_size * replicas,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=replicas,
        needs_tokens=parallel_state.is_pipeline_first_stage(ignore_virtual=True) and first_chunk,
        needs_labels=parallel_state.is_pipeline_last_stage(ignore_virtual=True) and last_chunk,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod=datasets.eod,
        pad=datasets.pad,
        vocabulary=vocabulary,
    )


def _from_sample(loader: PackedDataLoader, start: int) -> Iterator[MicroBatch]:
    """Yield the micro-batches of this rank from position `start` on, without an end."""
    while True:
        try:
            yield from loader.micro_batches(start)
        except UserError as error:
            # Other ranks read other packs and may not have this error, so this rank must print it.
            error.on_one_rank = True
            raise
        start += loader.settings.global_batch_size


def _repeat_evaluation(loader: PackedDataLoader, samples: int) -> Iterator[MicroBatch]:
    """Yield the micro-batches of this rank for the first `samples` positions, again and again."""
    per_round = loader.settings.global_batch_size
    while True:
        feed = _from_sample(loader, 0)
        for _ in range(0, samples, per_round):
            yield next(feed)
