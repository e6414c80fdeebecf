"""The one way through all the rooms: what is read, in which order, and what is left on the disk."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.chat import Handler, export_chat_template
from mindspeed_llm.console.progress import ReadingProgress
from mindspeed_llm.errors import ConfigError, DataError, escape_control_characters
from mindspeed_llm.indexed_dataset import (
    Histograms,
    Manifest,
    PackedFilesWriter,
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
from mindspeed_llm.preprocessing.rejected_rows import RejectedRows
from mindspeed_llm.preprocessing.sample_reader import read_samples
from mindspeed_llm.preprocessing.summary_table import summary_table
from mindspeed_llm.preprocessing.temp_dirs import remove_new_dirs_on_failure, temp_dir_in
from mindspeed_llm.preprocessing.token_cache import TokenCache
from mindspeed_llm.preprocessing.write_packs import write_packed_columns
from mindspeed_llm.rawdata import BROKEN_JSON, TOO_LARGE
from mindspeed_llm.storage.disk_errors import disk_errors
from mindspeed_llm.tokenization import LENGTH_REASONS, SampleBuilder, Tokenizer, TokenStore, find_stop_ids

logger = logging.getLogger(__name__)

PACKING_METHOD = "mixed full packs"


def preprocess(arguments: PreprocessArguments) -> Manifest:
    """Run everything, from rows; prints progress to stderr and the final table to stdout.

    Returns:
        the manifest as written.

    Raises:
        ConfigError: input, template, handler, tokenizer or columns that are not there or do not fit, all together.
        DataError: input that is missing, damaged or holds no sample, or a disk that is full. In either case what lay
            at the output prefix is left as it was.
    """
    started = time.monotonic()
    parts = load_inputs(arguments)
    builder = parts.builder(arguments)
    for notice in input_notices(arguments, parts):
        logger.info(f"notice: {notice}")

    prefix = Path(arguments.output.output_prefix)
    with (
        remove_new_dirs_on_failure(prefix.parent),
        PackedFilesWriter(prefix) as out,
        _tokens(arguments, parts, builder) as (store, tally, rejected, control_rows),
    ):
        plan = _plan(arguments, store.lengths)
        manifest = _manifest(arguments, parts, builder, tally, store.lengths, plan)
        write_packed_columns(arguments, out, store, plan, _pad_id(parts.tokenizer, builder))
        with disk_errors(prefix):
            lists = [
                rejected.ready(prefix.with_name(f"{prefix.name}_rejected.jsonl")),
                control_rows.ready(prefix.with_name(f"{prefix.name}_control_tokens.jsonl")),
            ]
        manifest = out.commit(manifest, lists)
    for notice in [*unread_field_notices(parts, tally.unread), *_notices_after(arguments, tally)]:
        logger.info(f"notice: {notice}")
    print(escape_control_characters(summary_table(manifest, tally, store.lengths, time.monotonic() - started, prefix)))
    return manifest


@contextlib.contextmanager
def _tokens(
    arguments: PreprocessArguments, parts: PreprocessingInputs, builder: SampleBuilder
) -> Iterator[tuple[TokenStore, RowTally, RejectedRows, ControlTokenRows]]:
    """The tokens of all rows, what became of the rows, those without tokens, and those with control tokens in their
    text: as they were kept, or made now."""
    directory = arguments.output.cache_dir
    kept = None
    if directory is not None and not parts.template.dated:
        kept = TokenCache(directory, arguments, parts, builder)
    opened = None if kept is None or arguments.output.overwrite_cache else kept.opened()
    if kept is not None and opened is not None:
        store, _, rejected, control_rows = opened
        with (
            contextlib.closing(store),
            contextlib.closing(rejected),
            contextlib.closing(control_rows),
            disk_errors(kept.folder, "--cache-dir"),
        ):
            yield opened
        return
    with (
        _scratch(arguments) as scratch,
        contextlib.closing(RejectedRows(scratch)) as rejected,
        contextlib.closing(ControlTokenRows(scratch)) as control_rows,
        disk_errors(scratch, "--output-prefix" if directory is None else "--cache-dir"),
        contextlib.closing(TokenStore(scratch, builder.eos_id)) as store,
    ):
        taker = OutcomeWriter(arguments, store, rejected, control_rows)
        tally = _read(arguments, parts, builder, taker)
        _check_result(arguments, parts.handler, tally)
        lengths = store.finish()
        rejected.finish()
        control_rows.finish()
        if kept is not None:
            kept.keep(scratch, lengths, tally)
        yield store, tally, rejected, control_rows


def _read(
    arguments: PreprocessArguments, parts: PreprocessingInputs, builder: SampleBuilder, taker: OutcomeWriter
) -> RowTally:
    """All rows to tokens, on this machine or on a Ray cluster: the same in the same order."""
    progress = ReadingProgress(arguments.run.log_interval, sum(file.size for file in parts.files))
    taker.progress = progress.update
    with contextlib.closing(progress):
        if arguments.run.executor == "ray":
            from mindspeed_llm.preprocessing.ray_executor import read_samples_on_ray

            read_samples_on_ray(arguments, parts, taker)
        else:
            read_samples(arguments, parts, builder, taker)
    return taker.tally


def _notices_after(arguments: PreprocessArguments, tally: RowTally) -> Iterator[str]:
    """What the data hold that may not be meant, and what plain packs cannot do: only end tokens tell samples apart."""
    if tally.control_rows and arguments.sample.control_tokens_in_text == "keep":
        yield (
            f"{tally.control_rows:,} rows hold control tokens in their text, which become control tokens: a turn that "
            "an answer forges is trained; --control-tokens-in-text plain tokenises them as text, reject skips the rows"
        )
    if not arguments.output.pack or arguments.output.neat_pack:
        return
    if tally.end_inside:
        yield (
            "end tokens stand inside samples, so training cannot find the samples of these packs by them; "
            "add --neat-pack if each sample is to attend to itself alone"
        )
    elif tally.unended:
        yield (
            f"{tally.unended:,} samples do not end with an end token, so training cannot tell them from the next; "
            "add --append-eod or --neat-pack if each sample is to attend to itself alone"
        )


def _check_result(arguments: PreprocessArguments, handler: Handler, tally: RowTally) -> None:
    """Columns that were named and never seen, and a set without a sample, end the run."""
    columns = ", ".join(name.replace("\n", "\\n") for name in tally.columns) or "no columns"
    if handler.unseen:
        raise ConfigError(
            [f"--map-keys: no row has the column '{name}'; they have {columns}" for name in sorted(handler.unseen)]
        )
    if tally.kept == 0:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in tally.skipped.most_common())
        where = ", ".join(arguments.input.input)
        nothing = f"{where}: none of {tally.rows_read:,} rows gives a sample ({reasons})"
        if tally.skipped.keys() <= LENGTH_REASONS:
            raise DataError(f"{nothing}; raise --seq-length {arguments.sample.seq_length}")
        if tally.skipped.keys() == {TOO_LARGE}:
            raise DataError(f"{nothing}; raise --max-row-mib {arguments.input.max_row_mib}")
        if BROKEN_JSON in tally.skipped:
            raise DataError(f"{nothing}; a .jsonl holds one JSON value on each line, what spans lines is a .json")
        raise DataError(
            f"{nothing}; they have {columns}; name the columns that {handler.name} is to read with --map-keys"
        )


def _plan(arguments: PreprocessArguments, lengths: NDArray[np.int32]) -> PackPlan | None:
    if not arguments.output.pack:
        return None
    assert arguments.sample.seq_length is not None
    multiple = arguments.output.pad_to_multiple_of
    slots = lengths if multiple == 1 else -(-lengths // multiple) * multiple
    return plan_packs(slots, arguments.sample.seq_length, arguments.output.seed)


def _pad_id(tokenizer: Tokenizer, builder: SampleBuilder) -> int:
    return builder.eos_id if tokenizer.pad_id is None else tokenizer.pad_id


def _manifest(
    arguments: PreprocessArguments,
    parts: PreprocessingInputs,
    builder: SampleBuilder,
    tally: RowTally,
    lengths: NDArray[np.int32],
    plan: PackPlan | None,
) -> Manifest:
    output, seq_length = arguments.output, arguments.sample.seq_length
    tokenizer = parts.tokenizer
    slots = tally.tokens if plan is None or seq_length is None else len(plan) * seq_length
    return Manifest(
        packed=output.pack,
        neat=output.neat_pack,
        seq_length=seq_length if seq_length is not None else int(lengths.max()),
        append_eod=arguments.sample.append_eod,
        eod_inside_sample=tally.end_inside,
        pad_to_multiple_of=output.pad_to_multiple_of,
        # eod_id: the token that ends an answer and at which training may split a pack. Under a template that names
        # its own (qwen: <|im_end|>) it is not the tokenizer's eos_token.
        tokenizer=TokenizerInfo(
            tokenizer.kind, tokenizer.sha256, tokenizer.vocab_size, _pad_id(tokenizer, builder), builder.eos_id
        ),
        template=None if parts.handler.plain else _template_facts(parts, arguments.sample.append_eod),
        handler=parts.handler.name,
        sources=[SourceFile(file.path.name, file.size) for file in parts.files],
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


def _template_facts(parts: PreprocessingInputs, append_eod: bool) -> TemplateInfo:
    template = parts.template
    ends = find_stop_ids(template, parts.tokenizer, append_eod)
    return TemplateInfo(template.name, template.sha256, export_chat_template(template), ends)


def _histogram(values: NDArray[np.int32] | NDArray[np.int64]) -> list[list[int]]:
    different, counts = np.unique(values, return_counts=True)
    return [[int(value), int(count)] for value, count in zip(different, counts, strict=True)]


@contextlib.contextmanager
def _scratch(arguments: PreprocessArguments) -> Iterator[Path]:
    """An empty folder for tokens and rejected rows; what a killed run left goes first.

    Beside the output always the same one for a prefix, which this run holds alone (PackedFilesWriter sees to that).
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
            shutil.rmtree(folder, ignore_errors=True)
