"""Errors of the operating system as errors that a user can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindspeed_llm.errors import DataError


@contextmanager
def disk_errors(path: Path, flag: str = "--output-prefix") -> Iterator[None]:
    """Turn what the operating system says of `path`, which `flag` names, into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"no space left on the disk; free some, or choose another place with {flag}"
        else:
            advice = f"cannot be written ({error.strerror or error}); choose another place with {flag}"
        raise DataError(f"{path}: {advice}") from error
