"""Find the adapter in a directory: a peft folder, a checkpoint that contains one, or a directory of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.adapters.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_peft_folder, read_peft_config
from mindspeed_llm.adapters.adapter_kinds import AdapterSettings
from mindspeed_llm.adapters.adapter_record import AdapterRecord
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.checkpoint_directory import ADAPTER, TRACKER, CheckpointDirectory
from mindspeed_llm.storage.hub_names import download_advice


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk.

    Attributes:
        path: the peft folder, or the checkpoint (an iter_ directory).
        settings: settings of the adapter.
        record: adapter.json of the checkpoint; None for a peft folder.
    """

    path: Path
    settings: AdapterSettings
    record: AdapterRecord | None


def find_adapter(folder: str | Path, flag: str = "--lora-load", model_flag: str = "--load") -> AdapterFolder:
    """Find the adapter that a directory contains, and read its settings.

    Args:
        folder: a peft folder, a checkpoint of this project that contains an adapter (an iter_ directory), or a --save
            directory whose tracker names one.
        flag: flag that names the directory, for messages.
        model_flag: flag that loads a complete model, for messages.

    Raises:
        ConfigError: the directory contains no adapter, or one that is not supported. The message names what it contains
            instead.
        CheckpointError: the tracker or adapter.json is damaged.
    """
    root = Path(folder)
    named = None if (root / ADAPTER).is_file() else CheckpointDirectory(root).latest()
    if named is None and is_peft_folder(root):
        return AdapterFolder(root, read_peft_config(root, flag), None)
    path = named or root
    record = AdapterRecord.read(path)
    if record is None:
        raise ConfigError(f"{flag} {folder}: {_content(path, model_flag)}{download_advice(folder)}")
    return AdapterFolder(path, record.settings, record)


def adapter_settings(folder: str | Path, flag: str = "--lora-load") -> AdapterSettings:
    """Read the settings of the adapter that a directory contains.

    Args:
        folder: see `find_adapter`.
        flag: flag that names the directory, for messages.

    Raises:
        ConfigError: see `find_adapter`.
        CheckpointError: see `find_adapter`.
    """
    return find_adapter(folder, flag).settings


def is_adapter_folder(folder: str | Path) -> bool:
    """Return whether a directory is a peft folder, or contains a checkpoint of an adapter.

    Raises:
        CheckpointError: the tracker is damaged.
    """
    root = Path(folder)
    if (root / ADAPTER).is_file() or not root.is_dir():
        return root.is_dir()
    named = CheckpointDirectory(root).latest()
    return (named / ADAPTER).is_file() if named is not None else is_peft_folder(root)


def _content(folder: Path, model_flag: str) -> str:
    """Return what a directory without an adapter contains, and what to do."""
    if not folder.exists():
        return "no such directory"
    if not folder.is_dir():
        return "a file, not a directory"
    is_model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    if is_model or (folder / "metadata.json").is_file() or any(folder.glob("mp_rank_*")):
        return f"contains a complete model, not an adapter; give it with {model_flag}"
    if (folder / ADAPTER_WEIGHTS).is_file():
        return f"contains {ADAPTER_WEIGHTS}, but no {ADAPTER_CONFIG}, which peft writes beside it; add that file"
    return (
        f"contains no adapter: neither {ADAPTER_CONFIG} of peft, nor {ADAPTER} of a checkpoint, nor {TRACKER} of a "
        "--save directory"
    )
