"""Save the distributed optimizer's state correctly if the gradient buffer has several buckets.

megatron-core keeps the parameters of a rank in one flat buffer. The buffer is divided into buckets, and the end of each
bucket is padded to a multiple of lcm(DP, 128) elements. `param_index_map` holds the offsets of the parameters in that
buffer. For a checkpoint the state is gathered into flat tensors without the padding at the ends of the buckets. Three
parameters a, b and c in two buckets:

    buffer           a a a a a b b b . . . | c c c c . . . .      a at 0, b at 5, c at 11
    gathered state   a a a a a b b b c c c c                      a at 0, b at 5, c at 8

megatron-core 0.16.1 reads the gathered state at the offsets of the buffer: c at 11, where only one element of c
remains. It fills the rest with zeros and logs a warning.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mindspeed_llm.errors import CheckpointError

if TYPE_CHECKING:
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer

# Part of megatron-core's warning before it fills a parameter's state with zeros.
_WARNING = "padded with zeros"


def correct_offsets() -> None:
    """Patch megatron-core to read the gathered state at the correct offsets, and to raise an error where it warned."""
    from megatron.core.optimizer import distrib_optimizer

    original = distrib_optimizer.DistributedOptimizer.sharded_param_state_fully_reshardable

    @functools.wraps(original)
    def corrected(self: Any, *arguments: Any, **named: Any) -> Any:
        with offsets_in_gathered_state(self.buffers), warning_is_error(distrib_optimizer.logger):
            return original(self, *arguments, **named)

    distrib_optimizer.DistributedOptimizer.sharded_param_state_fully_reshardable = corrected


@contextlib.contextmanager
def offsets_in_gathered_state(buffers: Sequence[_ParamAndGradBuffer]) -> Iterator[None]:
    """Replace `param_index_map` with the offsets in the gathered state inside the context.

    These are the offsets in the buffer minus the padding of all earlier buckets.

    Args:
        buffers: gradient buffers of the distributed optimizer.
    """
    in_buffer = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        padding = [bucket.grad_data.numel() - bucket.numel_unpadded for bucket in buffer.buckets]
        before = [0, *itertools.accumulate(padding)]
        buffer.param_index_map = {
            parameter: (start - before[bucket], end - before[bucket], bucket)
            for parameter, (start, end, bucket) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, offsets in zip(buffers, in_buffer, strict=True):
            buffer.param_index_map = offsets


@contextlib.contextmanager
def warning_is_error(logger: logging.Logger) -> Iterator[None]:
    """Raise an error if megatron-core logs that it fills the state of a parameter with zeros.

    Args:
        logger: the logger of megatron-core's distributed optimizer.

    Raises:
        CheckpointError: The warning is logged. Other ranks may not raise it.
    """

    # A filter, because megatron-core only logs a warning: an exception in a filter reaches the caller of the logger.
    def raise_for_warning(record: logging.LogRecord) -> bool:
        if _WARNING in record.getMessage():
            raise CheckpointError(f"the optimizer's state would be saved wrongly: {record.getMessage()}")
        return True

    logger.addFilter(raise_for_warning)
    try:
        yield
    finally:
        logger.removeFilter(raise_for_warning)
