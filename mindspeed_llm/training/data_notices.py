"""Notices with numbers about the data of a run: held-out packs, epochs, and steps that are larger than the data."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.arguments.data_arguments import DEFAULT_SPLIT, DataArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.data import Datasets
from mindspeed_llm.training.learning_rate_schedule import RunLength

# Fine-tuning takes a few epochs. Above this number --train-iters was probably copied from a run on more data.
MANY_EPOCHS = 20


def data_notices(arguments: PretrainArguments, datasets: Datasets | None, length: RunLength | None) -> list[str]:
    """Return the notices about the data of a run, one line each.

    Args:
        arguments: checked arguments.
        datasets: the opened splits; None in a dry run without data.
        length: length of the run; None if it is not known.
    """
    training, batch_size = arguments.training, arguments.global_batch_size
    lines = [*_held_out(arguments.data, training.eval_iters > 0, datasets)]
    if datasets is not None and length is not None:
        lines += _many_epochs(training, batch_size, datasets, length)
        lines += _few_packs(batch_size, arguments.data_parallel_size, datasets, length)
    return lines


def _held_out(data: DataArguments, is_evaluated: bool, datasets: Datasets | None) -> Iterator[str]:
    """Yield how many packs the default of --split holds out."""
    if not data.data_path or data.split is not None:
        return
    change = "--split 100,0,0 trains on all, --split 95,5,0 holds out 5 %"
    default = f"--split is not given: Megatron's default {DEFAULT_SPLIT}"
    if datasets is None:
        yield f"{default} holds out 3.1 % of --data-path; {change}"
        return
    valid, test = len(datasets.valid or ()), len(datasets.test or ())
    count = len(datasets.train) + valid + test
    line = (
        f"{default} holds out {valid + test:,} of {count:,} {datasets.kind.name}, {valid:,} to validate on and "
        f"{test:,} to test on"
    )
    if valid + test and not is_evaluated:
        line += ", but --eval-iters 0 evaluates nothing"
    yield f"{line}; {change}"


def _many_epochs(training: TrainingArguments, batch_size: int, datasets: Datasets, length: RunLength) -> Iterator[str]:
    """Yield the number of epochs that --train-iters or --train-samples makes, if it is implausible."""
    if training.train_epochs is not None or not length.epoch_length:
        return
    epochs = length.consumed_samples / length.epoch_length
    if epochs <= MANY_EPOCHS:
        return
    if training.train_iters is not None:
        given = f"--train-iters {training.train_iters} with {batch_size:,} {datasets.kind.name} a step"
    else:
        given = f"--train-samples {training.train_samples}"
    yield (
        f"{given} is {epochs:,.0f} epochs of {len(datasets.train):,} {datasets.kind.name}; "
        f"--train-epochs 3 in its place is {-(-3 * length.epoch_length // batch_size):,} iterations"
    )


def _few_packs(batch: int, ranks: int, datasets: Datasets, length: RunLength) -> Iterator[str]:
    """Yield what a step does if it takes more packs than the data have."""
    packs = len(datasets.train)
    if packs >= batch:
        return
    unit = datasets.kind.name
    what = (
        f"{ranks:,} data-parallel ranks, but only {packs:,} {unit} to train on"
        if ranks > packs
        else f"a step takes {batch:,} {unit}, but only {packs:,} are there to train on"
    )
    # With --train-epochs the last step is filled up with packs that are computed and have no loss.
    if length.samples is not None and length.samples < batch:
        yield (
            f"{what}: the run is one step, and {batch - length.samples:,} of its {batch:,} {unit} are computed but not "
            "trained; use fewer ranks or a smaller --global-batch-size"
        )
        return
    yield (
        f"{what}: every step of {batch:,} trains each {batch / packs:.3g} times on average; use fewer ranks or a "
        "smaller --global-batch-size"
    )
