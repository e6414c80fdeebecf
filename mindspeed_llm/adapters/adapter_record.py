"""adapter.json of a checkpoint that contains an adapter: its settings, and the base model that it was trained on.

{"targets": ["q_proj", "v_proj"], "rank": 16, "alpha": 32.0, "dropout": 0.0, "uses_rslora": false,
 "base": {"sha256": "9a…", "dtype": "bf16", "path": "./model_from_hf/qwen25-7b-hf"}}

`targets` are the values of --lora-target-modules, without all-linear.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspeed_llm.adapters.lora_settings import LoraSettings
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
class _Content:
    """Fields of adapter.json."""

    targets: list[str]
    rank: int
    alpha: float
    dropout: float
    uses_rslora: bool
    base: BaseModel | None = None


@dataclass(frozen=True)
class AdapterRecord:
    """Content of adapter.json.

    Attributes:
        settings: settings of the adapter.
        base: base model; None if it is unknown, because the adapter was imported from a peft folder.
    """

    settings: LoraSettings
    base: BaseModel | None = None

    def write(self, folder: Path) -> None:
        """Write adapter.json atomically.

        Args:
            folder: directory of a checkpoint.
        """
        settings = self.settings
        content = _Content(
            list(settings.targets), settings.rank, settings.alpha, settings.dropout, settings.uses_rslora, self.base
        )
        write_atomically(folder / ADAPTER, (json.dumps(asdict(content), indent=1) + "\n").encode())

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
            content: _Content = decode_dataclass(json.loads(read_file_text(path)), _Content, "")
            targets = tuple(content.targets)
            if content.rank < 1 or not 0 < content.alpha < math.inf or not 0 <= content.dropout < 1:
                raise ValueError("a number is out of range")
            settings = LoraSettings(targets, content.rank, content.alpha, content.dropout, content.uses_rslora)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
        return cls(settings, content.base)
