"""Stop a run early if its output would not fit on the disk."""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.storage.disk_errors import check_free_space

PACKED_TOKEN_BYTES = 12  # of the packed files: three columns of int32
STORED_BYTES = 4  # of the token store
FIRST_BYTES = 1 << 24  # of the input before the first estimate


class SpaceCheck:
    """Estimate the size of the output while the input is read, and compare it with the free space.

    Args:
        folder: directory of the output.
        total_bytes: size of all input files in bytes.
        token_bytes: size of a token in the output files in bytes.
    """

    def __init__(self, folder: Path, total_bytes: int, token_bytes: int = PACKED_TOKEN_BYTES) -> None:
        self._folder, self._total, self._token_bytes = folder, total_bytes, token_bytes
        self._next = max(FIRST_BYTES, total_bytes // 100)

    def update(self, bytes_read: int, tokens: int) -> None:
        """Check the free space when the part of the input that has been read has doubled.

        Args:
            bytes_read: bytes of the input that have been read.
            tokens: tokens of the samples so far.

        Raises:
            DataError: the free space is too small.
        """
        if bytes_read < self._next:
            return
        self._next = 2 * bytes_read
        expected = tokens * max(1.0, self._total / bytes_read)
        self._check(int(expected) * (self._token_bytes + STORED_BYTES) - tokens * STORED_BYTES, "about ")

    def check_output(self, slots: int) -> None:
        """Check the free space for files of `slots` slots or tokens.

        Raises:
            DataError: the free space is too small.
        """
        self._check(slots * self._token_bytes, "")

    def _check(self, needed: int, about: str) -> None:
        try:
            check_free_space(self._folder, needed)
        except OSError as error:
            raise DataError(
                f"{self._folder}: the output does not fit on the disk: {about}{error.strerror or error}; free some "
                "space, or choose another disk with --output-prefix"
            ) from error
