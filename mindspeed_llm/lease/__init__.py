"""Leases: a folder that one run at a time writes to.

SAVE/lease.1.json     who writes to this folder: host, process, job, start; rewritten every 10 seconds

holder     which process holds a lease, and what that says of its life
folder     the file in the folder: taken, refreshed, checked, taken over, released
held       the leases of one process and the thread that refreshes them
"""

from mindspeed_llm.lease.folder_lease import FolderLease, LeaseError, LeaseLostError, LeaseTiming
from mindspeed_llm.lease.held_leases import HeldLeases
from mindspeed_llm.lease.lease_holder import LauncherJob, LeaseHolder, current_holder

__all__ = [
    "FolderLease",
    "HeldLeases",
    "LauncherJob",
    "LeaseError",
    "LeaseHolder",
    "LeaseLostError",
    "LeaseTiming",
    "current_holder",
]
