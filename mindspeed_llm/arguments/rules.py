"""The one place for rules between the flags of pretrain_gpt.py.

All of a command line's faults come out together: those of single flags (unknown, missing, not a number) and those
between flags. A rule is not applied to a flag whose own value is at fault, so that one slip is one line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mindspeed_llm.arguments import hugging_face
from mindspeed_llm.arguments.data import weights_and_prefixes
from mindspeed_llm.arguments.parsing import flags_of, read_groups
from mindspeed_llm.arguments.pretrain import GROUPS, PretrainArguments
from mindspeed_llm.errors import ConfigError

PROGRAM = "pretrain_gpt.py"
DESCRIPTION = "Fine-tune a language model on packed instruction data."

# Flags of Megatron and MindSpeed-LLM for what is not built yet: how they begin, and what they belong to.
NOT_BUILT = {
    "--lora-": "LoRA",
    "--qlora": "LoRA",
    "--num-experts": "mixture of experts",
    "--expert-": "mixture of experts",
    "--moe-": "mixture of experts",
    "--context-parallel-": "context parallelism",
    "--cp-": "context parallelism",
    "--multi-latent-attention": "multi-latent attention",
    "--mtp-": "multi-token prediction",
    "--fp8-": "fp8 training",
}


def parse_pretrain(argv: Sequence[str], world_size: int) -> PretrainArguments:
    """The arguments of pretrain_gpt.py, checked.

    Sequence parallelism is switched off where the tensor-parallel size is 1, as in Megatron. With `--load` of a Hugging
    Face folder, what the command leaves out of the model's shape comes from its config.json.

    Args:
        argv: command line without the program's name.
        world_size: ranks of the job.

    Raises:
        ConfigError: everything that is wrong with the command line, one line each.
    """
    folder = hugging_face.folder_of_load(argv)
    config = hugging_face.read_config(folder) if folder else None
    derived = hugging_face.shape_flags(config, argv) if config else []
    parsed = read_groups([*derived, *argv], GROUPS, PROGRAM, DESCRIPTION, refusal)
    arguments = PretrainArguments.from_groups(parsed.groups, world_size, parsed.given.difference(derived))
    problems = parsed.problems + _about_others(check(arguments, world_size), parsed.doubtful)
    if config:
        disagreements = hugging_face.disagreements(config, arguments.model, arguments.data.seq_length)
        problems += _about_others(disagreements, parsed.doubtful)
    if problems:
        raise ConfigError(problems)
    if arguments.parallel.tensor_model_parallel_size == 1:
        arguments.parallel.sequence_parallel = False
    return arguments


def refusal(name: str) -> str | None:
    """Why a flag that no group has is refused, or None if it is simply unknown."""
    for beginning, subject in NOT_BUILT.items():
        if name.startswith(beginning):
            return f"{name}: {subject} is not built yet; leave the flag out"
    return None


def check(arguments: PretrainArguments, world_size: int) -> list[str]:
    """All problems of the arguments for a job of `world_size` ranks, one line each."""
    out_of_bounds: dict[str, str] = {}
    groups = [_within_bounds(group, out_of_bounds) for group in arguments.groups]
    inside = PretrainArguments.from_groups(groups, world_size, arguments.given)
    problems = [problem for rule in RULES for problem in rule(inside)]
    return list(out_of_bounds.values()) + _about_others(problems, out_of_bounds)


def _about_others(problems: list[str], flags: Iterable[str]) -> list[str]:
    """The problems that name none of `flags`."""
    return [text for text in problems if not any(re.search(rf"{re.escape(flag)}(?![\w-])", text) for flag in flags)]


def _within_bounds(group: Any, out_of_bounds: dict[str, str]) -> Any:
    """`group` with every value outside its bounds reported and replaced by one inside, so that rules can go on."""
    replaced: dict[str, Any] = {}
    for flag in flags_of(group.__class__):
        metadata, value = flag.field.metadata, getattr(group, flag.field.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        faults = (
            (f"at least {metadata.get('minimum')}", "minimum" in metadata and value < metadata["minimum"]),
            (f"above {metadata.get('above')}", "above" in metadata and value <= metadata["above"]),
            (f"at most {metadata.get('maximum')}", "maximum" in metadata and value > metadata["maximum"]),
            (f"below {metadata.get('below')}", "below" in metadata and value >= metadata["below"]),
        )
        for bound, is_fault in faults:
            if is_fault:
                out_of_bounds[flag.name] = f"{flag.name} {value}: must be {bound}"
                replaced[flag.field.name] = type(value)(metadata.get("minimum", metadata.get("maximum", 1)))
    return dataclasses.replace(group, **replaced) if replaced else group


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
    copies = arguments.data_parallel_size
    return bool(training.global_batch(copies) % (training.micro_batch_size * copies))


def _batch(arguments: PretrainArguments) -> Iterator[str]:
    parallel, training = arguments.parallel, arguments.training
    if arguments.world_size % parallel.model_parallel_size:
        return
    copies = arguments.data_parallel_size
    if _indivisible_batch(arguments):
        yield (
            f"--global-batch-size {training.global_batch_size} is no multiple of --micro-batch-size "
            f"{training.micro_batch_size} × {copies} data-parallel ranks"
        )
    batch = training.global_batch(copies)
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
    if data.variable_seq_lengths and data.pad_to_multiple_of % tensor_parallel:
        yield (
            f"--sequence-parallel: --pad-to-multiple-of {data.pad_to_multiple_of} is no multiple of "
            f"--tensor-model-parallel-size {tensor_parallel}"
        )


def _schedule(arguments: PretrainArguments) -> Iterator[str]:
    training = arguments.training
    lengths = [("iters", training.train_iters), ("samples", training.train_samples), ("epochs", training.train_epochs)]
    given = [f"--train-{unit} {value}" for unit, value in lengths if value is not None]
    if not given:
        yield "how long to train is not said: give --train-iters, --train-samples or --train-epochs"
    if len(given) > 1:
        yield f"{' and '.join(given)}: how long to train is said more than once; keep one"
    if training.min_lr > training.lr:
        yield f"--min-lr {training.min_lr:g} is above --lr {training.lr:g}"
    if training.lr_warmup_fraction is not None and training.lr_warmup_iters:
        yield (
            f"--lr-warmup-fraction {training.lr_warmup_fraction:g} and --lr-warmup-iters {training.lr_warmup_iters}: "
            "keep one"
        )
    if training.train_samples is not None and (training.lr_warmup_iters or training.lr_decay_iters is not None):
        flag = "--lr-warmup-iters" if training.lr_warmup_iters else "--lr-decay-iters"
        yield f"{flag} does not go with --train-samples; use --lr-warmup-fraction, or --train-iters"
    decay = training.lr_decay_iters or training.train_iters
    if decay is not None and training.lr_warmup_iters >= decay:
        flag = "--lr-decay-iters" if training.lr_decay_iters else "--train-iters"
        yield f"--lr-warmup-iters {training.lr_warmup_iters} is not less than {flag} {decay}"


def _recompute(arguments: PretrainArguments) -> Iterator[str]:
    training, parallel = arguments.training, arguments.parallel
    if training.recompute_activations and training.recompute_granularity == "full":
        yield "--recompute-activations means --recompute-granularity selective, not full; keep one"
    elif training.recompute == "full":
        if training.recompute_method is None:
            yield "--recompute-granularity full needs --recompute-method, uniform or block"
        if training.recompute_num_layers is None:
            yield "--recompute-granularity full needs --recompute-num-layers, for example 1"
    else:
        for flag, value in (
            ("--recompute-method", training.recompute_method),
            ("--recompute-num-layers", training.recompute_num_layers),
        ):
            if value is not None:
                yield f"{flag} {value} goes with --recompute-granularity full alone"
    layers = arguments.model.num_layers // parallel.pipeline_model_parallel_size
    if training.recompute_num_layers is not None and training.recompute_num_layers > layers > 0:
        yield f"--recompute-num-layers {training.recompute_num_layers}: a pipeline stage has {layers} layers"
        return
    chunk = layers // (arguments.virtual_stages or 1)
    if training.recompute_method == "uniform" and chunk % (training.recompute_num_layers or 1):
        # megatron-core would reach for layers that are not there.
        yield (
            f"--recompute-num-layers {training.recompute_num_layers} does not divide the {chunk} layers of a "
            f"{'virtual ' if arguments.virtual_stages else ''}pipeline stage, as --recompute-method uniform needs"
        )


def _optimizer(arguments: PretrainArguments) -> Iterator[str]:
    training, parallel = arguments.training, arguments.parallel
    if training.bf16 and training.fp16:
        yield "--bf16 and --fp16: keep one"
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        yield "--overlap-param-gather needs --use-distributed-optimizer"
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        yield "--overlap-param-gather needs --overlap-grad-reduce"
    if training.calculate_per_token_loss and training.loss_normalization != "token":
        yield (
            f"--calculate-per-token-loss means --loss-normalization token, not {training.loss_normalization}; keep one"
        )


def _data(arguments: PretrainArguments) -> Iterator[str]:
    data = arguments.data
    paths = {
        "--data-path": data.data_path,
        "--train-data-path": data.train_data_path,
        "--valid-data-path": data.valid_data_path,
        "--test-data-path": data.test_data_path,
    }
    for flag, words in paths.items():
        weights, prefixes = weights_and_prefixes(words)
        if weights is not None and any(not 0 < weight < float("inf") for weight in weights):
            yield f"{flag} {' '.join(words)}: weights must be above 0"
        if any(not prefix for prefix in prefixes):
            yield f"{flag}: an empty prefix"
    if data.data_path and data.per_split_paths:
        own = ", ".join(flag for flag, words in paths.items() if words and flag != "--data-path")
        yield f"--data-path and {own}: give one data path with --split, or one for each split"
    elif data.per_split_paths and not data.train_data_path:
        yield "--train-data-path is missing beside --valid-data-path or --test-data-path"
    elif not data.data_path and not data.per_split_paths and not arguments.device.dry_run:
        yield "--data-path is missing: the --output-prefix that preprocess_data.py was given"
    if data.per_split_paths and data.split is not None:
        yield f"--split {data.split} divides --data-path; it does not go with a data path for each split"
    try:
        if data.shares[0] == 0 and not data.per_split_paths:
            yield f"--split {data.split}: nothing is left for training; give its first number more than 0"
    except ConfigError as error:
        yield str(error)


def _packing(arguments: PretrainArguments) -> Iterator[str]:
    data = arguments.data
    if not data.is_instruction_dataset:
        yield "--is-instruction-dataset is missing: other data than preprocess_data.py's are not built yet; add it"
    if data.neat_pack and not (data.reset_position_ids or data.reset_attention_mask):
        yield (
            "--neat-pack needs --reset-position-ids (positions begin again in each sample) or --reset-attention-mask "
            "(positions run on)"
        )
    if data.no_shuffle and data.full_shuffle_instruction_dataset:
        yield "--no-shuffle and --full-shuffle-instruction-dataset: keep one"
    if data.length_grouped and not data.variable_seq_lengths:
        yield "--length-grouped has no effect on batches padded to --seq-length; add --variable-seq-lengths"
    if data.length_grouped and data.neat_pack:
        yield "--length-grouped and --neat-pack: packs all have --seq-length; keep one"
    if data.length_grouped and data.no_shuffle:
        yield "--length-grouped and --no-shuffle: keep one"
    if data.variable_seq_lengths and data.pad_to_multiple_of > data.seq_length:
        yield f"--pad-to-multiple-of {data.pad_to_multiple_of} is more than --seq-length {data.seq_length}"


def _evaluation(arguments: PretrainArguments) -> Iterator[str]:
    training, data = arguments.training, arguments.data
    asked_for = training.eval_interval is not None or "--eval-iters" in arguments.given
    if not asked_for or training.eval_iters == 0 or not (data.data_path or data.per_split_paths):
        return
    try:
        has_validation = data.has_validation
    except ConfigError:  # --split is at fault itself
        return
    if not has_validation:
        missing = "add --valid-data-path" if data.per_split_paths else f"--split {data.split} leaves validation nothing"
        yield (
            f"--eval-iters {training.eval_iters}: there is nothing to evaluate on; {missing} "
            "(for example --split 95,5,0 divides --data-path), or give --eval-iters 0"
        )


def _tokenizer(arguments: PretrainArguments) -> Iterator[str]:
    tokenizer, model = arguments.tokenizer, arguments.model
    path = tokenizer.tokenizer_name_or_path or tokenizer.tokenizer_model
    if tokenizer.tokenizer_type == "PretrainedFromHF" and not tokenizer.tokenizer_name_or_path:
        yield "--tokenizer-type PretrainedFromHF needs --tokenizer-name-or-path"
    elif tokenizer.tokenizer_type == "GPTSentencePieceTokenizer" and not path:
        yield "--tokenizer-type GPTSentencePieceTokenizer needs --tokenizer-model"
    elif path and tokenizer.tokenizer_type is None:
        yield "--tokenizer-type is missing: PretrainedFromHF or GPTSentencePieceTokenizer"
    elif not path and model.vocab_size is None and model.padded_vocab_size is None:
        yield (
            "the vocabulary is unknown: give --tokenizer-type and --tokenizer-name-or-path, --vocab-size or "
            "--padded-vocab-size"
        )


def _checkpoint(arguments: PretrainArguments) -> Iterator[str]:
    checkpoint = arguments.checkpoint
    if checkpoint.save_interval is not None and checkpoint.save is None:
        yield f"--save-interval {checkpoint.save_interval} needs --save; say where, or leave it out"
    if checkpoint.save_hf is not None and checkpoint.save is None:
        yield f"--save-hf {checkpoint.save_hf} needs --save: it is made from the last checkpoint"
    if checkpoint.save_hf is not None and checkpoint.save_hf in (checkpoint.save, checkpoint.load):
        yield f"--save-hf {checkpoint.save_hf}: --save or --load names the same folder; give another"
    if checkpoint.save is None and (checkpoint.keep_last is not None or checkpoint.async_save):
        flag = "--async-save" if checkpoint.async_save else f"--keep-last {checkpoint.keep_last}"
        yield f"{flag} needs --save; say where, or leave it out"


RULES: tuple[Callable[[PretrainArguments], Iterator[str]], ...] = (
    _layout,
    _pipeline,
    _heads,
    _model,
    _batch,
    _length,
    _schedule,
    _recompute,
    _optimizer,
    _data,
    _packing,
    _evaluation,
    _tokenizer,
    _checkpoint,
)
