"""Saving and loading the optimizer: several padded buckets, checkpoints saved wrongly, and flags changed on resume."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
import torch
from optimizer_buckets import BUCKETS, OVERLAPS, megatron_core_alone
from tiny import batch_of, pack, tiny_arguments

from mindspeed_llm.errors import CheckpointError

ITERATIONS = 8
OPTIMIZERS = {
    "float32": "",
    "bf16": "--bf16",
    "fp16": "--fp16 --initial-loss-scale 1024",
    "distributed": "--use-distributed-optimizer",
    "distributed, bf16": "--use-distributed-optimizer --bf16",
}


def job_of(flags: str):
    from tiny_model import derived_of

    from mindspeed_llm.devices import select_device
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer

    arguments = tiny_arguments(f"--train-iters {ITERATIONS} --global-batch-size 1 {flags}")
    return setup_model_and_optimizer(arguments, select_device("cpu"), derived_of(arguments, ITERATIONS))


def trained(flags: str, steps: int):
    """A job after some steps, its schedule in motion."""
    from mindspeed_llm.training.train_step import train_step

    job = job_of(flags)
    for step in range(steps):
        result = train_step(job, [batch_of([pack((5, 1, 13, 7), seed=step)])], torch.device("cpu"))
        assert result.updated
        job.scheduler.step(1)
    return job


def saved(job, folder: Path, steps: int) -> Path:
    """Save a job's checkpoint; the folder of it."""
    from mindspeed_llm.checkpoints import RunCheckpoints, RunMetadata, TrainingProgress, begin_save

    record = RunMetadata(TrainingProgress(steps, steps), identity={}, layout={}, scheduler=job.scheduler.state_dict())
    begin_save(RunCheckpoints(folder), job.state, record).finish()
    return RunCheckpoints(folder).iteration_path(steps)


def loaded(flags: str, folder: Path, optimizer: bool = True):
    """A new job with what a checkpoint holds."""
    from mindspeed_llm.checkpoints import RunMetadata, load_training_state

    job, record = job_of(flags), RunMetadata.read(folder)
    assert record is not None
    load_training_state(folder, job.state, optimizer=optimizer, rng=False)
    job.scheduler.follow(record.progress)
    return job


def values_of(job) -> dict[str, torch.Tensor]:
    """Name → each weight and, of a distributed optimizer of one rank, its copy and both moments."""
    job.state.finish_gathering()
    found = {}
    [optimizer] = job.optimizer.chained_optimizers
    for number, chunk in enumerate(job.chunks):
        for name, parameter in chunk.named_parameters():
            found[f"{number} {name}"] = parameter.detach().clone()
            for key, value in optimizer._get_main_param_and_optimizer_states(parameter).items():
                found[f"{number} {name} {key}"] = value.detach().clone()
    return found


@pytest.mark.parametrize("flags", [f"{OVERLAPS} --ddp-bucket-size {size}" for size in (1, 500, 9_000, 30_000)])
def test_buckets_of_every_size_are_saved_correctly(one_rank, tmp_path, flags):
    """Loaded with one bucket, and with as many: weights, copies and moments are bit for bit those that were saved."""
    job = trained(flags, 2)
    expected = values_of(job)
    folder = saved(job, tmp_path, 2)
    for other in (flags, "--vocab-size 301 --use-distributed-optimizer"):
        found = values_of(loaded(other, folder))
        assert found.keys() == expected.keys()
        assert {name for name in found if not torch.equal(found[name], expected[name])} == set()


@pytest.mark.parametrize("flags", [BUCKETS, f"{BUCKETS} --bf16"])
def test_an_incorrectly_saved_state_is_refused_on_every_layout(one_rank, tmp_path, flags):
    job = trained(flags, 2)
    weights = {name: value.detach().clone() for name, value in job.chunks[0].named_parameters()}
    with megatron_core_alone():
        folder = saved(job, tmp_path, 2)
    for other in (flags, flags.replace("--ddp-bucket-size 9000", ""), BUCKETS):
        with pytest.raises(CheckpointError, match="does not belong to its weights"):
            loaded(other, folder)
    job = loaded(flags, folder, optimizer=False)
    found = dict(job.chunks[0].named_parameters())
    assert {name for name in weights if not torch.equal(found[name], weights[name])} == set(), "they are right"


