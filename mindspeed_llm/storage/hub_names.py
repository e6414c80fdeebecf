"""Advice for the name of a model on the Hugging Face Hub where a directory is expected. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

# Owner and model, such as Qwen/Qwen2.5-7B-Instruct.
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def download_advice(name: str | Path, weights: bool = True) -> str:
    """Return how to download the model that `name` may name; "" if it is a path.

    Args:
        name: value of a flag that expects a directory.
        weights: whether its weights are needed, rather than its tokenizer only.

    Returns:
        The end of an error message, beginning with a semicolon.
    """
    model = str(name)
    # The owner is not a directory here: else the name is rather a path with a misspelt end.
    if HUB_NAME.fullmatch(model) is None or Path(model).exists() or Path(model).parent.exists():
        return ""
    part = "" if weights else " --exclude '*.safetensors'"
    folder = model.partition("/")[2]
    return (
        f"; if it is a model of the Hugging Face Hub, download it with 'hf download {model} --local-dir {folder}{part}'"
        f" and give ./{folder}"
    )
