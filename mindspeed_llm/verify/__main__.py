"""Entry point of `python -m mindspeed_llm.verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder, read_config
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.devices import apply_patches, select_device
from mindspeed_llm.entry_point import delay_errors_of_other_ranks, return_freed_memory, run_command
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.launcher_environment import read_launcher_environment
from mindspeed_llm.tokenization import load_tokenizer_of_command
from mindspeed_llm.verify.verify_arguments import PROGRAM, VerifyCommand, parse_verify_arguments


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Compare, and return the exit status: 0 equal, 4 different; an error of the user ends with 2.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.
    """
    launch = read_launcher_environment()
    configure_logging(launch.rank, info_stream="stdout")
    with delay_errors_of_other_ranks():
        command = parse_verify_arguments(argv, launch.world_size, program)
    arguments = command.run
    if arguments.device.dry_run:
        if launch.rank == 0:
            print_need(command)
        return 0
    minutes = arguments.parallel.distributed_timeout_minutes
    from mindspeed_llm.data import build_datasets
    from mindspeed_llm.devices.rendezvous import report_startup_errors

    with report_startup_errors(minutes):
        check_libraries(needs_peft=command.reference_adapter is not None)
        device = select_device(arguments.device.device)
        tokenizer = load_tokenizer_of_command(arguments.tokenizer)
    if arguments.raw_data.given:
        from mindspeed_llm.prepare_data import prepare_data

        arguments = prepare_data(arguments)
        command = replace(command, run=arguments)
    with report_startup_errors(minutes):
        datasets = build_datasets(
            arguments.data,
            arguments.training.seed,
            evaluate=False,
            tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
            vocabulary=tokenizer.vocab_size if tokenizer else None,
        )
    # The imports below load megatron-core, which must be patched before.
    apply_patches(device.kind, mindspeed=arguments.device.use_mindspeed)
    from mindspeed_llm.training import destroy_process_groups, init_distributed
    from mindspeed_llm.training.rank_failure import report_lost_ranks
    from mindspeed_llm.verify.comparison_run import run_comparison

    init_distributed(arguments, device)
    return_freed_memory()
    try:
        with report_lost_ranks():
            return run_comparison(command, device, datasets, tokenizer)
    finally:
        destroy_process_groups()


def check_libraries(needs_peft: bool) -> None:
    """Check that transformers, and peft for an adapter, are installed, without importing them.

    Raises:
        ConfigError: a library is missing.
    """
    missing = [name for name in ("transformers", *(["peft"] if needs_peft else [])) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: not installed; pip install -e '.[verify]'")


def print_need(command: VerifyCommand) -> None:
    """Print the memory that the comparison needs; config.json of --load or --export is read, and no weights.

    Raises:
        ConfigError: there is no config.json.
    """
    from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue
    from mindspeed_llm.verify.memory_need import format_need, memory_need

    load = str(command.run.checkpoint.load)
    catalogue = TensorCatalogue(read_config(load if is_hugging_face_folder(load) else str(command.own.export)))
    print("\n".join(format_need(memory_need(command.run, command.packs, catalogue), command.run)))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], PROGRAM))
