"""Find the files that are made of raw data in the cache: their folder has a hash of everything they depend on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import DocumentFiles, PackedFiles
from mindspeed_llm.manifest import document_manifest_path, document_prefix, manifest_path
from mindspeed_llm.preprocessing.provenance import (
    LIBRARIES,
    TOKEN_PACKAGES,
    code_hash,
    file_digest,
    file_identity,
    key_of,
    tokenizer_descriptions,
)
from mindspeed_llm.rawdata import find_input_files
from mindspeed_llm.storage.cache_directory import cache_directory_of_this_machine

logger = logging.getLogger(__name__)

FORMAT = 1
CODE = (*TOKEN_PACKAGES, "packing", "indexed_dataset")
IN_SAVE = "packed_data"


@dataclass(frozen=True)
class CachedSet:
    """The packed files or document files of one raw data path, whether they exist or not.

    Attributes:
        command: the command that makes them.
        prefix: prefix of the files.
    """

    @property
    def is_of_documents(self) -> bool:
        """Whether the files are document files."""
        return self.command.output.output_format == "document"

    @property
    def data_path(self) -> Path:
        """Value of --data-path that names the files."""
        return document_prefix(self.prefix, self.command.input.json_keys[0]) if self.is_of_documents else self.prefix

    @property
    def manifest(self) -> Path:
        """Path of their manifest."""
        return document_manifest_path(self.data_path) if self.is_of_documents else manifest_path(self.prefix)

    command: PreprocessArguments
    prefix: Path

    @property
    def is_complete(self) -> bool:
        """Whether the files exist and are complete."""
        if not self.manifest.exists():
            return False
        try:
            (DocumentFiles if self.is_of_documents else PackedFiles).open(self.data_path)
        except DataError as error:
            logger.info(f"notice: packed files in the cache are not usable and are made again: {error}")
            return False
        return True


def cached_set(command: PreprocessArguments, root: Path) -> CachedSet:
    """Return the packed files of a command.

    Args:
        command: a command with one input; its prefix is replaced.
        root: the cache directory.

    Raises:
        DataError: the input does not exist, or its format is not supported.
        ConfigError: a file that the command names cannot be read.
    """
    (name,) = command.input.input
    stem = Path(name).name.partition(".")[0]
    try:
        key = key_of(_made_from(command))
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    prefix = root / f"packed-{key[:16]}" / (re.sub(r"[^\w-]", "_", stem) or "data")
    return CachedSet(
        dataclasses.replace(command, output=dataclasses.replace(command.output, output_prefix=str(prefix))), prefix
    )


def cache_root(data_cache_path: str | None, save: str | None, no_shared_storage: bool) -> Path:
    """Return the directory for packed files.

    Args:
        data_cache_path: --data-cache-path.
        save: --save, which is on storage that all machines share.
        no_shared_storage: --no-shared-storage.

    Raises:
        ConfigError: no directory is given, and the cache directory of the user cannot be created.
    """
    if data_cache_path is not None:
        return Path(data_cache_path)
    if save is not None and not no_shared_storage:
        return Path(save) / IN_SAVE
    folder = cache_directory_of_this_machine(IN_SAVE)
    if folder is None:
        raise ConfigError("the cache directory of the user cannot be created; give --data-cache-path DIR")
    return folder


def _made_from(command: PreprocessArguments) -> dict[str, Any]:
    """Return everything that the packed files depend on, as values of JSON."""
    (files,) = find_input_files(command.input.input, command.input.max_row_mib)
    tokenizer, sample = command.tokenizer, command.sample
    # Paths of the tokenizer and of the template are replaced by hashes of the files.
    named = (sample.prompt_type_path, sample.chat_template, tokenizer.tokenizer_model)
    no_paths = dataclasses.replace(tokenizer, tokenizer_name_or_path=None, tokenizer_model=None)
    return {
        "format": FORMAT,
        "code": code_hash(CODE),
        "versions": {name: _version(name) for name in (*LIBRARIES, "gigatoken")},
        "files": [file_identity(file.path) for file in files],
        "input": dataclasses.asdict(dataclasses.replace(command.input, input=[])),
        "sample": dataclasses.asdict(dataclasses.replace(sample, prompt_type_path=None, chat_template=None)),
        "output": dataclasses.asdict(dataclasses.replace(command.output, output_prefix="")),
        "tokenizer_flags": dataclasses.asdict(no_paths),
        "tokenizer_files": tokenizer_descriptions(tokenizer.tokenizer_name_or_path),
        "named_files": [None if path is None else file_digest(Path(path)) for path in named],
    }


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
