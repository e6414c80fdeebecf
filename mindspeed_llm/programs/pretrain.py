"""Train a language model: the program of pretrain_gpt.py, posttrain_gpt.py and `mindspeed-llm pretrain`.

The exit status is 0 when the run is complete and 2 after an error of the user. No process group starts before all
arguments and the data are checked.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder, read_config
from mindspeed_llm.arguments.notices import collect_notices
from mindspeed_llm.arguments.pretrain_parser import PROGRAM, parse_pretrain_arguments
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.devices import apply_patches, select_device
from mindspeed_llm.entry_point import delay_errors_of_other_ranks
from mindspeed_llm.errors import ConfigError, UserError
from mindspeed_llm.launcher_environment import read_launcher_environment
from mindspeed_llm.storage.checkpoint_directory import CheckpointDirectory

if TYPE_CHECKING:
    from mindspeed_llm.arguments.output_arguments import CheckpointArguments
    from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
    from mindspeed_llm.conversion import ModelAssets
    from mindspeed_llm.data import Datasets
    from mindspeed_llm.generation import PromptSet
    from mindspeed_llm.manifest import Manifest
    from mindspeed_llm.tokenization import Tokenizer

logger = logging.getLogger(__name__)


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Train as the command-line arguments specify.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.

    Raises:
        UserError: the arguments or the files are invalid, or the run cannot continue.
    """
    with delay_errors_of_other_ranks():
        configure_logging(read_launcher_environment().rank, info_stream="stdout")
        arguments = parse_pretrain_arguments(argv, read_launcher_environment().world_size, program, finds_files=True)
    if arguments.device.check_only:
        report_check(arguments.wrong_files, program)
        return
    if arguments.device.dry_run:
        plan(arguments)
        return
    is_rank_zero = read_launcher_environment().rank == 0
    from mindspeed_llm.data import build_datasets
    from mindspeed_llm.devices.rendezvous import report_startup_errors
    from mindspeed_llm.generation import read_prompts
    from mindspeed_llm.tokenization import load_tokenizer_of_command

    log_warnings()
    with report_startup_errors(arguments.parallel.distributed_timeout_minutes):
        if arguments.wrong_files:
            raise ConfigError(arguments.wrong_files)
        device = select_device(arguments.device.device)
        for notice in collect_notices(arguments, device.kind):
            logger.info(notice)
        tokenizer = load_tokenizer_of_command(arguments.tokenizer)
        if arguments.raw_data.given:
            check_weights_of_load(arguments.checkpoint)
            if is_rank_zero and arguments.generation.generate_prompts is not None:
                # The template is known after preprocessing, which may take hours.
                read_prompts(arguments.generation.generate_prompts)
    if arguments.raw_data.given:
        from mindspeed_llm.prepare_data import prepare_data

        arguments = prepare_data(arguments)
    with report_startup_errors(arguments.parallel.distributed_timeout_minutes):
        datasets = build_datasets(
            arguments.data,
            arguments.training.seed,
            evaluate=arguments.training.eval_iters > 0,
            tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
            vocabulary=tokenizer.vocab_size if tokenizer else None,
            eod=tokenizer.eos_id if tokenizer else None,
            virtual_tokens=arguments.virtual_tokens,
        )
        prompts = load_prompts_of_run(arguments, datasets, tokenizer) if is_rank_zero else None

    # The imports below load megatron-core, which must be patched before.
    apply_patches(device.kind, mindspeed=arguments.device.use_mindspeed)
    if arguments.device.deterministic_mode:
        device.make_deterministic()
    from mindspeed_llm.generation.answers_at_evaluation import AnswersAtEvaluation
    from mindspeed_llm.lease import HeldLeases
    from mindspeed_llm.reports import draw_loss
    from mindspeed_llm.training.run_training import train

    assets = None
    with report_startup_errors(arguments.parallel.distributed_timeout_minutes):
        check_exports(arguments)
        check_adapter(arguments)
        if is_rank_zero and arguments.checkpoint.save is not None:
            assets = run_assets(arguments, datasets, tokenizer)

    generates = arguments.generation.generate_prompts is not None
    callback = AnswersAtEvaluation(arguments, prompts) if generates else None
    with HeldLeases() as leases:
        run_dir = train(arguments, device, datasets, tokenizer, leases, assets, draw_loss, callback)
        if not is_rank_zero:
            return
        if assets is not None:
            for folder in export(arguments.checkpoint, assets, arguments.adapter is not None):
                logger.info(f"wrote {folder}")
        try:
            # Another run may have taken over the run directory by now; its pictures must not be overwritten.
            leases.check(thoroughly=True)
            draw(run_dir, [files.manifest_path for files in datasets.files if files.manifest is not None])
        except (OSError, UserError) as error:
            # Training is complete and its checkpoints are saved, so missing pictures must not change the exit status.
            logger.warning(f"warning: no pictures in {run_dir}: {error}")


