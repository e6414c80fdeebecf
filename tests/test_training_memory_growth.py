"""A long run: neither memory nor the time of a step creeps."""

from __future__ import annotations

import statistics

import pytest
from tiny_runs import RUN, pretrain, train_records, write_files

STEPS = 2000


@pytest.mark.long
def test_memory_and_time_do_not_grow_over_two_thousand_steps(monkeypatch, tmp_path):
    """Saves, evaluations, epochs and lines included. Peak memory can only rise: after the first quarter it must not.

    Steps are timed in seconds of this process on the processor: what else the machine does counts little.
    """
    import importlib
    import resource
    import time
    import types

    from mindspeed_llm.devices import apply_patches

    data = write_files(tmp_path / "data")
    run = RUN.replace("--train-iters 6", f"--train-iters {STEPS}").replace("--num-layers 4", "--num-layers 1")
    apply_patches("cpu")
    from mindspeed_llm.devices import Device

    trainer = importlib.import_module("mindspeed_llm.training.trainer")
    monkeypatch.setattr(trainer, "time", types.SimpleNamespace(perf_counter=time.process_time))
    monkeypatch.setattr(
        Device, "peak_memory_bytes", lambda self: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    flags = ("--eval-interval", "100", "--save", str(tmp_path / "checkpoint"), "--save-interval", "250")
    pretrain(monkeypatch, "--data-path", str(data), *flags, "--keep-last", "2", run=run)
    records = train_records(tmp_path / "checkpoint" / "run")
    assert len(records) == STEPS
    peaks = {iteration: record["peak_memory_bytes"] for iteration, record in records.items()}
    grown = peaks[STEPS] - peaks[STEPS // 4]
    assert grown < 16 * 2**20, f"{grown / 2**20:.1f} MiB in the last three quarters"
    seconds = [record["step_seconds"] for record in records.values()]
    # The quick steps of each part: the others share the processor's caches with something else.
    early, late = (statistics.quantiles(part, n=10)[0] for part in (seconds[200:700], seconds[-500:]))
    assert late < 1.5 * early, f"a step took {1e3 * early:.1f} ms, then {1e3 * late:.1f} ms"
