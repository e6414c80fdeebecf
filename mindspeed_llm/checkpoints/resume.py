"""Where a run starts: goes on from --save, starts from --load, or from random weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
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
from mindspeed_llm.storage.checkpoint_directory import RECORD, TRACKER, parse_iteration
from mindspeed_llm.storage.checkpoint_file_list import damage_of_file, refuse_unsealed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartPoint:
    """The decision, and why.

    Attributes:
        kind: 'continue' (this run's own checkpoint), 'load' (--load) or 'random'.
        folder: the iter_ folder to read; None for 'random'.
        record: its run.json; None if it has none.
        progress: where the run stands after loading.
        optimizer: whether to load the optimizer's state; the schedule follows the progress in any case.
        rng: whether to load the random states.
        reason: one line for the user.
        skipped_checkpoints: what is wrong with newer checkpoints whose run.json is damaged, one line each.
        notices: what the command changes of the run that goes on, one line each.
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


def checkpoint_layout(parallel: ParallelArguments, world_size: int, device: str) -> dict[str, Any]:
    """What of the layout decides which parts of a checkpoint a run can take."""
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
    """Decide where to start. Reads small text files only; every rank decides alike.

    Args:
        checkpoint: the flags.
        train_iters: --train-iters, which says where the last checkpoint of this run will be.
        layout: from `checkpoint_layout`.
        identity: from `compute_identity`.

    Raises:
        CheckpointError: --load holds no checkpoint, or --save holds one of another run.
    """
    if checkpoint.save is not None:
        root = RunCheckpoints(Path(checkpoint.save))
        newest = root.newest()
        if newest is not None:
            folder, record, damage = _readable(root, newest)
            ignored = OF_THE_START if _names_itself(checkpoint) else frozenset()
            changes = (
                compare_identity(record, add_weights_fingerprint(identity, record), ignored)
                if record is not None
                else None
            )
            if record is not None and changes is not None and not changes.refused:
                notices = changes.notices(folder)
                return replace(_continue(folder, record, layout), skipped_checkpoints=damage, notices=notices)
            _refuse_foreign(checkpoint, folder, changes)
    if checkpoint.load is not None:
        return _of_the_same_run(_load(checkpoint, train_iters, layout), checkpoint, identity)
    if checkpoint.exit_on_missing_checkpoint:
        raise CheckpointError("--exit-on-missing-checkpoint: no --load is given, so there is none to start from")
    return StartPoint("random", None, None, TrainingProgress(), False, False, "no --load: starting from random weights")


def verify_start_point(
    start: StartPoint,
    checkpoint: CheckpointArguments,
    train_iters: int | None,
    layout: dict[str, Any],
) -> StartPoint:
    """The same start if the files of its checkpoint are what was written; else from the checkpoint before it that is
    whole, said aloud. Collective, but also without a process group.

    Args:
        start: from `find_start_point`.
        checkpoint, train_iters, layout: as for `find_start_point`.

    Raises:
        CheckpointError: the files are damaged, and no checkpoint before it will do.
    """
    _log_damage(start.skipped_checkpoints)
    damage = find_damage(start.folder) if start.folder is not None else []
    if not damage:
        if start.skipped_checkpoints:
            logger.warning(f"starting from the checkpoint before it, {start.folder}")
        return start
    assert start.folder is not None
    flag = "--save" if start.kind == "continue" else "--load"
    place = checkpoint.save if start.kind == "continue" else checkpoint.load
    newest, first = parse_iteration(start.folder), damage[0]
    for older in RunCheckpoints(Path(str(place))).up_to(newest - 1) if newest is not None else ():
        _log_damage(damage)
        try:
            instead = _start_before(older, start, checkpoint, train_iters, layout)
        except CheckpointError as error:
            damage = [str(error)]
            continue
        damage = find_damage(older)
        if not damage:
            logger.warning(f"starting from the checkpoint before it, {older}")
            return replace(instead, notices=start.notices)
    raise CheckpointError(f"{flag} {place}: {first}; no other checkpoint there will do. Restore the file or start anew")


def _log_damage(damage: Iterable[str]) -> None:
    for line in damage:
        logger.warning(f"DAMAGED CHECKPOINT: {line}")


def _start_before(
    older: Path, start: StartPoint, checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any]
) -> StartPoint:
    """The start from an older checkpoint of the same run.

    Raises:
        CheckpointError: it is not one that can stand in.
    """
    damage = damage_of_file(older, RECORD)
    if damage is not None:
        raise CheckpointError(damage)
    record = RunMetadata.read(older)
    if record is None or (start.record is not None and not is_same_run(record, recorded_identity(start.record))):
        raise CheckpointError(f"{older}: of another run")
    if start.kind == "load":
        return _load_from(older, checkpoint, train_iters, layout)
    if not record.has_optimizer:
        raise CheckpointError(f"{older}: holds no optimizer state")
    return _continue(older, record, layout)