def report_check(wrong_files: Sequence[str], program: str) -> None:
    """Report the files of a valid command that do not exist or do not fit it, or that there are none (--check-only).

    Args:
        wrong_files: messages about these files.
        program: name of the program for the message.

    Raises:
        ConfigError: files or directories do not exist, or were made for other flags.
    """
    launch = read_launcher_environment()
    # A file may be missing on one of several machines, and the others would wait for it if only that one ended. The run
    # reports the file on all of them.
    is_one_of_several = launch.machine is not None and launch.machines > 1
    if wrong_files and not is_one_of_several:
        raise ConfigError(wrong_files)
    if launch.rank == 0:
        ranks = launch.world_size
        print(f"{program}: the command is valid for {ranks} {'rank' if ranks == 1 else 'ranks'}")


def plan(arguments: PretrainArguments) -> None:
    """Print the plan of the job, on rank 0 only (--dry-run).

    Args:
        arguments: checked arguments.

    Raises:
        UserError: the data, the model or the checkpoint cannot be read.
    """
    if read_launcher_environment().rank > 0:
        return
    from mindspeed_llm.dry_run import build_job_plan, print_plan

    if arguments.raw_data.given:
        from mindspeed_llm.prepare_data import find_prepared_data

        arguments = find_prepared_data(arguments)
    print("\n".join(f"flags      {line}" for line in arguments.describe_sources()))
    print_plan(build_job_plan(arguments))


def check_exports(arguments: PretrainArguments) -> None:
    """Check the Hugging Face folders that the run will write, because the export comes after training.

    Raises:
        UserError: a folder contains other files, or no model family has the shape of this model.
    """
    from mindspeed_llm.conversion import check_export_target, config_of_shape

    checkpoint = arguments.checkpoint
    exports = {checkpoint.save_hf: arguments.adapter is not None, checkpoint.save_hf_merged: False}
    if checkpoint.save_hf_interval is not None:
        config_of_shape(arguments.model, 1, 1, "--save-hf-interval")
    for target, holds_adapter in exports.items():
        if target is not None:
            check_export_target(Path(target), holds_adapter)
            config_of_shape(arguments.model, 1, 1)


def load_prompts_of_run(
    arguments: PretrainArguments, datasets: Datasets, tokenizer: Tokenizer | None
) -> PromptSet | None:
    """Load the prompts of --generate-prompts, in the chat template of the data; None without that flag.

    Raises:
        UserError: the file cannot be read, or a prompt is too long.
    """
    if arguments.generation.generate_prompts is None:
        return None
    from mindspeed_llm.generation import load_prompts

    assert tokenizer is not None  # a rule between the flags
    prompts = load_prompts(arguments, manifests_of(datasets), tokenizer)
    if not prompts.ends:
        logger.info("notice: --generate-prompts: the data have no end token, so no answer ends by itself")
    return prompts


def check_weights_of_load(flags: CheckpointArguments) -> None:
    """Check the Hugging Face weights of a new run, because preprocessing raw data may take hours before they are read.

    Raises:
        UserError: the weights are damaged, or do not fit the config.json beside them.
    """
    load, save = flags.load, flags.save
    is_resumed = save is not None and CheckpointDirectory(Path(save)).tracker.path.exists()
    if load is None or is_resumed or not is_hugging_face_folder(load):
        return
    from mindspeed_llm.conversion import HuggingFaceWeights, TensorCatalogue

    HuggingFaceWeights(Path(load)).check(TensorCatalogue(read_config(load)))


