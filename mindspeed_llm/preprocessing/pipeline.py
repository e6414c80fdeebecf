"""The preprocessing pipeline: read rows, tokenise them, plan the packs and write the packed files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.chat import export_chat_template
from mindspeed_llm.console.progress import ReadingProgress
from mindspeed_llm.errors import escape_control_characters
from mindspeed_llm.indexed_dataset import DocumentFilesWriter, PackedFilesWriter, token_dtype
from mindspeed_llm.interrupts import hold_interrupts
from mindspeed_llm.manifest import (
    DocumentInfo,
    Histograms,
    Manifest,
    PackingInfo,
    RowCounts,
    SourceFile,
    TemplateInfo,
    TokenizerInfo,
)
from mindspeed_llm.packing import PackPlan, plan_packs
from mindspeed_llm.preprocessing.batch_outcome import OutcomeWriter, RowTally
from mindspeed_llm.preprocessing.control_token_rows import ControlTokenRows
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs, input_notices, load_inputs, unread_field_notices
from mindspeed_llm.preprocessing.local_executor import read_samples
from mindspeed_llm.preprocessing.rejected_rows import RejectedRows
from mindspeed_llm.preprocessing.result_check import check_result, result_notices
from mindspeed_llm.preprocessing.space_check import PACKED_TOKEN_BYTES, SpaceCheck
from mindspeed_llm.preprocessing.summary_table import summary_table
from mindspeed_llm.preprocessing.temp_dirs import remove_new_dirs_on_failure, temp_dir_in
from mindspeed_llm.preprocessing.token_cache import TokenCache
from mindspeed_llm.preprocessing.write_documents import write_documents
from mindspeed_llm.preprocessing.write_packs import slots_of_samples, write_packed_columns
from mindspeed_llm.storage.disk_errors import disk_errors
from mindspeed_llm.tokenization import SampleBuilder, Tokenizer, TokenStore, find_stop_ids

logger = logging.getLogger(__name__)

PACKING_METHOD = "mixed full packs"


def preprocess(arguments: PreprocessArguments) -> Manifest:
    """Convert instruction data into packed files, or raw text into document files.

    Progress is logged to stderr; the summary table is printed to stdout.

    Args:
        arguments: the command line.

    Returns:
        the manifest as written.

    Raises:
        ConfigError: all of input, template, handler, tokenizer and columns that are missing or do not fit.
        DataError: an input is missing or damaged or gives no sample, or the disk is full. In either case existing
            files at the output prefix are unchanged.
    """
    started = time.monotonic()
    inputs = load_inputs(arguments)
    builder = inputs.builder(arguments)
    for notice in input_notices(arguments, inputs):
        logger.info(f"notice: {notice}")

    prefix = Path(arguments.output.output_prefix)
    with (
        remove_new_dirs_on_failure(prefix.parent),
        _writer(arguments, inputs.tokenizer.vocab_size) as out,
        _tokens(arguments, inputs, builder) as (store, tally, rejected, control_rows),
    ):
        plan = _plan(arguments, store.lengths)
        manifest = _manifest(arguments, inputs, builder, tally, store.lengths, plan)
        slots = round(manifest.tokens / manifest.fill)
        per_token = _bytes_per_token(arguments, inputs.tokenizer.vocab_size)
        SpaceCheck(prefix.parent, 0, per_token).check_output(slots)
        if isinstance(out, DocumentFilesWriter):
            ended = write_documents(out, store, builder.eos_id)
            manifest = dataclasses.replace(manifest, documents=DocumentInfo(arguments.input.json_keys[0], ended))
        else:
            write_packed_columns(arguments, out, store, plan, _pad_id(inputs.tokenizer, builder))
        with disk_errors(prefix):
            lists = [
                rejected.ready(prefix.with_name(f"{prefix.name}_rejected.jsonl")),
                control_rows.ready(prefix.with_name(f"{prefix.name}_control_tokens.jsonl")),
            ]
        manifest = out.commit(manifest, lists)
    notices = (
        unread_field_notices(inputs, tally.unread),
        result_notices(inputs, tally),
        _notices_after(arguments, tally),
    )
    for notice in itertools.chain(*notices):
        logger.info(f"notice: {notice}")
    print(escape_control_characters(summary_table(manifest, tally, store.lengths, time.monotonic() - started, prefix)))
    return manifest


@contextlib.contextmanager
def _tokens(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, builder: SampleBuilder
) -> Iterator[tuple[TokenStore, RowTally, RejectedRows, ControlTokenRows]]:
    """Yield the tokens of all rows, their tally, the rejected rows and the rows with control tokens.

    They come from the token cache, or are created now.
    """
    directory = arguments.output.cache_dir
    cache = None
    if directory is not None:
        cache = TokenCache(directory, arguments, inputs, builder)
    opened = None if cache is None or arguments.output.overwrite_cache else cache.opened()
    if cache is not None and opened is not None:
        store, _, rejected, control_rows = opened
        with (
            contextlib.closing(store),
            contextlib.closing(rejected),
            contextlib.closing(control_rows),
            disk_errors(cache.folder, "--cache-dir"),
        ):
            yield opened
        return
    with (
        _temp_dir(arguments) as temp_dir,
        contextlib.closing(RejectedRows(temp_dir)) as rejected,
        contextlib.closing(ControlTokenRows(temp_dir)) as control_rows,
        disk_errors(temp_dir, "--output-prefix" if directory is None else "--cache-dir"),
        contextlib.closing(TokenStore(temp_dir, builder.eos_id)) as store,
    ):
        outcome_writer = OutcomeWriter(arguments, store, rejected, control_rows)
        tally = _read(arguments, inputs, builder, outcome_writer)
        check_result(arguments, inputs, tally)
        lengths = store.finish()
        rejected.finish()
        control_rows.finish()
        if cache is not None:
            cache.keep(temp_dir, lengths, tally)
        yield store, tally, rejected, control_rows


def _writer(arguments: PreprocessArguments, vocabulary: int) -> PackedFilesWriter | DocumentFilesWriter:
    """Return the writer of --output-format."""
    output = arguments.output
    if output.output_format == "document":
        return DocumentFilesWriter(output.output_prefix, arguments.input.json_keys[0], token_dtype(vocabulary))
    return PackedFilesWriter(output.output_prefix)


def _bytes_per_token(arguments: PreprocessArguments, vocabulary: int) -> int:
    """Return the size of a token in the output files."""
    return token_dtype(vocabulary).itemsize if arguments.output.output_format == "document" else PACKED_TOKEN_BYTES


def _read(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, builder: SampleBuilder, outcome_writer: OutcomeWriter
) -> RowTally:
    """Tokenise all rows, on this machine or on a Ray cluster. The result is the same."""
    total = sum(file.size for file in inputs.files)
    progress = ReadingProgress(total)
    per_token = _bytes_per_token(arguments, inputs.tokenizer.vocab_size)
    space = SpaceCheck(Path(arguments.output.output_prefix).parent, total, per_token)

    def report(rows: int, bytes_read: int) -> None:
        progress.update(rows, bytes_read)
        space.update(bytes_read, outcome_writer.tally.tokens)

    outcome_writer.progress = report
    with contextlib.closing(progress):
        if arguments.run.executor == "ray":
            from mindspeed_llm.preprocessing.ray_executor import read_samples_on_ray

            read_samples_on_ray(arguments, inputs, outcome_writer)
        else:
            read_samples(arguments, inputs, builder, outcome_writer)
    outcome_writer.finish()
    return outcome_writer.tally


def _notices_after(arguments: PreprocessArguments, tally: RowTally) -> Iterator[str]:
    """Yield notices about control tokens in the data, and about samples that plain packs cannot separate."""
    if tally.control_rows and arguments.sample.control_tokens_in_text == "keep":
        yield (
            f"{tally.control_rows:,} rows contain control tokens in their text, which become control tokens: a turn "
            "that an answer forges is trained; --control-tokens-in-text plain tokenises them as text, reject "
            "skips the rows"
        )
    if not arguments.output.pack or arguments.output.neat_pack:
        return
    if tally.end_inside:
        yield (
            "samples contain end tokens, so training cannot use them to find where the samples of a pack end; "
            "add --neat-pack if each sample is to attend to itself alone"
        )
    elif tally.unended:
        yield (
            f"{tally.unended:,} samples do not end with an end token, so training cannot separate them from the next; "
            "add --append-eod or --neat-pack if each sample is to attend to itself alone"
        )


def _plan(arguments: PreprocessArguments, lengths: NDArray[np.int32]) -> PackPlan | None:
    if not arguments.output.pack:
        return None
    assert arguments.sample.seq_length is not None
    slots = slots_of_samples(lengths, arguments.sample.virtual_tokens, arguments.output.pad_to_multiple_of)
    return plan_packs(slots, arguments.sample.seq_length, arguments.output.seed)


def _pad_id(tokenizer: Tokenizer, builder: SampleBuilder) -> int:
    return builder.eos_id if tokenizer.pad_id is None else tokenizer.pad_id


def _manifest(
    arguments: PreprocessArguments,
    inputs: PreprocessingInputs,
    builder: SampleBuilder,
    tally: RowTally,
    lengths: NDArray[np.int32],
    plan: PackPlan | None,
) -> Manifest:
    output, seq_length = arguments.output, arguments.sample.seq_length
    tokenizer = inputs.tokenizer
    slots = tally.tokens if plan is None or seq_length is None else len(plan) * seq_length
    return Manifest(
        packed=output.pack,
        neat=output.neat_pack,
        seq_length=seq_length if seq_length is not None else int(lengths.max()),
        append_eod=arguments.sample.append_eod,
        eod_inside_sample=tally.end_inside,
        pad_to_multiple_of=output.pad_to_multiple_of,
        virtual_tokens=arguments.sample.virtual_tokens,
        # eod_id is the token that ends an answer, at which training may split a pack. A template can have its own end
        # token (qwen: <|im_end|>), which differs from the eos_token of the tokenizer.
        tokenizer=TokenizerInfo(
            tokenizer.kind, tokenizer.sha256, tokenizer.vocab_size, _pad_id(tokenizer, builder), builder.eos_id
        ),
        template=None if inputs.handler.plain else _template_info(inputs, arguments.sample.append_eod),
        handler=inputs.handler.name,
        sources=[SourceFile(file.path.name, file.size) for file in inputs.files],
        counts=RowCounts(
            tally.rows_read,
            tally.kept,
            dict(tally.skipped),
            tally.truncated,
            tally.dropped,
            dict(tally.steps),
            tally.cut_prompts,
            tally.control_rows,
            dict(tally.control_tokens),
        ),
        samples=len(lengths),
        tokens=tally.tokens,
        trained_tokens=tally.trained,
        packs=len(lengths) if plan is None else len(plan),
        fill=tally.tokens / slots,
        packing=None if plan is None else PackingInfo(PACKING_METHOD, output.seed),
        control_tokens_in_text=arguments.sample.control_tokens_in_text,
        histograms=Histograms(_histogram(lengths), [] if plan is None else _histogram(plan.samples_per_pack)),
    )


def _template_info(inputs: PreprocessingInputs, append_eod: bool) -> TemplateInfo:
    template = inputs.template
    ends = find_stop_ids(template, inputs.tokenizer, append_eod)
    return TemplateInfo(template.name, template.sha256, export_chat_template(template), ends)


def _histogram(values: NDArray[np.int32] | NDArray[np.int64]) -> list[list[int]]:
    different, counts = np.unique(values, return_counts=True)
    return [[int(value), int(count)] for value, count in zip(different, counts, strict=True)]


@contextlib.contextmanager
def _temp_dir(arguments: PreprocessArguments) -> Iterator[Path]:
    """Create an empty directory for tokens and rejected rows, removed at the end.

    Without --cache-dir it lies beside the output and has the same name for every run with this prefix, so that the next
    run removes what a killed run has left. PackedFilesWriter excludes a second run with the same prefix.
    """
    if arguments.output.cache_dir is not None:
        with temp_dir_in(Path(arguments.output.cache_dir)) as folder:
            yield folder
        return
    prefix = Path(arguments.output.output_prefix)
    folder = prefix.with_name(f".{prefix.name}_packed.tokens")
    with remove_new_dirs_on_failure(folder.parent):
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            with hold_interrupts():
                shutil.rmtree(folder, ignore_errors=True)
