"""adapter.json of a checkpoint that contains an adapter: its settings, and the base model that it was trained on.

{"targets": ["q_proj", "v_proj"], "rank": 16, "alpha": 32.0, "dropout": 0.0, "uses_rslora": false,
 "base": {"sha256": "9a…", "dtype": "bf16", "path": "./model_from_hf/qwen25-7b-hf"}, "method": "lora"}
{"method": "prompt", "virtual_tokens": 20, "encoder_size": null, "base": …}      also prefix and p-tuning
{"size": 64, "base": …, "method": "adapter"}                                     bottleneck adapters

`targets` are the values of --lora-target-modules, without all-linear.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.adapters.adapter_kinds import AdapterSettings
from mindspeed_llm.adapters.bottleneck_settings import BottleneckSettings
from mindspeed_llm.adapters.lora_settings import LoraSettings
from mindspeed_llm.adapters.virtual_token_settings import (
    VIRTUAL_TOKEN_METHODS,
    VirtualTokenMethod,
    VirtualTokenSettings,
)
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.storage.atomic_write import write_atomically
from mindspeed_llm.storage.checkpoint_directory import ADAPTER
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_text


@dataclass(frozen=True)
class BaseModel:
    """The base model of an adapter.

    Attributes:
        sha256: hash of its tensors (conversion/base_hash.py).
        dtype: data types of its tensors, such as 'bf16'; several are separated by commas.
        path: directory that it was read from; None if it was a model with random weights.
    """

    sha256: str
    dtype: str
    path: str | None = None


@dataclass(frozen=True)
class _LoraContent:
    """Fields of adapter.json for LoRA; files of earlier versions have no method."""

    targets: list[str]
    rank: int
    alpha: float
    dropout: float
    uses_rslora: bool
    base: BaseModel | None = None
    method: str = "lora"

    @property
    def settings(self) -> LoraSettings:
        """Settings of the adapter."""
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise ValueError("a number is out of range")
        return LoraSettings(tuple(self.targets), self.rank, self.alpha, self.dropout, self.uses_rslora)


@dataclass(frozen=True)
class _VirtualTokenContent:
    """Fields of adapter.json for prefix, prompt and P-tuning."""

    method: VirtualTokenMethod
    virtual_tokens: int
    encoder_size: int | None = None
    base: BaseModel | None = None

    @property
    def settings(self) -> VirtualTokenSettings:
        """Settings of the adapter."""
        return VirtualTokenSettings(self.method, self.virtual_tokens, self.encoder_size)


@dataclass(frozen=True)
class _BottleneckContent:
    """Fields of adapter.json for bottleneck adapters."""

    size: int
    base: BaseModel | None = None
    method: str = "adapter"

    @property
    def settings(self) -> BottleneckSettings:
        """Settings of the adapter."""
        return BottleneckSettings(self.size)


_Content = _LoraContent | _VirtualTokenContent | _BottleneckContent


def _content(settings: AdapterSettings, base: BaseModel | None) -> _Content:
    """Return the fields of adapter.json."""
    if isinstance(settings, VirtualTokenSettings):
        return _VirtualTokenContent(settings.method, settings.virtual_tokens, settings.encoder_size, base)
    if isinstance(settings, BottleneckSettings):
        return _BottleneckContent(settings.size, base)
    targets = list(settings.targets)
    return _LoraContent(targets, settings.rank, settings.alpha, settings.dropout, settings.uses_rslora, base)


def _decode(values: Any) -> _Content:
    """Decode the fields of adapter.json, which depend on the method.

    Raises:
        ValueError: the method is unknown, or a field is missing or of another type.
    """
    method = values.get("method", "lora") if isinstance(values, dict) else None
    kinds: dict[str, type] = dict.fromkeys(VIRTUAL_TOKEN_METHODS, _VirtualTokenContent)
    kinds |= {"lora": _LoraContent, "adapter": _BottleneckContent}
    if not isinstance(method, str) or method not in kinds:
        raise ValueError(f"unknown method {method!r}")
    content: _Content = decode_dataclass(values, kinds[method], "")
    return content


@dataclass(frozen=True)
class AdapterRecord:
    """Content of adapter.json.

    Attributes:
        settings: settings of the adapter.
        base: base model; None if it is unknown, because the adapter was imported from a peft folder.
    """

    settings: AdapterSettings
    base: BaseModel | None = None

    def write(self, folder: Path) -> None:
        """Write adapter.json atomically.

        Args:
            folder: directory of a checkpoint.
        """
        content = asdict(_content(self.settings, self.base))
        write_atomically(folder / ADAPTER, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> AdapterRecord | None:
        """Read adapter.json of a checkpoint.

        Args:
            folder: directory of a checkpoint.

        Returns:
            The record; None if there is no adapter.json, so that the checkpoint contains a complete model.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = folder / ADAPTER
        try:
            content = _decode(json.loads(read_file_text(path)))
            settings = content.settings
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
        return cls(settings, content.base)
