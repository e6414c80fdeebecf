"""Whether the machines of a job hold the same data and begin at the same place: only the checkpoint must be shared."""

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
from mindspeed_llm.indexed_dataset import PackedFiles

NO_FILE = "no such file"
# Of a shared file system one machine may see a new checkpoint some seconds after another.
LOOKS = 4
SECONDS_BETWEEN_LOOKS = 5.0


def agree_on_start_point(
    choose: Callable[[], StartPoint], device: Device, files: Sequence[PackedFiles], timeout_minutes: int
) -> tuple[StartPoint, list[RankInfo]]:
    """Where the run starts, once every rank is ready and all agree. Collective; before any process group.

    Args:
        choose: finds where this rank would start; called again while the ranks find different places.
        device: of this rank.
        files: the data sets, opened.
        timeout_minutes: --distributed-timeout-minutes.

    Returns:
        the start, and what every rank said of itself.

    Raises:
        UserError: a machine is not ready, or machines do not hold the same.
    """
    with report_startup_errors(timeout_minutes):
        data = local_data_hashes(files)
    for look in range(LOOKS):
        if look:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        with report_startup_errors(timeout_minutes):
            start = choose()
            place = f"{start.kind}, iteration {start.progress.iteration}"
            own = RankInfo(
                current_rank(), socket.gethostname(), describe_device(device), library_versions(), data, place
            )
        every = exchange_rank_info(own, rendezvous_timeout(timeout_minutes))
        check_same_data(every)
        if len({one.start for one in every}) == 1:
            return start, every
    error = CheckpointError(
        "the machines of this job do not see the same checkpoints: "
        + "; ".join(
            f"{where}: {place}" for where, place in group_by_machine(every, {one.rank: one.start for one in every})
        )
        + ". --load and --save must be on storage that all of them share"
    )
    error.on_one_rank = is_first_rank_of_machine()
    raise error


def local_data_hashes(files: Sequence[PackedFiles]) -> dict[str, tuple[str, str]]:
    """What this machine's copy of the data is, for `Facts.data`: paths may differ between machines, hashes may not."""
    return {
        f"data set {number}, {path.name.rpartition('_packed_')[2]}": (str(path), digest)
        for number, one in enumerate(files)
        for path, digest in one.fingerprint().items()
    }


def check_same_data(every: Sequence[RankInfo]) -> None:
    """Refuse a job whose machines hold different data. Each rank raises the same.

    Raises:
        DataError: naming machines, files and hashes.
    """
    problems = []
    for name in sorted({name for one in every for name in one.data}):
        here = {one.rank: one.data.get(name, (name, NO_FILE)) for one in every}
        if len({digest for _, digest in here.values()}) > 1:
            shown = {rank: f"{path}: {digest[:12]}" for rank, (path, digest) in here.items()}
            problems += [f"  {where} has {value}" for where, value in group_by_machine(every, shown)]
    if problems:
        said = ["the machines of this job do not hold the same data:", *problems]
        error = DataError("\n".join([*said, "copy the files of one prefix, the manifest too, from one machine to all"]))
        error.on_one_rank = is_first_rank_of_machine()
        raise error
