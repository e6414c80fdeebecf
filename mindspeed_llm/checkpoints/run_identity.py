"""Compute and compare identities of runs: which changes of a command a resume refuses, and which it accepts.

The policy of each flag is in the metadata of its field (arguments/resume_policy.py). An identity is a JSON object. It
has the value of every flag that is compared, and hashes of the contents of files, so that a path may change and its
contents may not:

    "--seed": 1234, "--data-path": ["./alpaca"], …
    "contents of --data-path": [{"weight": null, "index": "3f…", "content": "9a…"}]
    "tokenizer": "77…", "template": ["qwen 51…"], "weights of --load": "c0…"

It is part of run.json. Only keys that both run.json and the command have are compared, so that flags can be added and
removed between versions of this program.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.data_arguments import DEFAULT_SPLIT, parse_data_path, parse_split
from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.resume_policy import ResumeClass, resume_policy_of
from mindspeed_llm.checkpoints.metadata import RunMetadata
from mindspeed_llm.errors import UserError
from mindspeed_llm.indexed_dataset import DataFiles
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.storage.json_dataclass import decode_dataclass

# Version of the identity in run.json. 1: a hand-written list of ten flags (until commit 9055fb5).
VERSION = 2
DATA_PATHS = {
    "--data-path": "data_path",
    "--train-data-path": "train_data_path",
    "--valid-data-path": "valid_data_path",
    "--test-data-path": "test_data_path",
}
CONTENTS = "contents of {}"
TOKENIZER, TEMPLATE, WEIGHTS = "tokenizer", "template", "weights of --load"
CLASSES: dict[str, ResumeClass] = {
    **{flag.name: resume_policy_of(flag.field) for group in GROUPS for flag in declared_flags(group)},
    **{CONTENTS.format(flag): "refuse" for flag in DATA_PATHS},
    TOKENIZER: "refuse",
    TEMPLATE: "refuse",
}
# How a run started. Not compared by --load without --finetune, which continues another command's run.
OF_THE_START = frozenset({"--load", "--finetune", "--no-load-optim", "--no-load-rng"})
# Flags of the base model of an adapter, which is compared by its hash (checkpoints/base_model.py).
OF_THE_BASE = frozenset({"--load", "--finetune"})
# Flags on which the optimizer state depends. Not compared with --no-load-optim, which does not load that state.
OF_THE_OPTIMIZER = frozenset({"--use-distributed-optimizer", "--adam-beta1", "--adam-beta2", "--adam-eps"})
# Flags that apply only when a run starts for the first time. A resume takes the state from the checkpoint.
AT_FIRST_START = frozenset({"--no-load-optim", "--no-load-rng", "--initial-loss-scale", "--lora-load"})

# Flag → the value in effect, where a default and an explicit value, or two flags, can mean the same.
EFFECTIVE: dict[str, Callable[[PretrainArguments], Any]] = {
    "--ffn-hidden-size": lambda arguments: arguments.model.ffn_size,
    "--kv-channels": lambda arguments: arguments.model.head_size,
    "--num-query-groups": lambda arguments: arguments.model.query_groups,
    "--group-query-attention": lambda arguments: arguments.model.query_groups != arguments.model.num_attention_heads,
    "--max-position-embeddings": lambda arguments: arguments.max_position_embeddings,
    "--make-vocab-size-divisible-by": lambda arguments: (
        None if arguments.model.padded_vocab_size else arguments.model.make_vocab_size_divisible_by
    ),
    "--rope-scaling-factor": lambda arguments: (
        arguments.model.rope_scaling_factor if arguments.model.use_rope_scaling else None
    ),
    "--tuning": lambda arguments: arguments.adapter.method if arguments.adapter is not None else None,
    "--prompt-encoder-size": lambda arguments: (
        arguments.tuning.prompt_encoder_size or arguments.model.hidden_size
        if arguments.tuning.tuning == "p-tuning"
        else None
    ),
    "--lora-target-modules": lambda arguments: (
        list(arguments.lora.settings.targets) if arguments.lora.settings is not None else []
    ),
    "--stage": lambda arguments: arguments.training_stage,
    "--split": lambda arguments: _shares(arguments.data.split) if arguments.data.data_path else None,
}


@dataclass(frozen=True)
class IdentityChanges:
    """Changes of a command in comparison with the run that wrote a checkpoint.

    Attributes:
        refused: one line for each change that makes it another run.
        noticed: one line for each change that is accepted with a notice.
        unknown: keys of the identity that were not compared, because run.json does not contain them.
    """

    refused: tuple[str, ...]
    noticed: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def names(self) -> str:
        """Names of the flags in `refused`, separated by commas, without duplicates."""
        return ", ".join(dict.fromkeys(re.split(r"[: ]", line)[0] for line in self.refused))

    def notices(self, folder: Path) -> tuple[str, ...]:
        """Return the lines to print when a run resumes.

        Args:
            folder: directory of the checkpoint.
        """
        if not self.unknown:
            return self.noticed
        flags = [key for key in self.unknown if key.startswith("--")]
        names = [key for key in self.unknown if not key.startswith("--")]
        names += flags if len(flags) <= 3 else [f"{len(flags)} flags"]
        return (
            f"{folder / 'run.json'} was written by another version of this program and lacks values that are "
            f"compared on resume; not compared: {', '.join(names)}",
            *self.noticed,
        )


def compute_identity(
    arguments: PretrainArguments,
    files: Sequence[DataFiles] = (),
    tokenizer_sha256: str | None = None,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """Return the identity of the run that a command describes.

    Args:
        arguments: checked arguments.
        files: the opened data sets that the command names. If empty, their contents are not compared.
        tokenizer_sha256: hash of the command's tokenizer, if it names one; otherwise the hash in the manifests is used.
        vocabulary: number of tokens of the tokenizer; None if it is unknown.

    Returns:
        The identity, without the keys whose value is unknown.
    """
    manifests = [data.manifest for data in files if data.manifest is not None]
    identity = _flags(arguments)
    identity["--vocab-size"] = arguments.model.vocabulary_size(vocabulary)
    identity["--prompt-type"] = next(
        (manifest.template.name for manifest in manifests if manifest.template), arguments.data.prompt_type
    )
    identity[TOKENIZER] = tokenizer_sha256 or next((manifest.tokenizer.sha256 for manifest in manifests), None)
    identity[TEMPLATE] = sorted(
        {f"{manifest.template.name} {manifest.template.sha256}" for manifest in manifests if manifest.template}
    )
    # Without --global-batch-size a resumed run keeps its size, so a missing flag is not a change.
    for key in ("--vocab-size", "--prompt-type", "--global-batch-size", TOKENIZER, TEMPLATE):
        if not identity[key]:
            del identity[key]
    if files:
        opened = {data.prefix: data for data in files}
        for flag, field in DATA_PATHS.items():
            identity[CONTENTS.format(flag)] = _contents(getattr(arguments.data, field), opened)
    return identity


def compare_identity(
    metadata: RunMetadata, identity: Mapping[str, Any], ignored: Collection[str] = ()
) -> IdentityChanges:
    """Compare a command with the run that wrote a checkpoint.

    Args:
        metadata: metadata of the checkpoint.
        identity: identity of the command, from `compute_identity`.
        ignored: keys that are not compared.

    Returns:
        The differences, each classified as refused or as accepted with a notice.
    """
    before = recorded_identity(metadata)
    if identity.get("--tuning"):
        ignored = {*ignored, *OF_THE_BASE}
    refused: list[str] = []
    noticed: list[str] = []
    unknown: list[str] = []
    for key, kind in CLASSES.items():
        if key in ignored or kind == "free" or key not in identity:
            continue
        if key not in before:
            # In the current version a missing key is intended, for example if a run had no tokenizer.
            unknown += [key] if kind == "refuse" and metadata.identity_version != VERSION else []
        elif not _same(key, before[key], identity[key]):
            kind = _class_of_change(key, before, identity)
            (refused if kind == "refuse" else noticed).extend(_lines(key, kind, before, identity))
    return IdentityChanges(tuple(refused), tuple(noticed), tuple(unknown))


def is_same_run(metadata: RunMetadata, identity: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint belongs to the run with this identity, so that a resume would accept it.

    Args:
        metadata: metadata of the checkpoint.
        identity: identity of the run.
    """
    return not compare_identity(metadata, identity).refused


