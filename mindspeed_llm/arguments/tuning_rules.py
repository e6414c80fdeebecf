"""Rules between the flags of parameter-efficient fine-tuning: one method per run, with what it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindspeed_llm.adapters import VIRTUAL_TOKEN_METHODS, LoraSettings
from mindspeed_llm.arguments.lora_arguments import LoraArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule
from mindspeed_llm.errors import ConfigError

METHODS = ("--tuning", "--lora-target-modules", "--lora-load")


def _method(arguments: PretrainArguments) -> str | None:
    """Return the method of a run; with --lora-load its settings have been applied."""
    if arguments.tuning.tuning is not None:
        return arguments.tuning.tuning
    return "lora" if arguments.lora.lora_target_modules or arguments.lora.lora_load else None


def _of_lora_only(flag: str, is_given: Callable[[PretrainArguments], object]) -> Rule[PretrainArguments]:
    """Return the rule that a flag of LoRA needs LoRA."""
    return Rule[PretrainArguments](
        (flag, *METHODS),
        lambda args: is_given(args) and _method(args) != "lora",
        lambda args: _lora_message(flag, args),
    )


def _lora_message(flag: str, arguments: PretrainArguments) -> str:
    value = getattr(arguments.lora, flag[2:].replace("-", "_"), True)
    shown = flag if value is True else f"{flag} {value:g}"
    if flag == "--save-hf-merged":
        shown = f"{flag} {arguments.checkpoint.save_hf_merged}"
    if arguments.tuning.tuning is not None:
        why = "is no change of the weights" if flag == "--save-hf-merged" else "is another method"
        return f"{shown} has an effect only with LoRA; --tuning {arguments.tuning.tuning} {why}; leave the flag out"
    return f"{shown} has an effect only with an adapter; give --lora-target-modules or --lora-load, or leave it out"


def _of_method(
    flag: str, methods: tuple[str, ...], is_given: Callable[[PretrainArguments], object], is_needed: bool
) -> tuple[Rule[PretrainArguments], ...]:
    """Return the rules that a flag belongs to some methods, and is needed there."""
    named = " or ".join(methods)
    only = Rule[PretrainArguments](
        (flag, *METHODS),
        lambda args: is_given(args) and _method(args) not in methods,
        f"{{{flag}}} has an effect only with --tuning {named}; leave it out, or give the method",
    )
    if not is_needed:
        return (only,)
    needed = Rule[PretrainArguments](
        (flag, *METHODS),
        lambda args: _method(args) in methods and not is_given(args),
        lambda args: f"--tuning {_method(args)} needs {flag} N",
    )
    return only, needed


def _saves_into_base(arguments: PretrainArguments) -> bool:
    """Return whether checkpoints of an adapter would be written beside its base model."""
    save, load = arguments.checkpoint.save, arguments.checkpoint.load
    if _method(arguments) is None or save is None or load is None:
        return False
    return Path(save).resolve() == Path(load).resolve()


def _targets_problem(arguments: PretrainArguments) -> str | None:
    """Return what is wrong with --lora-target-modules; None if nothing is."""
    try:
        LoraSettings.of(arguments.lora.lora_target_modules)
    except ConfigError as error:
        return str(error)
    return None


def _has_virtual_tokens(arguments: PretrainArguments) -> bool:
    return arguments.tuning.tuning in VIRTUAL_TOKEN_METHODS


_METHOD = (
    Rule[PretrainArguments](
        ("--tuning", "--lora-target-modules"),
        lambda args: args.tuning.tuning not in (None, "lora") and args.lora.lora_target_modules,
        lambda args: (
            f"--tuning {args.tuning.tuning} and --lora-target-modules {' '.join(args.lora.lora_target_modules)}: a run "
            "trains one method; leave one of the flags out"
        ),
    ),
    Rule[PretrainArguments](
        METHODS,
        lambda args: args.tuning.tuning == "lora" and not args.lora.lora_target_modules and args.lora.lora_load is None,
        "--tuning lora needs --lora-target-modules NAME or --lora-load DIR",
    ),
    *_of_method("--virtual-tokens", VIRTUAL_TOKEN_METHODS, lambda args: args.tuning.virtual_tokens, is_needed=True),
    *_of_method("--adapter-size", ("adapter",), lambda args: args.tuning.adapter_size, is_needed=True),
    *_of_method("--prompt-encoder-size", ("p-tuning",), lambda args: args.tuning.prompt_encoder_size, is_needed=False),
    Rule[PretrainArguments](
        ("--tuning", "--neat-pack"),
        lambda args: _has_virtual_tokens(args) and not args.data.neat_pack,
        "{--tuning} needs --neat-pack: the slots of the virtual tokens are found by the sample numbers of neat packs",
    ),
    Rule[PretrainArguments](
        ("--tuning", "--reset-position-ids"),
        lambda args: args.tuning.tuning == "prefix" and not args.data.reset_position_ids,
        "{--tuning} needs --reset-position-ids: the keys of the prefix are not rotated, so positions must begin at 0 "
        "in every sample",
    ),
    Rule[PretrainArguments](
        ("--virtual-tokens", "--seq-length"),
        lambda args: (args.tuning.virtual_tokens or 0) >= args.data.seq_length,
        "{--virtual-tokens} leaves no slot for a token in {--seq-length}; lower it",
    ),
    Rule[PretrainArguments](
        (*METHODS, "--swiglu"),
        lambda args: args.tuning.tuning == "adapter" and not args.model.swiglu,
        "--tuning adapter needs --swiglu: adapters of models with another MLP, such as GPT-2, are not supported",
    ),
)

_LORA = (
    *(
        _of_lora_only(flag, value)
        for flag, value in (
            ("--lora-r", lambda args: args.lora.lora_r != LoraArguments.lora_r),
            ("--lora-alpha", lambda args: args.lora.lora_alpha != LoraArguments.lora_alpha),
            ("--lora-dropout", lambda args: args.lora.lora_dropout),
            ("--use-rslora", lambda args: args.lora.use_rslora),
            ("--lora-plus-ratio", lambda args: args.lora.lora_plus_ratio != LoraArguments.lora_plus_ratio),
            ("--save-hf-merged", lambda args: args.checkpoint.save_hf_merged is not None),
        )
    ),
    Rule[PretrainArguments](
        ("--save-hf-merged", "--save"),
        lambda args: args.checkpoint.save_hf_merged is not None and args.checkpoint.save is None,
        "--save-hf-merged needs --save: the trained adapter is read from the last checkpoint",
    ),
    Rule[PretrainArguments](
        ("--save", "--load", *METHODS),
        _saves_into_base,
        "{--save}: --load names the same directory, but the base model of an adapter must not be where the adapter is "
        "saved; give another directory",
    ),
    Rule[PretrainArguments](
        ("--lora-target-modules",),
        lambda args: _targets_problem(args) is not None,
        lambda args: str(_targets_problem(args)),
    ),
    Rule[PretrainArguments](
        ("--lora-target-modules", "--swiglu"),
        lambda args: args.lora.lora_target_modules and not args.model.swiglu,
        "--lora-target-modules needs --swiglu: adapters of models with another MLP, such as GPT-2, are not supported",
    ),
)

RULES = (*_METHOD, *_LORA)
