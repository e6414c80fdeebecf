"""Arguments of `preprocess_data.py inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, between
from mindspeed_llm.arguments.data_arguments import tokenizer_folder
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.missing_paths import (
    missing_tokenizer_files,
    missing_tokenizer_model,
    no_packs,
)
from mindspeed_llm.arguments.rule import Rule, violated_rules
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.manifest import has_document_files, has_packed_files

PROGRAM = "preprocess_data.py inspect"
DESCRIPTION = "Show the content of packed files: a summary of their manifest, and one pack as text."


@dataclass
class InspectArguments:
    """Inspection."""

    prefix: str = field(metadata={"positional": True})
    """Prefix of the packed files, as given to --output-prefix."""
    pack: int = field(default=0, metadata=between(0, COUNT))
    """Index of the pack to show, from 0."""
    verify: bool = False
    """Read the complete files and compare them with the hashes in the manifest."""
    html: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Also write the output to this file as a self-contained HTML page."""
    color: Literal["auto", "always", "never"] = "auto"
    """Use colours. auto: only on a terminal, and not if NO_COLOR is set."""


@dataclass
class DecodingArguments:
    """Tokenizer for showing text; without it token ids are shown."""

    tokenizer_name_or_path: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory, or tokenizer.json or tokenizer.model, of the tokenizer that the files were made with."""
    tokenizer_model: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Path of the SentencePiece model that the files were made with."""
    tokenizer_not_use_fast: bool = False
    """Use tokenizer.model even if the directory also contains tokenizer.json."""

    def __post_init__(self) -> None:
        self.tokenizer_name_or_path, self.tokenizer_not_use_fast = tokenizer_folder(
            self.tokenizer_name_or_path, self.tokenizer_not_use_fast
        )


RULES = (
    Rule[DecodingArguments](
        ("--tokenizer-name-or-path", "--tokenizer-model"),
        lambda args: args.tokenizer_name_or_path is not None and args.tokenizer_model is not None,
        "--tokenizer-name-or-path and --tokenizer-model: give only one of them",
    ),
)


def parse_inspect_arguments(
    argv: Sequence[str], program: str = PROGRAM, *, finds_files: bool = False
) -> tuple[InspectArguments, DecodingArguments]:
    """Parse the command line of `preprocess_data.py inspect`.

    Args:
        argv: command-line arguments after `inspect`.
        program: name of the program for the help.
        finds_files: whether files that the command names and that do not exist are problems as well.

    Returns:
        What to show.
        Tokenizer for showing text.

    Raises:
        ConfigError: the command line is invalid. The error lists all problems.
    """
    parsed = parse_known_groups(argv, (InspectArguments, DecodingArguments), program, DESCRIPTION)
    shown, decoding = parsed.groups
    problems = parsed.problems + violated_rules(RULES, decoding, parsed.groups, parsed.invalid_flags)
    if finds_files:
        problems += _missing_files(shown, decoding)
    if problems:
        raise ConfigError(problems)
    return shown, decoding


def _missing_files(shown: InspectArguments, decoding: DecodingArguments) -> list[str]:
    """Return one line for each file and directory that does not exist."""
    prefix, folder, model = shown.prefix, decoding.tokenizer_name_or_path, decoding.tokenizer_model
    found = [
        no_packs(prefix) if prefix and not has_packed_files(prefix) and not has_document_files(prefix) else None,
        missing_tokenizer_files(folder) if folder else None,
        missing_tokenizer_model(model) if model else None,
    ]
    return [problem for problem in found if problem is not None]