def check_adapter(arguments: PretrainArguments) -> None:
    """Check the adapter of --lora-load, and that an adapter can be trained on this model.

    Raises:
        UserError: the adapter is damaged or was made for another model, or no model family has the shape of this model.
    """
    if arguments.adapter is None:
        return
    from mindspeed_llm.checkpoints import find_base
    from mindspeed_llm.conversion import config_of_run, config_of_shape, open_adapter
    from mindspeed_llm.storage.checkpoint_file_list import check_hashes

    config_of_shape(arguments.model, 1, 1, arguments.adapter_flag)
    save, load = arguments.checkpoint.save, arguments.lora.lora_load
    is_resumed = save is not None and CheckpointDirectory(Path(save)).tracker.path.exists()
    if load is not None and not is_resumed:
        # The vocabulary does not matter for an adapter.
        adapter = open_adapter(load, config_of_run(arguments, 1, None, "--lora-load"))
        if adapter.record is not None and read_launcher_environment().rank == 0:
            check_hashes(adapter.folder)
    find_base(arguments.checkpoint)


def export(checkpoint: CheckpointArguments, assets: ModelAssets, is_adapter: bool) -> list[Path]:
    """Write the trained model to --save-hf, or its adapter there and the merged model to --save-hf-merged.

    Args:
        checkpoint: flags of the output directories.
        assets: assets of the trained model.
        is_adapter: whether an adapter was trained.

    Returns:
        The folders that were written.

    Raises:
        UserError: the checkpoint cannot be read, or a folder cannot be written.
    """
    from mindspeed_llm.checkpoints import best_checkpoint, find_base
    from mindspeed_llm.conversion import export_adapter_run, export_run

    if checkpoint.save_hf is None and checkpoint.save_hf_merged is None:
        return []
    best = best_checkpoint(Path(str(checkpoint.save))) if checkpoint.best_checkpoint else None
    if best is not None:
        logger.info(f"exporting {best}, the checkpoint with the lowest held-out loss")
    if is_adapter:
        return export_adapter_run(checkpoint, assets, find_base(checkpoint), best)
    return [export_run(checkpoint, assets, best)]


def run_assets(arguments: PretrainArguments, datasets: Datasets, tokenizer: Tokenizer | None) -> ModelAssets | None:
    """Collect config, tokenizer, end tokens and chat template of the trained model, for checkpoints and export.

    Args:
        arguments: checked arguments.
        datasets: opened and checked data sets; their manifests name end tokens and chat template.
        tokenizer: tokenizer that the command names, or None.

    Returns:
        The assets; None if no family has such a model, so that config.json cannot be written.
    """
    from mindspeed_llm.conversion import assets_of_run, read_generation_info

    manifests = manifests_of(datasets)
    generation = read_generation_info(arguments.data, manifests, tokenizer)
    if generation.problem is not None and arguments.checkpoint.save_hf is not None:
        logger.info(f"notice: --save-hf: the exported model gets no chat template: {generation.problem}")
    return assets_of_run(arguments, datasets.tokenizer_vocabulary(tokenizer), generation, tokenizer)


def manifests_of(datasets: Datasets) -> list[Manifest]:
    """Return the manifests of the data sets that have one."""
    return [files.manifest for files in datasets.files if files.manifest is not None]


def log_warnings() -> None:
    """Log Python warnings as one line each, on rank 0 only."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        logger.warning(f"warning: {message}")

    warnings.showwarning = show
    # megatron-core's distributed optimizer reads .grad of its float32 shards, which are views. The warning is harmless.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", module="megatron.core")


def draw(run_dir: Path, manifests: list[Path]) -> None:
    """Write loss.png and packing.png to the run directory.

    Args:
        run_dir: the run directory.
        manifests: manifests of the data sets that have one.
    """
    from mindspeed_llm.reports import draw_loss, draw_packing

    logger.info(f"wrote {draw_loss(run_dir)}")
    if manifests:
        logger.info(f"wrote {draw_packing(manifests, run_dir / 'packing.png')}")
