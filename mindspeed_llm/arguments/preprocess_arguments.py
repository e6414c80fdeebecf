"""Arguments of preprocess_data.py and the rules between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from mindspeed_llm.arguments.bounds import COUNT, LENGTH, SEED, between
from mindspeed_llm.arguments.data_arguments import TokenizerArguments
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.foreign_flags import PREPROCESSING, refusal_of
from mindspeed_llm.arguments.missing_paths import (
    missing_input,
    missing_tokenizer_files,
    missing_tokenizer_model,
)
from mindspeed_llm.arguments.rule import Rule, nearest_multiples, violated_rules
from mindspeed_llm.errors import ConfigError

PROGRAM = "preprocess_data.py"
DESCRIPTION = "Convert instruction data into packed files, or raw text into document files, for pretrain_gpt.py."


@dataclass
class RowArguments:
    """Rows: their format, and which of them are used."""

    handler_name: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Format of the rows: AlpacaStyleInstructionHandler or SharegptStyleInstructionHandler (also OpenAI's messages) for
    conversations, GeneralPretrainHandler or AlpacaPretrainHandler for plain text, where every token is trained.
    Default: decided by the columns of the first row: instruction and output, conversations or messages, or text
    alone."""
    map_keys: str | None = field(default=None, metadata={"metavar": "JSON"})
    """Column names as JSON, such as '{"prompt":"instruction","query":"input","response":"output"}'. Missing keys keep
    their defaults; "" reads no column."""
    max_samples: int | None = field(default=None, metadata=between(1, COUNT))
    """Maximum number of rows to read from each input. Default: all."""
    strict: bool = False
    """Stop at the first unusable row and report it. Default: unusable rows are skipped and counted."""
    max_bad_rows: int | None = field(default=None, metadata=between(0, COUNT))
    """Maximum number of unusable rows; stop if there are more. Default: no limit."""
    max_row_mib: int = field(default=128, metadata=between(1, 2**20))
    """Maximum size of one row in MiB, after decompression. Larger rows, and JSON nested deeper than 256 levels, are
    unusable."""
    json_keys: list[str] = field(default_factory=lambda: ["text"], metadata={"metavar": "KEY"})
    """Name of the column that GeneralPretrainHandler reads."""


