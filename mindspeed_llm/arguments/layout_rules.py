"""Rules between the flags that divide a model and a batch over ranks."""

from __future__ import annotations

import math

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule, nearest_multiples, violated_rules
from mindspeed_llm.devices import ACCELERATORS
from mindspeed_llm.errors import ConfigError

TENSOR, PIPELINE, CONTEXT = (
    "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size",
    "--context-parallel-size",
)
SIZES = (TENSOR, PIPELINE, CONTEXT)
HEADS = ("--num-attention-heads", "--group-query-attention", "--num-query-groups")
POSITIONS = "--position-embedding-type"
WIDTH_OF_HEAD = ("--hidden-size", "--num-attention-heads", "--kv-channels")
VIRTUAL = "--num-layers-per-virtual-pipeline-stage"
LAYER_LIST = "--num-layer-list"


def _indivisible_ranks(arguments: PretrainArguments) -> bool:
    return arguments.world_size % arguments.parallel.model_parallel_size > 0


def _ranks_message(arguments: PretrainArguments) -> str:
    parallel = arguments.parallel
    ranks, size = arguments.world_size, parallel.model_parallel_size
    numbers = nearest_multiples(ranks, size)
    # With --dry-run there is no launcher that sets the number of ranks.
    start = f"start {numbers} ranks (on one machine: torchrun --nproc_per_node {numbers.partition(' ')[0]})"
    return (
        f"{ranks} {'rank' if ranks == 1 else 'ranks'} cannot be divided by {TENSOR} "
        f"{parallel.tensor_model_parallel_size} × {PIPELINE} {parallel.pipeline_model_parallel_size} = {size}; "
        f"{f'set WORLD_SIZE to {numbers}' if arguments.device.dry_run else start}, or change the sizes"
    )


_LAYOUT = (
    Rule[PretrainArguments](
        (CONTEXT,),
        lambda args: args.parallel.context_parallel_size > 1,
        "{--context-parallel-size}: context parallelism is not supported yet; use 1",
    ),
    # A context-parallel size above 1 is already reported by the rule above.
    Rule[PretrainArguments](
        SIZES,
        lambda args: args.parallel.context_parallel_size == 1 and _indivisible_ranks(args),
        _ranks_message,
    ),
)


def _layer_list_fault(arguments: PretrainArguments) -> str | None:
    """Return the message about an invalid --num-layer-list; None if it is valid or missing."""
    parallel, layers = arguments.parallel, arguments.model.num_layers
    try:
        stages = parallel.layers_of_stages
    except ConfigError as error:
        return str(error)
    if stages is None:
        return None
    given = f"{LAYER_LIST} {parallel.num_layer_list}"
    if len(stages) != parallel.pipeline_model_parallel_size:
        return f"{given} has {len(stages)} numbers; give one for each stage of {PIPELINE} " + str(
            parallel.pipeline_model_parallel_size
        )
    return None if sum(stages) == layers else f"{given} is {sum(stages)} layers, not --num-layers {layers}"


def _layers_of_stage(arguments: PretrainArguments) -> int | None:
    """Return the number of layers per pipeline stage; None if there is one stage or the layers cannot be divided."""
    layers, stages = arguments.model.num_layers, arguments.parallel.pipeline_model_parallel_size
    return None if layers % stages or stages == 1 else layers // stages


def _undivided_stage(arguments: PretrainArguments) -> bool:
    layers, virtual = _layers_of_stage(arguments), arguments.parallel.num_layers_per_virtual_pipeline_stage
    return layers is not None and virtual is not None and layers % virtual > 0


def _indivisible_rounds(arguments: PretrainArguments) -> bool:
    """Return whether the micro-batches of an update cannot be divided by the pipeline stages."""
    # megatron-core requires this of an interleaved pipeline, but checks it only when training has started
    # (megatron/core/pipeline_parallel/schedules.py).
    if _layers_of_stage(arguments) is None or _undivided_stage(arguments) or not arguments.virtual_stages:
        return False
    stages = arguments.parallel.pipeline_model_parallel_size
    # An indivisible global batch has its own rule, and no integer number of micro-batches.
    return not _indivisible_batch(arguments) and arguments.micro_batches % stages > 0


def _batches_of_rounds(arguments: PretrainArguments) -> str:
    """Return the nearest global batch sizes whose micro-batches can be divided by the pipeline stages."""
    per_round = arguments.training.micro_batch_size * arguments.data_parallel_size
    return nearest_multiples(arguments.global_batch_size, per_round * arguments.parallel.pipeline_model_parallel_size)


