"""Resuming with another global batch size: every sample of an epoch once, and a learning rate that goes on.

Most tests take a run through the functions that decide where a start stands, without training: order, length and
schedule are the real ones of megatron-core and of packed files. The last ones train.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_runs import run_recording_samples
from tiny import SHAPE
from tiny_runs import RUN, SEQ_LENGTH, train_records, write_files

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.data import Datasets, build_datasets
from mindspeed_llm.devices import apply_patches
from mindspeed_llm.dry_run.data_summary import summarize_data
from mindspeed_llm.errors import CheckpointError

apply_patches("cpu")  # before the first import of megatron.core

from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging  # noqa: E402

from mindspeed_llm.checkpoints import (  # noqa: E402
    BatchSizeChange,
    RunMetadata,
    StartPoint,
    TrainingProgress,
    append_batch_size,
    samples_after_iterations,
)
from mindspeed_llm.training.learning_rate_schedule import build_scheduler  # noqa: E402
from mindspeed_llm.training.resume_progress import (  # noqa: E402
    batch_notice,
    exact_progress,
    keep_batch_size_of_run,
    order_rounding_unit,
    start_point_and_length,
)

PACKS, SAMPLES = 11, 23
UNPACKED, ONE_EPOCH = "--variable-seq-lengths", "--train-epochs 1"
LR, MIN_LR = 1e-3, 1e-4
COMMON = (
    f"--seq-length {SEQ_LENGTH} --no-save-model "
    f"--micro-batch-size 1 --lr {LR} --min-lr {MIN_LR} --lr-decay-style cosine "
    "--split 100,0,0 --is-instruction-dataset --eval-iters 0 --data-path none"
)
# Name → data (see `data`), flags of the order, and whether the first batch size is a unit that epochs are rounded to.
ORDERS = {
    "packs": ("one", "", False),
    "packs in file order": ("one", "--no-shuffle", False),
    "packs, padded": ("one", "--padded-samples", True),
    "packs in file order, padded": ("one", "--padded-samples --no-shuffle", True),
    "several data sets": ("merged", "", False),
    "several data sets, padded": ("merged", "--padded-samples", True),
    "weighted data sets": ("weighted", "", False),
    "weighted data sets, padded": ("weighted", "--padded-samples", True),
    "samples": ("samples", UNPACKED, False),
    "samples, padded": ("samples", f"{UNPACKED} --padded-samples", True),
    "samples, grouped": ("samples", f"{UNPACKED} --length-grouped", True),
}
PARTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), max_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Flags of each kind of data."""
    folder = tmp_path_factory.mktemp("data")
    one, other = (write_files(folder / name, count=count) for name, count in (("one", PACKS), ("other", 5)))
    samples = write_files(folder / "samples", packed=False, count=SAMPLES)
    return {
        "one": f"--data-path {one}",
        "merged": f"--data-path {one} {other}",
        "weighted": f"--data-path 0.6 {one} 0.4 {other}",
        "samples": f"--data-path {samples}",
    }


@pytest.fixture(scope="module")
def datasets(data) -> dict[str, Datasets]:
    return {
        kind: build_datasets(
            arguments_of(f"{flags} {ONE_EPOCH} {UNPACKED if kind == 'samples' else ''}").data, 1, evaluate=False
        )
        for kind, flags in data.items()
    }


@functools.cache
def parsed(flags: str, world_size: int) -> PretrainArguments:
    packed = "" if UNPACKED in flags else "--neat-pack --reset-position-ids"
    return parse_pretrain_arguments(f"{SHAPE} {COMMON} {packed} {flags}".split(), world_size)


def arguments_of(flags: str, batch: int | None = None, world_size: int = 1) -> PretrainArguments:
    """Arguments of a run of packs, or with --variable-seq-lengths of unpacked samples."""
    arguments = parsed(flags, world_size)
    return replace(arguments, training=replace(arguments.training, global_batch_size=batch)) if batch else arguments