@dataclass
class InputArguments(RowArguments):
    """Input."""

    input: list[str] = field(kw_only=True, metadata={"metavar": "PATH", "extend": True})
    """File, directory or quoted glob of .json, .jsonl, .parquet, .csv, .txt or .arrow files. --mix-strategy combines
    several inputs. With --merge-group-keys: the directory of the packed files."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = "concat"
    """How to combine several --input: one after the other (concat), or row by row in turn, until the first one ends
    (interleave_under) or until each one has been read completely; shorter ones, with their bad rows, are repeated
    (interleave_over)."""
    interleave_probs: str | None = field(default=None, metadata={"metavar": "P,P,..."})
    """Probability of each --input when interleaving, drawn with --seed. The probabilities sum to 1."""
    merge_group_keys: list[str] = field(default_factory=list, metadata={"metavar": "KEY"})
    """Merge packed files instead of reading rows: all .bin and .idx files in the directory --input whose name contains
    KEY (such as packed_input_ids_document) become --output-prefix_KEY. Manifests are merged as well."""


@dataclass
class ConversationArguments:
    """Conversations: how they become samples, with any template."""

    chat_template: str | None = field(default=None, metadata={"metavar": "FILE"})
    """File with a chat template in Jinja, used by --prompt-type hf instead of the tokenizer's."""
    chat_template_name: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Name of the template that --prompt-type hf uses, if the tokenizer has several. Default: default."""
    enable_thinking: bool | None = None
    """For templates with reasoning (qwen3, hf): false removes the reasoning of the data; true trains an empty reasoning
    block in answers without reasoning. Default: such an empty block is part of the prompt and not trained."""
    reasoning_history: Literal["keep", "drop", "template"] | None = None
    """Reasoning in the answers before the last message of the user. keep: it is written and trained, and every answer
    has a reasoning block; drop: it is removed; template: as the published template does, which is the default."""
    train_empty_reasoning: bool = False
    """Train an empty reasoning block that the template writes before an answer without reasoning, instead of treating
    it as part of the prompt."""
    tool_format: Literal["default", "qwen", "glm4"] | None = None
    """Format of tools and tool calls, instead of the template's own. The format of tool replies does not change."""
    train_on_prompt: bool = False
    """Train on all tokens instead of the answers only."""
    mask_history: bool = False
    """Train only on the last answer of each conversation."""
    append_eod: bool = False
    """Append a trained end token to each sample that does not end with one."""
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with a sample longer than --seq-length. truncate: remove the oldest turns, then the middle of the
    user's text, then the end of the answer; a question that does not fit with its tool calls and replies is dropped.
    drop: skip the sample. error: stop."""

    control_tokens_in_text: Literal["keep", "plain", "reject"] = "keep"
    """What to do with control tokens of the tokenizer or template, such as <|im_end|>, in the text of the data. keep:
    they remain control tokens. plain: tokenise them as text. reject: skip the row. Such rows are always listed."""


@dataclass
class SampleArguments(ConversationArguments):
    """Samples."""

    prompt_type: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Name of the chat template, such as qwen or llama2. hf: the tokenizer's own template; the answers it marks with
    {% generation %} are trained, or else those found in the rendered text. Default: hf, if there is such a template."""
    prompt_type_path: str | None = field(default=None, metadata={"metavar": "FILE"})
    """JSON file with chat templates, used instead of the built-in ones."""
    seq_length: int | None = field(default=None, metadata=between(1, LENGTH))
    """Length of a pack and maximum length of a sample, in tokens. Required with --pack. Default: no limit."""
    virtual_tokens: int = field(default=0, metadata=between(0, LENGTH))
    """Slots to reserve at the beginning of every sample for virtual tokens (pretrain_gpt.py --tuning prefix, prompt or
    p-tuning). They count against --seq-length. Needs --neat-pack."""

    @property
    def capacity(self) -> int | None:
        """Maximum number of tokens of a sample, beside its virtual tokens; None for no limit."""
        return None if self.seq_length is None else self.seq_length - self.virtual_tokens


@dataclass
class OutputArguments:
    """Output."""

    output_prefix: str = field(metadata={"metavar": "PREFIX"})
    """Prefix of the output files: PREFIX_packed_{input_ids,attention_mask,labels}_document.{bin,idx} and
    PREFIX_packed_manifest.json, PREFIX_rejected.jsonl if rows were skipped, and PREFIX_control_tokens.jsonl if
    --control-tokens-in-text lists rows. Existing files are replaced at the end."""
    output_format: Literal["packed", "document"] = "packed"
    """packed: the three packed files. document: Megatron's files for pretraining, PREFIX_KEY_document.{bin,idx} with
    the tokens of complete documents, and PREFIX_KEY_document_manifest.json; KEY is that of --json-keys. For plain text
    (GeneralPretrainHandler, AlpacaPretrainHandler)."""
    pack: bool = False
    """Pack complete samples into sequences of --seq-length. Default: each sample is a separate, unpadded document."""
    neat_pack: bool = False
    """Number the samples of each pack in the attention mask, so that each attends only to itself. Needs --pack."""
    pad_to_multiple_of: int = field(default=1, metadata=between(1, LENGTH))
    """Start each sample of a pack at a multiple of this number of tokens, with untrained padding after the previous
    sample (context parallelism needs twice its size). Needs --neat-pack."""
    seed: int = field(default=1234, metadata=between(0, SEED))
    """Seed for packing, the order of packs and --interleave-probs."""
    overwrite_cache: bool = False
    """Tokenise again even if --cache-dir contains the tokens. Existing output is always replaced."""
    cache_dir: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory of the token cache (4 bytes per token). A run with the same rows, tokenizer, template and sample flags
    reuses the tokens and only packs them again. Default: tokens are stored temporarily next to the output."""
    dataset_impl: Literal["mmap"] = "mmap"
    """Format of the output files: only Megatron's mmap format is supported."""


