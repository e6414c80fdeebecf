"""Run pretrain_gpt.py in this process, record the samples of every step, and optionally stop after a step."""

from __future__ import annotations

import os
import signal

from tiny_runs import pretrain


def run_recording_samples(monkeypatch, *flags: str, run: str, stop_after: int | None = None) -> list[list[int]]:
    """Run pretrain_gpt.py; after `stop_after` steps it receives SIGTERM and ends with a checkpoint.

    Returns:
        The numbers of the packs or unpacked samples of each step.
    """
    from mindspeed_llm.training import trainer
    from mindspeed_llm.training.signals import StoppedError

    steps: list[list[int]] = []
    real = trainer.train_step

    def recording_step(model_and_optimizer, batches, *rest, **named):
        steps.append([number for batch in batches for _, number in batch.sample_ids])
        if len(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
            named["stop"] = True
        return real(model_and_optimizer, batches, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_step", recording_step)
        # Drawing plots takes longer than such a run.
        patched.setattr("mindspeed_llm.programs.pretrain.draw", lambda *_: None)
        try:
            pretrain(patched, *flags, run=run)
        except StoppedError:
            assert len(steps) == stop_after
        else:
            assert stop_after is None or len(steps) < stop_after
    return steps
