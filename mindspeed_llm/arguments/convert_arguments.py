"""Arguments of convert_ckpt.py, with the flag names of MindSpeed-LLM 2.x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mindspeed_llm.arguments.bounds import FLOAT32, RANKS, between
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.foreign_flags import CONVERSION, refusal_of
from mindspeed_llm.arguments.missing_paths import missing_directory
from mindspeed_llm.arguments.rule import Rule, violated_rules
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import model_type_names

PROGRAM = "convert_ckpt.py"
DESCRIPTION = "Convert weights between Hugging Face's format and megatron-core's."


@dataclass
class ConvertArguments:
    """Conversion.

    The shape of the model is read from its config.json. MindSpeed-LLM's flags for it are accepted and ignored.
    """

    load_dir: str = field(metadata={"metavar": "DIR"})
    """Directory of the weights to convert."""
    save_dir: str = field(metadata={"metavar": "DIR"})
    """Output directory. From mg to hf: a new or empty directory, or, as in MindSpeed-LLM, that of the original Hugging
    Face model, in which the directory mg2hf is created."""
    load_model_type: Literal["hf", "mg"] = "hf"
    """Format of --load-dir: Hugging Face (hf) or megatron-core (mg)."""
    save_model_type: Literal["hf", "mg"] = "mg"
    """Format of --save-dir: Hugging Face (hf) or megatron-core (mg)."""
    model_type_hf: str | None = field(default=None, metadata={"choices": model_type_names()})
    """Model type, which must match config.json. llama2 matches every model, as in MindSpeed-LLM."""
    hf_dir: str | None = field(default=None, metadata={"metavar": "DIR", "flags": ("--hf-cfg-dir", "--hf-config-path")})
    """From mg to hf: directory with config.json and tokenizer of the model. Default: those in --save-dir or in the
    checkpoint. When a peft folder in --load-dir is converted to a checkpoint: Hugging Face folder of its base model."""
    target_tensor_parallel_size: int = field(default=1, metadata=between(1, RANKS))
    """Tensor-parallel size, only for --ckpt-format torch; torch_dist loads on any layout."""
    target_pipeline_parallel_size: int = field(default=1, metadata=between(1, RANKS))
    """Number of pipeline stages, only for --ckpt-format torch."""
    ckpt_format: Literal["torch_dist", "torch"] = "torch_dist"
    """Checkpoint format of megatron-core to write: torch_dist, or the older torch with one file per rank. Both can be
    read."""
    params_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Data type of the weights. Default: that of --load-dir."""
    make_vocab_size_divisible_by: int = field(default=1, metadata=between(1, 2**16))
    """For --ckpt-format torch: pad the vocabulary size to a multiple of this value times the tensor-parallel size."""
    lora_load: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Adapter to merge into the model of --load-dir: a peft folder, or a checkpoint of pretrain_gpt.py that contains an
    adapter."""
    save_lora_to_hf: bool = field(default=False, metadata={"flags": ("--save-adapter-to-hf",)})
    """Write the adapter in --load-dir, a checkpoint of pretrain_gpt.py, as a peft folder, without its base model."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Projections of the adapter, which must agree with it. When a peft folder is converted to a checkpoint, the name
    of a linear layer (linear_qkv) lets its projections share one matrix A."""
    lora_r: int | None = field(default=None, metadata=between(1, 2**16))
    """Rank of the adapter, which must agree with it. Default: that of the adapter."""
    lora_alpha: float | None = field(default=None, metadata={"above": 0, "maximum": FLOAT32})
    """Numerator of the adapter's scale, which must agree with it. Default: that of the adapter."""
    use_mcore_models: bool = False
    """Accepted for compatibility: models are always those of megatron-core."""
    model_type: Literal["GPT"] = "GPT"
    """Accepted for compatibility: the only model type."""
    loader: str | None = None
    """Accepted for compatibility: --load-model-type sets the format."""
    saver: str | None = None
    """Accepted for compatibility: --save-model-type sets the format."""
    add_qkv_bias: bool = False
    """Accepted for compatibility: read from config.json."""
    tokenizer_model: str | None = field(default=None, metadata={"metavar": "PATH"})
    """Accepted for compatibility: the vocabulary size is read from config.json."""
    spec: list[str] = field(default_factory=list)
    """Accepted for compatibility: the layers follow from config.json."""


def _converts_model(arguments: ConvertArguments) -> bool:
    return arguments.lora_load is None and not arguments.save_lora_to_hf


RULES = (
    Rule[ConvertArguments](
        ("--load-model-type", "--save-model-type", "--lora-load", "--save-lora-to-hf"),
        lambda args: _converts_model(args) and args.load_model_type == args.save_model_type,
        lambda args: f"--load-model-type and --save-model-type are both {args.load_model_type}; one must be hf, one mg",
    ),
    Rule[ConvertArguments](
        ("--save-lora-to-hf", "--lora-load"),
        lambda args: args.save_lora_to_hf and args.lora_load is not None,
        "--save-lora-to-hf writes the adapter of --load-dir without its base model, and --lora-load merges an adapter "
        "into the model of --load-dir; give one of them",
    ),
    Rule[ConvertArguments](
        ("--save-lora-to-hf", "--load-model-type", "--save-model-type", "--lora-load"),
        lambda args: (
            args.save_lora_to_hf
            and args.lora_load is None
            and (args.load_model_type, args.save_model_type) != ("mg", "hf")
        ),
        "--save-lora-to-hf: needs --load-model-type mg and --save-model-type hf",
    ),
)


def parse_convert_arguments(
    argv: Sequence[str], program: str = PROGRAM, *, finds_files: bool = False
) -> ConvertArguments:
    """Parse the command line of convert_ckpt.py.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.
        finds_files: whether directories that the command names and that do not exist are problems as well.

    Raises:
        ConfigError: the command line is invalid. One line per problem.
    """
    parsed = parse_known_groups(argv, [ConvertArguments], program, DESCRIPTION, refusal_of(CONVERSION))
    arguments: ConvertArguments = parsed.groups[0]
    problems = parsed.problems + violated_rules(RULES, arguments, parsed.groups, parsed.invalid_flags)
    if finds_files:
        problems += missing_directories(arguments)
    if problems:
        raise ConfigError(problems)
    return arguments


def missing_directories(arguments: ConvertArguments, written: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Return one line for each directory that is read and does not exist.

    Args:
        arguments: the parsed command.
        written: whether a directory will be written before the command runs.
    """
    named = {"--load-dir": arguments.load_dir, "--hf-dir": arguments.hf_dir, "--lora-load": arguments.lora_load}
    found = [missing_directory(flag, folder) for flag, folder in named.items() if folder and not written(folder)]
    return [problem for problem in found if problem is not None]
