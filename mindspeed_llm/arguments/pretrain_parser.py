"""The command line of pretrain_gpt.py, checked. Rules between flags are in layout_rules, training_rules, data_rules.

All of a command line's faults come out together: those of single flags (unknown, missing, not a number) and those
between flags. A rule is not applied to a flag whose own value is at fault, so that one slip is one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.arguments import data_rules, layout_rules, training_rules
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.loaded_shape import conflicting_flags, find_loaded_shape
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.rule import Rule, violated_rules
from mindspeed_llm.errors import ConfigError

PROGRAM = "pretrain_gpt.py"
DESCRIPTION = "Fine-tune a language model on packed instruction data."

# Flags of Megatron and MindSpeed-LLM for what is not built yet: how they begin, and what they belong to.
NOT_BUILT = {
    "--lora-": "LoRA",
    "--qlora": "LoRA",
    "--num-experts": "mixture of experts",
    "--expert-": "mixture of experts",
    "--moe-": "mixture of experts",
    "--context-parallel-": "context parallelism",
    "--cp-": "context parallelism",
    "--multi-latent-attention": "multi-latent attention",
    "--mtp-": "multi-token prediction",
    "--fp8-": "fp8 training",
}

RULES: tuple[Rule[PretrainArguments], ...] = (*layout_rules.RULES, *training_rules.RULES, *data_rules.RULES)


def parse_pretrain_arguments(argv: Sequence[str], world_size: int) -> PretrainArguments:
    """The arguments of pretrain_gpt.py, checked.

    Sequence parallelism is switched off where the tensor-parallel size is 1, as in Megatron. What the command leaves
    out of the model's shape comes from the folder of `--load`, as far as that says it; see loaded_shape.py.

    Args:
        argv: command line without the program's name.
        world_size: ranks of the job.

    Raises:
        ConfigError: everything that is wrong with the command line, one line each.
    """
    shape = find_loaded_shape(argv)
    derived = shape.missing_flags(argv) if shape else []
    parsed = parse_known_groups([*derived, *argv], GROUPS, PROGRAM, DESCRIPTION, unsupported_flag_reason)
    arguments = PretrainArguments.from_groups(parsed.groups, world_size, parsed.given.difference(derived))
    problems = parsed.problems + violated_rules(RULES, arguments, parsed.groups, parsed.doubtful)
    if shape:
        arguments.shape_notice = shape.notice(derived)
        said = conflicting_flags(shape, arguments.model, arguments.data.seq_length)
        problems += [line for flag, line in said if flag not in parsed.doubtful]
    if problems:
        raise ConfigError(problems)
    if arguments.parallel.tensor_model_parallel_size == 1:
        arguments.parallel.sequence_parallel = False
    return arguments


def unsupported_flag_reason(name: str) -> str | None:
    """Why a flag that no group has is refused, or None if it is simply unknown."""
    for beginning, subject in NOT_BUILT.items():
        if name.startswith(beginning):
            return f"{name}: {subject} is not built yet; leave the flag out"
    return None
