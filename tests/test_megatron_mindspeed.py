"""A Megatron-LM checkout under MindSpeed's adaptor: the same numbers as our own loop, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from megatron_cases import CASES, STEPS, UNDER_MINDSPEED, MegatronCase
from megatron_runs import assert_equal, differences, make_data, print_differences, run_cases

LAYERS, GLOBAL_BATCH = 4, 4
NAMED = {"MEGATRON_LM", "MINDSPEED", "TORCH_NPU_SITE"} <= os.environ.keys()


@pytest.mark.long
@pytest.mark.skipif(not NAMED, reason="MEGATRON_LM, MINDSPEED and TORCH_NPU_SITE name no checkouts and no wheel")
def test_a_checkout_under_mindspeed_trains_as_our_own_loop(tmp_path: Path) -> None:
    """Its pretrain_gpt.py with MindSpeed's adaptor over torch_npu's wheel and strict CPU kernels, counted."""
    checkout = Path(os.environ["MEGATRON_LM"]).resolve()
    names = [f"under MindSpeed, {name}" for name in UNDER_MINDSPEED]
    (tmp_path / "saved").mkdir()
    make_data(tmp_path)
    mindspeed = Path(os.environ["MINDSPEED"]).resolve()
    run_cases(tmp_path, checkout, checkout / "pretrain_gpt.py", names, mindspeed)
    found = {name: differences(tmp_path, name) for name in names}
    print_differences(tmp_path, found)
    assert_equal(found, control="under MindSpeed, whole packs")
    for name in names:
        for rank in range(CASES[name].ranks):
            calls = json.loads((tmp_path / f"{name}.{rank}.calls.json").read_text())
            # Every layer of every micro-batch, and in the forward pass those of the evaluation and of recomputation.
            assert calls["npu_fusion_attention_grad"] == backward_calls(CASES[name]), name
            assert calls["npu_fusion_attention"] >= calls["npu_fusion_attention_grad"], name
    assert calls_of(tmp_path, "options")["npu_swiglu_backward"] == backward_calls(CASES["under MindSpeed, options"])


def calls_of(folder: Path, name: str) -> dict[str, int]:
    calls: dict[str, int] = json.loads((folder / f"under MindSpeed, {name}.0.calls.json").read_text())
    return calls


def backward_calls(case: MegatronCase) -> int:
    """Return the number of backward passes through an attention layer that one rank runs."""
    stages = 2 if "--pipeline-model-parallel-size 2" in case.layout else 1
    replicas = case.ranks // stages // (2 if "--tensor-model-parallel-size 2" in case.layout else 1)
    per_batch = 2 if "--micro-batch-size 2" in case.layout else 1
    steps = case.stop - (STEPS // 2 if case.loads else 0)
    return steps * (GLOBAL_BATCH // per_batch // replicas) * (LAYERS // stages)