def _readable(root: RunCheckpoints, newest: Path) -> tuple[Path, RunMetadata | None, tuple[str, ...]]:
    """The newest checkpoint whose run.json is what was written, that record, and what is wrong with newer ones.

    Raises:
        CheckpointError: there is none.
    """
    number = parse_iteration(newest)
    older = root.up_to(number - 1) if number is not None else []
    damage: list[str] = []
    refuse_unsealed(newest)
    for folder in (newest, *older):
        fault = damage_of_file(folder, RECORD)
        if fault is None:
            return folder, RunMetadata.read(folder), tuple(damage)
        damage.append(fault)
    raise CheckpointError(f"{damage[0]}; no other checkpoint there is whole. Restore the file or start anew")


def _continue(folder: Path, record: RunMetadata, layout: dict[str, Any]) -> StartPoint:
    progress = record.progress
    same_layout = all(record.layout.get(key) == layout[key] for key in layout if key != "use_distributed_optimizer")
    reason = f"going on from {folder}, iteration {progress.iteration}"
    if record.has_optimizer:
        _check_optimizer(folder, record, layout)
    if record.has_rng and not same_layout:
        reason += "; the layout is another one, so random states start anew"
    return StartPoint(
        "continue", folder, record, progress, record.has_optimizer, record.has_rng and same_layout, reason
    )


def _names_itself(checkpoint: CheckpointArguments) -> bool:
    """Whether --load says no more than that the run goes on from its own --save, as commands of Megatron have it."""
    if checkpoint.load is None or checkpoint.finetune or checkpoint.no_load_optim or checkpoint.no_load_rng:
        return False
    return Path(checkpoint.load).resolve() == Path(str(checkpoint.save)).resolve()


def add_weights_fingerprint(identity: dict[str, Any], record: RunMetadata) -> dict[str, Any]:
    """Add the fingerprint of --load to a command's identity where the record has another path of it."""
    load = identity["--load"]
    if load is None or load == record.identity.get("--load") or WEIGHTS not in record.identity:
        return identity
    folder: Path | None = Path(load)
    if not is_hugging_face_folder(load):
        try:
            folder = RunCheckpoints(Path(load)).latest()
        except CheckpointError:
            folder = None
    return {**identity, WEIGHTS: weights_fingerprint(folder) if folder is not None else None}


def identity_to_record(identity: dict[str, Any], start: StartPoint) -> dict[str, Any]:
    """Complete the identity for run.json: the fingerprint of the weights that the run first started from.

    Where --load names the folder that the run goes on from, the record keeps what it said of that first start, so that
    all checkpoints in the folder remain those of one run.
    """
    if start.folder is None:
        return identity
    if start.kind == "load":
        return {**identity, WEIGHTS: weights_fingerprint(start.folder)}
    assert start.record is not None
    before = start.record.identity
    kept: dict[str, Any] = {WEIGHTS: before.get(WEIGHTS)}
    load = identity["--load"]
    if load is not None and not identity["--finetune"] and Path(load).resolve() == start.folder.parent.resolve():
        kept |= {key: before[key] for key in ("--load", "--finetune") if key in before}
    return {**identity, **kept}


def _of_the_same_run(start: StartPoint, checkpoint: CheckpointArguments, identity: dict[str, Any]) -> StartPoint:
    """A start from --load that goes on with its iteration and data; refused if the command is of another run.

    Raises:
        CheckpointError: naming what differs.
    """
    if start.record is None or start.progress == TrainingProgress():
        return start
    ignored = OF_THE_START if start.optimizer else OF_THE_START | OF_THE_OPTIMIZER
    changes = compare_identity(start.record, identity, ignored)
    if changes.refused:
        raise CheckpointError(
            f"--load {checkpoint.load}: without --finetune the run would go on at iteration "
            f"{start.progress.iteration} of another run (they differ in {changes.names}):\n"
            + _list(changes)
            + "\nGive the values of that run, or add --finetune to take its weights and start at iteration 0"
        )
    assert start.folder is not None
    return replace(start, notices=changes.notices(start.folder))


def _list(changes: IdentityChanges) -> str:
    return "\n".join(f"  {line}" for line in changes.refused)


