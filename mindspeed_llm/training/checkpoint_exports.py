"""Export checkpoints of a run as Hugging Face folders while it trains (--save-hf-interval)."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.launcher_environment import environment_of_one_process
from mindspeed_llm.storage.checkpoint_directory import CheckpointDirectory

logger = logging.getLogger(__name__)

# Folder of the exports inside --save: SAVE/hf/iter_0000100.
EXPORTS = "hf"


class CheckpointExports:
    """Runs convert_ckpt.py on checkpoints in a separate process; does nothing on ranks other than 0.

    The converter writes a temporary directory and renames it, so an export is complete or absent.

    Args:
        flags: the checkpoint flags.
        is_adapter: whether checkpoints contain an adapter, which is exported as a folder of peft.
        active: whether this is rank 0.
    """

    def __init__(self, flags: CheckpointArguments, is_adapter: bool, active: bool) -> None:
        self._flags, self._is_adapter = flags, is_adapter
        self._active = active and flags.save is not None and flags.save_hf_interval is not None
        self._process: subprocess.Popen[str] | None = None
        self._target = Path()
        self._begin = 0.0

    def start(self, iteration: int) -> None:
        """Start to export a published checkpoint, if its iteration is due.

        Args:
            iteration: iteration of the checkpoint.
        """
        if not self._active or iteration % (self._flags.save_hf_interval or 1):
            return
        save = Path(str(self._flags.save))
        source = CheckpointDirectory(save).iteration_path(iteration)
        self._target, self._begin = save / EXPORTS / source.name, time.perf_counter()
        kind = ["--save-adapter-to-hf"] if self._is_adapter else []
        command = ["--load-model-type", "mg", "--load-dir", str(source)]
        command += ["--save-model-type", "hf", "--save-dir", str(self._target), *kind]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mindspeed_llm", "convert", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment_of_one_process(),
                start_new_session=True,  # Ctrl-C ends the run, which then waits for the export
            )
        except OSError as error:
            logger.error(f"NOT EXPORTED: {self._target}: {error.strerror}")

    def poll(self) -> None:
        """Report an export that has ended."""
        if self._process is not None and self._process.poll() is not None:
            self.wait()

    def wait(self) -> None:
        """Wait for the export in progress and report it. A failure is logged and does not end the run."""
        process, self._process = self._process, None
        if process is None:
            return
        _, errors = process.communicate()
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            logger.error(f"NOT EXPORTED: {self._target}: {lines[-1] if lines else f'status {process.returncode}'}")
        else:
            logger.info(f"exported {self._target} in {time.perf_counter() - self._begin:.1f} s")

    def prune(self) -> None:
        """Remove the exports of checkpoints that --keep-last has removed."""
        if not self._active or self._flags.keep_last is None:
            return
        save = Path(str(self._flags.save))
        exports = CheckpointDirectory(save / EXPORTS)
        for folder in exports.complete_checkpoints():
            if not (save / folder.name).exists():
                exports.remove(folder)

    def __enter__(self) -> CheckpointExports:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Wait for the last export; after an error, stop it."""
        if kind is not None and self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None
        self.wait()
