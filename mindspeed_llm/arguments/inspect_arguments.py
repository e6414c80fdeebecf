"""What `preprocess_data.py inspect` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, between
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.rule import Rule, violated_rules
from mindspeed_llm.errors import ConfigError

PROGRAM = "preprocess_data.py inspect"
DESCRIPTION = "Show what stands in packed files: the summary of their manifest, and one pack as text."


@dataclass
class InspectArguments:
    """What to show."""

    prefix: str = field(metadata={"positional": True})
    """Prefix of the packed files, as --output-prefix named it."""
    pack: int = field(default=0, metadata=between(0, COUNT))
    """Number of the pack, from 0."""
    verify: bool = False
    """Read the files to their end and compare them with the hashes of the manifest."""
    html: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Write the same as one self-contained page."""
    color: Literal["auto", "always", "never"] = "auto"
    """Colours on the terminal; auto: not into a pipe or file, and not where NO_COLOR is set."""


@dataclass
class DecodingArguments:
    """Tokenizer, to show text; without one the token ids are shown."""

    tokenizer_name_or_path: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory of the tokenizer that made the files."""
    tokenizer_model: str | None = field(default=None, metadata={"metavar": "FILE"})
    """SentencePiece model that made the files."""
    tokenizer_not_use_fast: bool = False
    """Read tokenizer.model where the directory holds tokenizer.json too."""


RULES = (
    Rule[DecodingArguments](
        ("--tokenizer-name-or-path", "--tokenizer-model"),
        lambda args: args.tokenizer_name_or_path is not None and args.tokenizer_model is not None,
        "--tokenizer-name-or-path and --tokenizer-model: name one of them",
    ),
)


def parse_inspect_arguments(argv: Sequence[str]) -> tuple[InspectArguments, DecodingArguments]:
    """The arguments after the word `inspect`.

    Raises:
        ConfigError: everything that is wrong with them, together.
    """
    parsed = parse_known_groups(argv, (InspectArguments, DecodingArguments), PROGRAM, DESCRIPTION)
    shown, decoding = parsed.groups
    problems = parsed.problems + violated_rules(RULES, decoding, parsed.groups, parsed.doubtful)
    if problems:
        raise ConfigError(problems)
    return shown, decoding
