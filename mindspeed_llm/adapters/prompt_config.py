"""The adapter_config.json of virtual tokens (peft's PREFIX_TUNING, PROMPT_TUNING, P_TUNING) and of bottleneck adapters.

peft's encoders (P-tuning's MLP or LSTM, the projection of a prefix) are not part of a peft folder: it contains what
they compute. Here this is read as virtual tokens that train directly.

peft has no bottleneck adapters. Their folder has the same files, with "peft_type": "BOTTLENECK", which peft refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.adapters.bottleneck_settings import BottleneckSettings
from mindspeed_llm.adapters.virtual_token_settings import VirtualTokenMethod, VirtualTokenSettings

BOTTLENECK = "BOTTLENECK"
PEFT_TYPES: dict[VirtualTokenMethod, str] = {
    "prefix": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "p-tuning": "P_TUNING",
}
# P-tuning is read as prompt tuning: its folder contains embeddings.
_METHODS: dict[str, VirtualTokenMethod] = {
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "prompt",
}
MAX_SIZE = 2**20


@dataclass(frozen=True)
class BaseShape:
    """What adapter_config.json of virtual tokens says about the base model.

    Attributes:
        layers: number of layers.
        hidden_size: hidden size.
        attention_heads: number of query heads.
        key_value_heads: number of query groups.
        key_size: number of elements of all keys of a token.
    """

    layers: int
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    key_size: int


def virtual_token_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the content of an adapter_config.json of virtual tokens, one line each.

    Args:
        raw: the content.
    """
    problems = []
    count, submodules = raw.get("num_virtual_tokens"), raw.get("num_transformer_submodules")
    if type(count) is not int or not 1 <= count <= MAX_SIZE:
        problems.append(f"num_virtual_tokens is {count!r}, not a whole number above 0")
    if submodules not in (None, 1):
        problems.append(f"num_transformer_submodules {submodules!r} (an encoder-decoder model) is not supported")
    if raw.get("modules_to_save"):
        problems.append("further trained modules (modules_to_save) is not supported")
    return problems


def virtual_token_settings(raw: Mapping[str, Any]) -> VirtualTokenSettings:
    """Return the settings in an adapter_config.json of virtual tokens, as they train here.

    Args:
        raw: the content, without problems.
    """
    return VirtualTokenSettings(_METHODS[raw["peft_type"]], raw["num_virtual_tokens"])


def encoder_notice(raw: Mapping[str, Any]) -> str | None:
    """Return that an encoder is not part of the folder; None if there was none.

    Args:
        raw: the content of adapter_config.json.
    """
    kind = raw.get("peft_type")
    if kind != "P_TUNING" and not (kind == "PREFIX_TUNING" and raw.get("prefix_projection")):
        return None
    what = "P-tuning's encoder" if kind == "P_TUNING" else "the projection of the prefix"
    return (
        f"the folder contains what {what} has computed and not {what.split()[-1]} itself: its virtual tokens train "
        f"directly (--tuning {_METHODS[kind]})"
    )


def bottleneck_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the content of an adapter_config.json of bottleneck adapters.

    Args:
        raw: the content.
    """
    size = raw.get("adapter_size")
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        return [f"adapter_size is {size!r}, not a whole number above 0"]
    return []


def bottleneck_settings(raw: Mapping[str, Any]) -> BottleneckSettings:
    """Return the settings in an adapter_config.json of bottleneck adapters.

    Args:
        raw: the content, without problems.
    """
    return BottleneckSettings(raw["adapter_size"])


def virtual_token_config(settings: VirtualTokenSettings, shape: BaseShape) -> dict[str, Any]:
    """Make the part of an adapter_config.json that describes virtual tokens.

    Args:
        settings: settings of the adapter.
        shape: shape of the base model.
    """
    is_prefix = settings.method == "prefix"
    further: dict[str, Any] = {}
    if is_prefix:
        further = {"prefix_projection": False, "encoder_hidden_size": shape.key_size}
    elif settings.method == "p-tuning":
        width = settings.encoder_width(shape.hidden_size)
        further = {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": width, "encoder_dropout": 0.0}
    else:
        further = {"prompt_tuning_init": "RANDOM"}
    return {
        "peft_type": PEFT_TYPES[settings.method],
        "num_virtual_tokens": settings.virtual_tokens,
        "token_dim": shape.key_size if is_prefix else shape.hidden_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": shape.key_value_heads if is_prefix else shape.attention_heads,
        "num_layers": shape.layers,
        **further,
    }


def bottleneck_config(settings: BottleneckSettings) -> dict[str, Any]:
    """Make the part of an adapter_config.json that describes bottleneck adapters.

    Args:
        settings: settings of the adapter.
    """
    return {
        "peft_type": BOTTLENECK,
        "adapter_size": settings.size,
        "adapter_activation": "gelu",
        "adapter_positions": ["self_attn", "mlp"],
    }


# peft_type → what is wrong with the content, and the settings.
READERS: dict[
    str,
    tuple[
        Callable[[Mapping[str, Any]], list[str]],
        Callable[[Mapping[str, Any]], VirtualTokenSettings | BottleneckSettings],
    ],
] = {
    **dict.fromkeys(_METHODS, (virtual_token_problems, virtual_token_settings)),
    BOTTLENECK: (bottleneck_problems, bottleneck_settings),
}
