"""Read and tokenise on this machine: in this process, or with --workers in several.

Nearly all of the work is Python, which threads of one process cannot do at the same time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing.batch_outcome import OutcomeWriter, tokenise_batch
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.preprocessing.row_blocks import (
    Block,
    BlockResult,
    command_of,
    input_blocks,
    prepare_worker,
    tokenise_block,
    write_in_order,
)
from mindspeed_llm.preprocessing.sample_reader import read_all_rows, row_batches
from mindspeed_llm.rawdata import ReadPosition
from mindspeed_llm.tokenization import SampleBuilder

BLOCK_BYTES = 1 << 20  # large enough that the overhead of a block does not count, small enough for a short last block
BLOCKS_AHEAD = 2  # blocks that wait for a worker


def read_samples(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, builder: SampleBuilder, outcome_writer: OutcomeWriter
) -> None:
    """Read and tokenise all rows, and pass the outcomes to `outcome_writer` in the order of the rows.

    Args:
        arguments: the command line.
        inputs: files, handler, template and tokenizer.
        builder: makes samples of conversations.
        outcome_writer: receives the outcomes.

    Raises:
        DataError: the first error in the order of the rows: a damaged file, or a row that `outcome_writer` refuses. The
            message names file and line.
    """
    # One block is not divided among workers, so small files need none.
    workers = min(arguments.run.workers, -(-sum(file.size for file in inputs.files) // BLOCK_BYTES))
    if workers == 1:
        position = ReadPosition()
        for batch in row_batches(read_all_rows(arguments, inputs, position), inputs.handler, position):
            outcome_writer.write(tokenise_batch(batch, builder))
        return
    command = command_of(arguments)
    prepare_worker(command, inputs, builder)
    with _process_pool(workers) as pool:

        def submit(block: Block) -> Callable[[], BlockResult]:
            return pool.submit(tokenise_block, command, inputs.tokenizer.sha256, block).result

        blocks = input_blocks(arguments, inputs, BLOCK_BYTES)
        try:
            write_in_order(blocks, submit, workers + BLOCKS_AHEAD, inputs, outcome_writer)
        except BrokenProcessPool as error:
            raise DataError(
                f"--workers {arguments.run.workers}: a worker process died, usually because the memory was exhausted; "
                "give fewer --workers, or a smaller --max-row-mib"
            ) from error


@contextlib.contextmanager
def _process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of processes, and end it without work that nobody waits for."""
    # A fork shares the memory of the tokenizer. No thread is running yet. On other systems than Linux system libraries
    # do not support a fork, so the processes load the tokenizer again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        # After an error or interrupt nothing needs the blocks that are being tokenised.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Let the main process alone decide when a worker ends."""
    # Ctrl-C in a terminal goes to all processes, and the main process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """End this process when the main process is gone, even if that was killed."""
    main = multiprocessing.parent_process()
    assert main is not None
    connection.wait([main.sentinel])
    os._exit(1)
