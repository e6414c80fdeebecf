"""Verify the hashes of the packed files before a run starts. The ranks of a machine share the files.

Every machine verifies its own copy. All machines expect the same hashes, because they have compared their manifests
before (`startup_checks`).
"""

from __future__ import annotations

import datetime
import logging
import math
import socket
from collections.abc import Sequence

from mindspeed_llm.devices.rendezvous import (
    ALL_MACHINES,
    RankInfo,
    current_rank,
    exchange_rank_info,
    rendezvous_timeout,
    report_startup_errors,
)
from mindspeed_llm.devices.shared_work import SharedWork, ranks_sharing_work
from mindspeed_llm.indexed_dataset import DataFiles, HashCache, HashedFile, verify_files
from mindspeed_llm.indexed_dataset.hash_verification import hash_threads, verification_order

logger = logging.getLogger(__name__)

# With --verify-data-seconds -1 the other machines wait as long as reading at this speed takes. A machine that needs
# longer counts as hung.
SLOWEST_BYTES_PER_SECOND = 10e6
# Files of less than this total size are read within seconds, so no progress line is needed.
BYTES_TO_MENTION = 4e9
# Maximum number of files that the notice lists per machine.
FILES_NAMED = 12


def check_data_hashes(files: Sequence[DataFiles], limit: float, timeout_minutes: int) -> None:
    """Verify the data of every machine for at most --verify-data-seconds.

    Collective. Must be called before any process group exists: the ranks communicate through the store of the launcher.

    Args:
        files: the opened data sets.
        limit: --verify-data-seconds; negative: verify every file, without a time limit.
        timeout_minutes: --distributed-timeout-minutes.

    Raises:
        UserError: a file differs from its hash in the manifest. Raised on every rank, with machine and file.
    """
    # Two data sets may share a file; the absolute path is the key, so that it is read once.
    hashed = list({file.path.absolute(): file for packed in files for file in packed.hashed_files()}.values())
    seconds = math.inf if limit < 0 else limit
    max_seconds = sum(file.facts.size for file in hashed) / SLOWEST_BYTES_PER_SECOND if limit < 0 else limit
    # Ranks finish at different times, so a rank that waits for the others must allow this time on top of its timeout.
    busy = datetime.timedelta(seconds=max_seconds)
    with report_startup_errors(timeout_minutes, busy):
        unchecked = _verify_share(hashed, seconds, rendezvous_timeout(timeout_minutes)) if hashed and limit else []
    own = RankInfo(current_rank(), socket.gethostname(), unchecked=[str(file.path) for file in unchecked])
    every_rank = exchange_rank_info(own, rendezvous_timeout(timeout_minutes) + busy)
    notice = notice_of_unchecked(every_rank, limit)
    if notice is not None:
        logger.warning(notice)


def _verify_share(files: Sequence[HashedFile], seconds: float, timeout: datetime.timedelta) -> list[HashedFile]:
    """Verify this rank's share of the files and return those of it that were not verified in time."""
    cache = HashCache.of_this_machine()
    work = SharedWork(lambda: _files_to_verify(files, cache, seconds), timeout)
    try:
        return verify_files(files, cache, seconds, work.take, work.halted, hash_threads(ranks_sharing_work()))
    except BaseException:
        # Any error of this rank ends the job, Ctrl-C included, so the ranks of all machines can stop reading.
        work.halt()
        raise


def _files_to_verify(files: Sequence[HashedFile], cache: HashCache, seconds: float) -> list[int]:
    """Return the indices of the files to verify, in order. Called on the first rank of each machine."""
    numbers = verification_order(files, cache, seconds)
    cache.remove_unused()
    size = sum(files[number].facts.size for number in numbers)
    if size >= BYTES_TO_MENTION:
        limit = "" if math.isinf(seconds) else f", for at most {seconds:g} s (--verify-data-seconds)"
        logger.info(f"comparing {len(numbers)} packed files, {size / 1e9:,.1f} GB, with their hashes{limit}")
        if not cache.writable:
            logger.warning(
                "notice: no cache folder is writable (XDG_CACHE_HOME, or ~/.cache), so every start reads all packed "
                "files again"
            )
    return numbers


def notice_of_unchecked(every_rank: Sequence[RankInfo], limit: float) -> str | None:
    """Format the notice that lists, by machine, the files that were not verified in time.

    Args:
        every_rank: information of each rank.
        limit: --verify-data-seconds.

    Returns:
        One line, or None if every file was verified.
    """
    hosts: dict[str, set[str]] = {info.host: set() for info in every_rank}
    for info in every_rank:
        hosts[info.host].update(info.unchecked)
    machines: dict[tuple[str, ...], list[str]] = {}
    for host, names in hosts.items():
        if names:
            machines.setdefault(tuple(sorted(names)), []).append(host)
    if not machines:
        return None
    parts = []
    for files, names_of_hosts in machines.items():
        where = ALL_MACHINES if len(names_of_hosts) == len(hosts) > 1 else ", ".join(names_of_hosts)
        more = f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
        parts.append(f"{where}: {', '.join(files[:FILES_NAMED])}{more}")
    return (
        f"notice: not compared with their hashes within --verify-data-seconds {limit:g}: {'; '.join(parts)}. The next "
        "start begins with them; --verify-data-seconds -1 checks every file, however long it takes"
    )
