"""Check before training that Megatron can load the checkpoint of --load, if this project wrote it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mindspeed_llm.conversion.pickle_reader import PickleError
from mindspeed_llm.conversion.torch_file_reader import OF_MEGATRON, TorchFile
from mindspeed_llm.megatron.megatron_versions import MegatronVersion
from mindspeed_llm.storage.checkpoint_directory import CheckpointDirectory


def problem_of_loaded_checkpoint(args: Namespace, version: MegatronVersion) -> str | None:
    """Return why Megatron cannot load the checkpoint of --load, or None.

    A checkpoint that Megatron saved holds its `args`, an argparse.Namespace. Ours hold no pickled objects.

    Args:
        args: Megatron's arguments.
        version: version of Megatron.
    """
    folder = _checkpoint_of(args)
    if folder is None or _has_args(folder / "common.pt"):
        return None
    if version.reads_args_of_checkpoint:
        return (
            f"--load {args.load}: {folder} was written by mindspeed_llm, without the `args` that Megatron-LM "
            f"{version.number} reads of every checkpoint; load one that this Megatron saved, or use core_v0.16.1"
        )
    if args.finetune and args.dist_ckpt_strictness == "log_all":
        return None
    return (
        f"--load {args.load}: {folder} was written by mindspeed_llm, and Megatron-LM can load its weights only; add "
        "--finetune --dist-ckpt-strictness log_all"
    )


def _checkpoint_of(args: Namespace) -> Path | None:
    """Return the folder of the checkpoint that Megatron will load; None if there is none."""
    if not getattr(args, "load", None):
        return None
    directory = CheckpointDirectory(Path(args.load))
    iteration = getattr(args, "ckpt_step", None) or directory.tracker.number()
    return directory.iteration_path(iteration) if iteration is not None else None


def _has_args(common: Path) -> bool:
    """Whether a common state holds `args`; True if it cannot be read, because Megatron then has its own message."""
    try:
        content = TorchFile(common, also_allowed=OF_MEGATRON).content
    except (OSError, PickleError):
        return True
    return not isinstance(content, dict) or "args" in content
