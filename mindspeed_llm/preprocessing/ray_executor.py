"""Read and tokenise in tasks of a Ray cluster (`--executor ray`), one task per block of the input (row_blocks.py).

A task depends on its block only, so Ray runs it again if its worker dies. Every node must have the files and the
tokenizer under the same paths.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.preprocessing.batch_outcome import OutcomeWriter
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.preprocessing.row_blocks import (
    Block,
    BlockResult,
    command_of,
    input_blocks,
    tokenise_block,
    write_in_order,
)

BLOCK_BYTES = 1 << 24
BLOCKS_IN_FLIGHT = 2  # per CPU of the cluster; more would fill the object store with results that wait to be written


def read_samples_on_ray(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, outcome_writer: OutcomeWriter
) -> None:
    """Read and tokenise all rows on a Ray cluster; the result is that of `read_samples`.

    Raises:
        ConfigError: ray is not installed, or the cluster cannot be reached.
        DataError: see `read_samples`; or the workers of a block died repeatedly.
    """
    ray = _connected(arguments)
    try:
        task = ray.remote(num_cpus=1, max_retries=3)(tokenise_block)
        command = command_of(arguments)
        limit = BLOCKS_IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))

        def submit(block: Block) -> Callable[[], BlockResult]:
            result = task.remote(command, inputs.tokenizer.sha256, block)
            return lambda: _result_of(ray, block, result)

        write_in_order(input_blocks(arguments, inputs, BLOCK_BYTES), submit, limit, inputs, outcome_writer)
    finally:
        ray.shutdown()


def _connected(arguments: PreprocessArguments) -> Any:
    """Import ray, connect to a cluster, and return the module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else ray sends usage statistics
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray: the package ray is not installed; pip install -e '.[ray]', or leave the flag out"
        ) from error
    address = arguments.run.ray_address
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                num_cpus=arguments.run.workers, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = "a cluster on this machine" if address is None else f"--ray-address {address}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--executor ray: {where} cannot be reached ({reason}); start one with 'ray start --head', "
            "or leave --ray-address out"
        ) from error
    except BaseException:
        ray.shutdown()
        raise
    signal.signal(signal.SIGTERM, on_sigterm)  # ray has replaced it
    return ray


def _result_of(ray: Any, block: Block, result: Any) -> BlockResult:
    died = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    try:
        tokenised: BlockResult = ray.get(result)
        return tokenised
    except died as error:
        raise DataError(
            f"{block.where}: every worker died that processed the block which begins here ({type(error).__name__}); "
            "look into the logs of Ray, and give its nodes more memory if they ran out of it"
        ) from error