def _refuse_foreign(checkpoint: CheckpointArguments, folder: Path, changes: IdentityChanges | None) -> None:
    """Two runs must not write into one folder; but --save may name the folder that --load starts from."""
    save, load = Path(str(checkpoint.save)), checkpoint.load
    if load is not None and Path(load).resolve() == save.resolve():
        return
    if changes is None:
        raise CheckpointError(
            f"--save {save}: holds a checkpoint of another run ({folder.name}; it was written by another program); "
            f"give another --save, or start from it with --load {save} --finetune"
        )
    raise CheckpointError(
        f"--save {save}: holds a checkpoint of another run ({folder.name}; they differ in {changes.names}):\n"
        + _list(changes)
        + f"\nTo go on with that run give its values. For a new run give another --save; with --load {save} "
        "--finetune it starts from these weights"
    )


def _load(checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any]) -> StartPoint:
    if is_hugging_face_folder(str(checkpoint.load)):
        reason = f"weights from the Hugging Face folder {checkpoint.load}, iteration 0"
        return StartPoint("load", Path(str(checkpoint.load)), None, TrainingProgress(), False, False, reason)
    root = RunCheckpoints(Path(str(checkpoint.load)))
    newest = root.latest()
    if newest is None:
        raise CheckpointError(
            f"--load {checkpoint.load}: holds no checkpoint (no {TRACKER}); give the folder "
            "that convert_ckpt.py or an earlier run's --save wrote, or leave --load out for random weights"
        )
    folder, _, damage = _readable(root, newest)
    return replace(_load_from(folder, checkpoint, train_iters, layout), skipped_checkpoints=damage)


def _load_from(
    folder: Path, checkpoint: CheckpointArguments, train_iters: int | None, layout: dict[str, Any]
) -> StartPoint:
    """The start from one checkpoint of --load, as --finetune and --no-load-* have it.

    Raises:
        CheckpointError: it lacks what they ask for.
    """
    _refuse_overwriting(checkpoint, train_iters, folder)
    record = RunMetadata.read(folder)
    if checkpoint.finetune:
        reason = f"weights from {folder}, iteration 0 (--finetune)"
        return StartPoint("load", folder, record, TrainingProgress(), False, False, reason)
    if record is None:
        raise CheckpointError(
            f"--load {checkpoint.load}: {folder.name} was not written by this program, so it does not say how far its "
            "run was; add --finetune to take its weights and start at iteration 0"
        )
    optimizer, rng = not checkpoint.no_load_optim, not checkpoint.no_load_rng
    if optimizer and not record.has_optimizer:
        raise CheckpointError(
            f"--load {checkpoint.load}: {folder.name} holds no optimizer state; add --no-load-optim (or --finetune)"
        )
    if optimizer:
        _check_optimizer(folder, record, layout)
    if rng and not record.has_rng:
        raise CheckpointError(
            f"--load {checkpoint.load}: {folder.name} holds no random states; add --no-load-rng (or --finetune)"
        )
    same_layout = all(record.layout.get(key) == layout[key] for key in layout if key != "use_distributed_optimizer")
    reason = f"going on from {folder}, iteration {record.progress.iteration}"
    return StartPoint("load", folder, record, record.progress, optimizer, rng and same_layout, reason)


def _check_optimizer(folder: Path, record: RunMetadata, layout: dict[str, Any]) -> None:
    if record.layout.get("use_distributed_optimizer") != layout["use_distributed_optimizer"]:
        change = "remove" if layout["use_distributed_optimizer"] else "add"
        raise CheckpointError(
            f"{folder}: its optimizer state was saved {'without' if change == 'remove' else 'with'} "
            f"--use-distributed-optimizer; {change} that flag, or start with --load and --no-load-optim"
        )


def _refuse_overwriting(checkpoint: CheckpointArguments, train_iters: int | None, folder: Path) -> None:
    """With --save naming the folder of --load, no save of this run may land on the checkpoint it starts from."""
    start = parse_iteration(folder)
    if checkpoint.save is None or start is None or not checkpoint.finetune:
        return
    if Path(checkpoint.save).resolve() != Path(str(checkpoint.load)).resolve():
        return
    interval = checkpoint.save_interval
    hits_interval = interval is not None and start > 0 and start % interval == 0
    if hits_interval or start == train_iters:
        raise CheckpointError(
            f"--save and --load name one folder, and this run would overwrite {folder.name}, which it starts from; "
            "give another --save, or another --save-interval"
        )
