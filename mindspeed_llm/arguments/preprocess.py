"""What preprocess_data.py is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.data import TokenizerArguments
from mindspeed_llm.arguments.parsing import read_groups
from mindspeed_llm.errors import ConfigError

PROGRAM = "preprocess_data.py"
DESCRIPTION = "Convert instruction data into packed files for pretrain_gpt.py."

# Flags of MindSpeed-LLM's program that are known here, and refused until they mean something.
NOT_BUILT = (
    "--merge-group-keys",
    "--mix-strategy",
    "--interleave-probs",
    "--enable-thinking",
    "--pad-to-multiple-of",
)


@dataclass
class InputArguments:
    """Input."""

    input: list[str] = field(metadata={"metavar": "PATH", "extend": True})
    """File, directory or glob (in quotes) of .json, .jsonl, .parquet, .csv or .arrow; several are read in turn."""
    handler_name: str = field(metadata={"metavar": "NAME"})
    """What the rows are: AlpacaStyleInstructionHandler or SharegptStyleInstructionHandler."""
    map_keys: str | None = field(default=None, metadata={"metavar": "JSON"})
    """Columns with other names, such as '{"prompt":"instruction","query":"input","response":"output"}'; keys that are
    left out keep their defaults."""
    max_samples: int | None = field(default=None, metadata={"minimum": 1})
    """Read no more rows than this."""
    json_keys: list[str] = field(default_factory=lambda: ["text"], metadata={"metavar": "KEY"})
    """Columns of plain text for pretraining: not used by instruction handlers."""


@dataclass
class SampleArguments:
    """Samples."""

    prompt_type: str = field(metadata={"metavar": "NAME"})
    """Chat template, such as qwen or llama2."""
    prompt_type_path: str | None = field(default=None, metadata={"metavar": "FILE"})
    """JSON file that holds the template, in place of those that come with the program."""
    seq_length: int | None = field(default=None, metadata={"minimum": 1})
    """Tokens of a pack, and the most of a sample. Needed with --pack; without either samples keep their length."""
    append_eod: bool = False
    """End each sample with the end token, trained, unless it ends with it already."""
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """A sample longer than --seq-length: cut it (the oldest turns, then the middle of the user's text, then the end of
    the answer), leave it out, or stop."""


@dataclass
class OutputArguments:
    """Output."""

    output_prefix: str = field(metadata={"metavar": "PREFIX"})
    """Writes PREFIX_packed_{input_ids,attention_mask,labels}_document.{bin,idx} and PREFIX_packed_manifest.json, and
    PREFIX_rejected.jsonl if rows were skipped. Existing ones are replaced at the end."""
    pack: bool = False
    """Fill sequences of --seq-length with whole samples. Without it each sample is a document by itself, not padded."""
    neat_pack: bool = False
    """Number the samples of each pack in the attention mask, so that training can keep them apart. Needs --pack."""
    seed: int = field(default=1234, metadata={"minimum": 0})
    """Seed of the packing and its order."""
    overwrite_cache: bool = False
    """Discard what an earlier run has kept: existing output is replaced in any case, and nothing else is kept."""
    cache_dir: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory for the tokens until they are packed (8 bytes a token). Without it beside the output."""
    dataset_impl: Literal["mmap"] = "mmap"
    """Format of the files: Megatron's memory-mapped one is the only one."""


@dataclass
class RunArguments:
    """Run."""

    workers: int = field(default=1, metadata={"minimum": 1})
    """Threads that tokenise. The output does not depend on it."""
    n_subs: int = field(default=1, metadata={"minimum": 1})
    """Parts that MindSpeed-LLM divides the input into: not needed here, --workers divides it."""
    log_interval: int = field(default=100, metadata={"minimum": 1})
    """Rows between progress lines."""


GROUPS = (InputArguments, TokenizerArguments, SampleArguments, OutputArguments, RunArguments)


@dataclass
class PreprocessArguments:
    """One instance of each of GROUPS."""

    input: InputArguments
    tokenizer: TokenizerArguments
    sample: SampleArguments
    output: OutputArguments
    run: RunArguments


def parse_preprocess(argv: Sequence[str]) -> PreprocessArguments:
    """The arguments of preprocess_data.py from its command line, without the program's name.

    Raises:
        ConfigError: everything that is wrong with them, together.
    """
    parsed = read_groups(argv, GROUPS, PROGRAM, DESCRIPTION, _refusal)
    arguments = PreprocessArguments(*parsed.groups)
    problems = parsed.problems + [line for flags, line in _clashes(arguments) if not flags & parsed.doubtful]
    if problems:
        raise ConfigError(problems)
    return arguments


def _refusal(name: str) -> str | None:
    return f"{name}: not built yet; leave it out" if name in NOT_BUILT else None


def _clashes(arguments: PreprocessArguments) -> list[tuple[frozenset[str], str]]:
    """(flags concerned, what is wrong) for every rule that is broken."""
    output, sample, tokenizer = arguments.output, arguments.sample, arguments.tokenizer
    found: list[tuple[frozenset[str], str]] = []

    def wrong(flags: str, line: str) -> None:
        found.append((frozenset(flags.split()), line))

    for group in (arguments.input, sample, output, arguments.run):
        for declared in group.__dataclass_fields__.values():
            least, value = declared.metadata.get("minimum"), getattr(group, declared.name)
            if least is not None and value is not None and value < least:
                name = "--" + declared.name.replace("_", "-")
                wrong(name, f"{name} {value}: the least is {least}")
    if output.neat_pack and not output.pack:
        wrong("--neat-pack --pack", "--neat-pack needs --pack: add --pack, or leave --neat-pack out")
    if output.pack and sample.seq_length is None:
        wrong(
            "--pack --seq-length",
            "--pack needs --seq-length: say how many tokens a pack has, such as --seq-length 4096",
        )
    if sample.overlong != "truncate" and sample.seq_length is None:
        wrong(
            "--overlong --seq-length",
            f"--overlong {sample.overlong} needs --seq-length: without it nothing is too long",
        )
    if output.output_prefix.endswith("/"):
        wrong(
            "--output-prefix",
            f"--output-prefix {output.output_prefix}: a directory; add the beginning of the file names, "
            f"such as {output.output_prefix}alpaca",
        )
    if tokenizer.tokenizer_type == "GPTSentencePieceTokenizer":
        if tokenizer.tokenizer_model is None:
            wrong(
                "--tokenizer-type --tokenizer-model",
                "--tokenizer-type GPTSentencePieceTokenizer needs --tokenizer-model FILE",
            )
    elif tokenizer.tokenizer_name_or_path is None:
        wrong(
            "--tokenizer-type --tokenizer-name-or-path",
            "--tokenizer-name-or-path is required (or GPTSentencePieceTokenizer as the type, with --tokenizer-model)",
        )
    return found
