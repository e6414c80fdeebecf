"""The one way through all the rooms: what is read, in which order, and what is left on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.arguments.preprocess import PreprocessArguments
from mindspeed_llm.chat import Handler
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed import (
    Counts,
    Histograms,
    Manifest,
    PackedFilesWriter,
    PackingFacts,
    SourceFile,
    TemplateFacts,
    TokenizerFacts,
)
from mindspeed_llm.indexed.writer import disk_errors
from mindspeed_llm.packing import PackPlan, plan_packs
from mindspeed_llm.preprocessing.outcomes import Taker, Tally
from mindspeed_llm.preprocessing.parts import Parts, load_parts, notices
from mindspeed_llm.preprocessing.progress import Progress, say
from mindspeed_llm.preprocessing.reading import read_samples
from mindspeed_llm.preprocessing.rejected import RejectedRows
from mindspeed_llm.preprocessing.table import final_table
from mindspeed_llm.rawdata import BROKEN_JSON
from mindspeed_llm.tokens import IGNORED, LENGTH_REASONS, SampleBuilder, Tokenizer, TokenStore

TOKENS_AT_ONCE = 1 << 20  # of packs that are laid out together
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
    parts = load_parts(arguments)
    builder = parts.builder(arguments)
    for notice in notices(arguments, parts):
        say(f"notice: {notice}")

    prefix = Path(arguments.output.output_prefix)
    with (
        _new_directories(prefix.parent),
        PackedFilesWriter(prefix) as out,
        _scratch(arguments) as scratch,
        contextlib.closing(RejectedRows(scratch)) as rejected,
    ):
        with disk_errors(scratch), contextlib.closing(TokenStore(scratch)) as store:
            tally = _read(arguments, parts, builder, store, rejected)
            _check_result(arguments, parts.handler, tally)
            lengths = store.finish()
            plan = _plan(arguments, lengths)
            _write(arguments, out, store, plan, len(lengths), _pad_id(parts.tokenizer, builder))
        manifest = _manifest(arguments, parts, builder, tally, lengths, plan)
        with disk_errors(prefix):
            rejected_rows = rejected.ready(prefix.with_name(f"{prefix.name}_rejected.jsonl"))
        manifest = out.commit(manifest, [rejected_rows])
    for notice in _notices_after(arguments, tally):
        say(f"notice: {notice}")
    print(final_table(manifest, tally, lengths, time.monotonic() - started, prefix), flush=True)
    return manifest


def _read(
    arguments: PreprocessArguments, parts: Parts, builder: SampleBuilder, store: TokenStore, rejected: RejectedRows
) -> Tally:
    """All rows to tokens, on this machine or on a Ray cluster: the same in the same order."""
    progress = Progress(arguments.run.log_interval, sum(file.size for file in parts.files))
    taker = Taker(arguments, store, rejected, progress)
    with contextlib.closing(progress):
        if arguments.run.executor == "ray":
            from mindspeed_llm.preprocessing.ray_tasks import read_samples_on_ray

            read_samples_on_ray(arguments, parts, taker)
        else:
            read_samples(arguments, parts, builder, taker)
    return taker.tally


def _notices_after(arguments: PreprocessArguments, tally: Tally) -> Iterator[str]:
    """What plain packs cannot do: in them only end tokens tell samples apart."""
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


def _check_result(arguments: PreprocessArguments, handler: Handler, tally: Tally) -> None:
    """Columns that were named and never seen, and a set without a sample, end the run."""
    columns = ", ".join(tally.columns) or "no columns"
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
    return builder.end_id if tokenizer.pad_id is None else tokenizer.pad_id


def _write(
    arguments: PreprocessArguments,
    out: PackedFilesWriter,
    store: TokenStore,
    plan: PackPlan | None,
    samples: int,
    pad_id: int,
) -> None:
    """Packs as planned, or one document for each sample in its order."""
    if plan is None:
        for start in range(0, samples, 1 << 16):
            for ids, labels in store.samples(np.arange(start, min(samples, start + (1 << 16)))):
                out.add(ids, np.ones_like(ids), labels)
        return
    capacity, output = arguments.sample.seq_length, arguments.output
    assert capacity is not None
    at_once = max(1, TOKENS_AT_ONCE // capacity)
    for start in range(0, len(plan), at_once):
        packs = [plan[number] for number in range(start, min(len(plan), start + at_once))]
        out.add_rows(*lay_out_packs(store, packs, capacity, pad_id, output.neat_pack, output.pad_to_multiple_of))


def lay_out_packs(
    store: TokenStore, packs: Sequence[NDArray[np.int64]], capacity: int, pad_id: int, neat: bool, multiple: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """input_ids, attention_mask and labels [packs, capacity] of packs of samples.

    Samples 5 6 7 and 8 9 in a pack of six slots, pad id 0, all but the first token of each trained:

        input_ids        5    6  7    8  9     0
        attention_mask   1    1  1    2  2     0      without `neat` 1 in place of 2
        labels        -100    6  7 -100  9  -100

    With `multiple` 4 in a pack of eight slots the next sample begins at slot 4. The padding before it belongs to the
    sample before: it follows all that attends, and is not trained, so attention and loss are those without it.

        input_ids        5    6  7    0    8  9    0    0
        attention_mask   1    1  1    1    2  2    2    2
        labels        -100    6  7 -100 -100  9 -100 -100
    """
    shape = (len(packs), capacity)
    ids, mask, labels = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
    for row, pack in enumerate(packs):
        place = 0
        for number, (sample_ids, sample_labels) in enumerate(store.samples(pack), start=1):
            end = place + len(sample_ids)
            ids[row, place:end] = sample_ids
            labels[row, place:end] = sample_labels
            slot = place + -(-len(sample_ids) // multiple) * multiple
            mask[row, place:slot] = number if neat else 1
            place = slot
    return ids, mask, labels


def _manifest(
    arguments: PreprocessArguments,
    parts: Parts,
    builder: SampleBuilder,
    tally: Tally,
    lengths: NDArray[np.int32],
    plan: PackPlan | None,
) -> Manifest:
    output, seq_length = arguments.output, arguments.sample.seq_length
    template, tokenizer = parts.template, parts.tokenizer
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
        tokenizer=TokenizerFacts(
            tokenizer.kind, tokenizer.sha256, tokenizer.vocab_size, _pad_id(tokenizer, builder), builder.end_id
        ),
        template=None if parts.handler.plain else TemplateFacts(template.name, template.sha256),
        handler=parts.handler.name,
        sources=[SourceFile(file.path.name, file.size) for file in parts.files],
        counts=Counts(
            tally.rows_read,
            tally.kept,
            dict(tally.skipped),
            tally.truncated,
            tally.dropped,
            dict(tally.steps),
            tally.cut_prompts,
        ),
        samples=len(lengths),
        tokens=tally.tokens,
        trained_tokens=tally.trained,
        packs=len(lengths) if plan is None else len(plan),
        fill=tally.tokens / slots,
        packing=None if plan is None else PackingFacts(PACKING_METHOD, output.seed),
        histograms=Histograms(_histogram(lengths), [] if plan is None else _histogram(plan.samples_per_pack)),
    )


def _histogram(values: NDArray[np.int32] | NDArray[np.int64]) -> list[list[int]]:
    different, counts = np.unique(values, return_counts=True)
    return [[int(value), int(count)] for value, count in zip(different, counts, strict=True)]


@contextlib.contextmanager
def _new_directories(directory: Path) -> Iterator[None]:
    """Takes away again, if the run fails, the directories that it made for its output."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()  # fails, as it should, on one that holds something
        raise


@contextlib.contextmanager
def _scratch(arguments: PreprocessArguments) -> Iterator[Path]:
    """An empty folder for tokens and rejected rows; what a killed run left in it goes first.

    Always the same one for a prefix, which this run holds alone (PackedFilesWriter sees to that).
    """
    prefix = Path(arguments.output.output_prefix)
    folder = prefix.with_name(f".{prefix.name}_packed.tokens")
    if arguments.output.cache_dir is not None:
        place = hashlib.sha256(str(prefix.absolute()).encode()).hexdigest()[:12]
        folder = Path(arguments.output.cache_dir) / f"{prefix.name}-{place}"
    with _new_directories(folder.parent):
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