_PIPELINE = (
    Rule[PretrainArguments](
        ("--num-layers", PIPELINE, LAYER_LIST),
        lambda args: (
            args.parallel.num_layer_list is None and args.model.num_layers % args.parallel.pipeline_model_parallel_size
        ),
        "{--num-layers} cannot be divided by {--pipeline-model-parallel-size}; change one of them, or give the layers "
        "of each stage with --num-layer-list",
    ),
    Rule[PretrainArguments](
        ("--num-layers", PIPELINE, LAYER_LIST), _layer_list_fault, lambda args: _layer_list_fault(args) or ""
    ),
    Rule[PretrainArguments](
        (LAYER_LIST, VIRTUAL),
        lambda args: (
            args.parallel.num_layer_list is not None and args.parallel.num_layers_per_virtual_pipeline_stage is not None
        ),
        "{--num-layer-list} and {--num-layers-per-virtual-pipeline-stage}: keep one of the flags, because the stages "
        "of an interleaved pipeline are equal",
    ),
    Rule[PretrainArguments](
        (VIRTUAL, PIPELINE),
        lambda args: (
            args.parallel.num_layers_per_virtual_pipeline_stage is not None
            and args.parallel.pipeline_model_parallel_size == 1
        ),
        "{--num-layers-per-virtual-pipeline-stage} needs --pipeline-model-parallel-size above 1; leave it out",
    ),
    Rule[PretrainArguments](
        (VIRTUAL, "--num-layers", PIPELINE),
        _undivided_stage,
        lambda args: (
            f"{VIRTUAL} {args.parallel.num_layers_per_virtual_pipeline_stage} does not divide the "
            f"{_layers_of_stage(args)} layers of a stage (--num-layers {args.model.num_layers} / {PIPELINE} "
            f"{args.parallel.pipeline_model_parallel_size}); give a divisor"
        ),
    ),
    Rule[PretrainArguments](
        (VIRTUAL, "--num-layers", *SIZES, "--micro-batch-size", "--global-batch-size"),
        _indivisible_rounds,
        lambda args: (
            f"{VIRTUAL} {args.parallel.num_layers_per_virtual_pipeline_stage}: the {args.micro_batches} "
            f"micro-batches of an update are not a multiple of {PIPELINE} "
            f"{args.parallel.pipeline_model_parallel_size}; give --global-batch-size {_batches_of_rounds(args)}"
        ),
    ),
)


def _undivided_heads(arguments: PretrainArguments) -> bool:
    model = arguments.model
    return model.kv_channels is None and model.hidden_size % model.num_attention_heads > 0


def _odd_rotation(arguments: PretrainArguments) -> bool:
    if arguments.model.learns_positions or _undivided_heads(arguments):
        return False
    # The rotary embedding rotates channels in pairs.
    rotated = int(arguments.model.head_size * arguments.model.rotary_percent)
    return rotated == 0 or rotated % 2 == 1


def _heads_fit_ranks(arguments: PretrainArguments) -> bool:
    return arguments.model.num_attention_heads % arguments.parallel.tensor_model_parallel_size == 0


def _groups_fit_ranks(arguments: PretrainArguments) -> bool:
    """Return whether tensor parallelism can divide the key and value heads."""
    # With fewer groups than ranks, megatron-core gathers the projection and each rank takes its part of a group.
    groups, ranks = arguments.model.query_groups, arguments.parallel.tensor_model_parallel_size
    return groups % ranks == 0 or ranks % groups == 0


def _columns(arguments: PretrainArguments) -> int:
    """Return the number of output columns of the query, key and value projection."""
    model = arguments.model
    return (model.num_attention_heads + 2 * model.query_groups) * model.head_size