def recorded_identity(metadata: RunMetadata) -> dict[str, Any]:
    """Return the identity in the metadata of a checkpoint, with missing values computed from its arguments.

    Args:
        metadata: metadata of the checkpoint.

    Returns:
        The identity, without malformed values and without those that the metadata does not determine.
    """
    known = _flags_of_metadata(metadata)
    listed = {key: value for key, value in metadata.identity.items() if _is_well_formed(key, value)}
    if metadata.identity_version == 1 and "--split" in listed:
        # Version 1 contains the text of the flag, not the shares.
        split = listed.pop("--split")
        # An invalid text in the file is not an error of the command: the value counts as unknown.
        with contextlib.suppress(UserError):
            if isinstance(split, str | None):
                known["--split"] = _shares(split) if listed.get("--data-path") else None
    return {**known, **listed}


def _is_well_formed(key: str, value: Any) -> bool:
    """Return whether a value from a file has the structure that the comparison relies on."""
    if key == "--split":
        return isinstance(value, str | list | None)
    if key.startswith("contents of "):
        return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
    return True


def _flags(arguments: PretrainArguments) -> dict[str, Any]:
    """Return the value in effect of every flag that is compared, by the name of the flag."""
    return {
        flag.name: EFFECTIVE[flag.name](arguments) if flag.name in EFFECTIVE else getattr(group, flag.field.name)
        for kind, group in zip(GROUPS, arguments.groups, strict=True)
        for flag in declared_flags(kind)
        if CLASSES[flag.name] != "free"
    }


