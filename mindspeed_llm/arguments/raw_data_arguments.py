"""Arguments of pretrain_gpt.py for raw data, which are preprocessed when a run starts."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.arguments.preprocess_arguments import ConversationArguments, RowArguments, TokenisingArguments


@dataclass
class RawDataArguments(TokenisingArguments, ConversationArguments, RowArguments):
    """Raw data as --data-path, with --handler-name: the flags of preprocess_data.py.

    They are not part of the identity of a run. The contents of the packed files are, which follow from them.
    """

    handler_name: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Format of the rows of raw data, as in preprocess_data.py (such as AlpacaStyleInstructionHandler). --data-path and
    the data paths per split may then name raw data: files, directories or globs of .json, .jsonl, .parquet, .csv, .txt
    or .arrow files. The run starts with preprocessing them, or with the packed files of an earlier start."""
    pack: bool = False
    """Pack complete samples of raw data into sequences of --seq-length. Implied by --neat-pack."""
    data_cache_path: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory for the packed files that are made of raw data. With several machines it must be on storage that all of
    them share, unless --no-shared-storage is given. Default: packed_data in --save; without --save, or with
    --no-shared-storage, the cache directory of the user."""

    @property
    def given(self) -> bool:
        """Whether data paths may name raw data."""
        return self.handler_name is not None


def names_raw_data(path: str) -> bool:
    """Return whether a data path names a file, a directory or a glob, rather than the prefix of packed files.

    Args:
        path: a value of --data-path, without weights.
    """
    return Path(path).exists() or glob.has_magic(path)
