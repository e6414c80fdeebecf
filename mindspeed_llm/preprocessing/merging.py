"""Merge packed files of one directory (`--merge-group-keys`), as Megatron's tools/merge_datasets.py does.

    --input DIR --output-prefix OUT --merge-group-keys packed_input_ids_document packed_attention_mask_document ...

For each KEY, the .bin and .idx files of DIR whose name contains KEY are concatenated in the order of their names into
OUT_KEY. If the keys are the three columns of packed files, or a key names document files (text_document), and these
have manifests, the sets are compared with each other, their manifests are merged, and OUT is replaced atomically.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import (
    DataFiles,
    DocumentFiles,
    DocumentFilesWriter,
    IndexedReader,
    IndexedWriter,
    PackedFiles,
    PackedFilesWriter,
)
from mindspeed_llm.interrupts import hold_interrupts
from mindspeed_llm.manifest import (
    COLUMNS,
    DocumentInfo,
    Histograms,
    Manifest,
    PackingInfo,
    RowCounts,
    document_manifest_path,
    document_prefix,
    manifest_path,
)
from mindspeed_llm.storage.atomic_write import partial_path, rename
from mindspeed_llm.storage.disk_errors import disk_errors
from mindspeed_llm.tokenization import CONTROL_MODES

logger = logging.getLogger(__name__)

DOCUMENT = "_document"  # end of the keys of document files
DOCUMENTS_AT_ONCE = 1 << 10
PACKED_KEYS = tuple(f"packed_{column}_document" for column in COLUMNS)


def merge_packed_files(arguments: PreprocessArguments) -> Manifest | None:
    """Merge the files that the command line names.

    Returns:
        the merged manifest; None for files without manifests.

    Raises:
        ConfigError: the sets were preprocessed in different ways.
        DataError: a file is missing or damaged, a .bin or .idx file has no counterpart, or the disk is full. Existing
            files at the output prefix are unchanged then.
    """
    folder, keys = Path(arguments.input.input[0]), list(dict.fromkeys(arguments.input.merge_group_keys))
    out = Path(arguments.output.output_prefix)
    if not folder.is_dir():
        raise DataError(f"--input {folder}: no such directory; --merge-group-keys merges the files of a directory")
    groups = {key: _group(folder, key, out) for key in keys}
    if set(keys) == set(PACKED_KEYS):
        sets = _sets(groups)
        described = [prefix for prefix in sets if manifest_path(prefix).exists()]
        if described and len(described) < len(sets):
            without = sorted(str(prefix) for prefix in sets if prefix not in described)
            raise DataError(
                f"{', '.join(without)}: no manifest, but {len(described)} of the {len(sets)} sets have one; "
                "preprocess them again, or remove the manifests of the others"
            )
        if described:
            return _merge_sets([PackedFiles.open(prefix) for prefix in sets], out)
    merged = _merge_documents(groups, out)
    _merge_pairs({key: names for key, names in groups.items() if key not in merged}, out)
    return next(iter(merged.values()), None)


def _merge_documents(groups: dict[str, list[Path]], out: Path) -> dict[str, Manifest]:
    """Merge document files that have manifests; return the merged manifest of each key."""
    merged: dict[str, Manifest] = {}
    for key, names in groups.items():
        described = [name for name in names if document_manifest_path(name).exists()]
        if not described or not key.endswith(DOCUMENT):
            continue
        if len(described) < len(names):
            without = ", ".join(str(name) for name in names if name not in described)
            raise DataError(
                f"{without}: no manifest, but {len(described)} of the {len(names)} sets have one; preprocess them "
                "again, or remove the manifests of the others"
            )
        merged[key] = _merge_document_sets([DocumentFiles.open(name) for name in names], out, key)
    return merged


def _merge_document_sets(sets: Sequence[DocumentFiles], out: Path, key: str) -> Manifest:
    manifest, json_key = _merged_manifest(sets), key.removesuffix(DOCUMENT)
    ended = sum(files.manifest.documents.ended for files in sets if files.manifest and files.manifest.documents)
    manifest = dataclasses.replace(manifest, documents=DocumentInfo(json_key, ended))
    with DocumentFilesWriter(out, json_key, sets[0].index.dtype) as writer:
        for files in sets:
            files.verify_hashes()  # damage would be hidden by the hashes of the merged manifest
            logger.info(f"merging {files.prefix}, {len(files):,} documents")
            for first, last in files.index.parts(DOCUMENTS_AT_ONCE):
                lengths = files.index.lengths(first, last)
                tokens = files.index.read(files.index.start(first), int(lengths.sum()))
                writer.add_documents(tokens, lengths.astype(np.int32))
        merged = writer.commit(manifest)
    print(f"{document_prefix(out, json_key)}.*: {merged.samples:,} documents of {len(sets)} sets", flush=True)
    return merged


def _group(folder: Path, key: str, out: Path) -> list[Path]:
    """Return the files whose name contains `key`, without .bin and .idx, sorted by name."""
    names = {
        path.with_suffix("")
        for path in folder.iterdir()
        if path.suffix in (".bin", ".idx") and key in path.stem and not path.name.startswith(".")
    }
    if not names:
        raise DataError(f"--merge-group-keys {key}: {folder} has no .bin and .idx files whose name contains it")
    for name in sorted(names):
        for ending in (".bin", ".idx"):
            if not Path(f"{name}{ending}").is_file():
                raise DataError(f"{name}{ending}: no such file; a .bin and its .idx file can only be merged together")
    target = Path(f"{out}_{key}")
    if target.absolute() in {name.absolute() for name in names}:
        raise DataError(f"--output-prefix {out}: {target}.bin is itself among the files to merge; choose another")
    return sorted(names)


def _sets(groups: dict[str, list[Path]]) -> list[Path]:
    """Return the prefixes of packed files, each of which must have all three columns."""
    found = {key: {Path(str(name).removesuffix(f"_{key}")) for name in names} for key, names in groups.items()}
    every = set.union(*found.values())
    for key, prefixes in found.items():
        for prefix in sorted(every - prefixes):
            raise DataError(f"{prefix}_{key}.bin: no such file, but other columns of this set exist")
    return sorted(every)


def _merge_sets(sets: Sequence[PackedFiles], out: Path) -> Manifest:
    manifest = _merged_manifest(sets)
    with PackedFilesWriter(out) as writer:
        for files in sets:
            files.verify_hashes()  # damage would be hidden by the hashes of the merged manifest
            logger.info(f"merging {files.prefix}, {len(files):,} {'packs' if manifest.packed else 'samples'}")
            for number in range(len(files)):
                writer.add(files.input_ids[number], files.attention_mask[number], files.labels[number])
        merged = writer.commit(manifest)
    print(f"{out}_packed_*: {merged.packs:,} {'packs' if merged.packed else 'samples'} of {len(sets)} sets", flush=True)
    return merged


def _merged_manifest(sets: Sequence[DataFiles]) -> Manifest:
    manifests = [files.manifest for files in sets if files.manifest is not None]
    first = manifests[0]
    compared: dict[str, Callable[[Manifest], Any]] = {
        "--pack": lambda one: one.packed,
        "--neat-pack": lambda one: one.neat,
        "--seq-length": lambda one: one.seq_length if one.packed else None,
        "--pad-to-multiple-of": lambda one: one.pad_to_multiple_of,
        "--virtual-tokens": lambda one: one.virtual_tokens,
        "the tokenizer": lambda one: dataclasses.replace(one.tokenizer, eod_id=0),
        "the end token (--prompt-type)": lambda one: one.tokenizer.eod_id,
    }
    problems = [
        f"{files.prefix} and {sets[0].prefix} differ in {what}; preprocess them in the same way"
        for files, manifest in zip(sets, manifests, strict=True)
        for what, value in compared.items()
        if value(manifest) != value(first)
    ]
    if problems:
        raise ConfigError(problems)
    templates = list(dict.fromkeys(one.template.name for one in manifests if one.template is not None))
    same_template = all(one.template == first.template for one in manifests)
    if not same_template:
        named = ", ".join(templates)
        logger.info(f"notice: the sets were made with different templates ({named}); the merged one names none")
    tokens, packs = sum(one.tokens for one in manifests), sum(one.packs for one in manifests)
    methods = [one.packing for one in manifests if one.packing is not None]
    return Manifest(
        packed=first.packed,
        neat=first.neat,
        seq_length=max(one.seq_length for one in manifests),
        append_eod=all(one.append_eod for one in manifests),
        eod_inside_sample=any(one.eod_inside_sample for one in manifests),
        tokenizer=first.tokenizer,
        template=first.template if same_template else None,
        handler=", ".join(dict.fromkeys(one.handler for one in manifests)),
        sources=[source for one in manifests for source in one.sources],
        counts=_added_counts([one.counts for one in manifests]),
        samples=sum(one.samples for one in manifests),
        tokens=tokens,
        trained_tokens=sum(one.trained_tokens for one in manifests),
        packs=packs,
        fill=tokens / max(1, packs * first.seq_length if first.packed else tokens),
        packing=PackingInfo(", ".join(dict.fromkeys(one.method for one in methods)), methods[0].seed)
        if methods
        else None,
        pad_to_multiple_of=first.pad_to_multiple_of,
        virtual_tokens=first.virtual_tokens,
        control_tokens_in_text=min((one.control_tokens_in_text for one in manifests), key=CONTROL_MODES.index),
        histograms=Histograms(
            _added([one.histograms.sample_length for one in manifests]),
            _added([one.histograms.samples_per_pack for one in manifests]),
        ),
    )


def _added_counts(counts: Sequence[RowCounts]) -> RowCounts:
    skipped: Counter[str] = Counter()
    cuts: Counter[str] = Counter()
    controls: Counter[str] = Counter()
    for one in counts:
        skipped.update(one.skipped)
        cuts.update(one.cuts)
        controls.update(one.control_tokens)
    return RowCounts(
        sum(one.rows_read for one in counts),
        sum(one.kept for one in counts),
        dict(skipped),
        sum(one.truncated for one in counts),
        sum(one.dropped for one in counts),
        dict(cuts),
        sum(one.unanswered_prompts for one in counts),
        sum(one.control_rows for one in counts),
        dict(controls),
    )


def _added(histograms: Sequence[list[list[int]]]) -> list[list[int]]:
    total: Counter[int] = Counter()
    for histogram in histograms:
        for value, count in histogram:
            total[value] += count
    return [[value, count] for value, count in sorted(total.items())]


def _merge_pairs(groups: dict[str, list[Path]], out: Path) -> None:
    """Merge files without manifests, each key separately."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    writers: list[tuple[IndexedWriter, Path]] = []
    try:
        for key, names in groups.items():
            readers = [_reader(name) for name in names]
            if len({reader.dtype for reader in readers}) > 1:
                raise DataError(
                    f"--merge-group-keys {key}: the files have different number types (dtype) and cannot be merged"
                )
            target = Path(f"{out}_{key}")
            writer = IndexedWriter(partial_path(target), readers[0].dtype)
            writers.append((writer, target))
            for name, reader in zip(names, readers, strict=True):
                logger.info(f"merging {name}, {len(reader):,} sequences")
                for number in range(len(reader)):
                    writer.add(reader[number])
            writer.finish()
        with disk_errors(out), hold_interrupts():
            manifest_path(out).unlink(missing_ok=True)  # it describes other files
            for writer, target in writers:
                rename(writer.bin_path, Path(f"{target}.bin"))
                rename(writer.idx_path, Path(f"{target}.idx"))
    except BaseException:
        for writer, _ in writers:
            writer.discard()
        raise


def _reader(name: Path) -> IndexedReader:
    reader = IndexedReader(name)
    if not np.array_equal(reader.document_indices, np.arange(len(reader) + 1)):
        raise DataError(
            f"{name}.idx: its documents have several sequences (--split-sentences); such files cannot be merged here"
        )
    return reader