def _flags_of_metadata(metadata: RunMetadata) -> dict[str, Any]:
    """Return the flags of a run, computed from `arguments` in its metadata; empty if those are incomplete."""
    try:
        names = list(PretrainArguments.__dataclass_fields__)[: len(GROUPS)]
        groups = [
            decode_dataclass(metadata.arguments.get(name, {}), group, name)
            for name, group in zip(names, GROUPS, strict=True)
        ]
        arguments = PretrainArguments.from_groups(groups, int(metadata.layout.get("world_size", 1)), frozenset())
        flags = _flags(arguments)
    except (ValueError, TypeError, ArithmeticError, UserError):
        # Wide, because arguments that another version wrote, or that are damaged, can have any values. They count as
        # unknown, and only the values in `identity` are compared.
        return {}
    # Older metadata contains neither the number of tokens of the tokenizer nor the template in the manifest.
    flags["--vocab-size"] = arguments.model.vocabulary_size(None)
    return {key: value for key, value in flags.items() if value or key not in ("--vocab-size", "--prompt-type")}


def _shares(split: str | None) -> list[float]:
    """Return the shares of --split with a sum of 1, so that '90,10' equals '9,1'."""
    return list(parse_split(DEFAULT_SPLIT if split is None else split))


def _contents(values: list[str], opened: Mapping[Path, DataFiles]) -> list[dict[str, Any]]:
    """Return weight and hashes of each data set in the values of a flag, in their order."""
    weights, prefixes = parse_data_path(values)
    # Divided by their sum, because only the proportions matter: 3 7 is the same blend as 0.3 0.7.
    total = sum(weights) if weights else 1.0
    shares = [weight / total for weight in weights] if weights else [None] * len(prefixes)
    return [
        {"weight": share, **dataset_hashes(opened[Path(prefix)])}
        for share, prefix in zip(shares, prefixes, strict=True)
    ]


def dataset_hashes(files: DataFiles) -> dict[str, str | None]:
    """Compute two hashes of a data set that do not depend on its path.

    Args:
        files: the opened data set.

    Returns:
        `index`: hash of the SHA-256 of the index files and the sizes of the data files, also known without a manifest.
        `content`: hash of the SHA-256 of all six files in the manifest; None without a manifest.
    """
    if files.manifest is None:
        index = {_ending(path.name): value for path, value in files.fingerprint().items()}
        return {"index": _digest(index), "content": None}
    digests = {_ending(name): digest for name, digest in files.manifest.files.items()}
    # The same values as without a manifest, so that a manifest may be added or removed between a run and its resume.
    index = {
        name: digest.sha256 if name.endswith(".idx") else f"{digest.size} bytes" for name, digest in digests.items()
    }
    return {"index": _digest(index), "content": _digest({name: digest.sha256 for name, digest in digests.items()})}


