"""packing.png drawn by a process of its own: what matplotlib needs to load and to draw passes while tokens are made.

program                               process (python -m mindspeed_llm.reports.apart)
PictureApart()            ──────────▶ loads matplotlib
.draw(name, manifest)     ─ a line ─▶ draws into memory
.put(path)                ─ a line ─▶ writes the picture, and ends
.close()                  ─ the end ▶ ends
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import UserError
from mindspeed_llm.indexed import Manifest
from mindspeed_llm.process import leave
from mindspeed_llm.storage.atomic import write_atomically
from mindspeed_llm.storage.decoding import decoded

ROOT = Path(__file__).resolve().parents[2]


class PictureApart:
    """The program's side; a picture must not fail the run, so what goes wrong is one notice of the process."""

    def __init__(self) -> None:
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        paths = [str(ROOT), *(str(Path(path).absolute()) for path in given)]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mindspeed_llm.reports.apart"],
                stdin=subprocess.PIPE,
                cwd=ROOT,  # where -m looks first: the user's folder may hold a json.py
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for the program alone
            )
        except OSError as error:
            _say_none(error)

    def draw(self, name: str, manifest: Manifest) -> None:
        """Begin to draw."""
        self._send({"name": name, "manifest": manifest.to_json()})

    def put(self, path: str | Path) -> None:
        """Write what was drawn, and wait until it is there; a picture of before would show other data."""
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)
        self._send(str(Path(path).absolute()))
        if self._process is not None:
            self._process.wait()

    def _send(self, value: Any) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has said why it ended
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process; what was not put in place is lost."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """The side of the process."""
    try:
        from mindspeed_llm.reports.figures import new_figure, png
        from mindspeed_llm.reports.packing import packing_picture

        warm = new_figure(1, 1)
        warm.subplots()
        png(warm)  # loads fonts, too
        asked = _received()
        if asked is None:
            return
        picture = png(packing_picture([(asked["name"], decoded(asked["manifest"], Manifest, ""))]))
        path = _received()
        if path is not None:
            write_atomically(Path(path), picture)
    except (OSError, ImportError, UserError) as error:  # the files are in place without it
        _say_none(error)


def _say_none(error: Exception) -> None:
    print(f"notice: no picture was drawn ({error})", file=sys.stderr)


def _received() -> Any:
    line = sys.stdin.readline()
    return json.loads(line) if line.endswith("\n") else None


if __name__ == "__main__":
    main()
    leave(0)
