"""The shape of the model that --load names, as far as its folder says it.

Rotary base, rope scaling and epsilon leave no trace in any tensor, so a checkpoint loads under flags that mean another
model. Who knows them:

    Hugging Face folder                      config.json
    checkpoint of a run of this program      iter_N/run.json, the arguments of that run
    checkpoint that convert_ckpt.py wrote    iter_N/hugging_face/config.json
    checkpoint of another program            nobody

What a command leaves out is taken from there; what it gives must agree.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.bounds import violated_bound
from mindspeed_llm.arguments.config_json import format_value as short
from mindspeed_llm.arguments.dataclass_parser import Flag, declared_flags
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder, read_config
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.checkpoint_directory import CARRIED, FILES, RECORD, RELEASE, CheckpointDirectory
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.storage.safe_open import read_file_bytes

VOCABULARY = ("vocab_size", "padded_vocab_size", "make_vocab_size_divisible_by")
# Fields of a run's arguments that are a choice of each run, or without effect, rather than the model's shape.
OF_THE_RUN = (
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
    """What a folder says of its model.

    Attributes:
        path: the file that says it.
        fields: fields of ModelArguments; what is not known is missing or None.
        window: width of sliding-window attention, None without; see `HuggingFaceConfig`.
        is_checkpoint: of megatron-core, so that what is taken from it is announced.
    """

    path: Path
    fields: Mapping[str, Any]
    window: int | None = None
    is_checkpoint: bool = False

    @property
    def model(self) -> ModelArguments:
        """The shape as arguments."""
        return ModelArguments(**self.fields)

    def missing_flags(self, argv: Sequence[str]) -> list[str]:
        """Return flags and values for what `argv` leaves out of the model's shape."""
        given = {word.partition("=")[0] for word in argv}
        if "--padded-vocab-size" in given:
            given.add("--make-vocab-size-divisible-by")
        vocabulary_given = any(flag.name in given for flag in _flags() if flag.field.name in VOCABULARY)
        words: list[str] = []
        for flag in _flags():
            name, value = flag.field.name, self.fields.get(flag.field.name)
            if value is None or value is False or not given.isdisjoint(flag.names):
                continue
            if self.is_checkpoint and name in VOCABULARY and vocabulary_given:
                continue
            if self.is_checkpoint and name == "max_position_embeddings" and _is_exceeded(value, argv):
                continue
            words += [flag.name] if value is True else [flag.name, _written(value)]
        return words

    def _implied(self, name: str) -> str | None:
        """The value that a flag has without being given, where that is not a plain default; None if unknown."""
        model = self.model
        implied = {
            "--kv-channels": model.hidden_size // model.num_attention_heads,
            "--ffn-hidden-size": replace(model, ffn_hidden_size=None).ffn_size,
            "--max-position-embeddings": model.max_position_embeddings,  # a bound alone
        }
        return str(implied[name]) if name in implied else None

    def notice(self, words: Sequence[str]) -> str | None:
        """Return a line about the words taken from a checkpoint; None where they only repeat the defaults."""
        if not self.is_checkpoint:
            return None
        by_name = {flag.name: flag for flag in _flags()}
        said = []
        for number, word in enumerate(words):
            if word not in by_name:
                continue
            flag = by_name[word]
            value = None if flag.switch is not None else words[number + 1]
            if value is None or value not in (_written(flag.field.default), self._implied(word)):
                said.append(word if value is None else f"{word} {value}")
        return f"warning: not given and taken from {self.path}: {', '.join(said)}" if said else None


def find_loaded_shape(argv: Sequence[str]) -> LoadedShape | None:
    """Find out the shape of the model that --load names; None without --load, or where nobody knows it.

    Where --load is gone, as it may be by the time a run goes on from its own --save, the checkpoint there says it.
    Damage and missing files are reported when the checkpoint is chosen.

    Raises:
        ConfigError: a config.json is damaged or describes a model that is not built.
    """
    load = _value_of("--load", argv)
    if not load:
        return None
    if is_hugging_face_folder(load):
        return read_config_shape(Path(load), is_checkpoint=False)
    save = _value_of("--save", argv)
    from_save = save is not None and not Path(load).exists()
    goes_on = from_save or "--finetune" not in argv
    for folder in _checkpoints(Path(str(save)) if from_save else Path(load)):
        shape = read_checkpoint_shape(folder, of_the_run=goes_on)
        if shape is not None or not (folder / RECORD).exists():
            return shape
    return None


def read_checkpoint_shape(folder: Path, of_the_run: bool = False) -> LoadedShape | None:
    """Return what an iter_ folder says of its model; None if it says nothing.

    Args:
        folder: the iter_ folder.
        of_the_run: the same run goes on, so that its own choices count as well.

    Raises:
        ConfigError: its config.json is damaged or describes a model that is not built, or its run.json describes one
            that no machine can hold.
    """
    fields = _fields_of_run(_read_record(folder), () if of_the_run else OF_THE_RUN)
    if problems := _bounds_problems(fields):
        raise ConfigError([f"{folder / RECORD}: {problem}; use another checkpoint" for problem in problems])
    if fields:
        return LoadedShape(folder / RECORD, fields, is_checkpoint=True)
    if (folder / CARRIED / "config.json").is_file():
        return read_config_shape(folder / CARRIED, is_checkpoint=True)
    return None


