"""Check before training that all machines of a job have the same data and the same start point.

Only the checkpoints must be on shared storage; each machine may have its own copy of the data.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

from mindspeed_llm.checkpoints import StartPoint
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.rendezvous import (
    RankInfo,
    current_rank,
    exchange_rank_info,
    group_by_machine,
    is_first_rank_of_machine,
    rendezvous_timeout,
    report_startup_errors,
)
from mindspeed_llm.devices.versions import describe_device, library_versions
from mindspeed_llm.errors import CheckpointError, DataError
from mindspeed_llm.indexed_dataset import DataFiles

NO_FILE = "no such file"
# On a shared file system one machine may see a new checkpoint some seconds after another, so the ranks look again.
LOOKS = 4
SECONDS_BETWEEN_LOOKS = 5.0


def agree_on_start_point(
    find_start: Callable[[], StartPoint], device: Device, files: Sequence[DataFiles], timeout_minutes: int
) -> tuple[StartPoint, list[RankInfo]]:
    """Wait until every rank is ready, and agree on the start point of the run.

    Collective. Must be called before any process group exists: the ranks communicate through the store of the launcher.

    Args:
        find_start: finds the start point that this rank sees; called again while the ranks see different ones.
        device: device of this rank.
        files: the opened data sets.
        timeout_minutes: --distributed-timeout-minutes.

    Returns:
        The start point, and the information that each rank reported about itself.

    Raises:
        UserError: a machine is not ready, or the machines have different data or see different checkpoints.
    """
    with report_startup_errors(timeout_minutes):
        data = local_data_hashes(files)
    for look in range(LOOKS):
        if look:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        with report_startup_errors(timeout_minutes):
            start = find_start()
            description = f"{start.kind}, iteration {start.progress.iteration}"
            own = RankInfo(
                current_rank(), socket.gethostname(), describe_device(device), library_versions(), data, description
            )
        every_rank = exchange_rank_info(own, rendezvous_timeout(timeout_minutes))
        # First, because different data will not become equal by looking again.
        check_same_data(every_rank)
        if len({info.start for info in every_rank}) == 1:
            return start, every_rank
    error = CheckpointError(
        "the machines of this job do not see the same checkpoints: "
        + "; ".join(
            f"{where}: {description}"
            for where, description in group_by_machine(every_rank, {info.rank: info.start for info in every_rank})
        )
        + ". --load and --save must be on storage that all of them share"
    )
    # Every rank raises the same error. One rank per machine prints it, because each machine has its own log.
    error.on_one_rank = is_first_rank_of_machine()
    raise error


def local_data_hashes(files: Sequence[DataFiles]) -> dict[str, tuple[str, str]]:
    """Describe this machine's copy of the data for `RankInfo.data`.

    Returns:
        Name of a file → (path on this machine, hash). The names are the same on all machines, so that hashes can be
        compared; the paths may differ.
    """
    return {
        f"data set {number}, {path.name.rpartition('_packed_')[2]}": (str(path), digest)
        for number, packed in enumerate(files)
        for path, digest in packed.fingerprint().items()
    }


def check_same_data(every_rank: Sequence[RankInfo]) -> None:
    """Check that all machines have the same data.

    Args:
        every_rank: information of each rank; the same on every rank, so that all raise the same error.

    Raises:
        DataError: machines have different data. The message lists machines, files and hashes.
    """
    problems = []
    for name in sorted({name for info in every_rank for name in info.data}):
        copies = {info.rank: info.data.get(name, (name, NO_FILE)) for info in every_rank}
        if len({digest for _, digest in copies.values()}) > 1:
            shown = {rank: f"{path}: {digest[:12]}" for rank, (path, digest) in copies.items()}
            problems += [f"  {where} has {value}" for where, value in group_by_machine(every_rank, shown)]
    if problems:
        lines = ["the machines of this job do not hold the same data:", *problems]
        error = DataError(
            "\n".join([*lines, "copy the files of one prefix, the manifest too, from one machine to all"])
        )
        error.on_one_rank = is_first_rank_of_machine()
        raise error
