"""Comparisons with transformers in this process, whose process groups exist, and faults in models."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def compare(load: Path, data: Path, *flags: str, ranks: int = 1) -> tuple[int, str]:
    """Compare as `python -m mindspeed_llm.verify` does; exit status and output."""
    from mindspeed_llm.data import build_datasets
    from mindspeed_llm.devices import select_device
    from mindspeed_llm.verify.comparison_run import run_comparison
    from mindspeed_llm.verify.verify_arguments import parse_verify_arguments

    words = ["--device", "cpu", "--load", str(load), "--data-path", str(data), *flags]
    command = parse_verify_arguments(words, ranks)
    datasets = build_datasets(command.run.data, command.run.training.seed, evaluate=False)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mindspeed_llm.verify")
    logger.addHandler(handler)
    try:
        return run_comparison(command, select_device("cpu"), datasets, None), "\n".join(lines)
    finally:
        logger.removeHandler(handler)


def failed_rows(output: str) -> list[str]:
    """Names of the rows that failed."""
    return [line.split("  ")[0] for line in output.splitlines() if "  FAIL" in line]


def changed_copy(
    source: Path,
    target: Path,
    config: dict | None = None,
    weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> Path:
    """Copy a Hugging Face folder with other values in config.json, or with other weights."""
    shutil.copytree(source, target)
    if config is not None:
        path = target / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if weights is not None:
        path = target / "model.safetensors"
        save_file(weights(load_file(path)), path, {"format": "pt"})
    return target