def test_a_correct_state_saved_by_megatron_core_alone_is_accepted(one_rank, tmp_path):
    """As earlier versions of this program saved it, with one bucket: nothing is wrong with it."""
    for flags in ("--vocab-size 301 --use-distributed-optimizer", "--bf16 --use-distributed-optimizer"):
        job = trained(flags, 2)
        expected = values_of(job)
        with megatron_core_alone():
            folder = saved(job, tmp_path / str(len(flags)), 2)
        found = values_of(loaded(flags, folder))
        assert {name for name in found if not torch.equal(found[name], expected[name])} == set()


@pytest.mark.parametrize(("before", "after"), [("--bf16", ""), ("--bf16", "--fp16"), ("", "--bf16")])
def test_another_precision_on_resume_is_accepted(one_rank, tmp_path, before, after):
    folder = saved(trained(f"{BUCKETS} {before}", 2), tmp_path, 2)
    loaded(f"{BUCKETS} {after}", folder)


def test_another_padded_vocabulary_on_resume_is_accepted(one_rank, tmp_path):
    folder = saved(trained(BUCKETS, 2), tmp_path, 2)
    for divisor in (2, 128):
        loaded(f"{BUCKETS} --make-vocab-size-divisible-by {divisor}", folder)


def test_the_warning_of_megatron_core_is_a_failed_save(one_rank, tmp_path, monkeypatch):
    """Were the offsets wrong for another reason, no checkpoint would come of it."""
    from mindspeed_llm.checkpoints import SaveError
    from mindspeed_llm.devices import bucket_padding

    monkeypatch.setattr(bucket_padding, "offsets_in_gathered_state", lambda _: contextlib.nullcontext())
    with pytest.raises(SaveError, match=r"would be saved wrongly.*data corruption"):
        saved(trained(BUCKETS, 1), tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def cosine(step: int, highest: float, lowest: float) -> float:
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * step / ITERATIONS))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_has_the_hyperparameters_of_its_flags(one_rank, tmp_path, name):
    """The number of updates and the moments are the checkpoint's; --lr and the like are this command's."""
    flags = OPTIMIZERS[name]
    before = trained(f"{flags} --lr 1e-3 --min-lr 1e-4 --weight-decay 0.1", 2)
    folder = saved(before, tmp_path, 2)
    changed = "--lr 4e-3 --min-lr 2e-3 --weight-decay 0.3 --adam-beta1 0.8 --adam-beta2 0.9 --adam-eps 1e-7"
    job = loaded(f"{flags} {changed}", folder)
    for group, earlier in zip(job.optimizer.param_groups, before.optimizer.param_groups, strict=True):
        assert (group["max_lr"], group["min_lr"]) == (4e-3, 2e-3)
        assert group["lr"] == pytest.approx(cosine(2, 4e-3, 2e-3), rel=1e-12)
        assert (tuple(group["betas"]), group["eps"]) == ((0.8, 0.9), 1e-7)
        assert group["weight_decay"] == 0.3 * group["wd_mult"]
        assert group["step"] == earlier["step"] == 2
    state, expected = (one.optimizer.chained_optimizers[0].optimizer.state for one in (job, before))
    for found, kept in zip(state.values(), expected.values(), strict=True):
        assert torch.equal(found["exp_avg"], kept["exp_avg"]) and torch.equal(found["exp_avg_sq"], kept["exp_avg_sq"])


@pytest.mark.parametrize("name", ["float32", "distributed, bf16"])
def test_without_the_optimizer_the_schedule_follows_the_iteration(one_rank, tmp_path, name):
    flags = f"{OPTIMIZERS[name]} --lr 1e-3 --min-lr 1e-4 --lr-warmup-iters 0"
    folder = saved(trained(flags, 3), tmp_path, 3)
    job = loaded(flags, folder, optimizer=False)
    assert job.scheduler.num_steps == 3
    for group in job.optimizer.param_groups:
        assert group["lr"] == pytest.approx(cosine(3, 1e-3, 1e-4), rel=1e-12)
        assert group.get("step", 0) == 0
    assert not job.optimizer.chained_optimizers[0].optimizer.state
