"""Rules of how a model, its layers and a batch are divided among ranks."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.arguments.pretrain import PretrainArguments


def _layout(arguments: PretrainArguments) -> Iterator[str]:
    parallel, world_size = arguments.parallel, arguments.world_size
    sizes = (
        f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} × "
        f"--pipeline-model-parallel-size {parallel.pipeline_model_parallel_size}"
    )
    if parallel.context_parallel_size > 1:
        yield f"--context-parallel-size {parallel.context_parallel_size}: context parallelism is not built yet; use 1"
    elif world_size % parallel.model_parallel_size:
        # Under --dry-run no launcher says how many ranks there are.
        start = "set WORLD_SIZE to" if arguments.device.dry_run else "start"
        yield (
            f"{world_size} ranks cannot be divided by {sizes} = {parallel.model_parallel_size}; "
            f"{start} a multiple of that, or change the sizes"
        )


def _pipeline(arguments: PretrainArguments) -> Iterator[str]:
    parallel, num_layers = arguments.parallel, arguments.model.num_layers
    stages, virtual = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
    if num_layers % stages:
        yield f"--num-layers {num_layers} cannot be divided by --pipeline-model-parallel-size {stages}"
    elif virtual is not None and stages == 1:
        yield (
            f"--num-layers-per-virtual-pipeline-stage {virtual} needs --pipeline-model-parallel-size above 1; "
            "leave it out"
        )
    elif virtual is not None and (num_layers // stages) % virtual:
        yield (
            f"--num-layers-per-virtual-pipeline-stage {virtual} does not divide the {num_layers // stages} layers of a "
            f"stage (--num-layers {num_layers} / --pipeline-model-parallel-size {stages})"
        )
    elif arguments.virtual_stages and not _indivisible_batch(arguments) and arguments.micro_batches % stages:
        # megatron/core/pipeline_parallel/schedules.py refuses it only once training has begun.
        yield (
            f"--num-layers-per-virtual-pipeline-stage {virtual}: the {arguments.micro_batches} micro-batches of an "
            f"update are no multiple of --pipeline-model-parallel-size {stages}; change --global-batch-size"
        )


def _heads(arguments: PretrainArguments) -> Iterator[str]:
    model, tensor_parallel = arguments.model, arguments.parallel.tensor_model_parallel_size
    heads, groups = model.num_attention_heads, model.query_groups
    if model.kv_channels is None and model.hidden_size % heads:
        yield (
            f"--hidden-size {model.hidden_size} cannot be divided by --num-attention-heads {heads}; "
            "change one of them, or give --kv-channels"
        )
    elif int(model.head_size * model.rotary_percent) % 2 or int(model.head_size * model.rotary_percent) == 0:
        yield (
            f"--rotary-percent {model.rotary_percent:g} of a head of {model.head_size} (--hidden-size / "
            "--num-attention-heads, or --kv-channels) is not an even number of channels"
        )
    if model.group_query_attention and model.num_query_groups is None:
        yield "--group-query-attention needs --num-query-groups"
    if not model.group_query_attention and model.num_query_groups not in (None, heads):
        yield f"--num-query-groups {model.num_query_groups} has no effect without --group-query-attention; add that"
    if heads % groups:
        yield f"--num-attention-heads {heads} cannot be divided by --num-query-groups {groups}"
    if heads % tensor_parallel:
        yield f"--num-attention-heads {heads} cannot be divided by --tensor-model-parallel-size {tensor_parallel}"
    elif groups % tensor_parallel and tensor_parallel % groups:
        # With fewer groups than ranks megatron-core gathers the projection and takes each rank's part of a group.
        yield (
            f"--num-query-groups {groups} must be a multiple or a divisor of "
            f"--tensor-model-parallel-size {tensor_parallel}"
        )
    elif (heads + 2 * groups) * model.head_size % tensor_parallel:
        yield (
            f"the query, key and value projection of --num-attention-heads {heads} and --num-query-groups {groups} "
            f"has {(heads + 2 * groups) * model.head_size} columns, which --tensor-model-parallel-size "
            f"{tensor_parallel} does not divide"
        )


def _model(arguments: PretrainArguments) -> Iterator[str]:
    model, tensor_parallel = arguments.model, arguments.parallel.tensor_model_parallel_size
    if model.ffn_size % tensor_parallel:
        given = "" if model.ffn_hidden_size else " (from --hidden-size)"
        yield (
            f"--ffn-hidden-size {model.ffn_size}{given} cannot be divided by "
            f"--tensor-model-parallel-size {tensor_parallel}"
        )
    if model.padded_vocab_size is not None and model.padded_vocab_size % tensor_parallel:
        yield (
            f"--padded-vocab-size {model.padded_vocab_size} cannot be divided by "
            f"--tensor-model-parallel-size {tensor_parallel}"
        )
    if model.padded_vocab_size is not None and model.padded_vocab_size < (model.vocab_size or 0):
        yield f"--padded-vocab-size {model.padded_vocab_size} is less than --vocab-size {model.vocab_size}"
    if model.attention_dropout > 0:
        yield (
            f"--attention-dropout {model.attention_dropout:g}: dropout of attention weights is not built yet; "
            "use 0 (--hidden-dropout is built)"
        )


def _indivisible_batch(arguments: PretrainArguments) -> bool:
    """The micro-batches of an update are not a whole number, or the ranks do not divide."""
    parallel, training = arguments.parallel, arguments.training
    if arguments.world_size % parallel.model_parallel_size:
        return True
    return bool(arguments.global_batch_size % (training.micro_batch_size * arguments.data_parallel_size))


def batch_problems(arguments: PretrainArguments) -> list[str]:
    """What is wrong with the global batch on this layout, one line for each problem."""
    return [*_batch(arguments), *_pipeline(arguments)]


def _batch(arguments: PretrainArguments) -> Iterator[str]:
    parallel, training = arguments.parallel, arguments.training
    if arguments.world_size % parallel.model_parallel_size:
        return
    copies = arguments.data_parallel_size
    if _indivisible_batch(arguments):
        yield (
            f"--global-batch-size {arguments.global_batch_size} is no multiple of --micro-batch-size "
            f"{training.micro_batch_size} × {copies} data-parallel ranks"
        )
    batch = arguments.global_batch_size
    if training.train_samples is not None and training.train_samples < batch:
        yield f"--train-samples {training.train_samples} is less than one --global-batch-size {batch}"


def _length(arguments: PretrainArguments) -> Iterator[str]:
    model, data, parallel = arguments.model, arguments.data, arguments.parallel
    tensor_parallel = parallel.tensor_model_parallel_size
    if model.max_position_embeddings is not None and data.seq_length > model.max_position_embeddings:
        yield f"--seq-length {data.seq_length} is more than --max-position-embeddings {model.max_position_embeddings}"
    if not parallel.sequence_parallel or tensor_parallel == 1:
        return
    slots = data.seq_length * arguments.training.micro_batch_size
    if slots % tensor_parallel:
        yield (
            f"--sequence-parallel: the {slots} slots of a micro-batch (--seq-length {data.seq_length} × "
            f"--micro-batch-size {arguments.training.micro_batch_size}) cannot be divided by "
            f"--tensor-model-parallel-size {tensor_parallel}"
        )


RULES = (_layout, _pipeline, _heads, _model, _batch, _length)
