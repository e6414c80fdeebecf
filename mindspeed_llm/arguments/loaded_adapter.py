"""Complete the flags of an adapter with the settings of --lora-load, and refuse flags that contradict them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mindspeed_llm.adapters import (
    AdapterRecord,
    AdapterSettings,
    BottleneckSettings,
    LoraSettings,
    VirtualTokenSettings,
    adapter_settings,
)
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.storage.checkpoint_directory import CheckpointDirectory


def apply_loaded_adapter(arguments: PretrainArguments) -> list[str]:
    """Set the flags of the adapter that are not given to the settings of --lora-load.

    Args:
        arguments: arguments of the command line; the groups `tuning` and `lora` are changed.

    Returns:
        One line per problem: the adapter cannot be read, or a flag that is given contradicts it.
    """
    lora = arguments.lora
    if lora.lora_load is None:
        return []
    try:
        settings = _settings_of_run(arguments) or adapter_settings(lora.lora_load)
    except ConfigError as error:
        return error.problems
    except CheckpointError as error:
        return [str(error)]
    problems = []
    method = arguments.tuning.tuning
    if method not in (None, settings.method):
        problems.append(
            f"--tuning {method}: the adapter of --lora-load is one of --tuning {settings.method}; leave the flag out"
        )
    if not isinstance(settings, LoraSettings):
        return problems + _apply_tuning(arguments, settings)
    arguments.tuning.tuning = "lora"
    return problems + _apply_lora(arguments, settings)


def _apply_tuning(arguments: PretrainArguments, settings: VirtualTokenSettings | BottleneckSettings) -> list[str]:
    """Set the flags of another method than LoRA, and return the problems."""
    tuning, problems = arguments.tuning, []
    values: dict[str, int | None] = {"adapter_size": None, "virtual_tokens": None, "prompt_encoder_size": None}
    if isinstance(settings, BottleneckSettings):
        values["adapter_size"] = settings.size
        tuning.tuning = "adapter"
    else:
        values |= {"virtual_tokens": settings.virtual_tokens, "prompt_encoder_size": settings.encoder_size}
        tuning.tuning = settings.method
    for field, value in values.items():
        own, flag = getattr(tuning, field), f"--{field.replace('_', '-')}"
        # A flag of another method is reported by a rule.
        if own is not None and own != value and value is not None:
            problems.append(f"{flag} {own}: the adapter of --lora-load has {value}; leave the flag out")
        elif own is None:
            setattr(tuning, field, value)
    return problems


def _apply_lora(arguments: PretrainArguments, settings: LoraSettings) -> list[str]:
    """Set the flags of LoRA, and return the problems."""
    lora, problems = arguments.lora, []
    if lora.lora_target_modules:
        try:
            given = LoraSettings.of(lora.lora_target_modules).targets
        except ConfigError:
            return []  # a rule reports unknown targets
        if given != settings.targets:
            names = " ".join(lora.lora_target_modules)
            problems.append(
                f"--lora-target-modules {names}: the adapter of --lora-load has {' '.join(settings.targets)}; "
                "leave the flag out"
            )
    for flag, field, value in (
        ("--lora-r", "lora_r", settings.rank),
        ("--lora-alpha", "lora_alpha", settings.alpha),
        ("--lora-dropout", "lora_dropout", settings.dropout),
        ("--use-rslora", "use_rslora", settings.uses_rslora),
    ):
        own = getattr(lora, field)
        # The dropout is no property of the adapter: another run may continue it with another one.
        if flag in arguments.given and own != value and flag != "--lora-dropout":
            shown = flag if own is True else f"{flag} {own:g}"
            problems.append(f"{shown}: the adapter of --lora-load has {value}; leave the flag out")
        elif flag not in arguments.given:
            setattr(lora, field, value)
    lora.lora_target_modules = list(settings.targets)
    return problems


def _settings_of_run(arguments: PretrainArguments) -> AdapterSettings | None:
    """Return the settings in the newest checkpoint of --save: the folder of --lora-load may be gone on resume."""
    save = arguments.checkpoint.save
    # A damaged checkpoint is no error here: the run resumes from an older one.
    with contextlib.suppress(CheckpointError):
        newest = CheckpointDirectory(Path(save)).latest() if save is not None else None
        record = AdapterRecord.read(newest) if newest is not None else None
        return record.settings if record is not None else None
    return None
