"""Where a run starts: goes on from --save, starts from --load, or from random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.hugging_face import is_hugging_face
from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.checkpoints.folder import TRACKER, CheckpointFolder, iteration_of
from mindspeed_llm.checkpoints.integrity import damage_of
from mindspeed_llm.checkpoints.record import Progress, RunRecord
from mindspeed_llm.errors import CheckpointError


@dataclass(frozen=True)
class Start:
    """The decision, and why.

    Attributes:
        kind: 'continue' (this run's own checkpoint), 'load' (--load) or 'random'.
        folder: the iter_ folder to read; None for 'random'.
        record: its run.json; None if it has none.
        progress: where the run stands after loading.
        optimizer: whether to load the optimizer's state and the schedule.
        rng: whether to load the random states.
        reason: one line for the user.
    """

    kind: str
    folder: Path | None
    record: RunRecord | None
    progress: Progress
    optimizer: bool
    rng: bool
    reason: str


def identity_of(arguments: PretrainArguments) -> dict[str, Any]:
    """What makes a run this run: its model, data, seed and start.

    The layout, the batch sizes, the learning rate and the number of iterations are not part of it: a run may go on
    with other ones.
    """
    model, data = arguments.model, arguments.data
    return {
        "--num-layers": model.num_layers,
        "--hidden-size": model.hidden_size,
        "--num-attention-heads": model.num_attention_heads,
        "--data-path": data.data_path,
        "--train-data-path": data.train_data_path,
        "--split": data.split,
        "--seq-length": data.seq_length,
        "--seed": arguments.training.seed,
        "--load": arguments.checkpoint.load,
        "--finetune": arguments.checkpoint.finetune,
    }


def layout_of(arguments: PretrainArguments, device: str) -> dict[str, Any]:
    """What of the layout decides which parts of a checkpoint a run can take."""
    return {
        "world_size": arguments.world_size,
        "tensor_model_parallel_size": arguments.parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": arguments.parallel.pipeline_model_parallel_size,
        "device": device,
        "use_distributed_optimizer": arguments.parallel.use_distributed_optimizer,
    }


def choose_start(arguments: PretrainArguments, layout: dict[str, Any]) -> Start:
    """Decide where to start. Reads small text files only; every rank decides alike.

    Args:
        arguments: checked arguments.
        layout: from `layout_of`.

    Raises:
        CheckpointError: --load holds no checkpoint, or --save holds one of another run.
    """
    checkpoint = arguments.checkpoint
    if checkpoint.save is not None:
        folder = _newest(CheckpointFolder(Path(checkpoint.save)))
        if folder is not None:
            record = RunRecord.read(folder)
            if record is not None and record.identity == identity_of(arguments):
                return _continue(folder, record, layout)
            _refuse_foreign(arguments, folder, record)
    if checkpoint.load is not None:
        return _load(arguments, layout)
    if checkpoint.exit_on_missing_checkpoint:
        raise CheckpointError("--exit-on-missing-checkpoint: no --load is given, so there is none to start from")
    return Start("random", None, None, Progress(), False, False, "no --load: starting from random weights")


def undamaged(start: Start, arguments: PretrainArguments, layout: dict[str, Any], say: Callable[[str], None]) -> Start:
    """The same start if the files of its checkpoint are what was written. If not, a run that goes on takes the
    checkpoint before it, and says so. Collective.

    Args:
        start: from `choose_start`.
        arguments, layout: as for `choose_start`.
        say: prints a line.

    Raises:
        CheckpointError: the files are damaged, and there is no other checkpoint of this run.
    """
    if start.folder is None:
        return start
    damage = damage_of(start.folder)
    if not damage:
        return start
    if start.kind != "continue":
        raise CheckpointError(
            f"--load {arguments.checkpoint.load}: {damage[0]}; restore the file, or write the number of another iter_ "
            f"folder into {TRACKER}"
        )
    folder = CheckpointFolder(Path(str(arguments.checkpoint.save)))
    for older in folder.whole():
        if (iteration_of(older) or 0) >= start.progress.iteration:
            continue
        for line in damage:
            say(f"DAMAGED CHECKPOINT: {line}")
        try:
            record = RunRecord.read(older)
        except CheckpointError as error:
            damage = [str(error)]
            continue
        if record is None or record.identity != identity_of(arguments) or not record.has_optimizer:
            damage = [f"{older}: not one that this run can go on from"]
            continue
        damage = damage_of(older)
        if not damage:
            say(f"going on from the checkpoint before it, {older}, iteration {record.progress.iteration}")
            return _continue(older, record, layout)
    raise CheckpointError(f"{damage[0]}; no other checkpoint of this run is whole. Restore the file or start anew")


def _newest(folder: CheckpointFolder) -> Path | None:
    """The checkpoint to go on from. Where a kill left the tracker without its folder, the newest whole one."""
    try:
        return folder.latest()
    except CheckpointError:
        whole = folder.whole()
        if not whole:
            raise
        return whole[0]


def _continue(folder: Path, record: RunRecord, layout: dict[str, Any]) -> Start:
    progress = record.progress
    same_layout = all(record.layout.get(key) == layout[key] for key in layout if key != "use_distributed_optimizer")
    reason = f"going on from {folder}, iteration {progress.iteration}"
    if record.has_optimizer:
        _check_optimizer(folder, record, layout)
    if record.has_rng and not same_layout:
        reason += "; the layout is another one, so random states start anew"
    return Start("continue", folder, record, progress, record.has_optimizer, record.has_rng and same_layout, reason)


def _refuse_foreign(arguments: PretrainArguments, folder: Path, record: RunRecord | None) -> None:
    """Two runs must not write into one folder; but --save may name the folder that --load starts from."""
    checkpoint = arguments.checkpoint
    save, load = Path(str(checkpoint.save)), checkpoint.load
    if load is not None and Path(load).resolve() == save.resolve():
        return
    difference = "it was written by another program"
    if record is not None:
        ours = identity_of(arguments)
        differing = [flag for flag in ours if record.identity.get(flag) != ours[flag]]
        difference = "they differ in " + ", ".join(differing)
    raise CheckpointError(
        f"--save {save}: holds a checkpoint of another run ({folder.name}; {difference}); give another --save, or "
        f"start from it with --load {save} --finetune"
    )


def _load(arguments: PretrainArguments, layout: dict[str, Any]) -> Start:
    checkpoint = arguments.checkpoint
    if is_hugging_face(str(checkpoint.load)):
        reason = f"weights from the Hugging Face folder {checkpoint.load}, iteration 0"
        return Start("load", Path(str(checkpoint.load)), None, Progress(), False, False, reason)
    folder = CheckpointFolder(Path(str(checkpoint.load))).latest()
    if folder is None:
        raise CheckpointError(
            f"--load {checkpoint.load}: holds no checkpoint (no latest_checkpointed_iteration.txt); give the folder "
            "that convert_ckpt.py or an earlier run's --save wrote, or leave --load out for random weights"
        )
    _refuse_overwriting(arguments, folder)
    record = RunRecord.read(folder)
    if checkpoint.finetune:
        reason = f"weights from {folder}, iteration 0 (--finetune)"
        return Start("load", folder, record, Progress(), False, False, reason)
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
    return Start("load", folder, record, record.progress, optimizer, rng and same_layout, reason)


def _check_optimizer(folder: Path, record: RunRecord, layout: dict[str, Any]) -> None:
    if record.layout.get("use_distributed_optimizer") != layout["use_distributed_optimizer"]:
        change = "remove" if layout["use_distributed_optimizer"] else "add"
        raise CheckpointError(
            f"{folder}: its optimizer state was saved {'without' if change == 'remove' else 'with'} "
            f"--use-distributed-optimizer; {change} that flag, or start with --load and --no-load-optim"
        )


def _refuse_overwriting(arguments: PretrainArguments, folder: Path) -> None:
    """With --save naming the folder of --load, no save of this run may land on the checkpoint it starts from."""
    checkpoint = arguments.checkpoint
    start = iteration_of(folder)
    if checkpoint.save is None or start is None or not checkpoint.finetune:
        return
    if Path(checkpoint.save).resolve() != Path(str(checkpoint.load)).resolve():
        return
    interval = checkpoint.save_interval
    hits_interval = interval is not None and start > 0 and start % interval == 0
    if hits_interval or start == arguments.training.train_iters:
        raise CheckpointError(
            f"--save and --load name one folder, and this run would overwrite {folder.name}, which it starts from; "
            "give another --save, or another --save-interval"
        )
