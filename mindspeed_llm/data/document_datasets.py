"""Build the splits of document files: open and check the files, divide the documents, and cut splits into blocks."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.missing_paths import missing_documents
from mindspeed_llm.data.blending import Blend
from mindspeed_llm.data.block_dataset import BlockDataset, BlockShare
from mindspeed_llm.data.document_splits import NumberRange, split_by_key, split_in_file_order
from mindspeed_llm.data.document_stream import DocumentStream, EndedDocuments, open_streams
from mindspeed_llm.data.splits import SPLITS
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.indexed_dataset import DocumentFiles


@dataclass(frozen=True)
class CommandTokenizer:
    """The tokenizer that a command names, as far as the data are compared with it.

    Attributes:
        sha256: hash of its files.
        eod: its end token, or None.
    """

    sha256: str | None = None
    eod: int | None = None


def open_document_files(prefixes: Sequence[str]) -> dict[str, DocumentFiles]:
    """Open each prefix once.

    Args:
        prefixes: paths of document files without .bin or .idx.

    Raises:
        DataError: Files are missing or damaged; the problems of all of them in one message.
    """
    opened: dict[str, DocumentFiles] = {}
    problems = []
    for prefix in dict.fromkeys(prefixes):
        try:
            missing = missing_documents(prefix)
            if missing is not None:
                raise DataError(missing)
            opened[prefix] = DocumentFiles.open(prefix)
        except UserError as error:  # noqa: PERF203 - report all bad files together
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return opened


def end_token(several: Sequence[DocumentFiles], data: DataArguments, tokenizer: CommandTokenizer) -> int:
    """Return the end token of the documents: of the manifests, of --eod-id, or of the tokenizer.

    Args:
        several: the opened files of all data sets.
        data: flags of the data.
        tokenizer: tokenizer of the command.

    Raises:
        ConfigError: The end token is unknown, the files do not agree on it, or they do not match the tokenizer.
    """
    problems = []
    made = [(files, files.manifest.tokenizer) for files in several if files.manifest is not None]
    for files, info in made:
        if tokenizer.sha256 is not None and info.sha256 != tokenizer.sha256:
            problems.append(
                f"--tokenizer-name-or-path: {files.prefix} was made with another tokenizer ({info.kind}, "
                f"{info.vocab_size} tokens, SHA-256 {info.sha256[:12]}…, not {tokenizer.sha256[:12]}…); use that "
                "tokenizer, or preprocess again"
            )
        if data.eod_id is not None and info.eod_id not in (None, data.eod_id):
            problems.append(
                f"--eod-id {data.eod_id}: the manifest of {files.prefix} names the end token {info.eod_id}; leave the "
                "flag out"
            )
    for files, info in made[1:]:
        if (info.sha256, info.eod_id) != (made[0][1].sha256, made[0][1].eod_id):
            problems.append(f"--data-path: {made[0][0].prefix} and {files.prefix} were made with different tokenizers")
    known = next((info.eod_id for _, info in made if info.eod_id is not None), None)
    eod = data.eod_id if data.eod_id is not None else known if known is not None else tokenizer.eod
    if eod is None:
        without = ", ".join(str(files.prefix) for files in several if files.manifest is None) or "the data"
        problems.append(
            f"the end token of {without} is unknown (no manifest beside the files): give --tokenizer-type and "
            "--tokenizer-name-or-path, or --eod-id"
        )
    if problems:
        raise ConfigError(problems)
    assert eod is not None
    return eod


def build_block_splits(
    data: DataArguments,
    blends: Mapping[str, Blend],
    opened: Mapping[str, DocumentFiles],
    eod: int,
    seed: int,
    needed: Collection[str],
) -> dict[str, BlockDataset | None]:
    """Return the dataset of each split, or None for a split without blocks that is not needed.

    Args:
        data: flags of the data.
        blends: data sets of each split, or of all splits under the key 'all'.
        opened: the opened files of each prefix.
        eod: end token.
        seed: seed of the run.
        needed: splits that must have blocks if their share is above 0.

    Raises:
        DataError: A needed split has less than one block; the message gives the numbers.
    """
    streams: dict[str, dict[str, DocumentStream]] = {}
    for prefix, files in opened.items():
        documents = EndedDocuments(files, eod)
        if "all" not in blends:
            everything = open_streams(documents, [NumberRange(0, len(files))])[0]
            streams[prefix] = dict.fromkeys(SPLITS, everything)
            continue
        if data.split_in_file_order:
            selections = split_in_file_order(len(files), data.shares)
        else:
            selections = split_by_key(documents, data.shares, seed)
        streams[prefix] = dict(zip(SPLITS, open_streams(documents, selections), strict=True))
    return {name: _build_split(name, data, blends, streams, needed) for name in SPLITS}


def _build_split(
    name: str,
    data: DataArguments,
    blends: Mapping[str, Blend],
    streams: Mapping[str, Mapping[str, DocumentStream]],
    needed: Collection[str],
) -> BlockDataset | None:
    blend = blends.get("all") or blends.get(name)
    if blend is None or ("all" in blends and data.shares[SPLITS.index(name)] == 0):
        return None
    shares = [BlockShare(streams[prefix][name], data.seq_length) for prefix in blend.prefixes]
    filled = [share for share in shares if share.blocks]
    # A data set without blocks cannot contribute its weight, so the blend would differ from the command line.
    if len(filled) == len(shares) or (filled and blend.weights is None):
        empty = [share for share in shares if not share.blocks]
        for share in empty:
            warnings.warn(
                f"{share.stream.documents.files.prefix}: the {share.stream.tokens:,} tokens of its split {name} are "
                "less than a block, and unused",
                stacklevel=2,
            )
        return BlockDataset(filled, blend.weights, name, empty)
    if name in needed or name == "train":
        short = ", ".join(
            f"{prefix} has {share.stream.tokens:,}"
            for prefix, share in zip(blend.prefixes, shares, strict=True)
            if not share.blocks
        )
        advice = " leave it out" if len(shares) > 1 else " give it a larger share in --split"
        raise DataError(
            f"--seq-length {data.seq_length}: a block takes {data.seq_length + 1:,} tokens, but of the tokens of the "
            f"split {name} {short}; lower --seq-length, or{advice}"
        )
    return None
