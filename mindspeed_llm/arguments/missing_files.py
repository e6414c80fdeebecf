"""Find the files and directories that a training command names and that do not exist, before anything is read.

--check-only reports them without torch, and a run together with all other problems of its command line. The messages
are those of the packages that open the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.arguments.data_rules import PATHS
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.arguments.missing_paths import (
    missing_documents,
    missing_file,
    missing_packs,
    missing_raw_data,
    missing_tokenizer_files,
    missing_tokenizer_model,
)
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import names_raw_data
from mindspeed_llm.storage.checkpoint_directory import TRACKER
from mindspeed_llm.storage.hub_names import download_advice


def missing_files(arguments: PretrainArguments, written: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Return one line for each path of a training command that does not exist, except --load (`missing_load`).

    Args:
        arguments: the parsed command.
        written: whether the files of a data path will be written before the command runs.
    """
    tokenizer = arguments.tokenizer
    problems = []
    if tokenizer.tokenizer_type == "PretrainedFromHF" and tokenizer.tokenizer_name_or_path is not None:
        problems.append(missing_tokenizer_files(tokenizer.tokenizer_name_or_path))
    elif tokenizer.tokenizer_type is not None and tokenizer.tokenizer_model is not None:
        problems.append(missing_tokenizer_model(tokenizer.tokenizer_model))
    problems += missing_data(arguments, written)
    if arguments.raw_data.given:
        problems.append(missing_file("--prompt-type-path", arguments.data.prompt_type_path))
    problems.append(missing_file("--generate-prompts", arguments.generation.generate_prompts))
    return [problem for problem in problems if problem is not None]


def missing_load(load: str | None, save: str | None) -> str | None:
    """Return the message about a --load without a model; None if it has one, or if the run resumes from --save.

    Args:
        load: value of --load.
        save: value of --save.
    """
    if not load or (save is not None and (Path(save) / TRACKER).exists()):
        return None
    if (Path(load) / TRACKER).exists() or is_hugging_face_folder(load):
        return None
    return no_checkpoint(load)


def no_checkpoint(load: str) -> str:
    """Return the message about a --load that is no model.

    Args:
        load: value of --load.
    """
    if Path(load).is_file():
        reason = "a file, not a folder"
    elif Path(load).exists():
        reason = f"holds no checkpoint (no {TRACKER}) and no model"
    else:
        reason = "no such directory"
    return (
        f"--load {load}: {reason}; give the folder of a Hugging Face model or the folder that convert_ckpt.py or an "
        f"earlier run's --save wrote, or leave --load out for random weights{download_advice(load)}"
    )


def missing_data(arguments: PretrainArguments, written: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Return one line for each data path without files.

    Args:
        arguments: the parsed command.
        written: whether the files of a data path will be written before the command runs.
    """
    is_packed = arguments.data.is_instruction_dataset
    paths = {flag: parse_data_path(values(arguments))[1] for flag, values in PATHS.items()}
    flags = {name: flag for flag, names in paths.items() for name in names if name and not written(name)}
    if arguments.raw_data.given:
        found = [
            None if names_raw_data(name) else missing_raw_data(flag, name, is_packed) for name, flag in flags.items()
        ]
    else:
        found = [missing_packs(name) if is_packed else missing_documents(name) for name in flags]
    return [problem for problem in found if problem is not None]
