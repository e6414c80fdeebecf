"""Decide where a run starts: resume from --save, start from --load, or use random weights.

The decision has two stages. `find_start_point` reads only small text files and needs no process group, so that errors
in a command appear before anything is built. `verify_start_point` then hashes all files of the chosen checkpoint, and
chooses an older checkpoint if it is damaged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_llm.adapters import AdapterRecord
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.arguments.missing_files import no_checkpoint
from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.checkpoints.base_model import find_base, refuse_adapter
from mindspeed_llm.checkpoints.fingerprint import weights_fingerprint
from mindspeed_llm.checkpoints.integrity import find_damage
from mindspeed_llm.checkpoints.metadata import RunMetadata, TrainingProgress
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints
from mindspeed_llm.checkpoints.run_identity import (
    OF_THE_OPTIMIZER,
    OF_THE_START,
    WEIGHTS,
    IdentityChanges,
    compare_identity,
    is_same_run,
    recorded_identity,
)
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.checkpoint_directory import ADAPTER, RECORD, parse_iteration
from mindspeed_llm.storage.checkpoint_file_list import damage_of_file, refuse_unsealed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartPoint:
    """Start point of a run, and the reason for it.

    Attributes:
        kind: 'continue' (resume from this run's own checkpoint), 'load' (--load) or 'random'.
        folder: the iter_ or Hugging Face folder to load; None for 'random'.
        record: metadata in its run.json; None if it has no run.json.
        progress: progress of the run after loading.
        optimizer: whether to load the optimizer state. The learning rate schedule follows the progress in any case.
        rng: whether to load the RNG states.
        reason: one line for the user.
        skipped_checkpoints: one line for each newer checkpoint that was skipped because its run.json is damaged.
        notices: one line for each value of the resumed run that the command changes.
        base: folder of the base model of an adapter; None without an adapter, or if the base model has random weights
            that are not saved yet.
    """

    kind: str
    folder: Path | None
    record: RunMetadata | None
    progress: TrainingProgress
    optimizer: bool
    rng: bool
    reason: str
    skipped_checkpoints: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    base: Path | None = None


def checkpoint_layout(parallel: ParallelArguments, world_size: int, device: str) -> dict[str, Any]:
    """Return the part of a run's layout that decides which parts of a checkpoint it can load.

    Args:
        parallel: the flags.
        world_size: number of ranks.
        device: kind of device: 'cpu', 'cuda' or 'npu'.

    Returns:
        The layout for run.json, as a JSON object.
    """
    return {
        "world_size": world_size,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "device": device,
        "use_distributed_optimizer": parallel.use_distributed_optimizer,
    }


def find_start_point(
    checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any], identity: dict[str, Any]
) -> StartPoint:
    """Decide where a run starts. Reads only small text files; every rank reaches the same decision.

    Args:
        checkpoint: the flags.
        train_iters: --train-iters, the number of the last checkpoint of this run.
        layout: from `checkpoint_layout`.
        identity: from `compute_identity`.

    Returns:
        The start point. Of its checkpoint, only run.json has been checked for damage.

    Raises:
        CheckpointError: --load contains no checkpoint; --save contains a checkpoint of another run; a checkpoint lacks
            what the command requires of it; or run.json of every checkpoint is damaged.
    """
    if identity["--tuning"]:
        return _start_of_adapter(checkpoint, train_iters, layout, identity)
    own = _resume_own(checkpoint, layout, identity)
    if own is not None:
        return own
    if checkpoint.load is not None:
        return _check_same_run(_load(checkpoint, train_iters, layout), checkpoint, identity)
    return _random_weights(checkpoint)


def _start_of_adapter(
    checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any], identity: dict[str, Any]
) -> StartPoint:
    """Return the start of a run that trains an adapter: --load and --save/base hold its base model only."""
    base = find_base(checkpoint)
    own = _resume_own(checkpoint, layout, identity)
    if own is not None:
        if base is None:
            record = AdapterRecord.read(own.folder) if own.folder is not None else None
            path = record.base.path if record is not None and record.base is not None else None
            raise CheckpointError(
                f"--save {checkpoint.save}: its adapter was trained on the base model "
                f"{path or 'of another directory'}; give it with --load"
            )
        return replace(own, base=base)
    if base is None:
        return _random_weights(checkpoint)
    if checkpoint.load is None:
        _check_random_base(checkpoint, base, identity)
        reason = f"base model from {base}, which an earlier start of this run has saved"
        return StartPoint("load", base, None, TrainingProgress(), False, False, reason, base=base)
    # Only the weights of --load are used, whatever the flags about its optimizer state say.
    start = _load(replace(checkpoint, finetune=True), train_iters, layout)
    return replace(start, reason=f"base model from {start.folder}, iteration 0", base=start.folder)


def _check_random_base(checkpoint: CheckpointArguments, base: Path, identity: dict[str, Any]) -> None:
    """Refuse a random base model in --save that a command with another identity has saved, such as another seed.

    Raises:
        CheckpointError: it belongs to another run.
    """
    metadata = RunMetadata.read(base)
    changes = compare_identity(metadata, identity) if metadata is not None else None
    if changes is not None and changes.refused:
        raise CheckpointError(
            f"--save {checkpoint.save}: {base.parent} contains the random base model of another run (they differ in "
            f"{changes.names}):\n{_list_refused(changes)}\nUse the values of that run, or give another --save"
        )


def _random_weights(checkpoint: CheckpointArguments) -> StartPoint:
    if checkpoint.exit_on_missing_checkpoint:
        raise CheckpointError(
            "--exit-on-missing-checkpoint: no --load is given, so there is no checkpoint to start from"
        )
    return StartPoint("random", None, None, TrainingProgress(), False, False, "no --load: starting from random weights")


def _resume_own(checkpoint: CheckpointArguments, layout: dict[str, Any], identity: dict[str, Any]) -> StartPoint | None:
    """Return the start from this run's own checkpoint in --save; None if there is no checkpoint of this run.

    Raises:
        CheckpointError: --save contains a checkpoint of another run.
    """
    if checkpoint.save is not None:
        root = RunCheckpoints(Path(checkpoint.save))
        newest = root.newest()
        if newest is not None:
            folder, metadata, damage = _newest_readable(root, newest)
            # With --load equal to --save, the flags describe this resume and not how the run first started.
            ignored = OF_THE_START if _loads_own_save(checkpoint) else frozenset()
            changes = (
                compare_identity(metadata, add_weights_fingerprint(identity, metadata), ignored)
                if metadata is not None
                else None
            )
            if metadata is not None and changes is not None and not changes.refused:
                notices = changes.notices(folder)
                return replace(_resume(folder, metadata, layout), skipped_checkpoints=damage, notices=notices)
            _refuse_foreign(checkpoint, folder, changes)
    return None


def verify_start_point(
    start: StartPoint,
    checkpoint: CheckpointArguments,
    train_iters: int | None,
    layout: dict[str, Any],
) -> StartPoint:
    """Check the files of the chosen checkpoint, and use an older checkpoint if they are damaged.

    Collective if there is a process group. Each damaged checkpoint, and the checkpoint that is used instead, is logged.

    Args:
        start: from `find_start_point`.
        checkpoint: the flags.
        train_iters: --train-iters.
        layout: from `checkpoint_layout`.

    Returns:
        `start` if its files are intact; otherwise the start from the newest older checkpoint of the same run that is
        intact.

    Raises:
        CheckpointError: The files are damaged, and no older checkpoint can be used.
    """
    _log_damage(start.skipped_checkpoints)
    damage = find_damage(start.folder) if start.folder is not None else []
    if start.base is not None and start.base != start.folder:
        damage_of_base = find_damage(start.base)
        if damage_of_base:
            raise CheckpointError(f"the base model is damaged: {damage_of_base[0]}; restore the file")
    if not damage:
        if start.skipped_checkpoints:
            logger.warning(f"starting from the checkpoint before it, {start.folder}")
        return start
    assert start.folder is not None
    # The random base model of a new run with an adapter is in --save.
    in_save = start.kind == "continue" or checkpoint.load is None
    flag, directory = ("--save", checkpoint.save) if in_save else ("--load", checkpoint.load)
    newest, first = parse_iteration(start.folder), damage[0]
    # Another checkpoint in the directory of a base model would be another base model.
    has_older = newest is not None and start.folder != start.base
    for older in RunCheckpoints(Path(str(directory))).up_to(newest - 1) if newest is not None and has_older else ():
        _log_damage(damage)
        try:
            instead = _start_from_older(older, start, checkpoint, train_iters, layout)
        except CheckpointError as error:
            # Not final: a checkpoint before this one may still be usable. The next iteration logs the reason.
            damage = [str(error)]
            continue
        damage = find_damage(older)
        if not damage:
            logger.warning(f"starting from the checkpoint before it, {older}")
            return replace(instead, notices=start.notices)
    # The damaged file of the newest checkpoint: with it restored, no progress is lost.
    raise CheckpointError(
        f"{flag} {directory}: {first}; no other checkpoint there can be used. Restore the file, or start a new run"
    )


def _log_damage(damage: Iterable[str]) -> None:
    for line in damage:
        logger.warning(f"DAMAGED CHECKPOINT: {line}")


def _start_from_older(
    older: Path, start: StartPoint, checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any]
) -> StartPoint:
    """Return the start from an older checkpoint of the same run.

    Raises:
        CheckpointError: The checkpoint is damaged, belongs to another run, or lacks the optimizer state.
    """
    damage = damage_of_file(older, RECORD)
    if damage is not None:
        raise CheckpointError(damage)
    metadata = RunMetadata.read(older)
    # Compared with the damaged checkpoint and not with the command: with --finetune, --load contains another run.
    if metadata is None or (start.record is not None and not is_same_run(metadata, recorded_identity(start.record))):
        raise CheckpointError(f"{older}: belongs to another run")
    if start.kind == "load":
        return _load_from(older, checkpoint, train_iters, layout)
    if not metadata.has_optimizer:
        raise CheckpointError(f"{older}: contains no optimizer state")
    return replace(_resume(older, metadata, layout), base=start.base)


def _newest_readable(root: RunCheckpoints, newest: Path) -> tuple[Path, RunMetadata | None, tuple[str, ...]]:
    """Return the newest checkpoint with an intact run.json, its metadata, and one line for each newer, damaged one.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    number = parse_iteration(newest)
    older = root.up_to(number - 1) if number is not None else []
    damage: list[str] = []
    refuse_unsealed(newest)
    for folder in (newest, *older):
        # The hash first: one changed byte in run.json can make it unreadable, or look like that of another run.
        fault = damage_of_file(folder, RECORD)
        if fault is None:
            return folder, RunMetadata.read(folder), tuple(damage)
        damage.append(fault)
    raise CheckpointError(f"{damage[0]}; no other checkpoint there can be used. Restore the file, or start a new run")


def _resume(folder: Path, metadata: RunMetadata, layout: dict[str, Any]) -> StartPoint:
    """Return the start of a run that resumes from its own checkpoint."""
    progress = metadata.progress
    same_layout = all(metadata.layout.get(key) == layout[key] for key in layout if key != "use_distributed_optimizer")
    reason = f"resuming from {folder}, iteration {progress.iteration}"
    if metadata.has_optimizer:
        _check_optimizer(folder, metadata, layout)
    if metadata.has_rng and not same_layout:
        reason += "; the layout has changed, so the RNG states are not restored"
    return StartPoint(
        "continue", folder, metadata, progress, metadata.has_optimizer, metadata.has_rng and same_layout, reason
    )


def _loads_own_save(checkpoint: CheckpointArguments) -> bool:
    """Return whether --load only asks to resume from --save, as commands of Megatron do."""
    if checkpoint.load is None or checkpoint.finetune or checkpoint.no_load_optim or checkpoint.no_load_rng:
        return False
    return Path(checkpoint.load).resolve() == Path(str(checkpoint.save)).resolve()


def add_weights_fingerprint(identity: dict[str, Any], record: RunMetadata) -> dict[str, Any]:
    """Add the fingerprint of the weights of --load to a command's identity if the path of --load has changed.

    Args:
        identity: identity of the command.
        record: metadata of the checkpoint with which it will be compared.

    Returns:
        The identity, with the fingerprint if the comparison needs it; None as the fingerprint if it cannot be computed.
    """
    load = identity["--load"]
    # Only where it decides something: the fingerprint reads up to 1 MB of every file of weights.
    if load is None or load == record.identity.get("--load") or WEIGHTS not in record.identity:
        return identity
    folder: Path | None = Path(load)
    if not is_hugging_face_folder(load):
        try:
            folder = RunCheckpoints(Path(load)).latest()
        except CheckpointError:
            # No error here: without a fingerprint the comparison refuses the changed path, and the message names it.
            folder = None
    return {**identity, WEIGHTS: weights_fingerprint(folder) if folder is not None else None}


def identity_to_record(identity: dict[str, Any], start: StartPoint) -> dict[str, Any]:
    """Complete the identity for run.json with the fingerprint of the weights from which the run first started.

    If --load names the directory from which the run resumes, the values of the first start stay, so that all
    checkpoints in that directory still belong to one run.

    Args:
        identity: from `compute_identity`.
        start: start point of the run.

    Returns:
        The identity for the metadata of this run's checkpoints.
    """
    if start.folder is None:
        return identity
    if start.kind == "load":
        return {**identity, WEIGHTS: weights_fingerprint(start.folder)}
    assert start.record is not None
    before = start.record.identity
    first_start: dict[str, Any] = {WEIGHTS: before.get(WEIGHTS)}
    load = identity["--load"]
    if load is not None and not identity["--finetune"] and Path(load).resolve() == start.folder.parent.resolve():
        first_start |= {key: before[key] for key in ("--load", "--finetune") if key in before}
    return {**identity, **first_start}


def _check_same_run(start: StartPoint, checkpoint: CheckpointArguments, identity: dict[str, Any]) -> StartPoint:
    """Check a start from --load that keeps the progress of the loaded run, and add the notices about changed values.

    Raises:
        CheckpointError: The command describes another run. The message names what differs.
    """
    # A start at iteration 0, as with --finetune, is a new run: its weights may come from any other run.
    if start.record is None or start.progress == TrainingProgress():
        return start
    ignored = OF_THE_START if start.optimizer else OF_THE_START | OF_THE_OPTIMIZER
    changes = compare_identity(start.record, identity, ignored)
    if changes.refused:
        raise CheckpointError(
            f"--load {checkpoint.load}: without --finetune the run would resume at iteration "
            f"{start.progress.iteration} of another run (they differ in {changes.names}):\n"
            + _list_refused(changes)
            + "\nUse the values of that run, or add --finetune to load only its weights and start at iteration 0"
        )
    assert start.folder is not None
    return replace(start, notices=changes.notices(start.folder))


def _list_refused(changes: IdentityChanges) -> str:
    return "\n".join(f"  {line}" for line in changes.refused)


def _refuse_foreign(checkpoint: CheckpointArguments, folder: Path, changes: IdentityChanges | None) -> None:
    """Raise an error, unless --save names the directory of --load: two runs must not write into one directory."""
    save, load = Path(str(checkpoint.save)), checkpoint.load
    if load is not None and Path(load).resolve() == save.resolve():
        return
    weights = f"--lora-load {save}" if (folder / ADAPTER).is_file() else f"--load {save} --finetune"
    if changes is None:
        raise CheckpointError(
            f"--save {save}: contains a checkpoint of another run ({folder.name}; it was written by another program); "
            f"give another --save, or start from it with {weights}"
        )
    raise CheckpointError(
        f"--save {save}: contains a checkpoint of another run ({folder.name}; they differ in {changes.names}):\n"
        + _list_refused(changes)
        + f"\nTo resume that run, use its values. For a new run, give another --save; add {weights} to "
        "start from these weights"
    )


def _load(checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any]) -> StartPoint:
    """Return the start from a Hugging Face folder, or from the checkpoint that the tracker of --load names."""
    if is_hugging_face_folder(str(checkpoint.load)):
        reason = f"weights from the Hugging Face folder {checkpoint.load}, iteration 0"
        return StartPoint("load", Path(str(checkpoint.load)), None, TrainingProgress(), False, False, reason)
    root = RunCheckpoints(Path(str(checkpoint.load)))
    newest = root.latest()
    if newest is None:
        raise CheckpointError(no_checkpoint(str(checkpoint.load)))
    folder, _, damage = _newest_readable(root, newest)
    return replace(_load_from(folder, checkpoint, train_iters, layout), skipped_checkpoints=damage)


