"""What preprocess_data.py is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, LENGTH, SEED, between
from mindspeed_llm.arguments.data_arguments import TokenizerArguments
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.rule import Rule, violated_rules
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
    seq_length: int | None = field(default=None, metadata=between(1, LENGTH))
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

    control_tokens_in_text: Literal["keep", "plain", "reject"] = "keep"
    """Control tokens of the tokenizer or template, such as <|im_end|>, that stand in the text of the data: keep them as
    control tokens, tokenise them as plain text, or reject the row. Such rows are counted and listed in any case."""


@dataclass
class OutputArguments:
    """Output."""

    output_prefix: str = field(metadata={"metavar": "PREFIX"})
    """Writes PREFIX_packed_{input_ids,attention_mask,labels}_document.{bin,idx} and PREFIX_packed_manifest.json, and
    PREFIX_rejected.jsonl if rows were skipped, PREFIX_control_tokens.jsonl if rows are listed by
    --control-tokens-in-text. Existing ones are replaced at the end."""
    pack: bool = False
    """Fill sequences of --seq-length with whole samples. Without it each sample is a document by itself, not padded."""
    neat_pack: bool = False
    """Number the samples of each pack in the attention mask, so that training can keep them apart. Needs --pack."""
    pad_to_multiple_of: int = field(default=1, metadata=between(1, LENGTH))
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


def parse_probabilities(text: str) -> list[float] | None:
    """The numbers of --interleave-probs; None if they are none."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        return None
    return shares if all(math.isfinite(share) for share in shares) else None


def _reads_rows(arguments: PreprocessArguments) -> bool:
    """The job is not a merge of finished files."""
    return not arguments.input.merge_group_keys


def _reads_plain_text(arguments: PreprocessArguments) -> bool:
    return "Pretrain" in (arguments.input.handler_name or "")


def _no_template(arguments: PreprocessArguments) -> bool:
    has_handler = arguments.input.handler_name is not None and not _reads_plain_text(arguments)
    return _reads_rows(arguments) and has_handler and arguments.sample.prompt_type is None


def _no_template_message(arguments: PreprocessArguments) -> str:
    own = arguments.sample.prompt_type_path
    what = "the chat template, such as qwen" if own is None else f"the name of the template in {own}"
    return f"--prompt-type is required: {what}"


SENTENCE_PIECE = "GPTSentencePieceTokenizer"
TOKENIZER = ("--tokenizer-type", "--tokenizer-name-or-path", "--tokenizer-model")

_MISSING = (
    Rule[PreprocessArguments](
        ("--output-prefix",),
        lambda args: args.output.output_prefix.endswith("/"),
        lambda args: (
            f"--output-prefix {args.output.output_prefix}: a directory; add the beginning of the file names, such as "
            f"{args.output.output_prefix}alpaca"
        ),
    ),
    Rule[PreprocessArguments](
        ("--handler-name", "--merge-group-keys"),
        lambda args: _reads_rows(args) and args.input.handler_name is None,
        "--handler-name is required: AlpacaStyleInstructionHandler for Alpaca's columns",
    ),
    Rule[PreprocessArguments](
        ("--prompt-type", "--handler-name", "--merge-group-keys"),
        _no_template,
        _no_template_message,
    ),
    Rule[PreprocessArguments](
        (*TOKENIZER, "--merge-group-keys"),
        lambda args: (
            _reads_rows(args)
            and args.tokenizer.tokenizer_type == SENTENCE_PIECE
            and args.tokenizer.tokenizer_model is None
        ),
        "--tokenizer-type GPTSentencePieceTokenizer needs --tokenizer-model FILE",
    ),
    Rule[PreprocessArguments](
        (*TOKENIZER, "--merge-group-keys"),
        lambda args: (
            _reads_rows(args)
            and args.tokenizer.tokenizer_type != SENTENCE_PIECE
            and args.tokenizer.tokenizer_name_or_path is None
        ),
        "--tokenizer-name-or-path is required (or GPTSentencePieceTokenizer as the type, with --tokenizer-model)",
    ),
)

MIXING = ("--interleave-probs", "--mix-strategy", "--input")


def _shares(arguments: PreprocessArguments) -> list[float] | None:
    given = arguments.input.interleave_probs
    return None if given is None else parse_probabilities(given)


def _other_number_of_shares(arguments: PreprocessArguments) -> bool:
    shares = _shares(arguments)
    return shares is not None and len(shares) != len(arguments.input.input)


def _impossible_shares(arguments: PreprocessArguments) -> bool:
    shares = _shares(arguments)
    if shares is None or _other_number_of_shares(arguments):
        return False
    return min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6


