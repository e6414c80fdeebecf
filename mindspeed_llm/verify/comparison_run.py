"""Run both sides one after the other and compare them.

    all ranks     load the model here ─▶ forward, first step ─▶ recording on disk of rank 0 ─▶ model is freed
    rank 0        transformers in the same type ─▶ recording ─▶ freed ─▶ transformers in float64, where it fits
                  the recordings, one tensor at a time ─▶ table, explanation, exit status

Only one model with its gradients exists at a time.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, is_hugging_face_folder, read_config
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import find_base
from mindspeed_llm.conversion import AdapterCatalogue, TensorCatalogue, config_of_run, read_generation_info
from mindspeed_llm.data import Datasets, PackedDataLoader, PackedDataset
from mindspeed_llm.devices import HOST, Device
from mindspeed_llm.errors import CheckpointError, DataError
from mindspeed_llm.model.transformer_config import DTYPES
from mindspeed_llm.storage.disk_errors import disk_errors
from mindspeed_llm.tokenization import Tokenizer
from mindspeed_llm.training.dataloaders import build_dataloaders
from mindspeed_llm.training.derived_settings import DerivedSettings, derive_settings
from mindspeed_llm.training.learning_rate_schedule import RunLength
from mindspeed_llm.verify.comparison import TEMPLATE, ComparedRow, Sides, compare
from mindspeed_llm.verify.diagnosis import diagnose
from mindspeed_llm.verify.layer_taps import taps_of
from mindspeed_llm.verify.limits import Limits
from mindspeed_llm.verify.memory_need import MemoryNeed, memory_need
from mindspeed_llm.verify.own_model import load_own_model
from mindspeed_llm.verify.own_recorder import OwnRecorder
from mindspeed_llm.verify.recording import Recording
from mindspeed_llm.verify.reference import Reference, ReferenceFolder, Step
from mindspeed_llm.verify.report import print_report
from mindspeed_llm.verify.samples import Sample, read_samples
from mindspeed_llm.verify.template_check import CONVERSATIONS, template_difference
from mindspeed_llm.verify.tensor_folder import FLAG, TensorFolder
from mindspeed_llm.verify.verify_arguments import VerifyCommand

logger = logging.getLogger(__name__)

EQUAL, DIFFERENT = 0, 4
_FREE_SHARE = 0.5
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def run_comparison(command: VerifyCommand, device: Device, datasets: Datasets, tokenizer: Tokenizer | None) -> int:
    """Compare this project with transformers. Collective; the process groups exist.

    Args:
        command: the checked command.
        device: device of this rank.
        datasets: the opened data.
        tokenizer: tokenizer that the command names, or None.

    Returns:
        Exit status: on rank 0 EQUAL or DIFFERENT, on the other ranks EQUAL.

    Raises:
        UserError: a model cannot be loaded, or the disk is full.
    """
    run = command.run
    packs = datasets.train
    assert isinstance(packs, PackedDataset), "the command line of a comparison names instruction data"
    if len(packs) < command.packs:
        raise DataError(f"--packs {command.packs}: the data have only {len(packs)} packs; give a lower number")
    folder, config = own_folder(run, datasets.tokenizer_vocabulary(tokenizer))
    need = memory_need(run, command.packs, TensorCatalogue(config))
    with _scratch_folder(command.own.scratch_dir, need.disk) as scratch:
        own = Recording(TensorFolder(scratch / "own"))
        derived = _derived(command, device, datasets, tokenizer)
        loader = build_dataloaders(run.data, run.training, datasets, derived, device, tokenizer)["train"]
        assert isinstance(loader, PackedDataLoader)
        samples = _samples(command, packs, loader)
        logger.info(f"comparing {len(samples)} samples in {command.packs} packs of {datasets.files[0].prefix}")
        model = load_own_model(run, device, derived, folder, config)
        OwnRecorder(model, own).record(loader, samples)
        catalogue, adapter = model.catalogue, model.adapter
        model.bare.clear()
        _collect_garbage(device)
        if torch.distributed.get_rank() != 0:
            return EQUAL
        template = _template_row(command, datasets, tokenizer)
        side = _OwnSide(own, samples, catalogue, adapter)
        return _compare_with_reference(command, device, side, scratch, template)


def own_folder(run: PretrainArguments, vocabulary: int | None) -> tuple[Path, HuggingFaceConfig]:
    """Return the folder of the model of --load and its shape.

    Args:
        run: arguments of the run.
        vocabulary: number of tokens of the tokenizer, if it is known.

    Raises:
        UserError: the folder contains no complete model.
    """
    folder = find_base(run.checkpoint)
    assert folder is not None, "a rule refuses a command without --load"
    if is_hugging_face_folder(folder):
        return folder, read_config(folder)
    return folder, config_of_run(run, vocabulary, None, "--load")


def reference_folder(command: VerifyCommand) -> ReferenceFolder:
    """Return what transformers loads.

    Args:
        command: the checked command.
    """
    adapter, export = command.reference_adapter, command.own.export
    if adapter is not None:
        return ReferenceFolder(Path(str(command.run.checkpoint.load)), Path(adapter))
    return ReferenceFolder(Path(str(export if export is not None else command.run.checkpoint.load)))


def _derived(
    command: VerifyCommand, device: Device, datasets: Datasets, tokenizer: Tokenizer | None
) -> DerivedSettings:
    run = command.run
    order = datasets.train_order(run.data, run.training.seed, command.packs)
    vocabulary = run.vocabulary(datasets.tokenizer_vocabulary(tokenizer))
    return derive_settings(run, device.kind, vocabulary, RunLength(1, 0), order, datasets.trained_share)


def _samples(command: VerifyCommand, packs: PackedDataset, loader: PackedDataLoader) -> list[Sample]:
    """Read the samples in the way of the reference.

    Raises:
        DataError: no token of these packs is trained.
    """
    settings = loader.settings
    samples = read_samples(
        packs,
        command.packs,
        ends_at_end_tokens=settings.split_at_end_tokens,
        eod=settings.eod,
        pad=settings.pad,
    )
    if not any(len(sample.targets) for sample in samples):
        raise DataError(f"no token of the first {command.packs} packs is trained; give more --packs")
    return samples


@dataclass(frozen=True)
class _OwnSide:
    """What rank 0 keeps of this side after its model is freed.

    Attributes:
        recording: what it computed.
        samples: the compared samples.
        catalogue: tensors of the model.
        adapter: tensors of the adapter; None without one.
    """

    recording: Recording
    samples: list[Sample]
    catalogue: TensorCatalogue
    adapter: AdapterCatalogue | None


def _compare_with_reference(
    command: VerifyCommand, device: Device, own: _OwnSide, scratch: Path, template: ComparedRow | None
) -> int:
    """Run transformers, print the table, and return the exit status."""
    run, folder = command.run, reference_folder(command)
    step = Step(run.training.loss_normalization, run.training.micro_batch_size)
    is_merged = own.adapter is not None and folder.adapter is None

    def record(name: str, dtype: torch.dtype, where: torch.device) -> Recording:
        logger.info(f"transformers in {str(dtype).removeprefix('torch.')}: {folder.adapter or folder.model}")
        reference, into = Reference(folder, dtype, where), Recording(TensorFolder(scratch / name))
        if name == "theirs":
            _warn_about_untrained_row(reference.untrained_row, own.samples, own.adapter is not None)
        reference.record(own.samples, step, own.catalogue, None if is_merged else own.adapter, into)
        reference.release()
        return into

    where = HOST.torch_device if command.own.reference_on_host else device.torch_device
    theirs = record("theirs", DTYPES[run.training.precision], where)
    fits = _fits_float64(command.own.reference_float64, memory_need(run, command.packs, own.catalogue), scratch)
    exact = None
    if fits:
        _collect_garbage(device)
        exact = record("exact", torch.float64, HOST.torch_device)
    sides = Sides(own.recording, theirs, exact, own.samples, Limits(run.training.precision, exact is not None))
    rows = [*compare(sides, has_weights=not is_merged), *([] if template is None else [template])]
    is_different = any(row.fails for row in rows)
    print_report(rows, diagnose(sides, rows, taps_of(own.catalogue)) if is_different else None)
    return DIFFERENT if is_different else EQUAL


def _template_row(command: VerifyCommand, datasets: Datasets, tokenizer: Tokenizer | None) -> ComparedRow | None:
    """Compare the chat template of the data with that of the reference; a row for an export, otherwise a notice."""
    manifests = [files.manifest for files in datasets.files if files.manifest is not None]
    of_data = read_generation_info(command.run.data, manifests, tokenizer).chat_template
    folder = reference_folder(command)
    difference = template_difference(folder.adapter or folder.model, of_data) if of_data is not None else None
    if difference is None:
        return None
    if command.own.export is not None:
        return ComparedRow(TEMPLATE, len(CONVERSATIONS), float(difference != ""), 0.0, difference)
    if difference:
        logger.info(
            f"notice: template: the data were made with another chat template than that of {folder.model} "
            f"({difference}); use the exported model with the template of the data"
        )
    return None


def _warn_about_untrained_row(row: int | None, samples: Sequence[Sample], is_frozen: bool) -> None:
    """Tell the user that transformers does not train the input embedding of a token of the data."""
    if row is None or is_frozen or not any((sample.ids == row).any() for sample in samples):
        return
    logger.info(
        f"notice: transformers gives the input embedding of token {row} no gradient, because it is pad_token_id in "
        "config.json; the data have it as a token, and it is trained here. It is compared as if transformers trained it"
    )


def _fits_float64(choice: str, need: MemoryNeed, scratch: Path) -> bool:
    """Return whether transformers also runs in float64, on the host."""
    if choice != "auto":
        return choice == "always"
    if need.float64 <= _FREE_SHARE * _free_memory() and need.disk_float64 <= shutil.disk_usage(scratch).free:
        return True
    logger.info("no float64 run: it needs too much memory or disk; the limits are those of the type (docs/verify.md)")
    return False


def _free_memory() -> int:
    """Return the free memory of the host in bytes, or what the limit of a container leaves."""
    free: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit ("max")
        limit, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def _collect_garbage(device: Device) -> None:
    """Release the memory of a model that nothing uses any more: its modules refer to each other."""
    gc.collect()
    if not device.traits.is_host:
        torch.get_device_module(device.torch_device).empty_cache()


@contextmanager
def _scratch_folder(parent: str | None, need: int) -> Iterator[Path]:
    """Provide a temporary directory.

    Args:
        parent: directory to make it in; None for that of temporary files.
        need: bytes that will be written.

    Raises:
        CheckpointError: it cannot be made, or its file system has too little space.
    """
    place = Path(parent or tempfile.gettempdir())
    if not place.is_dir():
        raise CheckpointError(f"{FLAG} {place}: no such directory; create it, or choose another one")
    free = shutil.disk_usage(place).free
    if free < need:
        raise CheckpointError(
            f"{FLAG} {place}: {free / 2**30:.1f} GiB are free, and the comparison needs {need / 2**30:.1f}; give a "
            "directory on a larger disk, or lower --packs"
        )
    with disk_errors(place, FLAG):
        made = tempfile.TemporaryDirectory(prefix="verify-", dir=place)
    with made as folder:
        yield Path(folder)