@dataclass
class TokenisingArguments:
    """Tokenising: processes and library, which do not change the tokens."""

    workers: int = field(default=1, metadata=between(1, 4096))
    """Number of processes that read and tokenise rows. The output does not depend on it."""
    tokenizer_backend: Literal["auto", "gigatoken", "tokenizers", "sentencepiece"] = "auto"
    """Library that tokenises texts. auto: gigatoken if it is installed and can load the tokenizer, otherwise the
    reference library, which is tokenizers for tokenizer.json and sentencepiece for a .model file. The ids are the same.
    """


@dataclass
class RunArguments(TokenisingArguments):
    """Execution."""

    executor: Literal["local", "ray"] = "local"
    """Where to read and tokenise rows: in this process (local), or as tasks on blocks of the input in a Ray cluster
    (ray; needs pip install -e '.[ray]'). The output is identical."""
    ray_address: str | None = field(default=None, metadata={"metavar": "ADDRESS"})
    """Address of the Ray cluster: HOST:PORT, or auto for the cluster of this machine. Default: --executor ray starts a
    cluster of --workers workers on this machine for the duration of the run."""
    n_subs: int = field(default=1, metadata=between(1, COUNT))
    """Accepted for compatibility: MindSpeed-LLM's number of input parts. --workers divides the work instead."""
    log_interval: int | None = field(default=None, metadata=between(1, COUNT))
    """Accepted for compatibility, without effect: progress is a bar on a terminal, otherwise a line every 10
    seconds."""


GROUPS = (InputArguments, TokenizerArguments, SampleArguments, OutputArguments, RunArguments)


@dataclass
class PreprocessArguments:
    """All arguments of preprocess_data.py: one instance per class of GROUPS, in the same order."""

    input: InputArguments
    tokenizer: TokenizerArguments
    sample: SampleArguments
    output: OutputArguments
    run: RunArguments


def parse_probabilities(text: str) -> list[float] | None:
    """Parse the probabilities of --interleave-probs; return None if they are not finite numbers.

    Args:
        text: comma-separated numbers.
    """
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        return None
    return shares if all(math.isfinite(share) for share in shares) else None


def _reads_rows(arguments: PreprocessArguments) -> bool:
    """Return whether the program reads rows, rather than merging packed files."""
    return not arguments.input.merge_group_keys


def _reads_plain_text(arguments: PreprocessArguments) -> bool:
    return "Pretrain" in (arguments.input.handler_name or "")


def _writes_documents(arguments: PreprocessArguments) -> bool:
    return arguments.output.output_format == "document"


def _chooses_template(sample: SampleArguments) -> bool:
    return sample.chat_template is not None or sample.chat_template_name is not None


SENTENCE_PIECE = "GPTSentencePieceTokenizer"
TOKENIZER = ("--tokenizer-type", "--tokenizer-name-or-path", "--tokenizer-model")

_MISSING = (
    Rule[PreprocessArguments](
        ("--output-prefix",),
        lambda args: args.output.output_prefix.endswith("/"),
        lambda args: (
            f"--output-prefix {args.output.output_prefix}: a directory; append the beginning of the file names, "
            f"such as {args.output.output_prefix}alpaca"
        ),
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
        "--tokenizer-name-or-path is required (or --tokenizer-type GPTSentencePieceTokenizer with --tokenizer-model)",
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
    # Both cases are reported by other rules.
    if shares is None or _other_number_of_shares(arguments):
        return False
    # Decimal numbers such as 0.1 are not exact in binary.
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
        "--merge-group-keys: give only one --input, the directory of the files to merge",
    ),
    Rule[PreprocessArguments](
        ("--json-keys",),
        lambda args: len(args.input.json_keys) > 1,
        "{--json-keys}: only one column can be read; preprocess each column separately",
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
        "{--interleave-probs}: not a comma-separated list of numbers; give for example 0.3,0.7",
    ),
    Rule[PreprocessArguments](
        MIXING,
        _other_number_of_shares,
        lambda args: (
            f"--interleave-probs {args.input.interleave_probs}: {len(_shares(args) or [])} probabilities for "
            f"{len(args.input.input)} --input; give one per --input"
        ),
    ),
    Rule[PreprocessArguments](
        MIXING, _impossible_shares, "{--interleave-probs}: each probability must be above 0, and their sum must be 1"
    ),
)


