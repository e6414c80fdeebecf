"""Read and make the adapter_config.json of a peft folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_llm.adapters.adapter_kinds import AdapterSettings
from mindspeed_llm.adapters.bottleneck_settings import BottleneckSettings
from mindspeed_llm.adapters.lora_settings import LoraSettings
from mindspeed_llm.adapters.projections import ALL_LINEAR, LINEAR_LAYERS
from mindspeed_llm.adapters.prompt_config import (
    READERS,
    BaseShape,
    bottleneck_config,
    encoder_notice,
    virtual_token_config,
)
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.safe_open import read_file_bytes

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Keys whose value is a setting, or has no effect on the weights of an adapter that is loaded.
_USED = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "ensure_weight_tying",
    "megatron_config",
    "megatron_core",
}
LARGEST_ALPHA = 3.4e38  # of a float32
# Key → what it is, for the message. Other keys with a value are refused by their name alone.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "further trained modules (modules_to_save)",
    "rank_pattern": "ranks that differ between layers (rank_pattern)",
    "alpha_pattern": "scales that differ between layers (alpha_pattern)",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
    "layers_to_transform": "an adapter of some layers only (layers_to_transform)",
    "use_qalora": "QA-LoRA",
    "lora_bias": "a bias in the adapter (lora_bias)",
}
# Initial values that change the weights of the base model as well, so that the adapter does not fit the base alone.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# Names of quantised models: unsloth/Qwen2.5-7B-bnb-4bit, Qwen2.5-7B-Instruct-AWQ.
_QUANTISED = re.compile(r"(?i)\b(bnb|[348]-?bit|gptq|awq|int[48]|nf4)\b")
# The first value of these keys means that the feature is not used.
_NEUTRAL = {"bias": "none"}


def is_peft_folder(folder: str | Path) -> bool:
    """Return whether a directory contains an adapter_config.json."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def read_peft_config(folder: str | Path, flag: str = "--lora-load") -> AdapterSettings:
    """Read the settings of the adapter in a peft folder.

    Args:
        folder: directory with adapter_config.json.
        flag: flag that names the folder, for messages.

    Raises:
        ConfigError: the file cannot be read, or it describes an adapter that is not supported. One line per problem.
    """
    path, raw = Path(folder) / ADAPTER_CONFIG, _read(folder, flag)
    kind = raw.get("peft_type")
    check, settings_of = READERS.get(kind, (_problems, None)) if isinstance(kind, str) else (_problems, None)
    problems = [f"{flag} {path}: {problem}" for problem in check(raw)]
    if problems:
        raise ConfigError(problems)
    if settings_of is not None:
        return settings_of(raw)
    try:
        return LoraSettings.of(
            _targets(raw["target_modules"]),
            raw["r"],
            float(raw["lora_alpha"]),
            float(raw.get("lora_dropout") or 0.0),
            bool(raw.get("use_rslora")),
        )
    except ConfigError as error:
        # The message names our flag, which the user has not given.
        lines = [line.replace("--lora-target-modules", "target_modules") for line in error.problems]
        raise ConfigError([f"{flag} {path}: {line}" for line in lines]) from error


def peft_folder_notice(folder: str | Path, flag: str = "--lora-load") -> str | None:
    """Return one line about what a peft folder lacks of the adapter that was trained; None if it lacks nothing.

    Args:
        folder: directory with adapter_config.json.
        flag: flag that names the folder, for messages.

    Raises:
        ConfigError: the file cannot be read.
    """
    notice = encoder_notice(_read(folder, flag))
    return None if notice is None else f"{flag} {folder}: {notice}"


def _read(folder: str | Path, flag: str) -> dict[str, Any]:
    """Return the content of an adapter_config.json."""
    try:
        raw = json.loads(read_file_bytes(Path(folder) / ADAPTER_CONFIG))
        if not isinstance(raw, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} {folder}: {ADAPTER_CONFIG} cannot be read ({error})") from error
    return raw


def _problems(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the content of an adapter_config.json of LoRA."""
    problems = []
    if raw.get("peft_type") != "LORA":
        return [f"peft_type {raw.get('peft_type')!r} is not supported; supported are LORA, {', '.join(READERS)}"]
    rank: Any = raw.get("r")
    alpha: Any = raw.get("lora_alpha")
    dropout: Any = raw.get("lora_dropout") or 0.0
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r}, not a whole number above 0")
    if not _is_number(alpha) or not 0 < alpha <= LARGEST_ALPHA:
        problems.append(f"lora_alpha is {alpha!r}, not a number above 0")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout is {dropout!r}, not a number from 0 to below 1")
    if not isinstance(raw.get("use_rslora"), bool | None):
        problems.append(f"use_rslora is {raw['use_rslora']!r}, not true or false")
    if not _is_names(raw.get("target_modules")) and raw.get("target_modules") != ALL_LINEAR:
        problems.append("target_modules is no list of names; a pattern is not supported")
    base = raw.get("base_model_name_or_path")
    if isinstance(base, str) and _QUANTISED.search(base):
        problems.append(f"QLoRA is not supported: the base model {base} is quantised")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        problems.append(f"init_lora_weights {start!r} (PiSSA and the like change the base model) is not supported")
    for key, value in raw.items():
        if key in _USED or key in _WITHOUT_EFFECT or key == "init_lora_weights" or value == _NEUTRAL.get(key):
            continue
        if value:
            problems.append(f"{_REFUSED.get(key, key)} is not supported")
    return problems


def _is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number; true and false are none."""
    return type(value) in (int, float)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _targets(value: list[str] | str) -> list[str]:
    """Return the targets in the order of a layer, because peft writes a set."""
    if value == ALL_LINEAR:
        return [ALL_LINEAR]
    known = [name for layer in LINEAR_LAYERS for name in layer.projections]
    # peft also accepts a path that ends with the name, such as self_attn.q_proj.
    names = {name.rpartition(".")[2] if name.count(".") == 1 else name for name in value}
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def peft_config(settings: AdapterSettings, base: str | None, shape: BaseShape) -> dict[str, Any]:
    """Make the content of an adapter_config.json.

    Args:
        settings: settings of the adapter.
        base: path or name of the base model; None if it has none.
        shape: shape of the base model.
    """
    if isinstance(settings, LoraSettings):
        own = _lora_config(settings)
    elif isinstance(settings, BottleneckSettings):
        own = bottleneck_config(settings)
    else:
        own = virtual_token_config(settings, shape)
    described = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    return {"peft_type": own.pop("peft_type"), **described, **own}


def _lora_config(settings: LoraSettings) -> dict[str, Any]:
    """Make the part of an adapter_config.json that describes LoRA."""
    alpha = settings.alpha
    return {
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.uses_rslora,
        "target_modules": list(settings.projections),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