def _ending(name: str) -> str:
    """Return the name of a file without the prefix: `alpaca_packed_labels_document.bin` → `labels_document.bin`.

    Of document files only the ending remains, `.bin`: they may have any name.
    """
    before, _, ending = name.rpartition("_packed_")
    return ending if before else Path(name).suffix


def _digest(values: Mapping[str, str]) -> str:
    """Return the SHA-256 of names and values, independent of their order."""
    return sha256_of("\n".join(f"{name} {values[name]}" for name in sorted(values)).encode())


def _same(key: str, before: Any, now: Any) -> bool:
    """Return whether a value in the metadata and one of the command mean the same."""
    if key == "--load" and isinstance(before, str) and isinstance(now, str):
        # Different paths can name one directory, for example through a symbolic link.
        return Path(before) == Path(now) or os.path.realpath(before) == os.path.realpath(now)
    if key.startswith("contents of "):
        return len(before) == len(now) and all(
            old.get("weight") == new["weight"] and _same_contents(old, new)
            for old, new in zip(before, now, strict=True)
        )
    return bool(before == now)


def _same_contents(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two data sets have the same hash: of all files if both have a manifest, else of the indexes."""
    key = "content" if before.get("content") and now["content"] else "index"
    return bool(before.get(key) == now[key])


def _class_of_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> ResumeClass:
    """Return the policy for a changed value; for a path it depends on whether the contents are known to be the same."""
    if key in DATA_PATHS:
        # If the hashes of the contents are known, they are compared under their own key, and the path may change.
        return "notice" if CONTENTS.format(key) in before else "refuse"
    if key == "--load" and before["--load"] and now["--load"]:
        return "notice" if before.get(WEIGHTS) and before.get(WEIGHTS) == now.get(WEIGHTS) else "refuse"
    return CLASSES[key]


def _lines(key: str, kind: ResumeClass, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for a changed value, with the old and the new value."""
    if key.startswith("contents of "):
        yield from _content_lines(key.removeprefix("contents of "), before[key], now[key], now)
    elif kind == "refuse":
        yield f"{key}: {_shown(before[key])} in that run, {_shown(now[key])} in this command"
    elif key in AT_FIRST_START:
        yield f"{key} has no effect on resume: it applies only when a run starts for the first time"
    else:
        yield f"{key}: {_shown(before[key])} until now, {_shown(now[key])} from here on"


def _content_lines(
    flag: str, before: list[Mapping[str, Any]], now: list[Mapping[str, Any]], identity: Mapping[str, Any]
) -> Iterator[str]:
    """Yield one line for each difference between the data sets of a flag."""
    if len(before) != len(now):
        yield f"{flag}: {len(before)} data sets in that run, {len(now)} in this command"
        return
    weights = [[entry.get("weight") for entry in side] for side in (before, now)]
    if weights[0] != weights[1]:
        yield f"{flag}: weights {_shown(weights[0])} in that run, {_shown(weights[1])} in this command"
    prefixes = parse_data_path(identity[flag])[1]
    for old, new, prefix in zip(before, now, prefixes, strict=True):
        if not _same_contents(old, new):
            key = "content" if old.get("content") and new["content"] else "index"
            yield (
                f"{flag} {prefix}: its files contain other data than in that run (other rows, or packed in another "
                f"way; SHA-256 {str(old.get(key))[:12]}… in that run, {str(new[key])[:12]}… now)"
            )


def _shown(value: Any) -> str:
    """Return a value as text for a message."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == []:
        return "not given"
    if isinstance(value, list):
        return " ".join("no weight" if entry is None else _shown(entry) for entry in value)
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"SHA-256 {value[:12]}…"
    return str(value)
