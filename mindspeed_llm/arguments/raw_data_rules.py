"""Convert the arguments of pretrain_gpt.py into a command of preprocess_data.py, and check them with its rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.arguments.data_rules import PATHS
from mindspeed_llm.arguments.preprocess_arguments import (
    RULES,
    ConversationArguments,
    InputArguments,
    OutputArguments,
    PreprocessArguments,
    RowArguments,
    RunArguments,
    SampleArguments,
    TokenisingArguments,
)
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments, names_raw_data
from mindspeed_llm.arguments.rule import violated_rules


def preprocessing_command(arguments: PretrainArguments, path: str, prefix: str) -> PreprocessArguments:
    """Return the command of preprocess_data.py that makes the packed or document files of one raw data path.

    Flags that both programs have (--seq-length, --neat-pack, --prompt-type, the tokenizer) have the same value in both.
    --seed is an exception: it is the seed of the run, and the packs are made with preprocess_data.py's default, so that
    runs with different seeds share them.

    Args:
        arguments: arguments of the training command.
        path: file, directory or glob.
        prefix: prefix of the packed files to write.
    """
    raw, data, is_packed = arguments.raw_data, arguments.data, arguments.data.is_instruction_dataset
    return PreprocessArguments(
        InputArguments(input=[path], **_values(raw, RowArguments)),
        arguments.tokenizer,
        SampleArguments(
            prompt_type=data.prompt_type,
            prompt_type_path=data.prompt_type_path,
            seq_length=data.seq_length if is_packed else None,
            virtual_tokens=arguments.tuning.virtual_tokens or 0,
            **_values(raw, ConversationArguments),
        ),
        OutputArguments(
            output_prefix=prefix,
            output_format="packed" if is_packed else "document",
            pack=raw.pack or data.neat_pack,
            neat_pack=data.neat_pack,
        ),
        RunArguments(**_values(raw, TokenisingArguments)),
    )


def raw_data_problems(arguments: PretrainArguments, faulty: Collection[str]) -> list[str]:
    """Return the problems of the flags for raw data, one line each; none if the command names no raw data.

    Args:
        arguments: arguments of the training command.
        faulty: flags whose own value is invalid.
    """
    if not arguments.raw_data.given:
        return []
    names = [name for values in PATHS.values() for name in parse_data_path(values(arguments))[1]]
    if not any(names_raw_data(name) for name in names):
        return []
    command = preprocessing_command(arguments, names[0], "packed")
    groups = [getattr(command, part.name) for part in dataclasses.fields(command)]
    # --output-format follows from --is-instruction-dataset; data_rules.py has the rules between that and other flags.
    return violated_rules(RULES, command, groups, {*faulty, "--output-format"})


def _values(raw: RawDataArguments, group: type) -> dict[str, Any]:
    """Return the values of the flags that `raw` has in common with a group of preprocess_data.py."""
    return {own.name: getattr(raw, own.name) for own in dataclasses.fields(group)}
