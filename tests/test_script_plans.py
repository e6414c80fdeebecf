"""Dry runs of the tune scripts: our own, whose table is in the README, and some of MindSpeed-LLM's.

In the short suite no micro-batch passes through the layers, which takes most of the time of a dry run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from script_stubs import PRETRAIN_SCRIPTS, ROOT, TUNE_SCRIPTS, ranks_and_words
from time_limits import HANG_SECONDS
from upstream_scripts import ACCEPTED, SCRIPTS, UpstreamScript, words_of

# An uneven pipeline, Llama 3.1's rope, a Qwen3 with tied embeddings and two adapters; the long tests have all scripts.
PLANNED = (
    "2.3.0 qwen25/tune_qwen25_72b_16k_full_pack.sh",
    "2.3.0 llama31/tune_llama31_8b_4k_full_pack_ptd.sh",
    "master qwen3/tune_qwen3_0point6b_4K_full_ptd.sh",
    "2.3.0 qwen25/tune_qwen25_14b_4k_lora_pack.sh",
    "2.3.0 llama2/tune_llama2_7b_lora_ptd.sh",
)
OWN = sorted(str(script.relative_to(ROOT)) for script in (*TUNE_SCRIPTS, *PRETRAIN_SCRIPTS))


LORA = "examples/mcore/qwen25/tune_qwen25_7b_4k_lora_pack.sh"
SHARED_A = f"{LORA} --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2"


def command_of(name: str) -> tuple[int, list[str]]:
    """Ranks and command line of one of our scripts with further flags, or of one of upstream's."""
    own, *further = name.split()
    if own in OWN:
        ranks, words = ranks_and_words(ROOT / own)
        return ranks, [*words, *further]
    words = words_of(SCRIPTS[name])
    # Where only the tokenizer knows the vocabulary: Llama 2's.
    return SCRIPTS[name].ranks, words if {"--padded-vocab-size", "--vocab-size"} & set(words) else [
        *words,
        *("--vocab-size", "32000"),
    ]


def plans_of(names: list[str], *traced: str) -> dict[str, dict[str, Any]]:
    """Dry runs for an NPU, in a process of their own."""
    commands = [(ranks, [*words, "--device", "npu"]) for ranks, words in map(command_of, names)]
    command = [sys.executable, str(ROOT / "tests/script_plans_program.py"), json.dumps(commands), *traced]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return dict(zip(names, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, Any]]:
    return plans_of([*OWN, SHARED_A, *PLANNED])


@pytest.mark.parametrize("name", PLANNED)
def test_a_dry_run_plans_the_job_of_the_script(name: str, plans: dict[str, dict[str, Any]]) -> None:
    assert_is_planned(SCRIPTS[name], plans[name])


# A row of the table: model, script, devices, layout, memory per rank, steps.
ROW = re.compile(
    r"\| [^|]+ \| `(examples/mcore/\S+/(?:tune|pretrain)_\S+\.sh)` \| (\d+) \| ([^|]+) \| ([\d.]+) GiB \| ([\d,]+) \|"
)


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_table_of_scripts_in_the_readme_is_that_of_the_dry_runs(
    readme: str, plans: dict[str, dict[str, Any]]
) -> None:
    rows = {name: cells for name, *cells in ROW.findall((ROOT / readme).read_text("utf-8"))}
    assert sorted(rows) == OWN
    for name, (devices, layout, memory, steps) in rows.items():
        text = "\n".join(plans[name]["lines"])
        tensor, pipeline, data = re.findall(r"\d+", layout)
        further = "distributed optimizer" if tensor == "1" else "sequence parallel"
        assert f"layout: {devices} ranks = tensor {tensor} × pipeline {pipeline} × data {data}, {further}" in text
        assert re.search(rf"largest: rank \d+ with {re.escape(memory)} GiB", text), (name, memory)
        assert f"run: {steps} steps" in text