_HEADS = (
    Rule[PretrainArguments](
        WIDTH_OF_HEAD,
        _undivided_heads,
        "{--hidden-size} cannot be divided by {--num-attention-heads}; change one of them, or give --kv-channels",
    ),
    Rule[PretrainArguments](
        ("--rotary-percent", POSITIONS, *WIDTH_OF_HEAD),
        _odd_rotation,
        lambda args: (
            f"--rotary-percent {args.model.rotary_percent:g} of a head of {args.model.head_size} (--hidden-size / "
            "--num-attention-heads, or --kv-channels) is not an even number of channels above 0; change one of them"
        ),
    ),
    Rule[PretrainArguments](
        ("--group-query-attention", "--num-query-groups"),
        lambda args: args.model.group_query_attention and args.model.num_query_groups is None,
        "--group-query-attention needs --num-query-groups; add it",
    ),
    Rule[PretrainArguments](
        HEADS,
        lambda args: (
            not args.model.group_query_attention
            and args.model.num_query_groups not in (None, args.model.num_attention_heads)
        ),
        "{--num-query-groups} has no effect without --group-query-attention; add it",
    ),
    Rule[PretrainArguments](
        HEADS,
        lambda args: args.model.num_attention_heads % args.model.query_groups,
        "{--num-attention-heads} cannot be divided by {--num-query-groups}; change one of them",
    ),
    Rule[PretrainArguments](
        ("--num-attention-heads", TENSOR),
        lambda args: not _heads_fit_ranks(args),
        "{--num-attention-heads} cannot be divided by {--tensor-model-parallel-size}; change one of them",
    ),
    Rule[PretrainArguments](
        (*HEADS, TENSOR),
        lambda args: _heads_fit_ranks(args) and not _groups_fit_ranks(args),
        "{--num-query-groups} must be a multiple or a divisor of {--tensor-model-parallel-size}; change one of them",
    ),
    Rule[PretrainArguments](
        (*HEADS, *WIDTH_OF_HEAD, TENSOR),
        lambda args: (
            _heads_fit_ranks(args)
            and _groups_fit_ranks(args)
            and _columns(args) % args.parallel.tensor_model_parallel_size
        ),
        lambda args: (
            f"the query, key and value projection of --num-attention-heads {args.model.num_attention_heads} and "
            f"--num-query-groups {args.model.query_groups} has {_columns(args)} columns, which cannot be divided by "
            f"{TENSOR} {args.parallel.tensor_model_parallel_size}; change one of them"
        ),
    ),
)


def _vocabulary_and_ranks(arguments: PretrainArguments) -> tuple[int, int]:
    return arguments.model.padded_vocab_size or 0, arguments.parallel.tensor_model_parallel_size


_MODEL = (
    Rule[PretrainArguments](
        ("--ffn-hidden-size", "--hidden-size", "--swiglu", TENSOR),
        lambda args: args.model.ffn_size % args.parallel.tensor_model_parallel_size,
        lambda args: (
            f"--ffn-hidden-size {args.model.ffn_size}"
            f"{'' if args.model.ffn_hidden_size else ' (from --hidden-size)'} cannot be divided by "
            f"{TENSOR} {args.parallel.tensor_model_parallel_size}; change one of them"
        ),
    ),
    Rule[PretrainArguments](
        ("--padded-vocab-size", "--vocab-size", TENSOR),
        lambda args: (args.model.padded_vocab_size or 0) % args.parallel.tensor_model_parallel_size,
        lambda args: (
            f"--padded-vocab-size {args.model.padded_vocab_size} cannot be divided by {TENSOR} "
            f"{args.parallel.tensor_model_parallel_size}; give "
            f"{nearest_multiples(*_vocabulary_and_ranks(args), args.model.vocab_size or 1)}, or change the other"
        ),
    ),
    Rule[PretrainArguments](
        ("--padded-vocab-size", "--vocab-size"),
        lambda args: (
            args.model.padded_vocab_size is not None and args.model.padded_vocab_size < (args.model.vocab_size or 0)
        ),
        "{--padded-vocab-size} is less than {--vocab-size}; raise it",
    ),
    Rule[PretrainArguments](
        (POSITIONS, "--max-position-embeddings"),
        lambda args: args.model.learns_positions and args.model.max_position_embeddings is None,
        "{--position-embedding-type} needs --max-position-embeddings, the number of rows of the position table; add it",
    ),
    Rule[PretrainArguments](
        (POSITIONS, "--use-rope-scaling"),
        lambda args: args.model.learns_positions and args.model.use_rope_scaling,
        "{--use-rope-scaling} has no effect with {--position-embedding-type}; leave one of them out",
    ),
    Rule[PretrainArguments](
        ("--attention-dropout",),
        lambda args: args.model.attention_dropout > 0,
        "{--attention-dropout}: dropout of attention weights is not supported yet; use 0 (--hidden-dropout is "
        "supported)",
    ),
)