def read_config_shape(folder: Path, is_checkpoint: bool) -> LoadedShape:
    """Return what the config.json of a folder says of its model.

    Raises:
        ConfigError: it is missing or damaged, or describes a model that is not built.
    """
    config = read_config(folder)
    fields = dict(config.fields)
    if is_checkpoint:  # how the vocabulary is padded is the command's choice: a checkpoint loads with any padding
        fields.pop("make_vocab_size_divisible_by", None)
    return LoadedShape(folder / "config.json", fields, config.window, is_checkpoint)


def config_matches_model(folder: Path, model: ModelArguments) -> bool:
    """Whether the config.json of a folder describes this model."""
    return not shape_differences(read_config_shape(folder, is_checkpoint=True), model)


def conflicting_flags(shape: LoadedShape, own: ModelArguments, seq_length: int) -> list[tuple[str, str]]:
    """Return (flag, line) for each flag that says something else than the file.

    Args:
        shape: of the folder.
        own: of the command.
        seq_length: of the command.
    """
    lines = []
    for flag, mine, theirs in shape_differences(shape, own):
        given = flag if mine is True else f"{flag} {shown(mine)}"
        said = "otherwise" if mine is True else shown(theirs)
        lines.append((flag, f"{given}: {shape.path} says {said}; leave the flag out"))
    longest = shape.model.max_position_embeddings
    is_limit = shape.path.name != RECORD  # a run's own is its choice: a later one may train on longer sequences
    if is_limit and longest is not None and (own.max_position_embeddings or 0) > longest:
        flag = "--max-position-embeddings"
        lines.append((flag, f"{flag} {own.max_position_embeddings}: {shape.path} says {longest}"))
    if shape.window is not None and seq_length > shape.window:
        window = f"{shape.path} has a sliding window of {shape.window}, which is not built; use at most that"
        lines.append(("--seq-length", f"--seq-length {seq_length}: {window}"))
    return lines


def shape_differences(shape: LoadedShape, own: ModelArguments) -> list[tuple[str, Any, Any]]:
    """Return (flag, own value, the folder's value) for everything that must agree and does not."""
    return [(flag, mine, theirs) for flag, mine, theirs in _pairs(shape, own, shape.model) if mine != theirs]


def _pairs(shape: LoadedShape, own: ModelArguments, theirs: ModelArguments) -> Iterator[tuple[str, Any, Any]]:
    """(flag, value of the command, value of the folder) for everything that must agree."""
    yield "--num-layers", own.num_layers, theirs.num_layers
    yield "--hidden-size", own.hidden_size, theirs.hidden_size
    yield "--ffn-hidden-size", own.ffn_size, theirs.ffn_size
    yield "--num-attention-heads", own.num_attention_heads, theirs.num_attention_heads
    yield "--num-query-groups", own.query_groups, theirs.query_groups
    yield "--kv-channels", own.head_size, theirs.head_size
    yield "--disable-bias-linear", own.disable_bias_linear, theirs.disable_bias_linear
    yield "--add-qkv-bias", own.add_qkv_bias, theirs.add_qkv_bias
    yield "--qk-layernorm", own.qk_layernorm, theirs.qk_layernorm
    yield "--swiglu", own.swiglu, theirs.swiglu
    yield "--normalization", own.normalization, theirs.normalization
    yield "--norm-epsilon", own.norm_epsilon, theirs.norm_epsilon
    yield "--position-embedding-type", own.position_embedding_type, theirs.position_embedding_type
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
    if theirs.vocab_size is not None and (own.vocab_size is not None or not shape.is_checkpoint):
        yield "--vocab-size", own.vocab_size, theirs.vocab_size
    if own.padded_vocab_size is None:
        return
    if not shape.is_checkpoint:
        yield "--padded-vocab-size", own.padded_vocab_size, theirs.vocab_size
    elif theirs.padded_vocab_size is not None:
        yield "--padded-vocab-size", own.padded_vocab_size, theirs.padded_vocab_size


def _checkpoints(root: Path) -> Iterator[Path]:
    """The checkpoint that the tracker names, then those before it, which are used where its run.json is damaged."""
    directory = CheckpointDirectory(root)
    number = directory.tracker.number()
    if number is not None:
        yield from directory.up_to(number)
    elif directory.tracker.path.is_file():
        yield root / RELEASE


def _read_record(folder: Path) -> dict[str, Any]:
    """run.json of a checkpoint; empty if there is none, or its bytes are not those that were written."""
    try:
        content = read_file_bytes(folder / RECORD)
        record = json.loads(content)
        if (folder / FILES).exists():
            expected = json.loads(read_file_bytes(folder / FILES))["files"][RECORD]["sha256"]
            if sha256_of(content) != expected:
                return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _fields_of_run(record: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """The model's fields in the arguments of a run; empty if one that every run has is missing or of a wrong type."""
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
    """One line for each value out of the bounds of its flag: the model is built before its tensors are read."""
    lines = []
    for flag in _flags():
        name = flag.field.name
        if flag.kind not in (int, float) or name not in fields:
            continue
        bound = violated_bound(flag.field.metadata, fields[name])
        if bound is not None:
            lines.append(f"{name} is {short(fields[name])}, but must be {bound}")
    return lines


def _flags() -> tuple[Flag, ...]:
    return declared_flags(ModelArguments)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The last value that a command line gives to a flag."""
    value = None
    for number, word in enumerate(argv):
        if word == flag and number + 1 < len(argv):
            value = argv[number + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _is_exceeded(positions: int, argv: Sequence[str]) -> bool:
    """Whether a command asks for longer sequences than an earlier run was meant for."""
    length = _value_of("--seq-length", argv)
    return length is not None and length.isdecimal() and int(length) > positions


def _written(value: Any) -> str:
    """A value as on a command line."""
    return repr(value) if isinstance(value, float) else str(value)


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
