"""Runs of pretrain_gpt.py in this process that note the samples of every step, and can be stopped after one."""

from __future__ import annotations

import os
import signal

from tiny_runs import pretrain


def watched_run(monkeypatch, *flags: str, run: str, stop_after: int | None = None) -> list[list[int]]:
    """Run pretrain_gpt.py's main; after `stop_after` steps of this start it gets SIGTERM and ends with a checkpoint.

    Returns: the numbers of the packs, or unpacked samples, that each step of this start trained on.
    """
    from mindspeed_llm.training import trainer
    from mindspeed_llm.training.signals import StoppedError

    steps: list[list[int]] = []
    real = trainer.train_step

    def noting(model_and_optimizer, batches, *rest, **named):
        steps.append([number for batch in batches for _, number in batch.sample_ids])
        if len(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
            named["stop"] = True
        return real(model_and_optimizer, batches, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_step", noting)
        patched.setattr("pretrain_gpt.draw", lambda *_: None)  # pictures take longer than such a run
        try:
            pretrain(patched, *flags, run=run)
        except StoppedError:
            assert len(steps) == stop_after
        else:
            assert stop_after is None or len(steps) < stop_after
    return steps
