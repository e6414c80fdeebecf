"""Replace the reader with which megatron-core loads a checkpoint.

The load strategy of megatron-core creates its reader from the directory name alone, and that reader unpickles
`.metadata`. With this patch it uses the reader of the caller, which reads checked values.
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
    """Let megatron-core load checkpoints with the given reader inside the context.

    Args:
        open_reader: returns the reader, a torch FileSystemReader.
    """
    global _open
    before, _open = _open, open_reader
    try:
        yield
    finally:
        _open = before


def use_opened_reader(_: Kind) -> None:
    """Replace megatron-core's factory of readers with `reading_with`."""
    from megatron.core.dist_checkpointing.strategies import torch as strategy

    strategy._get_filesystem_reader = _create_reader


def _create_reader(*_: Any, **__: Any) -> Any:
    # Never megatron-core's own reader: outside of `reading_with` loading must fail, because it would unpickle.
    if _open is None:
        raise RuntimeError("a checkpoint would be unpickled: load it inside reading_with")
    return _open()
