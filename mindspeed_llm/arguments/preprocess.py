"""What preprocess_data.py is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, INT32, SEED, between
from mindspeed_llm.arguments.data import TokenizerArguments
from mindspeed_llm.arguments.parsing import read_groups
from mindspeed_llm.errors import ConfigError

PROGRAM = "preprocess_data.py"
DESCRIPTION = "Convert instruction data into packed files for pretrain_gpt.py."


@dataclass
class InputArguments:
    """Input."""

    input: list[str] = field(metadata={"metavar": "PATH", "extend": True})
    """File, directory or glob (in quotes) of .json, .jsonl, .parquet, .csv, .txt or .arrow; several are data sets that
    --mix-strategy puts together. With --merge-group-keys the directory of finished files."""
    handler_name: str | None = field(default=None, metadata={"metavar": "NAME"})
    """What the rows are: AlpacaStyleInstructionHandler or SharegptStyleInstructionHandler for conversations,
    GeneralPretrainHandler or AlpacaPretrainHandler for plain text, of which every token is trained. Required."""
    map_keys: str | None = field(default=None, metadata={"metavar": "JSON"})
    """Columns with other names, such as '{"prompt":"instruction","query":"input","response":"output"}'; keys that are
    left out keep their defaults, "" reads no column."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = "concat"
    """How several --input come together: one after the other, or row by row in turn, until the first of them ends
    (under) or until each has been read at least once, shorter ones again and again (over), their bad rows too."""
    interleave_probs: str | None = field(default=None, metadata={"metavar": "P,P,..."})
    """Share of each --input in what is interleaved, drawn with --seed; they sum to 1."""
    max_samples: int | None = field(default=None, metadata=between(1, COUNT))
    """Read no more rows than this of each --input."""
    strict: bool = False
    """Stop at the first row that cannot be used, naming it. Without it such rows are skipped and counted."""
    max_bad_rows: int | None = field(default=None, metadata=between(0, COUNT))
    """Stop when more rows than this cannot be used."""
    max_row_mib: int = field(default=128, metadata=between(1, 2**20))
    """Size limit of one row in MiB, after decompression. A larger row is a bad row, as is one of JSON that is nested
    deeper than 256 levels."""
    json_keys: list[str] = field(default_factory=lambda: ["text"], metadata={"metavar": "KEY"})
    """The column that GeneralPretrainHandler reads."""
    merge_group_keys: list[str] = field(default_factory=list, metadata={"metavar": "KEY"})
    """Merge finished files in place of reading rows: of the directory --input, all .bin and .idx whose name holds KEY
    (such as packed_input_ids_document) become --output-prefix_KEY; manifests are merged too."""


@dataclass
class SampleArguments:
    """Samples."""

    prompt_type: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Chat template, such as qwen or llama2; hf: the tokenizer's own, which must mark its answers with
    {% generation %}. Required for conversations."""
    prompt_type_path: str | None = field(default=None, metadata={"metavar": "FILE"})
    """JSON file that holds the template, in place of those that come with the program."""
    seq_length: int | None = field(default=None, metadata=between(1, INT32))
    """Tokens of a pack, and the most of a sample. Needed with --pack; without either samples keep their length."""
    enable_thinking: bool | None = None
    """For templates with thoughts (qwen3, hf): false leaves the thoughts of the data out; true trains an empty thought
    where an answer has none, which otherwise is part of the prompt."""
    tool_format: Literal["default", "qwen", "glm4"] | None = None
    """How tools and calls are written, in place of the template's own way; replies of tools stay as it has them."""
    train_on_prompt: bool = False
    """Train every token, not the answers alone."""
    mask_history: bool = False
    """Of several answers train the last alone."""
    append_eod: bool = False
    """End each sample with the end token, trained, unless it ends with it already."""
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """A sample longer than --seq-length: cut it (the oldest turns, then the middle of the user's text, then the end of
    the answer; where a question does not fit with its calls and replies, it is left out), leave it out, or stop."""


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
    pad_to_multiple_of: int = field(default=1, metadata=between(1, INT32))
    """Begin each sample of a pack at a multiple of this, with padding after the one before, which is not trained
    (context parallelism needs twice its size). Needs --neat-pack."""
    seed: int = field(default=1234, metadata=between(0, SEED))
    """Seed of the packing and its order, and of --interleave-probs."""
    overwrite_cache: bool = False
    """Make the tokens again that --cache-dir has kept. Existing output is replaced in any case."""
    cache_dir: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory that keeps the tokens (4 bytes each): a run with the same rows, tokenizer, template and flags of
    samples only packs them again. Without it they lie beside the output until they are packed."""
    dataset_impl: Literal["mmap"] = "mmap"
    """Format of the files: Megatron's memory-mapped one is the only one."""


@dataclass
class RunArguments:
    """Run."""

    workers: int = field(default=1, metadata=between(1, 4096))
    """Threads that tokenise. The output does not depend on it."""
    executor: Literal["local", "ray"] = "local"
    """Where rows are read and tokenised: in this process, or as tasks of a Ray cluster (pip install
    'mindspeed_llm[ray]'), each on a block of the input. The output is the same, byte for byte."""
    ray_address: str | None = field(default=None, metadata={"metavar": "ADDRESS"})
    """The Ray cluster: auto for the one that this machine belongs to, or HOST:PORT. Without it --executor ray starts
    one on this machine, of --workers workers, for the time of the run."""
    n_subs: int = field(default=1, metadata=between(1, COUNT))
    """Parts that MindSpeed-LLM divides the input into: not needed here, --workers divides it."""
    log_interval: int = field(default=100, metadata=between(1, COUNT))
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
    parsed = read_groups(argv, GROUPS, PROGRAM, DESCRIPTION)
    arguments = PreprocessArguments(*parsed.groups)
    clashes = [*_missing(arguments), *_input_clashes(arguments), *_sample_clashes(arguments)]
    problems = parsed.problems + [line for flags, line in clashes if not set(flags.split()) & parsed.doubtful]
    if problems:
        raise ConfigError(problems)
    return arguments


