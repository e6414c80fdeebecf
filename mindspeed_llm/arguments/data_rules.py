"""Rules of what a run reads and writes: data, their packing, held-out splits, tokenizer, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mindspeed_llm.arguments.data import weights_and_prefixes
from mindspeed_llm.arguments.hugging_face import holds_model, is_hugging_face
from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.errors import ConfigError


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
    if -1 < data.verify_data_seconds < 0:
        yield f"--verify-data-seconds {data.verify_data_seconds:g}: give seconds from 0 up, or -1 for no limit"
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
    yield from _folders(arguments)
    if checkpoint.save is None and (checkpoint.keep_last is not None or checkpoint.async_save):
        flag = "--async-save" if checkpoint.async_save else f"--keep-last {checkpoint.keep_last}"
        yield f"{flag} needs --save; say where, or leave it out"


def _folders(arguments: PretrainArguments) -> Iterator[str]:
    """What a run writes must not take the place of a model that is there."""
    checkpoint, save, export = arguments.checkpoint, arguments.checkpoint.save, arguments.checkpoint.save_hf
    read = {"--load": checkpoint.load, "--tokenizer-name-or-path": arguments.tokenizer.tokenizer_name_or_path}
    if save is not None and checkpoint.load is not None and _same(save, checkpoint.load) and is_hugging_face(save):
        yield (
            f"--save {save}: --load names the same folder, that of a Hugging Face model, which could not be loaded any "
            "more with checkpoints in it; give another --save"
        )
    elif save is not None and holds_model(save):
        yield (
            f"--save {save}: holds a Hugging Face model, which could not be loaded any more with checkpoints in it; "
            "give another folder"
        )
    if export is None:
        return
    for flag, folder in {"--save": save, **read}.items():
        if folder is not None and _same(export, folder):
            yield f"--save-hf {export}: {flag} names the same folder; give another"
    # An export takes the place of a whole folder, and refuses one that holds anything else: at the end of the run.
    for flag, folder in {"--save": save, "--run-dir": arguments.logging.run_dir}.items():
        if folder is not None and _inside(folder, export):
            yield f"{flag} {folder}: inside --save-hf {export}, which is to hold the exported model alone; give another"


def _same(one: str, other: str) -> bool:
    """Whether two paths name one folder, however they are spelled."""
    return Path(one).resolve() == Path(other).resolve()


def _inside(one: str, other: str) -> bool:
    return Path(other).resolve() in Path(one).resolve().parents


RULES = (_data, _packing, _evaluation, _tokenizer, _checkpoint)
