"""A quick fingerprint of a model's weights, which tells whether a folder that moved is the same one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspeed_llm.storage.hashing import sha256_of_blocks

BLOCK_BYTES = 1 << 16
BLOCKS = 16  # of each file
# Names that a folder may gain or lose without another model in it: what a conversion carries, what is not weights.
WEIGHTS = ("*.safetensors", "*.distcp", "mp_rank_*/*.pt")


def weights_fingerprint(folder: Path) -> str | None:
    """Hash name, size and 16 blocks of each file of weights, spread from its first byte to its last.

    Weights that were trained differ nearly everywhere, so blocks tell them apart; a file of 5 GB costs 1 MB of reading.

    Args:
        folder: an iter_ folder, or a Hugging Face model.

    Returns:
        SHA-256; None if there are no weights, or they cannot be read.
    """
    try:
        paths = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
        return sha256_of_blocks(_blocks(folder, paths)) if paths else None
    except OSError:
        return None


def _blocks(folder: Path, paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        size = path.stat().st_size
        yield f"{path.relative_to(folder).as_posix()} {size}\n".encode()
        last = max(size - BLOCK_BYTES, 0)
        with path.open("rb") as file:
            for start in sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)}):
                file.seek(start)
                yield file.read(BLOCK_BYTES)