def _indivisible_batch(arguments: PretrainArguments) -> bool:
    """Return whether the global batch cannot be divided into micro-batches of all ranks."""
    # Without an integer data-parallel size there are no micro-batches to count.
    if _indivisible_ranks(arguments):
        return True
    per_round = arguments.training.micro_batch_size * arguments.data_parallel_size
    return arguments.global_batch_size % per_round > 0


_BATCH = (
    Rule[PretrainArguments](
        ("--global-batch-size", "--micro-batch-size", *SIZES),
        lambda args: not _indivisible_ranks(args) and _indivisible_batch(args),
        lambda args: (
            f"--global-batch-size {args.global_batch_size} is not a multiple of --micro-batch-size "
            f"{args.training.micro_batch_size} × {args.data_parallel_size} data-parallel ranks; give "
            f"{nearest_multiples(args.global_batch_size, args.training.micro_batch_size * args.data_parallel_size)}, "
            "or change the others"
        ),
    ),
    Rule[PretrainArguments](
        ("--train-samples", "--global-batch-size", "--micro-batch-size", *SIZES),
        lambda args: (
            not _indivisible_ranks(args)
            and args.training.train_samples is not None
            and args.training.train_samples < args.global_batch_size
        ),
        lambda args: (
            f"--train-samples {args.training.train_samples} is less than one --global-batch-size "
            f"{args.global_batch_size}; raise it"
        ),
    ),
)


def batch_problems(arguments: PretrainArguments) -> list[str]:
    """Return the problems of the global batch size with this layout, one line per problem.

    A resumed run calls this again: without --global-batch-size its batch size is known only after its checkpoint is
    read.

    Args:
        arguments: arguments of the command line.
    """
    return violated_rules((*_BATCH, *_PIPELINE), arguments, arguments.groups)


def _divides_sequences(arguments: PretrainArguments) -> bool:
    return arguments.parallel.sequence_parallel and arguments.parallel.tensor_model_parallel_size > 1


def _slots(arguments: PretrainArguments) -> int:
    """Return the number of slots of a micro-batch."""
    return arguments.data.seq_length * arguments.training.micro_batch_size


def _unit_of_length(arguments: PretrainArguments) -> int:
    """Return the number of which --seq-length must be a multiple, for ranks that divide its slots."""
    ranks = arguments.parallel.tensor_model_parallel_size
    return ranks // math.gcd(ranks, arguments.training.micro_batch_size)


_LENGTH = (
    Rule[PretrainArguments](
        ("--seq-length", "--max-position-embeddings", POSITIONS),
        lambda args: args.data.seq_length > args.max_position_embeddings,
        lambda args: (
            f"--seq-length {args.data.seq_length} is more than --max-position-embeddings {args.max_position_embeddings}"
            f"{', the rows of the table of learned positions' if args.model.learns_positions else ''}; "
            "lower --seq-length"
        ),
    ),
    Rule[PretrainArguments](
        ("--sequence-parallel", "--seq-length", "--micro-batch-size", TENSOR),
        lambda args: _divides_sequences(args) and _slots(args) % args.parallel.tensor_model_parallel_size,
        lambda args: (
            f"--sequence-parallel: the {_slots(args)} slots of a micro-batch (--seq-length {args.data.seq_length} "
            f"× --micro-batch-size {args.training.micro_batch_size}) cannot be divided by "
            f"{TENSOR} {args.parallel.tensor_model_parallel_size}; give --seq-length "
            f"{nearest_multiples(args.data.seq_length, _unit_of_length(args))}, or change the others"
        ),
    ),
)


def _is_other_device(arguments: PretrainArguments) -> bool:
    """Return whether --device-type is not an accelerator of --device."""
    flags = arguments.device
    return flags.device_type is not None and flags.device not in ("auto", ACCELERATORS[flags.device_type].device)


_DEVICE = (
    Rule[PretrainArguments](
        ("--device-type", "--device"),
        _is_other_device,
        lambda args: (
            f"--device-type {args.device.device_type} is a device of --device "
            f"{ACCELERATORS[str(args.device.device_type)].device}, not {args.device.device}; leave --device out"
        ),
    ),
    Rule[PretrainArguments](
        ("--mfu", "--device-type"),
        lambda args: args.device.mfu is not None and args.device.device_type is None,
        "{--mfu} is a fraction of the peak of a device; name it with --device-type",
    ),
)

RULES = (*_LAYOUT, *_PIPELINE, *_HEADS, *_MODEL, *_BATCH, *_LENGTH, *_DEVICE)
