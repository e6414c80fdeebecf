"""Leases ensure that only one run at a time writes to a directory.

SAVE/lease.1.json   the process that writes to this directory: host, process id, job, start; rewritten every 10 seconds

lease_holder   the process that holds a lease, and whether it has ended
folder_lease   the lease file of one directory: take, refresh, check, take over, release
held_leases    the leases of one process, and the thread that refreshes them
"""

from mindspeed_llm.lease.folder_lease import FolderLease, LeaseError, LeaseHeldError, LeaseLostError, LeaseTiming
from mindspeed_llm.lease.held_leases import HeldLeases
from mindspeed_llm.lease.lease_holder import LauncherJob, LeaseHolder, current_holder

__all__ = [
    "FolderLease",
    "HeldLeases",
    "LauncherJob",
    "LeaseError",
    "LeaseHeldError",
    "LeaseHolder",
    "LeaseLostError",
    "LeaseTiming",
    "current_holder",
]
