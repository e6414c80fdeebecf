"""Parse and validate the command line of pretrain_gpt.py.

All problems of a command line are reported together: those of single flags (unknown, missing, not a number) and those
between flags. The rules between flags are in layout_rules.py, training_rules.py, tuning_rules.py, data_rules.py,
output_rules.py and compatibility_rules.py. A rule is skipped if a flag that it involves has an invalid value, so that
one mistake is reported once.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.arguments import (
    compatibility_rules,
    data_rules,
    foreign_flags,
    layout_rules,
    output_rules,
    training_rules,
    tuning_rules,
)
from mindspeed_llm.arguments.command_words import value_of
from mindspeed_llm.arguments.config_file import ExpandedCommand, expand_config
from mindspeed_llm.arguments.dataclass_parser import declared_flags, parse_known_groups
from mindspeed_llm.arguments.expected_data import other_data
from mindspeed_llm.arguments.foreign_flags import flags_in, refusal_of
from mindspeed_llm.arguments.loaded_adapter import apply_loaded_adapter
from mindspeed_llm.arguments.loaded_shape import LoadedShape, conflicting_flags, find_loaded_shape
from mindspeed_llm.arguments.missing_files import missing_files, missing_load
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.arguments.raw_data_rules import raw_data_problems
from mindspeed_llm.arguments.recorded_flags import RecordedFlags, find_recorded_flags
from mindspeed_llm.arguments.rule import Rule, violated_rules
from mindspeed_llm.errors import ConfigError

PROGRAM = "pretrain_gpt.py"
DESCRIPTION = "Fine-tune a language model on packed instruction data."

# Flags of Megatron and MindSpeed-LLM for features that are not supported yet: prefix of the flag → feature.
NOT_BUILT = {
    "--qlora": "QLoRA",
    "--lu-lora-": "LU-LoRA, which updates some layers without backpropagation,",
    "--use-dora": "DoRA",
    "--lora-init-": "another initialisation of LoRA, such as PiSSA,",
    "--lora-modules-to-save": "training of whole modules beside an adapter",
    "--num-experts": "mixture of experts",
    "--expert-": "mixture of experts",
    "--moe-": "mixture of experts",
    "--context-parallel-": "context parallelism",
    "--cp-": "context parallelism",
    "--ulysses-": "context parallelism",
    "--multi-latent-attention": "multi-latent attention",
    "--mtp-": "multi-token prediction",
    "--fp8-": "fp8 training",
}

_foreign_flag_reason = refusal_of(foreign_flags.TRAINING)

RULES: tuple[Rule[PretrainArguments], ...] = (
    *layout_rules.RULES,
    *training_rules.RULES,
    *tuning_rules.RULES,
    *data_rules.RULES,
    *output_rules.RULES,
    *compatibility_rules.RULES,
)


def parse_pretrain_arguments(
    argv: Sequence[str], world_size: int, program: str = PROGRAM, *, finds_files: bool = False
) -> PretrainArguments:
    """Parse and validate the command line of pretrain_gpt.py.

    Sequence parallelism is switched off if the tensor-parallel size is 1, as in Megatron, and `--rope-scaling-type
    llama3` switches on `--use-rope-scaling`. Flags of the model architecture that are not given are taken from the
    directory of `--load`, where it contains them; see loaded_shape.py. Flags of the data are taken from the manifests
    of packed files (recorded_flags.py). The file of `--config` may contain any flag (config_file.py).

    Args:
        argv: command-line arguments without the program's name.
        world_size: number of ranks of the job.
        program: name of the program for the help.
        finds_files: whether to look for the files that the command names, and to compare it with the manifests of its
            packed files. Missing and other files are reported together with other problems; if there are none, they
            are in `wrong_files` of the result, because the files of another rank may be right.

    Raises:
        ConfigError: the command line is invalid. One line per problem.
    """
    every_group = (*GROUPS, RawDataArguments)
    flags = [flag for group in every_group for flag in declared_flags(group)]
    is_help = any(word in ("-h", "--help") for word in argv)
    command = ExpandedCommand(list(argv)) if is_help else expand_config(argv, flags, unsupported_flag_reason)
    argv = command.arguments
    shape, problems_of_shape = _loaded_shape(argv)
    shape_words = shape.missing_flags(argv) if shape else []
    recorded = find_recorded_flags([*shape_words, *argv])
    derived = [*shape_words, *(recorded.arguments if recorded else [])]
    # The last value of a flag wins, so that the arguments of the user come after the derived ones.
    parsed = parse_known_groups(
        [*derived, *argv],
        every_group,
        program,
        DESCRIPTION,
        unsupported_flag_reason,
        command.origins,
        # Without the model of --load, its shape is unknown; only the directory is reported then.
        {*command.invalid_flags, *(_shape_flags() if problems_of_shape or _means_load(command) else ())},
    )
    *groups, raw_data = parsed.groups
    arguments = PretrainArguments.from_groups(groups, world_size, parsed.given.difference(derived))
    arguments.raw_data = raw_data
    arguments.tokenizer.choose_type()
    arguments.sources = _sources(command, shape, shape_words, recorded)
    problems_of_adapter = apply_loaded_adapter(arguments)
    if arguments.compatibility.rope_scaling_type == "llama3":
        arguments.model.use_rope_scaling = True
    invalid_flags = parsed.invalid_flags
    problems = problems_of_shape + command.problems + parsed.problems
    problems += violated_rules(RULES, arguments, parsed.groups, invalid_flags)
    problems += problems_of_adapter
    problems += raw_data_problems(arguments, invalid_flags)
    if shape:
        arguments.shape_notice = shape.notice(shape_words)
        conflicts = conflicting_flags(shape, arguments.model, arguments.data.seq_length)
        problems += [_as_given(line, arguments) for flag, line in conflicts if flag not in invalid_flags]
    load, files = None, []
    if finds_files and not arguments.device.dry_run:
        load = missing_load(arguments.checkpoint.load, arguments.checkpoint.save)
        files = [*missing_files(arguments), *other_data(arguments, invalid_flags)]
    first = [load] if load is not None else []
    if problems:
        raise ConfigError(list(dict.fromkeys([*first, *problems, *files])))
    arguments.wrong_files = [*first, *files]
    if arguments.parallel.tensor_model_parallel_size == 1:
        arguments.parallel.sequence_parallel = False
    return arguments


def _sources(
    command: ExpandedCommand, shape: LoadedShape | None, shape_words: Sequence[str], recorded: RecordedFlags | None
) -> dict[str, str]:
    """Return flag → file that its value comes from, for flags that are not on the command line."""
    sources = {name: where.rpartition(":")[0] for name, where in command.origins.items()}
    if shape:
        sources |= dict.fromkeys((word for word in shape_words if word.startswith("--")), str(shape.path))
    if recorded:
        sources |= dict.fromkeys(recorded.flags, recorded.source)
    return sources


def _loaded_shape(argv: Sequence[str]) -> tuple[LoadedShape | None, list[str]]:
    """Return the shape of --load or --hf-config-path, and the reasons why it is needed and cannot be read."""
    try:
        shape = find_loaded_shape(argv)
    except ConfigError as error:
        return None, error.problems
    given = {word.partition("=")[0] for word in argv}
    if shape is None and any(flag.required and flag.name not in given for flag in declared_flags(ModelArguments)):
        missing = missing_load(value_of("--load", argv), value_of("--save", argv))
        return None, [] if missing is None else [missing]
    return shape, []


def _shape_flags() -> set[str]:
    """Return the flags of the model's shape, whose values are unknown without the model of --load."""
    return {flag.name for flag in declared_flags(ModelArguments)}


def _means_load(command: ExpandedCommand) -> bool:
    """Return whether a flag of another framework stands for --load, so that the shape of the model is not missing."""
    names = (word.partition("=")[0] for word in command.arguments if word.startswith("--"))
    reasons = [unsupported_flag_reason(name) or "" for name in names]
    hinted = {flag for reason in reasons for flag in flags_in(reason, {"--load": None})}
    return "--load" in {*command.invalid_flags, *hinted}


def _as_given(line: str, arguments: PretrainArguments) -> str:
    """Return a message with the flag that the command has in place of the one that it means."""
    kind = arguments.compatibility.rope_scaling_type
    return line if kind is None else line.replace("--use-rope-scaling", f"--rope-scaling-type {kind}")


def unsupported_flag_reason(name: str) -> str | None:
    """Return why an undeclared flag is refused; None if the flag is simply unknown.

    Args:
        name: name of the flag, such as '--lora-r'.
    """
    for prefix, feature in NOT_BUILT.items():
        if name.replace("_", "-").startswith(prefix):
            return f"{name}: {feature} is not supported yet; leave the flag out"
    return _foreign_flag_reason(name)