@pytest.mark.parametrize(
    ("name", "trained", "share", "targets"),
    [
        (LORA, 40_370_176, "0.53%", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        (SHARED_A, 35_553_280, "0.46%", "linear_qkv o_proj linear_fc1 down_proj"),
    ],
    ids=["one A each", "shared A"],
)
def test_the_plan_reports_the_adapter(
    name: str, trained: int, share: str, targets: str, plans: dict[str, dict[str, Any]]
) -> None:
    line = f"adapter: LoRA, {trained:,} trained parameters ({share}): rank 16, alpha 32, scale 2, on {targets}"
    assert line in plans[name]["lines"] and plans[name]["trained"] == trained
    assert plans[name]["parameters"] == 7_615_616_512 + trained
    assert not any(line.startswith("adapter") for line in plans[OWN[-1]]["lines"])


@pytest.mark.long
@pytest.mark.parametrize("names", [OWN, ACCEPTED], ids=["own", "upstream"])
def test_a_micro_batch_passes_through_every_layer_of_every_script(names: list[str]) -> None:
    for name, plan in plans_of(names, "traced").items():
        if name in SCRIPTS:
            assert_is_planned(SCRIPTS[name], plan)


def parameters_of(script: UpstreamScript) -> int:
    """Parameters of the model, counted from its shape."""
    model = script.model
    hidden, size, layers = model["hidden"], model["head size"], model["layers"]
    columns = (model["heads"] + 2 * model["groups"]) * size
    attention = hidden * columns + columns * model["qkv bias"] + model["heads"] * size * hidden
    layer = attention + 3 * hidden * model["ffn"] + 2 * hidden + 2 * size * model["qk norm"]
    return layers * layer + hidden + (1 if model["tied"] else 2) * int(model["vocabulary"] or 32000) * hidden


def adapter_parameters_of(script: UpstreamScript) -> int:
    """Parameters of the adapter, one A for each linear layer; all scripts adapt the four linear layers."""
    if script.adapter is None:
        return 0
    model = script.model
    hidden, size, ffn = model["hidden"], model["head size"], model["ffn"]
    joined, columns = model["heads"] * size, (model["heads"] + 2 * model["groups"]) * size
    sides = (hidden + columns) + (joined + hidden) + (hidden + 2 * ffn) + (ffn + hidden)
    return int(model["layers"] * script.adapter["rank"] * sides)


def assert_is_planned(script: UpstreamScript, plan: dict[str, Any]) -> None:
    layout, model, run = script.layout, script.model, script.run
    text = "\n".join(plan["lines"])
    (line,) = [line for line in plan["lines"] if line.startswith("layout: ")]
    pipeline = f"pipeline {layout['pipeline']}"
    if layout["virtual stages"]:
        pipeline += f" (interleaved, {layout['virtual stages']} chunks each)"
    if "--num-layer-list" in script.flags:
        pipeline += f" ({', '.join(map(str, layout['layers of stages']))} layers)"
    further = "".join(f", {name}" for name in ("sequence parallel", "distributed optimizer") if layout[name])
    expected = f"{script.ranks} ranks = tensor {layout['tensor']} × {pipeline} × data {layout['data']}{further}"
    assert line == f"layout: {expected}"
    assert plan["parameters"] == parameters_of(script) + adapter_parameters_of(script)
    assert plan["trained"] == (adapter_parameters_of(script) or parameters_of(script))
    assert ("adapter: LoRA" in text) == (script.adapter is not None)
    assert plan["layers"] == layout["layers of stages"]
    assert f"{model['layers']} layers of hidden size {model['hidden']:,}, {model['heads']} heads" in text
    assert f"step: {run['batch']:,} packs × {run['slots']:,} slots" in text
    assert f"{run['micro-batches']} × micro-batch of {run['micro-batch']}" in text
    assert f"run: {run['steps']:,} steps, {run['steps'] * run['batch']:,} packs" in text
