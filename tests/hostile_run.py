"""Write the directory of a run whose text would break a page that does not escape it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindspeed_llm.manifest import Histograms, Manifest, RowCounts, TokenizerInfo, manifest_path

HOSTILE = "</td><script>document.title='x'</script><img src=x onerror=console.error(1)> & \"'\x1b[2J 三🙂"
ITERATIONS = (0, 2, 4)


def answer(iteration: int, line: int, output: str, **values: Any) -> dict[str, Any]:
    record = {"iteration": iteration, "line": line, "prompt": f"Reverse {line}: a b", "answer": "b a"}
    return record | {"output": output, "tokens": 3, "stopped": True, "exact": output == "b a"} | values


def json_lines(path: Path, records: list[dict[str, Any] | str]) -> None:
    texts = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(text + "\n" for text in texts), "utf-8")


def packed_data(folder: Path, name: str) -> str:
    """Write the manifest of packed files."""
    prefix = str(folder / name)
    Manifest(
        packed=True, neat=True, seq_length=100, append_eod=True, eod_inside_sample=False,
        tokenizer=TokenizerInfo("PretrainedFromHF", "0", 100, 0, 1), template=None, handler="A", sources=[],
        counts=RowCounts(5, 5), samples=5, tokens=180, trained_tokens=60, packs=2, fill=0.9, packing=None,
        histograms=Histograms([[36, 5]], [[2, 1], [3, 1]]),
    ).write(manifest_path(prefix))  # fmt: skip
    return prefix


def hostile_run(parent: Path) -> Path:
    """Write a run directory with hostile text in every place that a user or a model can fill."""
    folder = parent / "a <b> run"
    folder.mkdir()
    start = {
        "kind": "start",
        "layout": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "versions": {"torch": "2.13.0", "odd": HOSTILE},
        "arguments": {"data": {"data_path": [packed_data(parent, "<i>set"), HOSTILE]}, "given": ["--data-path"]},
    }
    steps: list[dict[str, Any] | str] = [
        {"kind": "train", "iteration": i, "loss": 4.0 / i, "tokens": 90, "slots": 100, "trained_tokens": 30}
        | {"tokens_per_second": 500.0, "step_seconds": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}
        for i in (1, 2, 3, 4)
    ]
    held_out = [{"kind": "eval", "iteration": i, "split": "valid", "loss": 5.0 - i} for i in ITERATIONS]
    json_lines(folder / "metrics.jsonl", [start, *steps, *held_out])
    lines: list[dict[str, Any] | str] = []
    for iteration in ITERATIONS:
        said = "b a" if iteration == 4 else f"noise {iteration}"
        lines += [answer(iteration, 1, said), answer(iteration, 2, HOSTILE, stopped=False, answer=HOSTILE)]
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}]
        free = answer(iteration, 3, "free text", messages=talk, exact=None)
        lines.append({key: value for key, value in free.items() if key not in ("prompt", "answer")})
    json_lines(folder / "generations.jsonl", lines)
    return folder