def _load_from(
    folder: Path, checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any]
) -> StartPoint:
    """Return the start from one checkpoint of --load, as --finetune, --no-load-optim and --no-load-rng specify.

    Raises:
        CheckpointError: The checkpoint lacks what the flags require.
    """
    refuse_adapter(folder, "--load")
    _refuse_overwriting(checkpoint, train_iters, folder)
    metadata = RunMetadata.read(folder)
    if checkpoint.finetune:
        reason = f"weights from {folder}, iteration 0 (--finetune)"
        return StartPoint("load", folder, metadata, TrainingProgress(), False, False, reason)
    if metadata is None:
        raise CheckpointError(
            f"--load {checkpoint.load}: {folder.name} was not written by this program, so the progress of its run "
            "is unknown; add --finetune to load only its weights and start at iteration 0"
        )
    optimizer, rng = not checkpoint.no_load_optim, not checkpoint.no_load_rng
    if optimizer and not metadata.has_optimizer:
        raise CheckpointError(
            f"--load {checkpoint.load}: {folder.name} contains no optimizer state; add --no-load-optim (or --finetune)"
        )
    if optimizer:
        _check_optimizer(folder, metadata, layout)
    if rng and not metadata.has_rng:
        raise CheckpointError(
            f"--load {checkpoint.load}: {folder.name} contains no RNG states; add --no-load-rng (or --finetune)"
        )
    same_layout = all(metadata.layout.get(key) == layout[key] for key in layout if key != "use_distributed_optimizer")
    reason = f"resuming from {folder}, iteration {metadata.progress.iteration}"
    return StartPoint("load", folder, metadata, metadata.progress, optimizer, rng and same_layout, reason)


