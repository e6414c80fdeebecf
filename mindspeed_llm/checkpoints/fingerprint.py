"""Compute a quick fingerprint of a model's weights, to recognize the same weights after a directory was moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspeed_llm.storage.hashing import sha256_of_blocks

BLOCK_BYTES = 1 << 16
BLOCKS = 16  # per file
# Only files of weights: other files, such as a tokenizer, may be added or removed while the model stays the same.
WEIGHTS = ("*.safetensors", "*.distcp", "mp_rank_*/*.pt")


def weights_fingerprint(folder: Path) -> str | None:
    """Hash the name, the size and 16 evenly spaced blocks of each file of weights.

    Training changes nearly every weight, so a few blocks are enough to distinguish two models, and 1 MB is read of a
    file of 5 GB.

    Args:
        folder: an iter_ folder, or a Hugging Face model.

    Returns:
        SHA-256 in hexadecimal digits; None if there are no weights, or they cannot be read.
    """
    try:
        paths = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
        return sha256_of_blocks(_blocks(folder, paths)) if paths else None
    except OSError:
        return None


def _blocks(folder: Path, paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield name and size of each file, and 16 blocks of 64 KiB from its first byte to its last."""
    for path in paths:
        size = path.stat().st_size
        yield f"{path.relative_to(folder).as_posix()} {size}\n".encode()
        last = max(size - BLOCK_BYTES, 0)
        with path.open("rb") as file:
            for start in sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)}):
                file.seek(start)
                yield file.read(BLOCK_BYTES)