@dataclass
class Course:
    """A run that was stopped and resumed.

    Attributes:
        seen: numbers of the packs of every step.
        rates: learning rate of every step, and last the one after it.
        places: (updates, their samples) before every step, and last after it.
        record: of the last checkpoint.
    """

    seen: list[list[int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    record: RunMetadata | None = None

    def start(self) -> StartPoint:
        if self.record is None:
            return StartPoint("random", None, None, TrainingProgress(), False, False, "")
        return StartPoint("continue", Path("iter_7"), self.record, replace(self.record.progress), True, True, "")

    def part(
        self, arguments: PretrainArguments, data: Datasets, steps: int | None, skipped: Sequence[int] = ()
    ) -> None:
        """One start: `steps` of it, or all that there are. Iterations in `skipped` update nothing."""
        start = self.start()
        arguments = keep_batch_size_of_run(arguments, start)
        training, batch_size = arguments.training, arguments.global_batch_size
        order = data.train_order(arguments.data, training.seed, order_rounding_unit(arguments.data, batch_size, start))
        start, length = start_point_and_length(training, batch_size, start, order.epoch_length)
        progress = start.progress
        if progress.iteration >= length.iterations:
            return
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        optimizer.param_groups[0].update(
            default_config=True, max_lr=arguments.training.lr, min_lr=arguments.training.min_lr
        )
        schedule = build_scheduler(
            training,
            batch_size,
            optimizer,  # type: ignore[arg-type]
            length,
        )
        schedule.follow(progress)
        del self.rates[-1:], self.places[-1:]
        for _ in range(min(length.iterations - progress.iteration, steps or 10**6)):
            self._note(optimizer, progress)
            left = math.inf if length.samples is None else length.samples - progress.consumed_samples
            count = int(min(arguments.global_batch_size, left))
            self.seen.append(order.positions(progress.consumed_samples, count).tolist())
            progress.iteration += 1
            progress.consumed_samples += count
            if progress.iteration in skipped:
                progress.skipped_iterations += 1
                progress.skipped_samples += count
            schedule.follow(progress)
        self._note(optimizer, progress)
        self.record = RunMetadata(replace(progress), {}, {}, batch_sizes=list(length.batch_sizes))

    def _note(self, optimizer: torch.optim.Optimizer, progress: TrainingProgress) -> None:
        self.rates.append(get_canonical_lr_for_logging(optimizer.param_groups) or 0.0)
        self.places.append(
            (progress.iteration - progress.skipped_iterations, progress.consumed_samples - progress.skipped_samples)
        )


# the order


@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=12)
@given(parts=PARTS, first=st.integers(1, 9), last=st.integers(1, 9), epochs=st.integers(1, 3))
def test_every_sample_comes_once_an_epoch_whatever_the_batch_sizes(datasets, name, parts, first, last, epochs) -> None:
    kind, flags, rounded = ORDERS[name]
    course = Course()
    for size, steps in [(first, 2), *parts]:
        course.part(arguments_of(f"{flags} --train-epochs {epochs}", size), datasets[kind], steps)
    course.part(arguments_of(f"{flags} --train-epochs {epochs}", last), datasets[kind], None)
    packs = len(datasets[kind].train)
    length = -(-packs // first) * first if rounded else packs
    seen = [number for step in course.seen for number in step]
    assert len(seen) == epochs * length and course.places[-1][1] == len(seen)
    straight = (
        datasets[kind].train_order(arguments_of(f"{flags} {ONE_EPOCH}").data, 1234, first).positions(0, epochs * length)
    )
    assert seen == straight.tolist(), "the order is that of the first batch size"
    for epoch in np.reshape(seen, (epochs, length)) if kind != "weighted" else ():
        counts = np.bincount(epoch, minlength=packs)
        assert counts.min() >= 1 and counts.sum() - packs == length - packs


@pytest.mark.parametrize("name", ORDERS)
def test_a_changed_batch_size_repeats_no_samples(datasets, name) -> None:
    """Batches of 4, then of 7, then of 6 for one more epoch: an extension begins where the smaller last batch ended."""
    kind, flags, rounded = ORDERS[name]
    course = Course()
    course.part(arguments_of(f"{flags} --train-epochs 1", 4), datasets[kind], 2)
    course.part(arguments_of(f"{flags} --train-epochs 1", 7), datasets[kind], None)
    packs = len(datasets[kind].train)
    length = -(-packs // 4) * 4 if rounded else packs
    assert len(course.seen[-1]) == ((length - 8) % 7 or 7)
    course.part(arguments_of(f"{flags} --train-epochs 2", 6), datasets[kind], None)
    seen = [number for step in course.seen for number in step]
    assert len(seen) == 2 * length
    straight = datasets[kind].train_order(arguments_of(f"{flags} {ONE_EPOCH}").data, 1234, 4).positions(0, 2 * length)
    assert seen == straight.tolist()


def test_an_incomplete_batch_of_train_samples_is_left_out(datasets) -> None:
    """30 samples: 3 × 4, then 2 × 8; the last 2 make no batch. Batches of 2 would then have room for them."""
    course = Course()
    course.part(arguments_of("--train-samples 30", 4), datasets["one"], 3)
    course.part(arguments_of("--train-samples 30", 8), datasets["one"], None)
    assert [len(step) for step in course.seen] == [4, 4, 4, 8, 8]
    course.part(arguments_of("--train-samples 30", 2), datasets["one"], None)
    assert [len(step) for step in course.seen] == [4, 4, 4, 8, 8, 2]


def test_the_dry_run_opens_the_data_that_the_run_orders(data) -> None:
    """The dry run and the run ask the same `Datasets` for the order; an epoch is rounded up to the unit."""

    def epoch_lengths(arguments: PretrainArguments, units: tuple[int, ...]) -> list[int]:
        datasets = summarize_data(arguments.data, arguments.tokenizer, arguments.training).datasets
        return [datasets.train_order(arguments.data, arguments.training.seed, unit).epoch_length for unit in units]

    grouped = arguments_of(f"{data['samples']} {UNPACKED} --length-grouped {ONE_EPOCH}", 8)
    assert epoch_lengths(grouped, (8, 3)) == [24, 24]
    padded = arguments_of(f"{data['one']} --padded-samples {ONE_EPOCH}", 8)
    assert epoch_lengths(padded, (8, 4)) == [16, 12]


# the learning rate


def cosine(ratio: float) -> float:
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * min(ratio, 1.0)))


def rate(at: float, warmup: float, end: float) -> float:
    """The cosine schedule as one writes it down: at a place, of any unit."""
    return LR * at / warmup if at < warmup else cosine((at - warmup) / (end - warmup))


def of_mixed(course: Course, warmup: int, end: int) -> list[float]:
    """A warm-up in updates, then a decay in samples."""
    [after] = [samples for updates, samples in dict(course.places).items() if updates == warmup] or [0]
    return [
        LR * n / warmup if n <= warmup else cosine((samples - after) / (end - after)) for n, samples in course.places
    ]


# Name → the flag of the length, further flags, and the learning rates that a course ought to have had.
SCHEDULES = {
    "iterations": ("--train-iters 14", "--lr-warmup-iters 3", lambda c: [rate(n, 3, 14) for n, _ in c.places]),
    "iterations of the decay": (
        "--train-iters 14", "--lr-decay-iters 9 --lr-warmup-fraction 0.25",
        lambda c: [rate(n, 0.25 * 9, 9) for n, _ in c.places],
    ),
    "samples": ("--train-samples 61", "--lr-warmup-fraction 0.2", lambda c: [rate(s, 12.2, 61) for _, s in c.places]),
    "epochs": ("--train-epochs 4", "", lambda c: [rate(s, 0, 4 * PACKS) for _, s in c.places]),
    "epochs, warm-up in iterations": (
        "--train-epochs 4", "--lr-warmup-iters 3", lambda c: of_mixed(c, 3, 4 * PACKS),
    ),
    "epochs, decay in iterations": (
        "--train-epochs 4", "--lr-warmup-iters 2 --lr-decay-iters 7", lambda c: [rate(n, 2, 7) for n, _ in c.places],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=25)
@given(parts=PARTS, first=st.integers(1, 9), skipped=st.sets(st.integers(4, 9), max_size=2))
def test_the_learning_rate_is_a_function_of_what_its_flags_count(datasets, name, parts, first, skipped) -> None:
    length, flags, expected = SCHEDULES[name]
    if "warm-up in iterations" in name:
        skipped = set()  # the formula is for runs that skip nothing
    course = Course()
    for size, steps in [(first, 2), *parts, (4, None)]:
        course.part(arguments_of(f"{flags} {length}", size), datasets["one"], steps, skipped)
    assert course.rates == pytest.approx(expected(course), rel=1e-9)
    if "samples" not in name and not skipped and (name == "epochs" or course.places[-1][0] >= 14):
        assert course.rates[-1] == pytest.approx(MIN_LR), "the run comes to the end of its schedule"


def test_the_second_half_does_not_use_the_minimum_learning_rate(datasets) -> None:
    """The case of the issue: --train-iters 10, batches of 8 and after the fifth iteration of 4."""
    course = Course()
    course.part(arguments_of("--train-iters 10", 8), datasets["one"], 5)
    course.part(arguments_of("--train-iters 10", 4), datasets["one"], None)
    assert course.rates == pytest.approx([cosine(n / 10) for n in range(11)])
    assert [len(step) for step in course.seen] == [8] * 5 + [4] * 5


# the batch size that follows the number of ranks


def resumed(flags: str, world_size: int, record: RunMetadata):
    start = StartPoint("continue", Path("save/iter_7"), record, replace(record.progress), True, True, "")
    arguments = keep_batch_size_of_run(arguments_of(f"{flags} {ONE_EPOCH}", None, world_size), start)
    sizes = start_point_and_length(arguments.training, arguments.global_batch_size, start, PACKS)[1].batch_sizes
    return arguments, batch_notice(
        start, sizes, arguments.training.default_global_batch_size(arguments.data_parallel_size)
    )


def test_a_batch_size_that_is_not_given_stays_on_another_number_of_ranks() -> None:
    first = arguments_of(f"--micro-batch-size 2 {ONE_EPOCH}", world_size=4)
    assert first.global_batch_size == 8
    record = RunMetadata(TrainingProgress(5, 40), {}, {}, batch_sizes=[BatchSizeChange(0, 0, 8)])
    for ranks, flags, micro_batches in ((4, "--micro-batch-size 2", 1), (2, "--micro-batch-size 2", 2), (8, "", 1)):
        arguments, notice = resumed(flags, ranks, record)
        assert (arguments.global_batch_size, arguments.micro_batches) == (8, micro_batches)
        assert (notice is None) == (ranks in (4, 8))
    _, notice = resumed("", 2, record)
    assert notice == "global batch of 8, as at the start of this run; --global-batch-size 2 would change it"
    with pytest.raises(CheckpointError, match=r"save/iter_7: .* global batch of 8,.*give --global-batch-size \(a mult"):
        resumed("", 3, record)
    arguments, notice = resumed("--global-batch-size 9", 3, record)
    assert arguments.global_batch_size == 9
    assert notice == "global batch of 9 from here on, 8 before: the order of the samples does not change"
    interleaved = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 8"
    assert resumed(f"{interleaved} --micro-batch-size 2", 4, record)[0].micro_batches == 2


# records


def test_batch_size_changes_are_recorded() -> None:
    sizes = append_batch_size((), 0, 0, 4)
    assert sizes == append_batch_size(sizes, 5, 20, 4) == (BatchSizeChange(0, 0, 4),)
    sizes = append_batch_size(sizes, 5, 20, 8)
    assert append_batch_size(sizes, 6, 26, 8)[1:] == (BatchSizeChange(5, 20, 8), BatchSizeChange(6, 26, 8)), (
        "after a smaller last batch"
    )
    assert [samples_after_iterations(sizes, iteration) for iteration in (0, 3, 5, 7)] == [0, 12, 20, 36]
    assert append_batch_size(sizes, 5, 20, 6) == (BatchSizeChange(0, 0, 4), BatchSizeChange(5, 20, 6)), (
        "nothing was trained with 8"
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[1, 0, 4]], "do not begin at iteration 0"),
        ([[0, 0, 0]], "size below 1"),
        ([[0, 0, 4], [7, 20, 8]], "are not in ascending order, or exceed the progress"),
        ([[0, 0, 4], [4, 50, 8]], "are not in ascending order, or exceed the progress"),
        ([[0, 0, "4"]], "size must be of type int"),
        (None, "skipped iterations or samples exceed the progress"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, sizes, message) -> None:
    RunMetadata(TrainingProgress(5, 40, skipped_iterations=6 if sizes is None else 5), {}, {}).write(tmp_path)
    raw = json.loads((tmp_path / "run.json").read_text())
    raw["batch_sizes"] = [dict(zip(("iteration", "consumed_samples", "size"), one, strict=True)) for one in sizes or ()]
    (tmp_path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        RunMetadata.read(tmp_path)


def old_start(folder: Path, iteration: int, consumed: int, arguments: dict, steps: int | None = None) -> StartPoint:
    """The start from a run.json as commit 9055fb5 wrote it: without batch sizes and skipped samples."""
    record = RunMetadata(
        TrainingProgress(), {}, {}, {"num_steps": consumed if steps is None else steps}, arguments=arguments
    )
    record.write(folder)
    raw = json.loads((folder / "run.json").read_text())
    raw["progress"] = {"iteration": iteration, "consumed_samples": consumed}
    del raw["batch_sizes"]
    (folder / "run.json").write_text(json.dumps(raw))
    read = RunMetadata.read(folder)
    assert read is not None
    return StartPoint("continue", folder, read, read.progress, True, True, "")


def old_arguments(batch: int | None, micro: int = 2, ranks: int = 4, tensor: int = 2, **training) -> dict:
    parallel = {f"{kind}_parallel_size": 1 for kind in ("pipeline_model", "context")}
    return {
        "training": {"global_batch_size": batch, "micro_batch_size": micro, **training},
        "parallel": {**parallel, "tensor_model_parallel_size": tensor},
        "world_size": ranks,
    }


@pytest.mark.parametrize(
    ("arguments", "unit"),
    [
        (old_arguments(4), 4),
        (old_arguments(None), 4),
        ({}, 4),
        ({"training": {"global_batch_size": "four"}, "world_size": None}, 4),
    ],
)
def test_the_unit_of_an_old_record_is_inferred(tmp_path, arguments, unit) -> None:
    start = old_start(tmp_path, 5, 20, arguments)
    new = arguments_of(f"--padded-samples {ONE_EPOCH}", 8)
    assert order_rounding_unit(new.data, 8, start) == unit
    placed, length = start_point_and_length(new.training, 8, start, 12)
    assert placed.progress == TrainingProgress(5, 20)
    assert length.batch_sizes == (BatchSizeChange(0, 0, 4), BatchSizeChange(5, 20, 8))


def test_an_old_record_without_a_unit_is_refused_if_the_order_needs_it(tmp_path) -> None:
    start = old_start(tmp_path, 5, 23, {})
    with pytest.raises(
        CheckpointError, match=r"does not record the global batch size with which --padded-samples made"
    ):
        order_rounding_unit(arguments_of(f"--padded-samples {ONE_EPOCH}", 8).data, 8, start)
    plain = arguments_of(ONE_EPOCH, 8)
    assert order_rounding_unit(plain.data, 8, start) == 8
    assert start_point_and_length(plain.training, 8, start, PACKS)[0].progress.consumed_samples == 23


def test_an_old_record_that_counted_a_smaller_last_batch_as_a_whole_one_is_corrected(tmp_path) -> None:
    """23 samples in batches of 8: 3 iterations, which an earlier version counted as 24 samples."""
    start = old_start(tmp_path, 3, 24, old_arguments(8, train_epochs=1))
    assert exact_progress(start, 23) == TrainingProgress(3, 23)
    _, length = start_point_and_length(arguments_of("--train-epochs 2", 8).training, 8, start, 23)
    assert (length.iterations, length.samples) == (6, 46)
    assert exact_progress(start, 24) == exact_progress(start, 15) == TrainingProgress(3, 24), "the epoch ends elsewhere"
    unfinished = old_start(tmp_path, 2, 16, old_arguments(8, train_epochs=1))
    assert exact_progress(unfinished, 23) == TrainingProgress(2, 16)


def test_steps_skipped_by_the_schedule_of_an_old_record_stay_skipped(tmp_path) -> None:
    start = old_start(tmp_path, 5, 20, old_arguments(4), steps=12)
    assert exact_progress(start, 23) == TrainingProgress(5, 20, skipped_iterations=2, skipped_samples=8)


def test_a_schedule_that_an_old_version_began_again_is_not_taken_for_skipped_steps(tmp_path) -> None:
    """A run that --no-load-optim started at iteration 3 of 5: its schedule had counted 2."""
    arguments = {**old_arguments(4), "checkpoint": {"no_load_optim": True}}
    assert exact_progress(old_start(tmp_path, 5, 20, arguments, steps=8), 23) == TrainingProgress(5, 20)


# trained


def test_a_run_is_resumed_with_other_batch_sizes_and_extended(tmp_path, monkeypatch, capsys) -> None:
    """15 samples, grouped by length in groups of 4, so that an epoch has 16 positions.

    Batches of 4, stopped; then of 6; then --global-batch-size is left out and --train-epochs extended, twice.
    """
    files = write_files(tmp_path / "data", packed=False, count=15)
    run = RUN.replace("--neat-pack --reset-position-ids ", "").replace("--global-batch-size 4", "")
    run = run.replace("--train-iters 6", UNPACKED).replace("--micro-batch-size 2", "--micro-batch-size 1")
    save = tmp_path / "save"
    flags = ("--data-path", str(files), "--split", "100,0,0", "--eval-iters", "0", "--length-grouped")
    parts = [("2", ("--global-batch-size", "4"), 2), ("2", ("--global-batch-size", "6"), None), ("3", (), None),
             ("4", ("--micro-batch-size", "2"), None)]  # fmt: skip
    steps, expected = [], []
    for epochs, batch, stop in parts:
        done = sum(map(len, steps))
        more = run_recording_samples(
            monkeypatch, *flags, *batch, "--save", str(save), "--train-epochs", epochs, run=run, stop_after=stop
        )
        consumed = done + np.cumsum([0, *map(len, more[:-1])])
        expected += [cosine(samples / (16 * int(epochs))) for samples in consumed]
        steps += more
    assert [len(step) for step in steps] == [4, 4, *[6] * 4, 6, 6, 4, 6, 6, 4]
    seen = np.array([number for step in steps for number in step]).reshape(4, 16)
    for epoch in seen:
        assert set(epoch) == set(range(15))
    records = train_records(save / "run")
    assert [record["consumed_samples"] for record in records.values()] == np.cumsum([*map(len, steps)]).tolist()
    assert [record["learning_rate"] for record in records.values()] == pytest.approx(expected)
    said = capsys.readouterr().out
    assert said.count("global batch of 6 from here on, 4 before") == 1
    assert said.count("global batch of 6, as at the start of this run; --global-batch-size 1 would change it") == 1
    assert said.count("the last batch has 4 of 6 packs") == 2
    sizes = json.loads((save / "iter_0000012" / "run.json").read_text())["batch_sizes"]
    assert [(one["iteration"], one["consumed_samples"], one["size"]) for one in sizes] == [
        (0, 0, 4), (2, 8, 6), (9, 48, 6)
    ]  # fmt: skip
