"""Determine the model shape of --load or --hf-config-path, complete missing flags with it and refuse conflicting flags.

No tensor depends on rotary base, rope scaling and epsilon. A checkpoint would therefore load with flags that describe
another model. These values are read from:

    Hugging Face folder                      config.json
    checkpoint of a run of this program      iter_N/run.json, the arguments of that run
    checkpoint written by convert_ckpt.py    iter_N/hugging_face/config.json
    checkpoint of another program            unknown

Flags that a command does not give are taken from there. Flags that it gives must agree.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.bounds import violated_bound
from mindspeed_llm.arguments.command_words import value_of
from mindspeed_llm.arguments.config_json import format_value
from mindspeed_llm.arguments.dataclass_parser import Flag, declared_flags
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder, read_config
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.checkpoint_directory import CARRIED, FILES, RECORD, RELEASE, CheckpointDirectory
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.storage.safe_open import read_file_bytes

VOCABULARY = ("vocab_size", "padded_vocab_size", "make_vocab_size_divisible_by")
# Fields of ModelArguments that each run chooses, or that have no effect: they are not part of the model's shape.
RUN_SPECIFIC_FIELDS = (
    "init_method_std",
    "attention_dropout",
    "hidden_dropout",
    "attention_softmax_in_fp32",
    "transformer_impl",
    "use_mcore_models",
    "make_vocab_size_divisible_by",
)


@dataclass(frozen=True)
class LoadedShape:
    """Shape of a model, as stored in its directory.

    Attributes:
        path: file that contains the shape.
        fields: field of ModelArguments → value; unknown values are missing or None.
        window: width of sliding-window attention in tokens, or None; see `HuggingFaceConfig`.
        is_checkpoint: whether the directory is a checkpoint of megatron-core. If so, a notice names the values that are
            taken from it.
    """

    path: Path
    fields: Mapping[str, Any]
    window: int | None = None
    is_checkpoint: bool = False

    @property
    def model(self) -> ModelArguments:
        """Shape of the model as arguments."""
        return ModelArguments(**self.fields)

    def missing_flags(self, argv: Sequence[str]) -> list[str]:
        """Return the arguments, flags and values, that complete the model shape of a command line.

        Args:
            argv: command-line arguments without the program's name.
        """
        given = {argument.partition("=")[0] for argument in argv}
        # With --padded-vocab-size the divisor has no effect.
        if "--padded-vocab-size" in given:
            given.add("--make-vocab-size-divisible-by")
        vocabulary_given = any(flag.name in given for flag in _flags() if flag.field.name in VOCABULARY)
        missing: list[str] = []
        for flag in _flags():
            name, value = flag.field.name, self.fields.get(flag.field.name)
            if value is None or value is False or not given.isdisjoint(flag.names):
                continue
            if self.is_checkpoint and name in VOCABULARY and vocabulary_given:
                continue
            raises_limit = self.is_checkpoint and not self.model.learns_positions
            if raises_limit and name == "max_position_embeddings" and _is_exceeded(value, argv):
                continue
            missing += [flag.name] if value is True else [flag.name, _as_argument(value)]
        return missing

    def _implied(self, name: str) -> str | None:
        """Return the value that a flag has if it is not given and that is derived from other flags; None if unknown."""
        model = self.model
        implied = {
            "--kv-channels": model.hidden_size // model.num_attention_heads,
            "--ffn-hidden-size": replace(model, ffn_hidden_size=None).ffn_size,
            "--max-position-embeddings": model.max_position_embeddings,  # only a limit: not worth a notice
        }
        return str(implied[name]) if name in implied else None

    def notice(self, words: Sequence[str]) -> str | None:
        """Return a line that names the arguments taken from a checkpoint; None if they equal the defaults.

        Args:
            words: arguments returned by `missing_flags`.
        """
        if not self.is_checkpoint:
            return None
        by_name = {flag.name: flag for flag in _flags()}
        taken = []
        for number, word in enumerate(words):
            if word not in by_name:
                continue
            flag = by_name[word]
            value = None if flag.switch is not None else words[number + 1]
            if value is None or value not in (_as_argument(flag.field.default), self._implied(word)):
                taken.append(word if value is None else f"{word} {value}")
        return f"warning: flags that are not given are taken from {self.path}: {', '.join(taken)}" if taken else None


def find_loaded_shape(argv: Sequence[str]) -> LoadedShape | None:
    """Find the model shape of --load or --hf-config-path; return None without both, or if the shape is unknown.

    Damaged and missing checkpoint files are not reported here, but when the checkpoint is selected.

    Args:
        argv: command-line arguments without the program's name.

    Raises:
        ConfigError: a config.json is damaged or describes an unsupported model.
    """
    load, config = value_of("--load", argv), value_of("--hf-config-path", argv)
    if not load:
        return read_config_shape(Path(config), is_checkpoint=False) if config else None
    if is_hugging_face_folder(load):
        return read_config_shape(Path(load), is_checkpoint=False)
    # --load may be gone when the run resumes from its own --save: the checkpoints there have the same shape.
    save = value_of("--save", argv)
    from_save = save is not None and not Path(load).exists()
    resumes = from_save or "--finetune" not in argv
    for folder in _checkpoints(Path(str(save)) if from_save else Path(load)):
        shape = read_checkpoint_shape(folder, of_the_run=resumes)
        # A damaged run.json gives no shape: the previous checkpoint is used, as when the run resumes.
        if shape is not None or not (folder / RECORD).exists():
            return shape
    return None


def read_checkpoint_shape(folder: Path, of_the_run: bool = False) -> LoadedShape | None:
    """Return the model shape of a checkpoint; None if the checkpoint does not contain it.

    Args:
        folder: directory of the checkpoint, iter_NNNNNNN.
        of_the_run: whether the run of the checkpoint resumes, so that the choices of this run are included as well.

    Raises:
        ConfigError: config.json is damaged or describes an unsupported model, or a value in run.json is out of the
            bounds of its flag.
    """
    fields = _fields_of_run(_read_record(folder), () if of_the_run else RUN_SPECIFIC_FIELDS)
    if problems := _bounds_problems(fields):
        raise ConfigError([f"{folder / RECORD}: {problem}; use another checkpoint" for problem in problems])
    if fields:
        return LoadedShape(folder / RECORD, fields, is_checkpoint=True)
    if (folder / CARRIED / "config.json").is_file():
        return read_config_shape(folder / CARRIED, is_checkpoint=True)
    return None


def read_config_shape(folder: Path, is_checkpoint: bool) -> LoadedShape:
    """Return the model shape of a config.json.

    Args:
        folder: directory that contains the file.
        is_checkpoint: whether the file belongs to a checkpoint of megatron-core.

    Raises:
        ConfigError: the file is missing or damaged, or describes an unsupported model.
    """
    config = read_config(folder)
    fields = dict(config.fields)
    # A checkpoint loads with any padding of the vocabulary, so that each command chooses its own.
    if is_checkpoint:
        fields.pop("make_vocab_size_divisible_by", None)
    return LoadedShape(folder / "config.json", fields, config.window, is_checkpoint)


def config_matches_model(folder: Path, model: ModelArguments) -> bool:
    """Return whether the config.json of a folder describes a model with the same shape.

    Args:
        folder: directory that contains config.json.
        model: the model to compare.

    Raises:
        ConfigError: the file is missing or damaged, or describes an unsupported model.
    """
    return not shape_differences(read_config_shape(folder, is_checkpoint=True), model)


def conflicting_flags(shape: LoadedShape, own: ModelArguments, seq_length: int) -> list[tuple[str, str]]:
    """Return (flag, error message) for each flag that conflicts with the shape.

    Args:
        shape: shape stored in the directory of --load.
        own: model arguments of the command.
        seq_length: sequence length of the command in tokens.
    """
    lines = []
    for flag, mine, theirs in shape_differences(shape, own):
        given = flag if mine is True else f"{flag} {shown(mine)}"
        expected = "a model without it" if mine is True else shown(theirs)
        lines.append((flag, f"{given}: {shape.path} specifies {expected}; leave the flag out"))
    maximum = shape.model.max_position_embeddings
    # In run.json the value is a choice of that run: a later run may train on longer sequences.
    is_limit = shape.path.name != RECORD
    is_limit = is_limit and not shape.model.learns_positions
    if is_limit and maximum is not None and (own.max_position_embeddings or 0) > maximum:
        flag = "--max-position-embeddings"
        lines.append((flag, f"{flag} {own.max_position_embeddings}: {shape.path} specifies {maximum}; lower it"))
    # Up to the length of the window, sliding-window attention is the same as full attention.
    if shape.window is not None and seq_length > shape.window:
        window = (
            f"{shape.path} has a sliding window of {shape.window} tokens, which is not supported; "
            f"use at most --seq-length {shape.window}"
        )
        lines.append(("--seq-length", f"--seq-length {seq_length}: {window}"))
    return lines


def shape_differences(shape: LoadedShape, own: ModelArguments) -> list[tuple[str, Any, Any]]:
    """Return (flag, value of the command, stored value) for each value that must agree but differs.

    Args:
        shape: shape stored in a directory.
        own: model arguments of the command.
    """
    return [(flag, mine, theirs) for flag, mine, theirs in _pairs(shape, own, shape.model) if mine != theirs]


def _pairs(shape: LoadedShape, own: ModelArguments, theirs: ModelArguments) -> Iterator[tuple[str, Any, Any]]:
    """Yield (flag, value of the command, stored value) for each value that must agree."""
    yield "--num-layers", own.num_layers, theirs.num_layers
    yield "--hidden-size", own.hidden_size, theirs.hidden_size
    yield "--ffn-hidden-size", own.ffn_size, theirs.ffn_size
    yield "--num-attention-heads", own.num_attention_heads, theirs.num_attention_heads
    yield "--num-query-groups", own.query_groups, theirs.query_groups
    yield "--kv-channels", own.head_size, theirs.head_size
    yield "--disable-bias-linear", own.disable_bias_linear, theirs.disable_bias_linear
    yield "--add-qkv-bias", own.has_qkv_bias, theirs.has_qkv_bias
    yield "--qk-layernorm", own.qk_layernorm, theirs.qk_layernorm
    yield "--swiglu", own.swiglu, theirs.swiglu
    yield "--normalization", own.normalization, theirs.normalization
    yield "--norm-epsilon", own.norm_epsilon, theirs.norm_epsilon
    yield "--position-embedding-type", own.position_embedding_type, theirs.position_embedding_type
    # The rows of a position table; for rotary positions it is only a limit.
    if own.learns_positions and theirs.learns_positions:
        yield "--max-position-embeddings", own.max_position_embeddings, theirs.max_position_embeddings
    else:
        yield "--rotary-base", own.rotary_base, theirs.rotary_base
        yield "--rotary-percent", own.rotary_percent, theirs.rotary_percent
    yield "--use-rope-scaling", own.use_rope_scaling, theirs.use_rope_scaling
    if theirs.use_rope_scaling:
        yield "--rope-scaling-factor", own.rope_scaling_factor, theirs.rope_scaling_factor
    yield (
        "--untie-embeddings-and-output-weights",
        own.untie_embeddings_and_output_weights,
        theirs.untie_embeddings_and_output_weights,
    )
    # A checkpoint loads with any padding: its vocabulary is compared only with a size that the command gives.
    if theirs.vocab_size is not None and (own.vocab_size is not None or not shape.is_checkpoint):
        yield "--vocab-size", own.vocab_size, theirs.vocab_size
    if own.padded_vocab_size is None:
        return
    if not shape.is_checkpoint:
        yield "--padded-vocab-size", own.padded_vocab_size, theirs.vocab_size
    elif theirs.padded_vocab_size is not None:
        yield "--padded-vocab-size", own.padded_vocab_size, theirs.padded_vocab_size


def _checkpoints(root: Path) -> Iterator[Path]:
    """Yield the checkpoint that the tracker names, then the earlier ones, which replace it if it is damaged."""
    directory = CheckpointDirectory(root)
    number = directory.tracker.number()
    if number is not None:
        yield from directory.up_to(number)
    elif directory.tracker.path.is_file():
        yield root / RELEASE


def _read_record(folder: Path) -> dict[str, Any]:
    """Return run.json of a checkpoint; an empty dictionary if it is missing, damaged or does not match files.json."""
    try:
        content = read_file_bytes(folder / RECORD)
        record = json.loads(content)
        if (folder / FILES).exists():
            expected = json.loads(read_file_bytes(folder / FILES))["files"][RECORD]["sha256"]
            if sha256_of(content) != expected:
                return {}
    # Either file may hold arbitrary JSON. Damage is reported when the checkpoint is selected.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _fields_of_run(record: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """Return the model fields in the arguments of a run; an empty dictionary if they are incomplete or invalid."""
    arguments = record.get("arguments")
    values = arguments.get("model") if isinstance(arguments, dict) else None
    if not isinstance(values, dict):
        return {}
    fields: dict[str, Any] = {}
    for flag in _flags():
        name = flag.field.name
        if name in left_out or (name not in values and not flag.required):
            continue
        value = values.get(name)
        if value is None and not flag.required:
            continue
        kinds = (int, float) if flag.kind is float else (flag.kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and flag.kind is not bool):
            return {}
        fields[name] = value
    return fields


def _bounds_problems(fields: Mapping[str, Any]) -> list[str]:
    """Return one line for each value that is out of the bounds of its flag."""
    # Without this check a damaged value, such as 30,000,000 layers, would exhaust the memory: the model is built before
    # its tensors are read.
    lines = []
    for flag in _flags():
        name = flag.field.name
        if flag.kind not in (int, float) or name not in fields:
            continue
        bound = violated_bound(flag.field.metadata, fields[name])
        if bound is not None:
            lines.append(f"{name} is {format_value(fields[name])}, but must be {bound}")
    return lines


def _flags() -> tuple[Flag, ...]:
    return declared_flags(ModelArguments)


def _is_exceeded(positions: int, argv: Sequence[str]) -> bool:
    """Return whether --seq-length is above the maximum number of positions of an earlier run."""
    length = value_of("--seq-length", argv)
    return length is not None and length.isdecimal() and int(length) > positions


def _as_argument(value: Any) -> str:
    """Format a value as a command-line argument, without loss of precision."""
    return repr(value) if isinstance(value, float) else str(value)


def shown(value: object) -> str:
    """Format a value for a message."""
    return f"{value:g}" if isinstance(value, float) else str(value)