def _needs_roles(flag: str, value: Callable[[SampleArguments], object]) -> Rule[PreprocessArguments]:
    """Return the rule that a flag for conversations cannot be used with a handler for plain text."""
    return Rule[PreprocessArguments](
        (flag, "--handler-name"),
        lambda args: _reads_plain_text(args) and value(args.sample) not in (None, False),
        lambda args: f"{flag}: {args.input.handler_name} reads plain text, which has no roles; leave the flag out",
    )


_DOCUMENTS = (
    Rule[PreprocessArguments](
        ("--output-format", "--handler-name"),
        lambda args: _writes_documents(args) and args.input.handler_name is not None and not _reads_plain_text(args),
        lambda args: (
            f"--output-format document: {args.input.handler_name} reads instructions, whose labels document files do "
            "not contain; give --handler-name GeneralPretrainHandler or AlpacaPretrainHandler, or leave the flag out"
        ),
    ),
    Rule[PreprocessArguments](
        ("--output-format", "--pack"),
        lambda args: _writes_documents(args) and args.output.pack,
        "--output-format document and --pack: documents are cut into blocks by pretrain_gpt.py; leave --pack out",
    ),
    Rule[PreprocessArguments](
        ("--output-format", "--seq-length"),
        lambda args: _writes_documents(args) and args.sample.seq_length is not None,
        "--output-format document: documents are complete, and pretrain_gpt.py cuts them to its --seq-length; leave "
        "{--seq-length} out",
    ),
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
        "--pack needs --seq-length: give the number of tokens per pack, such as --seq-length 4096",
    ),
    Rule[PreprocessArguments](
        ("--pad-to-multiple-of", "--pack", "--neat-pack"),
        lambda args: args.output.pad_to_multiple_of > 1 and not (args.output.pack and args.output.neat_pack),
        "{--pad-to-multiple-of} needs --pack --neat-pack: without sample numbers, training cannot distinguish the "
        "padding inside a pack from a sample (training itself pads unpacked samples)",
    ),
    Rule[PreprocessArguments](
        ("--pad-to-multiple-of", "--seq-length"),
        lambda args: args.sample.seq_length is not None and args.sample.seq_length % args.output.pad_to_multiple_of,
        lambda args: (
            f"--pad-to-multiple-of {args.output.pad_to_multiple_of}: --seq-length {args.sample.seq_length} is not a "
            "multiple of it; give --seq-length "
            f"{nearest_multiples(args.sample.seq_length or 0, args.output.pad_to_multiple_of)}"
        ),
    ),
    Rule[PreprocessArguments](
        ("--virtual-tokens", "--pack", "--neat-pack"),
        lambda args: args.sample.virtual_tokens and not (args.output.pack and args.output.neat_pack),
        "{--virtual-tokens} needs --pack --neat-pack: without sample numbers, training cannot find the beginning of a "
        "sample",
    ),
    Rule[PreprocessArguments](
        ("--virtual-tokens", "--seq-length"),
        lambda args: args.sample.seq_length is not None and 0 < args.sample.seq_length <= args.sample.virtual_tokens,
        "{--virtual-tokens} leaves no slot for a token in {--seq-length}; lower it, or give a longer --seq-length",
    ),
    Rule[PreprocessArguments](
        ("--overlong", "--seq-length"),
        lambda args: args.sample.overlong != "truncate" and args.sample.seq_length is None,
        "{--overlong} needs --seq-length, the maximum length of a sample",
    ),
    Rule[PreprocessArguments](
        ("--train-on-prompt", "--mask-history"),
        lambda args: args.sample.train_on_prompt and args.sample.mask_history,
        "--train-on-prompt trains on all tokens, --mask-history only on the last answer; leave one of them out",
    ),
    Rule[PreprocessArguments](
        ("--reasoning-history", "--enable-thinking"),
        lambda args: args.sample.reasoning_history == "keep" and args.sample.enable_thinking is False,
        "--reasoning-history keep keeps the reasoning of earlier answers, --enable-thinking false removes all "
        "reasoning; leave one of them out",
    ),
    Rule[PreprocessArguments](
        ("--chat-template", "--chat-template-name", "--prompt-type", "--prompt-type-path"),
        lambda args: (
            _chooses_template(args.sample)
            and (args.sample.prompt_type not in (None, "hf") or args.sample.prompt_type_path is not None)
        ),
        "--chat-template and --chat-template-name choose the template of --prompt-type hf; leave them out, or give "
        "--prompt-type hf without --prompt-type-path",
    ),
    Rule[PreprocessArguments](
        ("--chat-template", "--chat-template-name"),
        lambda args: args.sample.chat_template is not None and args.sample.chat_template_name is not None,
        "--chat-template FILE replaces the templates among which --chat-template-name chooses; leave one of them out",
    ),
    _needs_roles("--chat-template", lambda sample: sample.chat_template),
    _needs_roles("--chat-template-name", lambda sample: sample.chat_template_name),
    _needs_roles("--prompt-type", lambda sample: sample.prompt_type),
    _needs_roles("--prompt-type-path", lambda sample: sample.prompt_type_path),
    _needs_roles("--enable-thinking", lambda sample: sample.enable_thinking),
    _needs_roles("--reasoning-history", lambda sample: sample.reasoning_history),
    _needs_roles("--train-empty-reasoning", lambda sample: sample.train_empty_reasoning),
    _needs_roles("--tool-format", lambda sample: sample.tool_format),
    _needs_roles("--train-on-prompt", lambda sample: sample.train_on_prompt),
    _needs_roles("--mask-history", lambda sample: sample.mask_history),
)

