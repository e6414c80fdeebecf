"""Rules between the flags of data, packing, tokenizer and the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder, read_config
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import ModelFamily, is_family_name

# Flag of a data path → its values.
PATHS: dict[str, Callable[[PretrainArguments], list[str]]] = {
    "--data-path": lambda args: args.data.data_path,
    "--train-data-path": lambda args: args.data.train_data_path,
    "--valid-data-path": lambda args: args.data.valid_data_path,
    "--test-data-path": lambda args: args.data.test_data_path,
}
TOKENIZER = ("--tokenizer-type", "--tokenizer-name-or-path", "--tokenizer-model")
VOCABULARY = (*TOKENIZER, "--vocab-size", "--padded-vocab-size")


def _path_rules(flag: str) -> tuple[Rule[PretrainArguments], Rule[PretrainArguments]]:
    def bad_weights(arguments: PretrainArguments) -> bool:
        weights, _ = parse_data_path(PATHS[flag](arguments))
        return weights is not None and any(not 0 < weight < float("inf") for weight in weights)

    def empty_prefix(arguments: PretrainArguments) -> bool:
        _, prefixes = parse_data_path(PATHS[flag](arguments))
        return any(not prefix for prefix in prefixes)

    return (
        Rule[PretrainArguments]((flag,), bad_weights, f"{{{flag}}}: weights must be above 0"),
        Rule[PretrainArguments](
            (flag,), empty_prefix, f"{flag}: a prefix is empty; give the --output-prefix of preprocess_data.py"
        ),
    )


def _split_fault(arguments: PretrainArguments) -> str | None:
    """Return the message about an invalid --split; None if it is valid."""
    try:
        _ = arguments.data.shares
    except ConfigError as error:
        return str(error)
    return None


def _two_kinds_message(arguments: PretrainArguments) -> str:
    flags = ", ".join(flag for flag, values in PATHS.items() if flag != "--data-path" and values(arguments))
    return f"--data-path and {flags}: give one data path with --split, or one per split"


_DATA = (
    *(rule for flag in PATHS for rule in _path_rules(flag)),
    Rule[PretrainArguments](
        tuple(PATHS),
        lambda args: args.data.data_path and args.data.per_split_paths,
        _two_kinds_message,
    ),
    Rule[PretrainArguments](
        tuple(PATHS),
        lambda args: not args.data.data_path and args.data.per_split_paths and not args.data.train_data_path,
        "--train-data-path is missing: add it, because --valid-data-path or --test-data-path is given",
    ),
    Rule[PretrainArguments](
        (*PATHS, "--dry-run"),
        lambda args: not args.data.data_path and not args.data.per_split_paths and not args.device.dry_run,
        "--data-path is missing: give the --output-prefix of preprocess_data.py",
    ),
    Rule[PretrainArguments](
        ("--verify-data-seconds",),
        lambda args: -1 < args.data.verify_data_seconds < 0,
        "{--verify-data-seconds}: give at least 0 seconds, or -1 for no limit",
    ),
    Rule[PretrainArguments](
        ("--split", *PATHS),
        lambda args: args.data.per_split_paths and args.data.split is not None,
        "{--split} divides --data-path; leave it out if each split has its own data path",
    ),
    Rule[PretrainArguments](
        ("--split", *PATHS),
        lambda args: not args.data.per_split_paths and not _split_fault(args) and args.data.shares[0] == 0,
        "{--split}: nothing is left for training; the first number must be above 0",
    ),
    Rule[PretrainArguments](("--split",), _split_fault, lambda args: _split_fault(args) or ""),
)


def _only_for_packs(flag: str, is_given: Callable[[PretrainArguments], object]) -> Rule[PretrainArguments]:
    """Return the rule that a flag of packed files is not given for documents."""
    return Rule[PretrainArguments](
        (flag, "--is-instruction-dataset"),
        lambda args: is_given(args) and not args.data.is_instruction_dataset,
        f"{{{flag}}} is for packed files: add --is-instruction-dataset, or leave the flag out to train on documents",
    )


def _only_for_documents(flag: str, is_given: Callable[[PretrainArguments], object]) -> Rule[PretrainArguments]:
    """Return the rule that a flag of documents is not given for packed files."""
    return Rule[PretrainArguments](
        (flag, "--is-instruction-dataset"),
        lambda args: is_given(args) and args.data.is_instruction_dataset,
        f"{{{flag}}} is for documents, not for packed files; leave it out, or leave --is-instruction-dataset out",
    )


def _reads_text(handler: str | None) -> bool:
    return "Pretrain" in (handler or "")


_PACKING = (
    *(
        _only_for_packs(flag, value)
        for flag, value in (
            ("--neat-pack", lambda args: args.data.neat_pack),
            ("--variable-seq-lengths", lambda args: args.data.variable_seq_lengths),
            ("--length-grouped", lambda args: args.data.length_grouped),
            ("--prompt-type", lambda args: args.data.prompt_type is not None),
            ("--pack", lambda args: args.raw_data.pack),
        )
    ),
    Rule[PretrainArguments](
        ("--handler-name", "--is-instruction-dataset"),
        lambda args: (
            not args.data.is_instruction_dataset and args.raw_data.given and not _reads_text(args.raw_data.handler_name)
        ),
        lambda args: (
            f"--handler-name {args.raw_data.handler_name} reads instructions: add --is-instruction-dataset, or give "
            "GeneralPretrainHandler or AlpacaPretrainHandler to pretrain on documents"
        ),
    ),
    *(
        _only_for_documents(flag, value)
        for flag, value in (
            ("--eod-id", lambda args: args.data.eod_id is not None),
            ("--split-in-file-order", lambda args: args.data.split_in_file_order),
        )
    ),
    Rule[PretrainArguments](
        ("--eod-id", "--vocab-size", "--padded-vocab-size"),
        lambda args: (
            args.data.eod_id is not None
            and args.data.eod_id >= (args.model.vocab_size or args.model.padded_vocab_size or args.data.eod_id + 1)
        ),
        "{--eod-id} is not a token of the vocabulary (--vocab-size, or else --padded-vocab-size)",
    ),
    Rule[PretrainArguments](
        ("--stage", "--is-instruction-dataset"),
        lambda args: args.training.stage == "sft" and not args.data.is_instruction_dataset,
        "--stage sft needs --is-instruction-dataset, the packed files of preprocess_data.py; add it, or give --stage "
        "pretrain to train on documents",
    ),
    Rule[PretrainArguments](
        ("--neat-pack", "--reset-position-ids", "--reset-attention-mask", "--is-instruction-dataset"),
        lambda args: (
            args.data.is_instruction_dataset
            and args.data.neat_pack
            and not (args.data.reset_position_ids or args.data.reset_attention_mask)
        ),
        "--neat-pack needs --reset-position-ids (positions restart at 0 in each sample) or --reset-attention-mask "
        "(positions continue across samples)",
    ),
    Rule[PretrainArguments](
        ("--no-shuffle", "--full-shuffle-instruction-dataset"),
        lambda args: args.data.no_shuffle and args.data.full_shuffle_instruction_dataset,
        "--no-shuffle and --full-shuffle-instruction-dataset: keep one of the flags",
    ),
    Rule[PretrainArguments](
        ("--length-grouped", "--variable-seq-lengths"),
        lambda args: args.data.length_grouped and not args.data.variable_seq_lengths,
        "--length-grouped has no effect on batches padded to --seq-length; add --variable-seq-lengths",
    ),
    Rule[PretrainArguments](
        ("--length-grouped", "--neat-pack"),
        lambda args: args.data.length_grouped and args.data.neat_pack,
        "--length-grouped and --neat-pack: all packs have the same length; keep one of the flags",
    ),
    Rule[PretrainArguments](
        ("--length-grouped", "--no-shuffle"),
        lambda args: args.data.length_grouped and args.data.no_shuffle,
        "--length-grouped and --no-shuffle: keep one of the flags",
    ),
    Rule[PretrainArguments](
        ("--pad-to-multiple-of", "--variable-seq-lengths", "--seq-length"),
        lambda args: args.data.variable_seq_lengths and args.data.pad_to_multiple_of > args.data.seq_length,
        "{--pad-to-multiple-of} is more than {--seq-length}; lower it",
    ),
)


def _tokenizer_path(arguments: PretrainArguments) -> str | None:
    return arguments.tokenizer.tokenizer_name_or_path or arguments.tokenizer.tokenizer_model


_TOKENIZER = (
    Rule[PretrainArguments](
        TOKENIZER,
        lambda args: args.tokenizer.tokenizer_type == "PretrainedFromHF" and not args.tokenizer.tokenizer_name_or_path,
        "--tokenizer-type PretrainedFromHF needs --tokenizer-name-or-path",
    ),
    Rule[PretrainArguments](
        TOKENIZER,
        lambda args: args.tokenizer.tokenizer_type == "GPTSentencePieceTokenizer" and not _tokenizer_path(args),
        "--tokenizer-type GPTSentencePieceTokenizer needs --tokenizer-model",
    ),
    Rule[PretrainArguments](
        VOCABULARY,
        lambda args: (
            args.tokenizer.tokenizer_type is None
            and not _tokenizer_path(args)
            and args.model.vocab_size is None
            and args.model.padded_vocab_size is None
        ),
        "the vocabulary is unknown: give --tokenizer-type and --tokenizer-name-or-path, --vocab-size or "
        "--padded-vocab-size",
    ),
)


def _converts_a_checkpoint(arguments: PretrainArguments) -> bool:
    """Return whether --enable-hf2mg-convert is given with a folder that exists and contains no Hugging Face model."""
    checkpoint = arguments.checkpoint
    if not checkpoint.enable_hf2mg_convert or checkpoint.load is None:
        return False
    return Path(checkpoint.load).exists() and not is_hugging_face_folder(checkpoint.load)


def _family_of_load(arguments: PretrainArguments) -> ModelFamily | None:
    load = arguments.checkpoint.load
    return read_config(load).family if load is not None and is_hugging_face_folder(load) else None


def _is_other_family(arguments: PretrainArguments) -> bool:
    kind, family = arguments.checkpoint.model_type_hf, _family_of_load(arguments)
    return kind is not None and family is not None and not is_family_name(family, kind)


def _other_family_message(arguments: PretrainArguments) -> str:
    checkpoint, family = arguments.checkpoint, _family_of_load(arguments)
    described = family.model_type if family is not None else None
    return (
        f"--model-type-hf {checkpoint.model_type_hf}: {Path(str(checkpoint.load)) / 'config.json'} describes a "
        f"{described}; leave the flag out"
    )


_LOAD = (
    Rule[PretrainArguments](
        ("--hf-config-path", "--load"),
        lambda args: args.checkpoint.hf_config_path is not None and args.checkpoint.load is not None,
        "{--hf-config-path} is for random weights, and --load has weights with their own shape; leave one of them out",
    ),
    Rule[PretrainArguments](
        ("--enable-hf2mg-convert", "--load"),
        lambda args: args.checkpoint.enable_hf2mg_convert and args.checkpoint.load is None,
        "--enable-hf2mg-convert needs --load: the folder of a Hugging Face model",
    ),
    Rule[PretrainArguments](
        ("--enable-hf2mg-convert", "--load"),
        _converts_a_checkpoint,
        "--enable-hf2mg-convert: {--load} is no Hugging Face folder (config.json, and no checkpoint of megatron-core); "
        "leave the flag out to load a checkpoint",
    ),
    Rule[PretrainArguments](("--model-type-hf", "--load"), _is_other_family, _other_family_message),
)

RULES = (*_DATA, *_PACKING, *_TOKENIZER, *_LOAD)
