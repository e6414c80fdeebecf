"""A command that would resume from an optimizer state that was saved wrongly is refused."""

from __future__ import annotations

import pytest
from optimizer_buckets import BUCKETS, megatron_core_alone
from tiny_runs import pretrain, train_records, write_files

from mindspeed_llm.errors import CheckpointError


def test_the_command_is_refused_with_a_fix(tmp_path, monkeypatch):
    """And that way works: the weights are right, and with --no-load-optim so is the schedule."""
    save = tmp_path / "checkpoint"
    data = str(write_files(tmp_path / "data"))
    flags = ("--data-path", data, "--eval-iters", "0", "--lr-decay-iters", "4", *BUCKETS.split())
    with megatron_core_alone():
        pretrain(monkeypatch, *flags, "--save", str(save), "--train-iters", "2")
    with pytest.raises(CheckpointError, match=f"--load {save} --finetune and another --save"):
        pretrain(monkeypatch, *flags, "--save", str(save), "--train-iters", "3")
    assert list(train_records(save / "run")) == [1, 2], "no step was done"
    words = ("--load", str(save), "--no-load-optim", "--train-iters", "3")
    pretrain(monkeypatch, *flags, *words, "--run-dir", str(tmp_path / "on"))
    assert list(train_records(tmp_path / "on")) == [3]
