"""A process that holds the lease of a folder: lease_program.py FOLDER BEAT SILENCE.

It prints 'held' or the error of the lease. Then it answers each line on stdin with 'held', or prints why the lease is
lost and ends. It releases the lease at the end of stdin.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.errors import UserError
from mindspeed_llm.lease import HeldLeases, LeaseTiming


class HeldFolder:
    """The program as a child process.

    Args:
        folder: directory of the lease.
        beat: seconds between refreshes, as in LeaseTiming.
        silence: seconds after which a lease is expired, as in LeaseTiming.
    """

    def __init__(self, folder: Path, beat: float = 0.1, silence: float = 60.0) -> None:
        command = [sys.executable, __file__, str(folder), str(beat), str(silence)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()

    def __enter__(self) -> HeldFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self) -> str:
        """Return its answer: 'held', or why the lease is lost."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        """Let it release the lease and end; return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)

    def kill(self) -> None:
        """Kill it with SIGKILL, so that the lease is not released."""
        self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()


def main(folder: str, beat: str, silence: str) -> None:
    """Hold the lease until stdin ends."""
    configure_logging()
    timing = LeaseTiming(float(beat), float(silence), float(silence), look=0.05)
    try:
        with HeldLeases(timing) as leases:
            leases.take({"--save": Path(folder)})
            print("held", flush=True)
            for _ in sys.stdin:
                leases.check()
                print("held", flush=True)
    except UserError as error:
        print(error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