# (flags concerned, what is wrong) for a rule that is broken.
Clash = tuple[str, str]


def _missing(arguments: PreprocessArguments) -> Iterator[Clash]:
    given, tokenizer, name = arguments.input, arguments.tokenizer, arguments.input.handler_name
    if arguments.output.output_prefix.endswith("/"):
        yield (
            "--output-prefix",
            f"--output-prefix {arguments.output.output_prefix}: a directory; add the beginning of the file names, "
            f"such as {arguments.output.output_prefix}alpaca",
        )
    if given.merge_group_keys:
        return
    if name is None:
        yield "--handler-name", "--handler-name is required: AlpacaStyleInstructionHandler for Alpaca's columns"
    elif arguments.sample.prompt_type is None and "Pretrain" not in name:
        own = arguments.sample.prompt_type_path
        what = "the chat template, such as qwen" if own is None else f"the name of the template in {own}"
        yield "--prompt-type --handler-name", f"--prompt-type is required: {what}"
    if tokenizer.tokenizer_type == "GPTSentencePieceTokenizer":
        if tokenizer.tokenizer_model is None:
            yield (
                "--tokenizer-type --tokenizer-model",
                "--tokenizer-type GPTSentencePieceTokenizer needs --tokenizer-model FILE",
            )
    elif tokenizer.tokenizer_name_or_path is None:
        yield (
            "--tokenizer-type --tokenizer-name-or-path",
            "--tokenizer-name-or-path is required (or GPTSentencePieceTokenizer as the type, with --tokenizer-model)",
        )


def _input_clashes(arguments: PreprocessArguments) -> Iterator[Clash]:
    given = arguments.input
    if arguments.run.ray_address is not None and arguments.run.executor != "ray":
        yield "--ray-address --executor", "--ray-address needs --executor ray: add it, or leave --ray-address out"
    if given.merge_group_keys and len(given.input) > 1:
        yield "--input --merge-group-keys", "--merge-group-keys: --input is the one directory of the files to merge"
    if len(given.json_keys) > 1:
        yield "--json-keys", f"--json-keys {' '.join(given.json_keys)}: one column is read; preprocess each on its own"
    if given.strict and given.max_bad_rows is not None:
        yield (
            "--strict --max-bad-rows",
            "--strict and --max-bad-rows: --strict allows no bad row; leave one of them out",
        )
    if given.interleave_probs is None:
        return
    flags = "--interleave-probs --mix-strategy --input"
    shares = probabilities_of(given.interleave_probs)
    if given.mix_strategy == "concat":
        yield flags, "--interleave-probs needs --mix-strategy interleave_under or interleave_over"
    if shares is None:
        yield flags, f"--interleave-probs {given.interleave_probs}: numbers with commas are wanted, such as 0.3,0.7"
    elif len(shares) != len(given.input):
        yield flags, f"--interleave-probs {given.interleave_probs}: {len(shares)} shares for {len(given.input)} --input"
    elif min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        yield flags, f"--interleave-probs {given.interleave_probs}: shares are above 0 and sum to 1"


def probabilities_of(text: str) -> list[float] | None:
    """The numbers of --interleave-probs; None if they are none."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        return None
    return shares if all(math.isfinite(share) for share in shares) else None


def _sample_clashes(arguments: PreprocessArguments) -> Iterator[Clash]:
    output, sample = arguments.output, arguments.sample
    multiple, length = output.pad_to_multiple_of, sample.seq_length
    if output.neat_pack and not output.pack:
        yield "--neat-pack --pack", "--neat-pack needs --pack: add --pack, or leave --neat-pack out"
    if output.pack and length is None:
        yield (
            "--pack --seq-length",
            "--pack needs --seq-length: say how many tokens a pack has, such as --seq-length 4096",
        )
    if multiple > 1 and not (output.pack and output.neat_pack):
        yield (
            "--pad-to-multiple-of --pack --neat-pack",
            f"--pad-to-multiple-of {multiple} needs --pack --neat-pack: elsewhere training could not tell the padding "
            "inside a pack from a sample (and pads unpacked samples itself)",
        )
    if length is not None and multiple > 1 and length % multiple:
        yield (
            "--pad-to-multiple-of --seq-length",
            f"--pad-to-multiple-of {multiple}: --seq-length {length} is not a multiple of it",
        )
    if sample.overlong != "truncate" and length is None:
        yield (
            "--overlong --seq-length",
            f"--overlong {sample.overlong} needs --seq-length: without it nothing is too long",
        )
    if sample.train_on_prompt and sample.mask_history:
        yield (
            "--train-on-prompt --mask-history",
            "--train-on-prompt trains all and --mask-history the last answer alone; leave one of them out",
        )
    if "Pretrain" in (arguments.input.handler_name or ""):
        for name in (
            "prompt_type",
            "prompt_type_path",
            "enable_thinking",
            "tool_format",
            "train_on_prompt",
            "mask_history",
        ):
            if getattr(sample, name) not in (None, False):
                flag = "--" + name.replace("_", "-")
                yield flag, f"{flag}: {arguments.input.handler_name} reads plain text, which has no roles; leave it out"
