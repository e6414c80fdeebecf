"""Count tokens and operations of an average training step of a planned job, from the packs that exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.data import Datasets, MicroBatch
from mindspeed_llm.tokenization import Tokenizer
from mindspeed_llm.training.dataloaders import dataloader_of, dataloader_settings
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.flops import layer_flops, logits_flops, output_flops, recomputed_flops

# Packs that are read. Of a larger epoch they are evenly spaced, so that a plan takes about a second for any data.
MEASURED_PACKS = 2048


@dataclass(frozen=True)
class StepWork:
    """Tokens and operations of an average pack; of a step they are the global batch size times as many.

    Attributes:
        packs: number of packs that were read; 0 without data. Then each pack counts as one sample of --seq-length
            tokens, which is an upper bound of the operations.
        slots: slots of a pack, with padding.
        tokens: tokens without padding; None without data.
        model_flops: operations forward and backward, without recomputation.
        executed_flops: these, and the operations that recomputation repeats.
    """

    packs: int
    slots: float
    tokens: float | None
    model_flops: float
    executed_flops: float


def measure_step_work(
    arguments: PretrainArguments,
    derived: DerivedSettings,
    chunks: Sequence[int],
    datasets: Datasets | None,
    tokenizer: Tokenizer | None,
    trained_share: float,
) -> StepWork:
    """Count the work of an average pack, from the micro-batches that the run will build.

    Args:
        arguments: checked arguments.
        derived: settings of the run; its order locates the packs.
        chunks: number of layers of each model chunk of the complete model.
        datasets: the opened splits; None without data.
        tokenizer: tokenizer of the command line; None without one.
        trained_share: trained tokens ÷ tokens; used without data only.

    Raises:
        UserError: a pack is damaged, or the data needs a token that is not known; a run would refuse it as well.
    """
    if datasets is None or derived.order is None:
        slots = arguments.data.seq_length
        model_flops, executed = _operations(arguments, derived, chunks, (slots,), slots * trained_share)
        return StepWork(0, slots, None, model_flops, executed)
    size = arguments.training.micro_batch_size
    packs, slots, tokens, model_flops, executed = 0, 0, 0, 0.0, 0.0
    for batch in _micro_batches(arguments, derived, datasets, tokenizer):
        assert batch.trained_tokens is not None, "these batches have labels"
        of_model, with_repeated = _operations(arguments, derived, chunks, batch.actual_seq_len, batch.trained_tokens)
        packs, slots, tokens = packs + size, slots + batch.slots, tokens + batch.tokens_count
        model_flops, executed = model_flops + of_model, executed + with_repeated
    return StepWork(packs, slots / packs, tokens / packs, model_flops / packs, executed / packs)


def _micro_batches(
    arguments: PretrainArguments, derived: DerivedSettings, datasets: Datasets, tokenizer: Tokenizer | None
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of the first epoch; of a large one, evenly spaced ones."""
    order = derived.order
    assert order is not None
    settings = dataloader_settings(arguments.data, arguments.training, datasets, derived, tokenizer, arguments.adapter)
    dataloader = dataloader_of(datasets.train, order, settings, None)
    size = settings.micro_batch_size
    count = -(-order.epoch_length // size)
    limit = max(MEASURED_PACKS // size, 1)
    numbers = range(count) if count <= limit else np.linspace(0, count - 1, limit).astype(np.int64).tolist()
    for number in numbers:
        yield dataloader.batch_of(order.positions(number * size, size))


def _operations(
    arguments: PretrainArguments,
    derived: DerivedSettings,
    chunks: Sequence[int],
    actual_seq_len: Sequence[int],
    trained_tokens: float,
) -> tuple[float, float]:
    """Return the operations of a micro-batch, without and with those that recomputation repeats."""
    model, adapter, padded = arguments.model, arguments.adapter, derived.vocabulary.padded
    is_chunked = derived.loss.chunk_size > 0
    rows = trained_tokens if is_chunked else actual_seq_len[-1]
    operations = layer_flops(model, actual_seq_len, adapter)
    operations += output_flops(model, padded, rows, adapter is not None)
    repeated = recomputed_flops(model, arguments.training, actual_seq_len, chunks, adapter)
    # The backward pass of the chunked loss computes the logits of a chunk once more.
    repeated += logits_flops(model, padded, rows) if is_chunked else 0.0
    return operations, operations + repeated
