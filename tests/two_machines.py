"""Simulate two machines by network namespaces with separate addresses and host names and a virtual cable.

    node-a  10.77.0.1  ── eth0 ══ eth0 ──  node-b  10.77.0.2

What runs in one reaches the other through the cable alone. Needs root and the `ip` program (iproute2).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import pytest
from time_limits import HANG_SECONDS

ADDRESSES = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
CABLE = "eth0"


def ip(*words: str, check: bool = True) -> str:
    """Run `ip` and return its output."""
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True, timeout=HANG_SECONDS).stdout


def unavailable_reason() -> str | None:
    """Return why two machines cannot be simulated here, or None."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs Linux with ip (iproute2) and unshare (util-linux)"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    name = f"probe{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"cannot make network namespaces here ({error.stderr.strip()})"
    return None


class TwoMachines:
    """Context manager of the two machines; their processes end with it.

    Args:
        folder: for the logs, one for each start: node-a.1.log, node-b.1.log, node-a.2.log, …
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespaces = {node: f"{node}-{os.getpid()}" for node in ADDRESSES}
        self._logs: dict[str, list[Path]] = {node: [] for node in ADDRESSES}
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> TwoMachines:
        """Create the namespaces, the cable and the addresses."""
        try:
            for namespace in self.namespaces.values():
                ip("netns", "add", namespace)
            first, second = self.namespaces.values()
            ip("-n", first, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", second)
            for node, namespace in self.namespaces.items():
                ip("-n", namespace, "address", "add", f"{ADDRESSES[node]}/24", "dev", CABLE)
                ip("-n", namespace, "link", "set", "lo", "up")
                ip("-n", namespace, "link", "set", CABLE, "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill all processes and remove the namespaces with the cable."""
        for node, namespace in self.namespaces.items():
            self.kill(node)
            ip("netns", "delete", namespace, check=False)
        for process in self._started:
            process.wait(HANG_SECONDS)

    def start(self, node: str, command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine with the variables of a launcher in its environment."""
        inside = ["ip", "netns", "exec", self.namespaces[node], "unshare", "--uts"]
        inside += ["bash", "-c", 'hostname "$0" && exec "$@"', node, *command]
        number = len(self._logs[node]) + 1
        log = self.folder / f"{node}.{number}.log"
        self._logs[node].append(log)
        variables = {
            "NNODES": "2",
            "NODE_RANK": str(list(ADDRESSES).index(node)),
            "MASTER_ADDR": ADDRESSES["node-a"],
            "MASTER_PORT": "29511",
            "GLOO_SOCKET_IFNAME": CABLE,
            "OMP_NUM_THREADS": "1",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                inside, cwd=folder, env=os.environ | variables | environment, stdout=out, stderr=subprocess.STDOUT
            )
        self._started.append(process)
        return process

    def log(self, node: str) -> str:
        """Return the output of the last command on the machine so far."""
        return self._logs[node][-1].read_text("utf-8", "replace")

    def has_log(self, node: str) -> bool:
        """Return whether a command was started on the machine."""
        return bool(self._logs[node])

    def processes(self, node: str) -> dict[int, str]:
        """Return process id → command line of all processes on the machine."""
        running = {}
        for word in ip("netns", "pids", self.namespaces[node], check=False).split():
            try:
                line = Path(f"/proc/{word}/cmdline").read_bytes()
            except OSError:
                continue
            if line:  # a process that has ended but was not waited for has none
                running[int(word)] = line.replace(b"\0", b" ").decode("utf-8", "replace")
        return running

    def kill(self, node: str) -> None:
        """Kill every process of the machine at once. The kernel still closes their connections; see `unplug`."""
        deadline = time.monotonic() + HANG_SECONDS
        while (running := self.processes(node)) and time.monotonic() < deadline:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def unplug(self, node: str) -> None:
        """Disconnect the cable of a machine: nothing arrives any more, not even the end of a connection."""
        ip("-n", self.namespaces[node], "link", "set", CABLE, "down")

    def plug_in(self, node: str) -> None:
        """Reconnect the cable of a machine."""
        ip("-n", self.namespaces[node], "link", "set", CABLE, "up")


def wait_until(true: Callable[[], bool], seconds: float, what: str, report: Callable[[], str] = str) -> float:
    """Wait until `true()` and return the seconds; fail the test with `report()` after `seconds`."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            pytest.fail(f"waited {seconds} s for {what}\n{report()[-4000:]}")
        time.sleep(0.1)
    return time.monotonic() - began
