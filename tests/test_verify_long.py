"""Comparisons that take minutes: other layouts through torchrun, memory, and a real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hugging_face_models import make_model
from peft_adapters import make_adapter
from tiny_runs import ROOT, write_files
from verify_runs import failed_rows

pytest.importorskip("peft", reason="needs peft, which is not installed")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
LAYOUTS = {
    "TP2 PP2": (4, f"{TP} 2 {PP} 2 --sequence-parallel"),
    "PP2, interleaved": (2, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1"),
    "DP2": (2, "--use-distributed-optimizer --overlap-grad-reduce"),
    "TP4": (4, f"{TP} 4"),
}


def verify(*words: str, ranks: int = 1) -> tuple[int, str]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "mindspeed_llm.verify", "--device", "cpu", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    make_model("Qwen2.5, tied", folder / "base")
    make_adapter(folder / "base", folder / "adapter")
    write_files(folder / "data")
    return folder


@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_equal(folder: Path, layout: str, adapter: bool) -> None:
    ranks, flags = LAYOUTS[layout]
    lora = ["--lora-load", str(folder / "adapter")] if adapter else []
    words = ["--load", str(folder / "base"), "--data-path", str(folder / "data"), *lora, *flags.split()]
    status, output = verify(*words, ranks=ranks)
    assert status == 0 and "equal: every difference" in output and not failed_rows(output), output


def peak_memory(process: subprocess.Popen[str]) -> int:
    """Peak of the anonymous memory of a process in bytes: pages of mapped files can be dropped at any time."""
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) * 1024 if found else 0)
        time.sleep(0.01)
    return peak


@pytest.mark.parametrize("dtype", ["--bf16", ""])
def test_memory_is_at_most_twice_the_model(folder: Path, tmp_path: Path, dtype: str) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=301, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    size = sum(p.numel() for p in model.parameters()) * (2 if dtype else 4)
    model.save_pretrained(tmp_path / "model")
    del model
    peaks = []
    for load in (folder / "base", tmp_path / "model"):
        words = [sys.executable, "-m", "mindspeed_llm.verify", "--device", "cpu", "--load", str(load), *dtype.split()]
        words += ["--data-path", str(folder / "data"), "--reference-float64", "never"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        reader = threading.Thread(target=process.communicate)
        reader.start()
        peaks.append(peak_memory(process))
        reader.join()
        assert process.returncode == 0
    print(f"model {size / 1e6:.0f} MB, peak above that of a tiny model {(peaks[1] - peaks[0]) / 1e6:.0f} MB")
    # The largest tensors exist twice for a moment.
    assert peaks[1] - peaks[0] < 2.1 * size


def test_a_real_model_is_equal(shared: Path, tmp_path: Path) -> None:
    """The first two packs of 1,024 slots of real instructions: the loss of the first step within 1e-5."""
    model = os.environ.get("VERIFY_MODEL_DIR")
    if model is None:
        pytest.skip("VERIFY_MODEL_DIR names no model; examples/real_model/make_model.py makes one")
    words = ["--input", str(shared / "data" / "alpaca_en.json"), "--tokenizer-name-or-path", model, "--seq-length"]
    words += ["1024", "--tokenizer-type", "PretrainedFromHF", "--output-prefix", str(tmp_path / "alpaca"), "--pack"]
    preprocess = [sys.executable, "preprocess_data.py", *words, "--neat-pack", "--append-eod"]
    subprocess.run(preprocess, cwd=ROOT, check=True, capture_output=True)
    status, output = verify("--load", model, "--data-path", str(tmp_path / "alpaca"))
    print(output)
    assert status == 0, output
    found = re.search(r"first step: loss .* ([\d.]+) and ([\d.]+)", output)
    assert found is not None and abs(float(found[1]) - float(found[2])) <= 1e-5
