"""Every tensor, pipeline and data parallel layout gives the losses and the updated weights of one rank.

Four processes train all layouts of layouts_program.py in turn; each test below looks at one of them. Bounds are for
float32: sums are taken in another order on every layout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layouts_program import CASES

LOSS_BOUND = 1e-6
NORM_BOUND = 1e-5
WEIGHT_BOUND = 1e-6  # after three steps at a learning rate of 1e-4, that is updates of about 3e-4

TIME_LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Losses, gradient norms and weight errors of every case."""
    folder = tmp_path_factory.mktemp("layouts")
    program = [sys.executable, str(Path(__file__).with_name("layouts_program.py")), str(folder)]
    environment = {**os.environ, "WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank{rank}.log" for rank in range(4)]
    ranks = [
        subprocess.Popen(
            program, env={**environment, "RANK": str(rank)}, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for rank in ranks:
            rank.wait(TIME_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    written = folder / "results.json"
    if not written.exists():
        pytest.fail("\n\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in logs))
    return json.loads(written.read_text())


@pytest.mark.parametrize("name", CASES)
def test_layout_changes_nothing(results, name):
    reference, own = results[CASES[name][2]], results[name]
    assert own["losses"] == pytest.approx(reference["losses"], rel=LOSS_BOUND)
    assert own["norms"] == pytest.approx(reference["norms"], rel=NORM_BOUND)
    worst = max(own["weight_errors"], key=own["weight_errors"].get)
    assert own["weight_errors"][worst] <= WEIGHT_BOUND, worst


def test_the_steps_move_the_weights(results):
    """The bound above means something: losses of the three different batches differ, and the two models do too."""
    first = results["tp1 pp1 dp1"]["losses"]
    assert len({round(loss, 3) for loss in first}) == 3
    assert abs(first[0] - results["tied"]["losses"][0]) > 1e-3
