"""Format the plan of a job as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mindspeed_llm.arguments.raw_data_arguments import names_raw_data
from mindspeed_llm.console.text_tables import align_columns
from mindspeed_llm.devices import DEVICES
from mindspeed_llm.dry_run.fit_report import fit_lines, work_lines
from mindspeed_llm.dry_run.job_plan import JobPlan

if TYPE_CHECKING:
    from mindspeed_llm.dry_run.rank_memory import RankMemory

COLUMNS = ("rank", "ranks", "tensor", "pipeline", "data", "layers", "parameters", "weights", "gradients", "optimizer",
           "activations", "total")  # fmt: skip

# --tuning → name of the method.
NAMES = {
    "lora": "LoRA",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "p-tuning": "P-tuning",
    "adapter": "bottleneck adapters",
}

# Up to this number each rank has its own row; beyond it, ranks with the same numbers share a row.
MAX_ROWS = 16


def print_plan(plan: JobPlan) -> None:
    """Print a plan to stdout."""
    print("\n".join(format_plan(plan)), flush=True)


def format_plan(plan: JobPlan) -> list[str]:
    """Format a plan and return its lines."""
    largest = plan.largest
    # One unit for the complete table, chosen by its largest rank, so that its rows can be compared.
    unit, size = ("GiB", 2**30) if largest.total >= 2**30 else ("MiB", 2**20)
    return [
        "dry run: every rank was built on the meta device, without memory; no weights are read, nothing is trained or "
        "written",
        *_job(plan),
        *_data(plan),
        *work_lines(plan),
        f"memory on each rank in {unit}, estimated for {plan.device}{_other_devices(plan)}:",
        *_table(plan.ranks, size),
        f"largest: rank {largest.rank} with {largest.total / size:.1f} {unit}",
        *fit_lines(plan),
        f"activations: {_counted_activations(plan)}",
        "not counted: workspaces of kernels, buffers of collectives, gradients of activations, fragmentation",
        f"shapes: {_ranks_built(plan)}; a micro-batch passed forward and backward through every layer of every stage "
        f"({plan.seconds:.0f} s)",
        *(f"notice: {line}" for line in plan.notices),
    ]


def _job(plan: JobPlan) -> Iterator[str]:
    arguments = plan.arguments
    parallel, training, model = arguments.parallel, arguments.training, arguments.model
    pipeline = f"pipeline {parallel.pipeline_model_parallel_size}"
    if arguments.virtual_stages:
        pipeline += f" (interleaved, {arguments.virtual_stages} chunks each)"
    if parallel.layers_of_stages is not None:
        pipeline += f" ({', '.join(map(str, parallel.layers_of_stages))} layers)"
    further = [
        name
        for name, given in (
            ("sequence parallel", parallel.sequence_parallel),
            ("distributed optimizer", parallel.use_distributed_optimizer),
        )
        if given
    ]
    layout = f"tensor {parallel.tensor_model_parallel_size} × {pipeline} × data {arguments.data_parallel_size}"
    yield f"layout: {arguments.world_size} ranks = {', '.join([layout, *further])}"
    groups = "" if model.query_groups == model.num_attention_heads else f" in {model.query_groups} groups"
    yield (
        f"model: {plan.parameters:,} parameters in {training.precision}: {model.num_layers} layers of hidden size "
        f"{model.hidden_size:,}, {model.num_attention_heads} heads{groups}, MLP {model.ffn_size:,}, "
        f"vocabulary {plan.derived.vocabulary.padded:,}"
    )
    adapter = arguments.adapter
    if adapter is not None:
        yield (
            f"adapter: {NAMES[adapter.method]}, {plan.trained:,} trained parameters "
            f"({plan.trained / plan.parameters:.2%}): {adapter.description}"
        )
    yield f"tokenizer: {plan.data.tokenizer}"
    yield f"attention: {plan.attention}"
    yield f"loss: {plan.derived.loss}"
    recompute: str = training.recompute or "nothing"
    if training.recompute == "full":
        recompute += f" ({training.recompute_method}, {training.recompute_num_layers})"
    if training.recompute_activation_function:
        layers = training.recompute_activation_function_num_layers
        function = "activation function of the MLP" + (f" in {layers} layers" if layers else "")
        recompute = function if training.recompute is None else f"{recompute}, {function}"
    yield f"recomputed in the backward pass: {recompute}"
    yield f"start: {plan.start}"


def _data(plan: JobPlan) -> Iterator[str]:
    arguments, data = plan.arguments, plan.data
    batch, slots = arguments.global_batch_size, arguments.data.seq_length
    step = (
        f"step: {batch:,} {_unit(plan)} × {slots:,} slots = {batch * slots:,} slots; on each data-parallel rank "
        f"{arguments.micro_batches} × micro-batch of {arguments.training.micro_batch_size}"
    )
    if data.fill is not None:
        step += f"; about {batch * slots * data.fill:,.0f} tokens"
    if data.kind is None:
        where = ", ".join(data.prefixes)
        raw = ", ".join(filter(names_raw_data, data.prefixes)) if arguments.raw_data.given else ""
        if raw:
            yield f"data: {raw}: raw data, which a dry run does not preprocess: steps per epoch unknown"
        else:
            yield f"data: no data at {where}: steps per epoch unknown" if where else "data: none given (--data-path)"
        yield step
        yield _run(plan)
        return
    splits = ", ".join(f"{count:,} to {_PURPOSE[name]}" for name, count in data.packs.items())
    yield f"data: {data.kind}: {splits}"
    for summary in data.figures:
        yield (
            f"packing of {summary.prefix}: {summary.packs:,} rows, fill {summary.fill:.2%}, "
            f"{summary.samples:,} samples, {summary.samples / max(summary.packs, 1):.1f} in each row, "
            f"{summary.trained:.1%} of the tokens trained"
        )
    yield step
    yield _run(plan)


def _unit(plan: JobPlan) -> str:
    return "packs" if plan.arguments.data.is_instruction_dataset else "blocks"


_PURPOSE = {"train": "train on", "valid": "validate on", "test": "test on"}


def _run(plan: JobPlan) -> str:
    training, batch = plan.arguments.training, plan.arguments.global_batch_size
    if not plan.length_is_known:
        return f"run: {training.train_epochs} epochs; the number of steps depends on the data"
    length = plan.derived.length
    line = f"run: {length.iterations:,} steps, {length.consumed_samples:,} {_unit(plan)}"
    if not length.epoch_length:
        return line
    epoch, epochs = length.epoch_length / batch, length.consumed_samples / length.epoch_length
    return f"{line}; an epoch is {epoch:,.1f} steps, so the run is {epochs:,.2f} epochs"


def _other_devices(plan: JobPlan) -> str:
    """Return a hint how to select another device, if the plan chose the device itself."""
    if plan.arguments.device.device != "auto" or plan.accelerator is not None:
        return ""
    return " (--device " + " or ".join(kind for kind in reversed(DEVICES) if kind != plan.device) + " for another)"


def _table(ranks: list[RankMemory], unit: int) -> list[str]:
    rows = [COLUMNS, *_merge_rows([(rank.rank_count, _row(rank, unit)) for rank in ranks])]
    # The second column, the number of ranks per row, is left out where it is always 1.
    left_out = set() if any(row[1] != "× 1" for row in rows[1:]) else {1}
    shown = [[cell for number, cell in enumerate(row) if number not in left_out] for row in rows]
    return [f"  {line}" for line in align_columns(shown, left=0)]


def _merge_rows(rows: list[tuple[int, tuple[str, ...]]]) -> Iterator[tuple[str, ...]]:
    """Insert the number of ranks as the second cell of each row, and merge rows if there are many.

    Rows that differ only in rank, tensor and data are merged into the first of them.

    Args:
        rows: (number of ranks that the row represents, row).
    """
    many = len(rows) > MAX_ROWS
    counts: dict[tuple[str, ...], int] = {}
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    for rank_count, row in rows:
        key = (row[2], *row[4:]) if many else row
        counts[key] = counts.get(key, 0) + rank_count
        first.setdefault(key, row)
    for key, row in first.items():
        yield (row[0], f"× {counts[key]:,}", *row[1:])


def _row(rank: RankMemory, unit: int) -> tuple[str, ...]:
    """Return the cells of a rank for COLUMNS, without the second."""
    sizes = (rank.weights, rank.gradients, rank.optimizer, rank.activations, rank.total)
    return (
        str(rank.rank),
        str(rank.tensor),
        str(rank.pipeline),
        str(rank.data),
        "+".join(map(str, rank.layers)),
        f"{rank.parameters:,}",
        *(f"{size / unit:,.2f}" for size in sizes),
    )


def _counted_activations(plan: JobPlan) -> str:
    names = plan.memory.fused
    fused = f"with fused {', '.join(names)}" if names else "without fused norm, swiglu, dropout, attention or rotary"
    return f"peak of the pipeline schedule, {fused}; attention scores are never saved"


def _ranks_built(plan: JobPlan) -> str:
    built, ranks = len(plan.ranks), plan.arguments.world_size
    if built == ranks:
        return f"all {ranks} ranks were built" if ranks > 1 else "the single rank was built"
    return f"{built} of {ranks:,} ranks were built, one for each kind of rank"