_INPUT = (
    Rule[PreprocessArguments](
        ("--ray-address", "--executor"),
        lambda args: args.run.ray_address is not None and args.run.executor != "ray",
        "--ray-address needs --executor ray: add it, or leave --ray-address out",
    ),
    Rule[PreprocessArguments](
        ("--input", "--merge-group-keys"),
        lambda args: args.input.merge_group_keys and len(args.input.input) > 1,
        "--merge-group-keys: --input is the one directory of the files to merge",
    ),
    Rule[PreprocessArguments](
        ("--json-keys",),
        lambda args: len(args.input.json_keys) > 1,
        "{--json-keys}: one column is read; preprocess each on its own",
    ),
    Rule[PreprocessArguments](
        ("--strict", "--max-bad-rows"),
        lambda args: args.input.strict and args.input.max_bad_rows is not None,
        "--strict and --max-bad-rows: --strict allows no bad row; leave one of them out",
    ),
    Rule[PreprocessArguments](
        MIXING,
        lambda args: args.input.interleave_probs is not None and args.input.mix_strategy == "concat",
        "--interleave-probs needs --mix-strategy interleave_under or interleave_over",
    ),
    Rule[PreprocessArguments](
        MIXING,
        lambda args: args.input.interleave_probs is not None and _shares(args) is None,
        "{--interleave-probs}: numbers with commas are wanted, such as 0.3,0.7",
    ),
    Rule[PreprocessArguments](
        MIXING,
        _other_number_of_shares,
        lambda args: (
            f"--interleave-probs {args.input.interleave_probs}: {len(_shares(args) or [])} shares for "
            f"{len(args.input.input)} --input"
        ),
    ),
    Rule[PreprocessArguments](MIXING, _impossible_shares, "{--interleave-probs}: shares are above 0 and sum to 1"),
)


def _needs_roles(flag: str, value: Callable[[SampleArguments], object]) -> Rule[PreprocessArguments]:
    """A flag that chooses what is trained of a conversation, or how it is written."""
    return Rule[PreprocessArguments](
        (flag, "--handler-name"),
        lambda args: _reads_plain_text(args) and value(args.sample) not in (None, False),
        lambda args: f"{flag}: {args.input.handler_name} reads plain text, which has no roles; leave it out",
    )


_SAMPLES = (
    Rule[PreprocessArguments](
        ("--neat-pack", "--pack"),
        lambda args: args.output.neat_pack and not args.output.pack,
        "--neat-pack needs --pack: add --pack, or leave --neat-pack out",
    ),
    Rule[PreprocessArguments](
        ("--pack", "--seq-length"),
        lambda args: args.output.pack and args.sample.seq_length is None,
        "--pack needs --seq-length: say how many tokens a pack has, such as --seq-length 4096",
    ),
    Rule[PreprocessArguments](
        ("--pad-to-multiple-of", "--pack", "--neat-pack"),
        lambda args: args.output.pad_to_multiple_of > 1 and not (args.output.pack and args.output.neat_pack),
        "{--pad-to-multiple-of} needs --pack --neat-pack: elsewhere training could not tell the padding inside a pack "
        "from a sample (and pads unpacked samples itself)",
    ),
    Rule[PreprocessArguments](
        ("--pad-to-multiple-of", "--seq-length"),
        lambda args: args.sample.seq_length is not None and args.sample.seq_length % args.output.pad_to_multiple_of,
        "{--pad-to-multiple-of}: {--seq-length} is not a multiple of it",
    ),
    Rule[PreprocessArguments](
        ("--overlong", "--seq-length"),
        lambda args: args.sample.overlong != "truncate" and args.sample.seq_length is None,
        "{--overlong} needs --seq-length: without it nothing is too long",
    ),
    Rule[PreprocessArguments](
        ("--train-on-prompt", "--mask-history"),
        lambda args: args.sample.train_on_prompt and args.sample.mask_history,
        "--train-on-prompt trains all and --mask-history the last answer alone; leave one of them out",
    ),
    _needs_roles("--prompt-type", lambda sample: sample.prompt_type),
    _needs_roles("--prompt-type-path", lambda sample: sample.prompt_type_path),
    _needs_roles("--enable-thinking", lambda sample: sample.enable_thinking),
    _needs_roles("--tool-format", lambda sample: sample.tool_format),
    _needs_roles("--train-on-prompt", lambda sample: sample.train_on_prompt),
    _needs_roles("--mask-history", lambda sample: sample.mask_history),
)

RULES: tuple[Rule[PreprocessArguments], ...] = (*_MISSING, *_INPUT, *_SAMPLES)


def parse_preprocess_arguments(argv: Sequence[str]) -> PreprocessArguments:
    """The arguments of preprocess_data.py from its command line, without the program's name.

    Raises:
        ConfigError: everything that is wrong with them, together.
    """
    parsed = parse_known_groups(argv, GROUPS, PROGRAM, DESCRIPTION)
    arguments = PreprocessArguments(*parsed.groups)
    problems = parsed.problems + violated_rules(RULES, arguments, parsed.groups, parsed.doubtful)
    if problems:
        raise ConfigError(problems)
    return arguments