RULES: tuple[Rule[PreprocessArguments], ...] = (*_MISSING, *_INPUT, *_DOCUMENTS, *_SAMPLES)


def parse_preprocess_arguments(
    argv: Sequence[str], program: str = PROGRAM, *, finds_files: bool = False
) -> PreprocessArguments:
    """Parse the command line of preprocess_data.py.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.
        finds_files: whether an invalid command line is reported together with the files that it names and that do not
            exist. Those of a valid one are reported when the inputs are opened.

    Raises:
        ConfigError: the command line is invalid. The error lists all problems.
    """
    parsed = parse_known_groups(argv, GROUPS, program, DESCRIPTION, refusal_of(PREPROCESSING))
    arguments = PreprocessArguments(*parsed.groups)
    problems = parsed.problems + violated_rules(RULES, arguments, parsed.groups, parsed.invalid_flags)
    if problems:
        raise ConfigError([*problems, *(missing_inputs(arguments) if finds_files else ())])
    return arguments


def missing_inputs(arguments: PreprocessArguments) -> list[str]:
    """Return one line for each input and tokenizer that does not exist.

    Args:
        arguments: the parsed command.
    """
    tokenizer = arguments.tokenizer
    found = [missing_input(name) for name in arguments.input.input if name and _reads_rows(arguments)]
    if tokenizer.tokenizer_type == SENTENCE_PIECE:
        found += [missing_tokenizer_model(tokenizer.tokenizer_model)] if tokenizer.tokenizer_model else []
    elif tokenizer.tokenizer_name_or_path is not None:
        found.append(missing_tokenizer_files(tokenizer.tokenizer_name_or_path))
    return [problem for problem in found if problem is not None]


def check_rules(arguments: PreprocessArguments) -> None:
    """Check the rules between the flags again, after a flag that was not given has been decided.

    Raises:
        ConfigError: the arguments violate rules.
    """
    groups = [getattr(arguments, each.name) for each in fields(arguments)]
    if problems := violated_rules(RULES, arguments, groups):
        raise ConfigError(problems)
