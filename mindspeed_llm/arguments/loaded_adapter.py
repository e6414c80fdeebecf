"""Complete the flags of an adapter with the settings of --lora-load, and refuse flags that contradict them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mindspeed_llm.adapters import AdapterRecord, LoraSettings, adapter_settings
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.storage.checkpoint_directory import CheckpointDirectory


def apply_loaded_adapter(arguments: PretrainArguments) -> list[str]:
    """Set the flags of the adapter that are not given to the settings of --lora-load.

    Args:
        arguments: arguments of the command line; the group `lora` is changed.

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


def _settings_of_run(arguments: PretrainArguments) -> LoraSettings | None:
    """Return the settings in the newest checkpoint of --save: the folder of --lora-load may be gone on resume."""
    save = arguments.checkpoint.save
    # A damaged checkpoint is no error here: the run resumes from an older one.
    with contextlib.suppress(CheckpointError):
        newest = CheckpointDirectory(Path(save)).latest() if save is not None else None
        record = AdapterRecord.read(newest) if newest is not None else None
        return record.settings if record is not None else None
    return None
