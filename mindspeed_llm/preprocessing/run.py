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
from mindspeed_llm.chat import Handler, Template, handler_named, load_template
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
from mindspeed_llm.preprocessing.progress import say
from mindspeed_llm.preprocessing.reading import Tally, read_samples
from mindspeed_llm.preprocessing.rejected import RejectedRows
from mindspeed_llm.preprocessing.table import final_table
from mindspeed_llm.rawdata import InputFile, find_files
from mindspeed_llm.tokens import IGNORED, SampleBuilder, Tokenizer, TokenStore, load_tokenizer
from mindspeed_llm.tokens.hugging_face import HuggingFaceTokenizer

TOKENS_AT_ONCE = 1 << 20  # of packs that are laid out together
PACKING_METHOD = "mixed full packs"


def preprocess(arguments: PreprocessArguments) -> Manifest:
    """Run everything; prints progress to stderr and the final table to stdout.

    Returns:
        the manifest as written.

    Raises:
        ConfigError: input, template, handler, tokenizer or columns that are not there or do not fit, all together.
        DataError: input that is missing, damaged or holds no sample, or a disk that is full. In either case what lay
            at the output prefix is left as it was.
    """
    started = time.monotonic()
    files, handler, template, tokenizer = _parts(arguments)
    sample = arguments.sample
    builder = SampleBuilder(tokenizer, template, sample.seq_length, sample.append_eod, sample.overlong)
    for notice in _notices_before(arguments, template, tokenizer):
        say(f"notice: {notice}")

    prefix = Path(arguments.output.output_prefix)
    with _new_directories(prefix.parent), PackedFilesWriter(prefix) as out, _scratch(arguments) as scratch:
        with disk_errors(scratch):
            store, rejected = TokenStore(scratch), RejectedRows(scratch)
            with contextlib.closing(store), contextlib.closing(rejected):
                tally = read_samples(arguments, files, handler, builder, store, rejected)
                _check_result(arguments, handler, tally)
                lengths = store.finish()
                plan = _plan(arguments, lengths)
                _write(arguments, out, store, plan, len(lengths), _pad_id(tokenizer, builder))
        manifest = _manifest(arguments, files, handler, template, tokenizer, builder, tally, lengths, plan)
        manifest = out.commit(manifest)
        with disk_errors(prefix):
            rejected.publish(prefix.with_name(f"{prefix.name}_rejected.jsonl"))
    for notice in _notices_after(arguments, tally):
        say(f"notice: {notice}")
    print(final_table(manifest, tally, builder.steps, lengths, time.monotonic() - started, prefix), flush=True)
    return manifest


def _parts(arguments: PreprocessArguments) -> tuple[list[InputFile], Handler, Template, Tokenizer]:
    """What is read, what rows mean, how they are written and tokenised; or all that is wrong with these."""
    given = arguments.tokenizer
    files = template = tokenizer = None
    handler, problems = handler_named(arguments.input.handler_name, arguments.input.map_keys)
    try:
        template = load_template(arguments.sample.prompt_type, arguments.sample.prompt_type_path)
    except ConfigError as error:
        problems += error.problems
    try:
        files = find_files(arguments.input.input)
        size = sum(file.size for file in files)
        say(f"reading {len(files)} {'file' if len(files) == 1 else 'files'}, {size / 1e6:.2f} MB")
    except DataError as error:
        problems.append(str(error))
    try:
        tokenizer = load_tokenizer(
            given.tokenizer_type or "PretrainedFromHF",
            given.tokenizer_name_or_path,
            given.tokenizer_model,
            fast=not given.tokenizer_not_use_fast,
            workers=arguments.run.workers,
        )
    except ConfigError as error:
        problems += error.problems
    if files is None or handler is None or template is None or tokenizer is None:
        raise ConfigError(problems)
    return files, handler, template, tokenizer


def _notices_before(arguments: PreprocessArguments, template: Template, tokenizer: Tokenizer) -> Iterator[str]:
    if template.begins and tokenizer.begin_id is None:
        yield f"--prompt-type {template.name} asks for a begin token, and the tokenizer has none; none is written"
    if arguments.tokenizer.tokenizer_not_use_fast and isinstance(tokenizer, HuggingFaceTokenizer):
        yield "--tokenizer-not-use-fast: the folder holds no tokenizer.model; its tokenizer.json is used"


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
        raise DataError(
            f"{where}: none of {tally.rows_read:,} rows gives a sample ({reasons}); they have {columns}; "
            f"name the columns that {handler.name} is to read with --map-keys"
        )


def _plan(arguments: PreprocessArguments, lengths: NDArray[np.int32]) -> PackPlan | None:
    if not arguments.output.pack:
        return None
    assert arguments.sample.seq_length is not None
    return plan_packs(lengths, arguments.sample.seq_length, arguments.output.seed)


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
    capacity = arguments.sample.seq_length
    assert capacity is not None
    at_once = max(1, TOKENS_AT_ONCE // capacity)
    for start in range(0, len(plan), at_once):
        packs = [plan[number] for number in range(start, min(len(plan), start + at_once))]
        out.add_rows(*lay_out_packs(store, packs, capacity, pad_id, arguments.output.neat_pack))


def lay_out_packs(
    store: TokenStore, packs: Sequence[NDArray[np.int64]], capacity: int, pad_id: int, neat: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """input_ids, attention_mask and labels [packs, capacity] of packs of samples.

    Samples 5 6 7 and 8 9 in a pack of six slots, pad id 0, all but the first token of each trained:

        input_ids        5    6  7    8  9     0
        attention_mask   1    1  1    2  2     0      without `neat` 1 in place of 2
        labels        -100    6  7 -100  9  -100
    """
    shape = (len(packs), capacity)
    ids, mask, labels = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
    for row, pack in enumerate(packs):
        place = 0
        for number, (sample_ids, sample_labels) in enumerate(store.samples(pack), start=1):
            end = place + len(sample_ids)
            ids[row, place:end] = sample_ids
            labels[row, place:end] = sample_labels
            mask[row, place:end] = number if neat else 1
            place = end
    return ids, mask, labels


def _manifest(
    arguments: PreprocessArguments,
    files: Sequence[InputFile],
    handler: Handler,
    template: Template,
    tokenizer: Tokenizer,
    builder: SampleBuilder,
    tally: Tally,
    lengths: NDArray[np.int32],
    plan: PackPlan | None,
) -> Manifest:
    output, seq_length = arguments.output, arguments.sample.seq_length
    slots = tally.tokens if plan is None or seq_length is None else len(plan) * seq_length
    return Manifest(
        packed=output.pack,
        neat=output.neat_pack,
        seq_length=seq_length if seq_length is not None else int(lengths.max()),
        append_eod=arguments.sample.append_eod,
        eod_inside_sample=tally.end_inside,
        # eod_id: the token that ends an answer and at which training may split a pack. Under a template that names
        # its own (qwen: <|im_end|>) it is not the tokenizer's eos_token.
        tokenizer=TokenizerFacts(
            tokenizer.kind, tokenizer.sha256, tokenizer.vocab_size, _pad_id(tokenizer, builder), builder.end_id
        ),
        template=TemplateFacts(template.name, template.sha256),
        handler=handler.name,
        sources=[SourceFile(file.path.name, file.size) for file in files],
        counts=Counts(tally.rows_read, tally.kept, dict(tally.skipped), tally.truncated, tally.dropped),
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
