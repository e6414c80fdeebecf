"""Identity of a run: which changes of a command a resume refuses, and which it honours with a notice.

The class of each flag is in the metadata of its field (arguments/resume_policy.py). An identity is a JSON object: flag
→ value
for every flag that is compared, and what the files say, so that a path may move while its contents may not change:

    "--seed": 1234, "--data-path": ["./alpaca"], …
    "contents of --data-path": [{"weight": null, "index": "3f…", "content": "9a…"}]
    "tokenizer": "77…", "template": ["qwen 51…"], "weights of --load": "c0…"

It is part of run.json. Only keys that both the record and the command have are compared, so that flags can be added
and removed between versions of this program.
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
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.storage.json_dataclass import decode_dataclass

VERSION = 2  # 1: a hand-written list of ten flags, as this program wrote until 9055fb5
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
# What --load with progress but without --finetune does not compare: how the other run started.
OF_THE_START = frozenset({"--load", "--finetune", "--no-load-optim", "--no-load-rng"})
# What shapes the optimizer's state, which --no-load-optim leaves.
OF_THE_OPTIMIZER = frozenset({"--use-distributed-optimizer", "--adam-beta1", "--adam-beta2", "--adam-eps"})
# Read when a run starts for the first time; a resume takes the state from the checkpoint.
AT_FIRST_START = frozenset({"--no-load-optim", "--no-load-rng", "--initial-loss-scale"})

# Values that two spellings of a command share: flag → the value in effect.
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
    "--split": lambda arguments: _shares(arguments.data.split) if arguments.data.data_path else None,
}


@dataclass(frozen=True)
class IdentityChanges:
    """What a command changes of a run.

    Attributes:
        refused: one line for each change that makes it another run.
        noticed: one line for each change that is honoured.
        unknown: what the record does not say, so that it was not compared; keys of an identity.
    """

    refused: tuple[str, ...]
    noticed: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def names(self) -> str:
        """The flags of `refused`, each once."""
        return ", ".join(dict.fromkeys(re.split(r"[: ]", line)[0] for line in self.refused))

    def notices(self, folder: Path) -> tuple[str, ...]:
        """Return the lines to print before training goes on from the checkpoint in `folder`."""
        if not self.unknown:
            return self.noticed
        flags = [key for key in self.unknown if key.startswith("--")]
        words = [key for key in self.unknown if not key.startswith("--")]
        words += flags if len(flags) <= 3 else [f"{len(flags)} flags"]
        return (
            f"{folder / 'run.json'} was written by another version of this program and does not say everything that "
            f"is compared on resume; not compared: {', '.join(words)}",
            *self.noticed,
        )


def compute_identity(
    arguments: PretrainArguments,
    files: Sequence[PackedFiles] = (),
    tokenizer_sha256: str | None = None,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """Return the identity of the run that a command describes.

    Args:
        arguments: checked arguments.
        files: the data sets that the command names, opened; empty where they are not at hand, and then not compared.
        tokenizer_sha256: hash of the command's tokenizer, if it names one; otherwise the manifests give it.
        vocabulary: tokens that the tokenizer can give.
    """
    manifests = [one.manifest for one in files if one.manifest is not None]
    found = _flags(arguments)
    found["--vocab-size"] = arguments.model.vocabulary_size(vocabulary)
    found["--prompt-type"] = next((one.template.name for one in manifests if one.template), arguments.data.prompt_type)
    found[TOKENIZER] = tokenizer_sha256 or next((one.tokenizer.sha256 for one in manifests), None)
    found[TEMPLATE] = sorted({f"{one.template.name} {one.template.sha256}" for one in manifests if one.template})
    # Without --global-batch-size a resumed run keeps its size, which is no change.
    for key in ("--vocab-size", "--prompt-type", "--global-batch-size", TOKENIZER, TEMPLATE):
        if not found[key]:
            del found[key]
    if files:
        opened = {one.prefix: one for one in files}
        for flag, field in DATA_PATHS.items():
            found[CONTENTS.format(flag)] = _contents(getattr(arguments.data, field), opened)
    return found


def compare_identity(
    record: RunMetadata, identity: Mapping[str, Any], ignored: Collection[str] = ()
) -> IdentityChanges:
    """Compare a command with the run that wrote a checkpoint.

    Args:
        record: of the checkpoint.
        identity: of the command, from `compute_identity`.
        ignored: keys that are not compared.
    """
    before = recorded_identity(record)
    refused: list[str] = []
    noticed: list[str] = []
    unknown: list[str] = []
    for key, kind in CLASSES.items():
        if key in ignored or kind == "free" or key not in identity:
            continue
        if key not in before:
            unknown += [key] if kind == "refuse" and record.identity_version != VERSION else []
        elif not _same(key, before[key], identity[key]):
            kind = _class_of_change(key, before, identity)
            (refused if kind == "refuse" else noticed).extend(_lines(key, kind, before, identity))
    return IdentityChanges(tuple(refused), tuple(noticed), tuple(unknown))


def is_same_run(record: RunMetadata, identity: Mapping[str, Any]) -> bool:
    """Whether a checkpoint belongs to the run with this identity, so that a resume would accept it."""
    return not compare_identity(record, identity).refused


def recorded_identity(record: RunMetadata) -> dict[str, Any]:
    """Return the identity in a record; what its list lacks is worked out from its arguments where they have it."""
    known = _flags_of_record(record)
    listed = {key: value for key, value in record.identity.items() if _is_well_formed(key, value)}
    if record.identity_version == 1 and "--split" in listed:  # version 1 has the flag's text
        split = listed.pop("--split")
        with contextlib.suppress(UserError):
            if isinstance(split, str | None):
                known["--split"] = _shares(split) if listed.get("--data-path") else None
    return {**known, **listed}


def _is_well_formed(key: str, value: Any) -> bool:
    if key == "--split":
        return isinstance(value, str | list | None)
    if key.startswith("contents of "):
        return isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return True


def _flags(arguments: PretrainArguments) -> dict[str, Any]:
    """Flag → value in effect, for every flag that is compared."""
    return {
        flag.name: EFFECTIVE[flag.name](arguments) if flag.name in EFFECTIVE else getattr(group, flag.field.name)
        for kind, group in zip(GROUPS, arguments.groups, strict=True)
        for flag in declared_flags(kind)
        if CLASSES[flag.name] != "free"
    }


def _flags_of_record(record: RunMetadata) -> dict[str, Any]:
    """The flags of a run, worked out from `arguments` in its record; empty if they are not all there."""
    try:
        names = list(PretrainArguments.__dataclass_fields__)[: len(GROUPS)]
        groups = [
            decode_dataclass(record.arguments.get(name), group, name) for name, group in zip(names, GROUPS, strict=True)
        ]
        arguments = PretrainArguments.from_groups(groups, int(record.layout.get("world_size", 1)), frozenset())
        found = _flags(arguments)
    except (ValueError, TypeError, ArithmeticError, UserError):
        return {}
    # Older records do not say how many tokens the tokenizer has, nor which template the manifest names.
    found["--vocab-size"] = arguments.model.vocabulary_size(None)
    return {key: value for key, value in found.items() if value or key not in ("--vocab-size", "--prompt-type")}


def _shares(split: str | None) -> list[float]:
    return list(parse_split(DEFAULT_SPLIT if split is None else split))


def _contents(words: list[str], opened: Mapping[Path, PackedFiles]) -> list[dict[str, Any]]:
    """Weight and hashes of each data set that a flag names, in order."""
    weights, prefixes = parse_data_path(words)
    total = sum(weights) if weights else 1.0
    shares = [weight / total for weight in weights] if weights else [None] * len(prefixes)
    return [
        {"weight": share, **dataset_hashes(opened[Path(prefix)])}
        for share, prefix in zip(shares, prefixes, strict=True)
    ]


def dataset_hashes(files: PackedFiles) -> dict[str, str | None]:
    """Return two hashes of a data set that do not depend on where it lies.

    Returns:
        `index`: of the index files' hashes and the sizes of the others, which is known without a manifest too;
        `content`: of all six hashes in the manifest, None without one.
    """
    if files.manifest is None:
        index = {_ending(path.name): said for path, said in files.fingerprint().items()}
        return {"index": _digest(index), "content": None}
    facts = {_ending(name): one for name, one in files.manifest.files.items()}
    index = {name: one.sha256 if name.endswith(".idx") else f"{one.size} bytes" for name, one in facts.items()}
    return {"index": _digest(index), "content": _digest({name: one.sha256 for name, one in facts.items()})}


def _ending(name: str) -> str:
    """`alpaca_packed_labels_document.bin` → `labels_document.bin`."""
    return name.rpartition("_packed_")[2]


def _digest(lines: Mapping[str, str]) -> str:
    return sha256_of("\n".join(f"{name} {lines[name]}" for name in sorted(lines)).encode())


def _same(key: str, before: Any, now: Any) -> bool:
    if key == "--load" and isinstance(before, str) and isinstance(now, str):
        return Path(before) == Path(now) or os.path.realpath(before) == os.path.realpath(now)
    if key.startswith("contents of "):
        return len(before) == len(now) and all(
            one.get("weight") == other["weight"] and _same_contents(one, other)
            for one, other in zip(before, now, strict=True)
        )
    return bool(before == now)


def _same_contents(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    key = "content" if one.get("content") and other["content"] else "index"
    return bool(one.get(key) == other[key])


def _class_of_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> ResumeClass:
    """The class of a flag; for a path it depends on whether the contents are known to be the same."""
    if key in DATA_PATHS:
        return "notice" if CONTENTS.format(key) in before else "refuse"
    if key == "--load" and before["--load"] and now["--load"]:
        return "notice" if before.get(WEIGHTS) and before.get(WEIGHTS) == now.get(WEIGHTS) else "refuse"
    return CLASSES[key]


def _lines(key: str, kind: ResumeClass, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if key.startswith("contents of "):
        yield from _content_lines(key.removeprefix("contents of "), before[key], now[key], now)
    elif kind == "refuse":
        yield f"{key}: {_shown(before[key])} in that run, {_shown(now[key])} in this command"
    elif key in AT_FIRST_START:
        yield f"{key} has no effect on resume: it is read at the first start of a run alone"
    else:
        yield f"{key}: {_shown(before[key])} until now, {_shown(now[key])} from here on"


def _content_lines(
    flag: str, before: list[Mapping[str, Any]], now: list[Mapping[str, Any]], identity: Mapping[str, Any]
) -> Iterator[str]:
    if len(before) != len(now):
        yield f"{flag}: {len(before)} data sets in that run, {len(now)} in this command"
        return
    weights = [[one.get("weight") for one in side] for side in (before, now)]
    if weights[0] != weights[1]:
        yield f"{flag}: weights {_shown(weights[0])} in that run, {_shown(weights[1])} in this command"
    prefixes = parse_data_path(identity[flag])[1]
    for one, other, prefix in zip(before, now, prefixes, strict=True):
        if not _same_contents(one, other):
            key = "content" if one.get("content") and other["content"] else "index"
            yield (
                f"{flag} {prefix}: its files hold other data than in that run (other rows, or packed in another way; "
                f"SHA-256 {str(one.get(key))[:12]}… in that run, {str(other[key])[:12]}… now)"
            )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == []:
        return "not given"
    if isinstance(value, list):
        return " ".join("no weight" if one is None else _shown(one) for one in value)
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"SHA-256 {value[:12]}…"
    return str(value)
