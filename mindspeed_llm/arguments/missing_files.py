"""Find the files and directories that a command names and that do not exist, before anything is read or imported.

--check-only reports them without torch, and a run together with all other problems of its command line. The messages
are those of the packages that open the files.
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.arguments.data_rules import PATHS
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import names_raw_data
from mindspeed_llm.manifest import COLUMNS, column_prefix, document_prefix, has_document_files, has_packed_files
from mindspeed_llm.storage.checkpoint_directory import TRACKER
from mindspeed_llm.storage.hub_names import download_advice


def missing_files(arguments: PretrainArguments) -> list[str]:
    """Return one line for each path of a training command that does not exist, except --load (`missing_load`).

    Args:
        arguments: the parsed command.
    """
    tokenizer = arguments.tokenizer
    problems = []
    if tokenizer.tokenizer_type == "PretrainedFromHF" and tokenizer.tokenizer_name_or_path is not None:
        problems.append(missing_tokenizer_folder(tokenizer.tokenizer_name_or_path))
    elif tokenizer.tokenizer_type is not None and tokenizer.tokenizer_model is not None:
        problems.append(missing_tokenizer_model(tokenizer.tokenizer_model))
    problems += missing_data(arguments)
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
    reason = f"holds no checkpoint (no {TRACKER}) and no model" if Path(load).exists() else "no such directory"
    return (
        f"--load {load}: {reason}; give the folder of a Hugging Face model or the folder that convert_ckpt.py or an "
        f"earlier run's --save wrote, or leave --load out for random weights{download_advice(load)}"
    )


def missing_tokenizer_folder(folder: str) -> str | None:
    """Return the message about a --tokenizer-name-or-path that is no directory; None if it is one.

    Args:
        folder: value of the flag.
    """
    named = f"--tokenizer-name-or-path {folder}"
    if Path(folder).is_dir():
        return None
    if Path(folder).is_file():
        return (
            f"{named}: a file; give its directory, or read a SentencePiece model with --tokenizer-type "
            f"GPTSentencePieceTokenizer --tokenizer-model {folder}"
        )
    advice = download_advice(folder, weights=False) or "; download the model's tokenizer files there"
    return f"{named}: no such directory{advice}"


def missing_tokenizer_model(file: str) -> str | None:
    """Return the message about a --tokenizer-model that does not exist; None if it does.

    Args:
        file: value of the flag.
    """
    return None if Path(file).is_file() else f"--tokenizer-model {file}: no such file; check the path"


def missing_data(arguments: PretrainArguments) -> list[str]:
    """Return one line for each data path without files.

    Args:
        arguments: the parsed command.
    """
    is_packed = arguments.data.is_instruction_dataset
    flags = {name: flag for flag, values in PATHS.items() for name in parse_data_path(values(arguments))[1] if name}
    if arguments.raw_data.given:
        found = [
            None if names_raw_data(name) else missing_raw_data(flag, name, is_packed) for name, flag in flags.items()
        ]
    else:
        found = [missing_packs(name) if is_packed else missing_documents(name) for name in flags]
    return [problem for problem in found if problem is not None]


def missing_raw_data(flag: str, name: str, is_packed: bool) -> str | None:
    """Return the message about a data path that names neither raw data nor prepared files; None if there are such.

    Args:
        flag: flag of the path.
        name: the path.
        is_packed: whether the run reads packed files, rather than documents.
    """
    if has_packed_files(name) if is_packed else has_document_files(name):
        return None
    files = f"packed files {name}_packed_*" if is_packed else f"document files {name}.bin and .idx"
    return f"{flag} {name}: no such file or directory, and no {files}"


def missing_packs(prefix: str) -> str | None:
    """Return the message about a prefix without packed files, with advice; None if there are such files.

    Args:
        prefix: a value of --data-path.
    """
    if has_packed_files(prefix):
        return None
    if has_document_files(prefix):
        return f"{prefix}: holds documents; leave --is-instruction-dataset out"
    if Path(prefix).exists():
        return (
            f"{prefix}: no packed files; it is raw data: add --handler-name, such as AlpacaStyleInstructionHandler, to "
            "preprocess it"
        )
    return f"{column_prefix(prefix, COLUMNS[0])}.idx: no such file; check the prefix, or run preprocess_data.py"


def missing_documents(prefix: str) -> str | None:
    """Return the message about a prefix without document files, with advice; None if there are such files.

    Args:
        prefix: a value of --data-path.
    """
    if has_document_files(prefix):
        return None
    without_ending = prefix.removesuffix(".bin").removesuffix(".idx")
    if without_ending != prefix and has_document_files(without_ending):
        return f"{prefix}: give the path without its ending, {without_ending}"
    if has_packed_files(prefix):
        return f"{prefix}: holds packed files; add --is-instruction-dataset, or name document files"
    if has_document_files(document_prefix(prefix, "text")):
        return f"{prefix}: no document files; give the complete name, {document_prefix(prefix, 'text')}"
    if Path(prefix).exists():
        return (
            f"{prefix}: no document files {prefix}.bin and .idx; it is raw data: add --handler-name "
            "GeneralPretrainHandler to preprocess it"
        )
    return (
        f"{prefix}: no document files {prefix}.bin and .idx; check the path (PREFIX_text_document), or run "
        "preprocess_data.py with --output-format document"
    )
