"""Compare the packed files with their hashes before a run starts; the ranks of a machine share the files.

Every machine checks its own copy. The machines have agreed on the manifests before, so all expect the same hashes.
"""

from __future__ import annotations

import datetime
import logging
import math
import socket
from collections.abc import Sequence

from mindspeed_llm.devices.rendezvous import (
    EVERYWHERE,
    RankInfo,
    current_rank,
    exchange_rank_info,
    rendezvous_timeout,
    report_startup_errors,
)
from mindspeed_llm.devices.shared_work import SharedWork, ranks_sharing_work
from mindspeed_llm.indexed_dataset import HashCache, HashedFile, PackedFiles, verify_files
from mindspeed_llm.indexed_dataset.hash_verification import hash_threads, verification_order

logger = logging.getLogger(__name__)

# A machine that needs longer than at this speed for --verify-data-seconds -1 is taken for one that hangs.
SLOWEST_BYTES_PER_SECOND = 10e6
# Less than this is read within seconds.
BYTES_TO_MENTION = 4e9
FILES_NAMED = 12


def check_data_hashes(files: Sequence[PackedFiles], limit: float, timeout_minutes: int) -> None:
    """Check the data of every machine for at most --verify-data-seconds. Collective; before any process group.

    Args:
        files: the data sets, opened.
        limit: --verify-data-seconds.
        timeout_minutes: --distributed-timeout-minutes.

    Raises:
        UserError: a file of a machine is not what its manifest says; on every rank, naming machine and file.
    """
    hashed = list({file.path.absolute(): file for one in files for file in one.hashed_files()}.values())
    seconds = math.inf if limit < 0 else limit
    longest = sum(file.facts.size for file in hashed) / SLOWEST_BYTES_PER_SECOND if limit < 0 else limit
    busy = datetime.timedelta(seconds=longest)
    with report_startup_errors(timeout_minutes, busy):
        unchecked = _checked(hashed, seconds, rendezvous_timeout(timeout_minutes)) if hashed and limit else []
    own = RankInfo(current_rank(), socket.gethostname(), unchecked=[str(file.path) for file in unchecked])
    every = exchange_rank_info(own, rendezvous_timeout(timeout_minutes) + busy)
    notice = notice_of_unchecked(every, limit)
    if notice is not None:
        logger.warning(notice)


def _checked(files: Sequence[HashedFile], seconds: float, patience: datetime.timedelta) -> list[HashedFile]:
    """Check this rank's share; the files of it that there was no time for."""
    cache = HashCache.of_this_machine()
    work = SharedWork(lambda: _order(files, cache, seconds), patience)
    try:
        return verify_files(files, cache, seconds, work.take, work.halted, hash_threads(ranks_sharing_work()))
    except BaseException:
        work.halt()
        raise


def _order(files: Sequence[HashedFile], cache: HashCache, seconds: float) -> list[int]:
    """What there is to check, in order; asked of one rank of each machine."""
    numbers = verification_order(files, cache, seconds)
    cache.remove_unused()
    size = sum(files[number].facts.size for number in numbers)
    if size >= BYTES_TO_MENTION:
        limit = "" if math.isinf(seconds) else f", for at most {seconds:g} s (--verify-data-seconds)"
        logger.info(f"comparing {len(numbers)} packed files, {size / 1e9:,.1f} GB, with their hashes{limit}")
        if not cache.writable:
            logger.warning(
                "notice: there is no cache folder that can be written (XDG_CACHE_HOME, or ~/.cache), so every start "
                "reads all packed files again"
            )
    return numbers


def notice_of_unchecked(every: Sequence[RankInfo], limit: float) -> str | None:
    """One line that names the files which there was no time for, by machine; None if there are none.

    Args:
        every: what each rank says of itself.
        limit: --verify-data-seconds.
    """
    hosts: dict[str, set[str]] = {one.host: set() for one in every}
    for one in every:
        hosts[one.host].update(one.unchecked)
    machines: dict[tuple[str, ...], list[str]] = {}
    for host, names in hosts.items():
        if names:
            machines.setdefault(tuple(sorted(names)), []).append(host)
    if not machines:
        return None
    said = []
    for files, with_them in machines.items():
        where = EVERYWHERE if len(with_them) == len(hosts) > 1 else ", ".join(with_them)
        more = f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
        said.append(f"{where}: {', '.join(files[:FILES_NAMED])}{more}")
    return (
        f"notice: not compared with their hashes within --verify-data-seconds {limit:g}: {'; '.join(said)}. The next "
        "start begins with them; --verify-data-seconds -1 checks every file, however long it takes"
    )
