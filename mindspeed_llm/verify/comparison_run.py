"""Run both sides one after the other and compare them.

    all ranks     load the model here ─▶ forward, first step ─▶ recording on disk of rank 0 ─▶ model is freed
    rank 0        transformers in the same type ─▶ recording ─▶ freed ─▶ transformers in float64, where it fits
                  the recordings, one tensor at a time ─▶ table, explanation, exit status

Only one model with its gradients exists at a time.
"""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from mindspeed_llm.adapters import is_peft_folder
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
# Weights and gradients in float64.
_BYTES_IN_FLOAT64 = 16
_FREE_SHARE = 0.5


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
    with _scratch_folder(command.own.scratch_dir) as scratch:
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
    load, lora, export = str(command.run.checkpoint.load), command.run.lora.lora_load, command.own.export
    if export is not None and not is_peft_folder(Path(export)):
        return ReferenceFolder(Path(export))
    adapter = export if export is not None else lora
    return ReferenceFolder(Path(load), None if adapter is None else Path(adapter))


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
    fits = _fits_float64(command.own.reference_float64, own.catalogue)
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


def _fits_float64(choice: str, catalogue: TensorCatalogue) -> bool:
    """Return whether transformers also runs in float64, on the host."""
    if choice != "auto":
        return choice == "always"
    needed = _BYTES_IN_FLOAT64 * sum(tensor.elements for tensor in catalogue.tensors)
    if needed <= _FREE_SHARE * psutil.virtual_memory().available:
        return True
    logger.info("no float64 run: it needs too much memory; the limits are those of the type (docs/verify.md)")
    return False


def _collect_garbage(device: Device) -> None:
    """Release the memory of a model that nothing uses any more: its modules refer to each other."""
    gc.collect()
    if not device.traits.is_host:
        torch.get_device_module(device.torch_device).empty_cache()


@contextmanager
def _scratch_folder(parent: str | None) -> Iterator[Path]:
    """Provide a temporary directory.

    Raises:
        DataError: it cannot be made.
    """
    place = Path(parent or tempfile.gettempdir())
    if not place.is_dir():
        raise CheckpointError(f"{FLAG} {place}: no such directory; create it, or choose another one")
    with disk_errors(place, FLAG):
        made = tempfile.TemporaryDirectory(prefix="verify-", dir=place)
    with made as folder:
        yield Path(folder)
