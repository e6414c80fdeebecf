"""Activate training on packs in this process, if its command line asks for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.devices import DEVICES
from mindspeed_llm.errors import ConfigError, UserError
from mindspeed_llm.launcher_environment import read_launcher_environment
from mindspeed_llm.megatron.megatron_flags import OWN_FLAGS, names_of
from mindspeed_llm.megatron.megatron_versions import find_version
from mindspeed_llm.megatron.mindspeed_versions import load_mindspeed_first, uses_mindspeed
from mindspeed_llm.megatron.pretrain_patch import end_with, pretrain_patch
from mindspeed_llm.megatron.refused_flags import problems_of_command

logger = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]


def activate(argv: Sequence[str], script: Path | None = None) -> bool:
    """Replace `megatron.training.pretrain` if the command line has one of our flags; otherwise do nothing.

    A problem ends the process with status 2 and one line.

    Args:
        argv: words of the command line, without the name of the program.
        script: script that will be run; by default the program of this process.

    Returns:
        Whether Megatron will train on packs.
    """
    if not names_of(argv) & {*OWN_FLAGS, "--help"} and "-h" not in argv:
        return False
    try:
        replace_training(argv, script)
    except UserError as error:
        end_with(error)
    return True


def replace_training(argv: Sequence[str], script: Path | None = None) -> None:
    """Check this process and apply the patch.

    Args:
        argv: words of the command line, without the name of the program.
        script: script that will be run; by default the program of this process.

    Raises:
        ConfigError: the command line, the path or the order of imports is wrong.
    """
    configure_logging(read_launcher_environment().rank, info_stream="stdout")
    asks_for_help = bool({"--help", "-h"} & set(argv))
    problems = [] if asks_for_help else problems_of_command(argv)
    problems += _other_packages_of_this_name()
    if problems:
        raise ConfigError(problems)
    version = find_version()
    main = sys.modules.get("__main__")
    training = sys.modules.get("megatron.training")
    if training is not None and getattr(main, "pretrain", None) is getattr(training, "pretrain", False):
        raise ConfigError(
            "the script imports `pretrain` of megatron.training before mindspeed_llm.megatron_adaptor: make "
            "`import mindspeed_llm.megatron_adaptor` its first line"
        )
    with_mindspeed = not asks_for_help and uses_mindspeed(argv, script or _script_of(main))
    if with_mindspeed:
        logger.info(load_mindspeed_first(argv, version.number))
    pretrain_patch(version, with_mindspeed).apply(DEVICES[0])


def _script_of(main: object) -> Path | None:
    """Return the file of the program, or None for an interactive session and `python -c`."""
    file = getattr(main, "__file__", None)
    return Path(file) if file else None


def _other_packages_of_this_name() -> list[str]:
    """Return one line for each other package called mindspeed_llm on the path of this process."""
    problems = []
    for folder in dict.fromkeys(sys.path):
        other = Path(folder or ".") / "mindspeed_llm"
        # A second copy of this project does no harm: Python imports all modules of a package from one folder.
        if other.is_dir() and not (other / "megatron" / "activation.py").is_file():
            problems.append(
                f"{other.absolute()}: another package of the name mindspeed_llm beside {PACKAGE}; MindSpeed-LLM's has "
                "the same name: remove one of the two from PYTHONPATH, and start the script outside of its folder"
            )
    return problems