def _check_optimizer(folder: Path, metadata: RunMetadata, layout: dict[str, Any]) -> None:
    """Check that the optimizer state has the structure of this run's optimizer, distributed or not."""
    if metadata.layout.get("use_distributed_optimizer") != layout["use_distributed_optimizer"]:
        change = "remove" if layout["use_distributed_optimizer"] else "add"
        raise CheckpointError(
            f"{folder}: its optimizer state was saved {'without' if change == 'remove' else 'with'} "
            f"--use-distributed-optimizer; {change} that flag, or start with --load and --no-load-optim"
        )


def _refuse_overwriting(checkpoint: CheckpointArguments, train_iters: int | None, folder: Path) -> None:
    """Check that no save of a --finetune run overwrites the checkpoint from which it starts, if --save equals --load.

    Such a run begins at iteration 0, so its saves can reach the number of that checkpoint.
    """
    start = parse_iteration(folder)
    if checkpoint.save is None or start is None or not checkpoint.finetune:
        return
    if Path(checkpoint.save).resolve() != Path(str(checkpoint.load)).resolve():
        return
    interval = checkpoint.save_interval
    hits_interval = interval is not None and start > 0 and start % interval == 0
    if hits_interval or start == train_iters:
        raise CheckpointError(
            f"--save and --load name the same directory, and this run would overwrite {folder.name}, from which it "
            "starts; give another --save, or another --save-interval"
        )
