"""Where megatron-core gets the reader of a checkpoint from.

megatron-core makes the reader inside its strategy, out of the folder's name alone, and that reader unpickles
`.metadata`. With this in place it takes the reader that the caller of its load has opened, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindspeed_llm.devices.device_traits import Kind

_open: Callable[[], Any] | None = None


@contextmanager
def reading_with(open_reader: Callable[[], Any]) -> Generator[None, None, None]:
    """Within this, megatron-core reads through what `open_reader` returns, a torch FileSystemReader."""
    global _open
    before, _open = _open, open_reader
    try:
        yield
    finally:
        _open = before


def use_opened_reader(_: Kind) -> None:
    """Replace megatron-core's factory of readers."""
    from megatron.core.dist_checkpointing.strategies import torch as strategy

    strategy._get_filesystem_reader = _opened


def _opened(*_: Any, **__: Any) -> Any:
    if _open is None:
        raise RuntimeError("a checkpoint would be unpickled: read it within reading_with")
    return _open()
