"""Benchmark speed and memory of checkpoint conversion against copying the files.

    python benchmarks/conversion.py FOLDER [--layers 8]

Writes a model with the shapes of Qwen2.5-7B but fewer layers to FOLDER (random bfloat16 values, equal in all layers),
copies its files, then converts it to megatron-core and back in separate processes. Before each measurement the source
is removed from the page cache, and the time includes writing everything to disk. Prints a table of seconds, GB/s, time
relative to the copy (the mean of one copy before and one after), and peak memory of each process. Needs three times the
model size on disk; --layers 28 is the complete model of 15.2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}


def write_model(folder: Path, layers: int) -> int:
    """Write a Hugging Face folder with random weights and return its size in bytes."""
    from mindspeed_llm.arguments.hugging_face_config import read_config
    from mindspeed_llm.conversion import TensorCatalogue
    from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWriter

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    shapes = TensorCatalogue(read_config(folder)).hugging_face_shapes()
    writer = HuggingFaceWriter(folder, shapes, torch.bfloat16)
    # One tensor per shape: generating random values for every layer would take longer than the benchmark.
    drawn: dict[tuple[int, ...], torch.Tensor] = {}
    for name, shape in shapes.items():
        if shape not in drawn:
            drawn[shape] = torch.randn(shape, dtype=torch.bfloat16)
        writer.write(name, drawn[shape])
    writer.finish()
    return writer.total


def drop_cache(folder: Path) -> None:
    """Remove the files of a folder from the page cache, so that every measurement reads from disk."""
    from mindspeed_llm.storage.uncached_file import drop_cached_pages

    for path in folder.rglob("*.*"):
        if path.is_file():
            drop_cached_pages(path)


def copy(source: Path, target: Path) -> float:
    """Return the seconds to copy a folder and flush it to disk; the copy is then removed."""
    drop_cache(source)
    start = time.perf_counter()
    shutil.copytree(source, target)
    for path in target.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def convert(*arguments: str) -> tuple[float, float]:
    """Run one conversion; return its seconds and its peak memory in GB, including memory-mapped pages of files."""
    drop_cache(Path(arguments[arguments.index("--load-dir") + 1]))
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "convert_ckpt.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the conversion ended with status {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="working directory; removed afterwards")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model (default 8)")
    arguments = parser.parse_args()
    folder = arguments.folder
    size = write_model(folder / "hf", arguments.layers) / 1e9
    rows: list[tuple[str, float, float | None]] = [("copying the files", copy(folder / "hf", folder / "copy"), None)]
    for title, forward, back, flags in (
        ("torch_dist", "dist", "back", []),
        ("torch, TP 4", "ranks", "again", ["--ckpt-format", "torch", "--target-tensor-parallel-size", "4"]),
    ):
        paths = {name: str(folder / name) for name in ("hf", forward, back)}
        rows.append((f"hf → {title}", *convert("--load-dir", paths["hf"], "--save-dir", paths[forward], *flags)))
        mg = ["--load-model-type", "mg", "--save-model-type", "hf"]
        rows.append((f"{title} → hf", *convert(*mg, "--load-dir", paths[forward], "--save-dir", paths[back])))
        for path in sorted((folder / "hf").glob("*.safetensors")):
            same = subprocess.run(["cmp", str(path), str(folder / back / path.name)], check=False).returncode == 0
            print(f"{back}/{path.name}: {'identical' if same else 'DIFFERENT'}")
        shutil.rmtree(folder / forward)
        shutil.rmtree(folder / back)
    rows.append(("copying the files", copy(folder / "hf", folder / "copy"), None))
    copying = (rows[0][1] + rows[-1][1]) / 2
    print(f"\nQwen2.5-7B's shapes, {arguments.layers} layers, {size:.2f} GB in bfloat16")
    print(f"{'':20}{'seconds':>10}{'GB/s':>8}{'× copy':>8}{'peak memory':>14}")
    for title, seconds, memory in rows:
        print(
            f"{title:20}{seconds:10.1f}{size / seconds:8.2f}{seconds / copying:8.2f}"
            + (f"{memory:11.2f} GB" if memory else "")
        )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
