"""Other places that figures go to, if asked for: TensorBoard, SwanLab, Weights & Biases.

metrics.jsonl is written in any case and is what the reports read. A tracker is a guest: its package is optional, it is
opened on rank 0 alone, and when it fails in the middle of a run it is dropped with a line, and training goes on.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mindspeed_llm.arguments.output_arguments import LoggingArguments
from mindspeed_llm.errors import ConfigError

logger = logging.getLogger(__name__)


class ExperimentTracker(Protocol):
    """What takes figures."""

    name: str

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        """Take the figures of one line, by names such as 'train/loss' and 'valid/loss'."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class TensorBoard:
    """Event files in --tensorboard-dir."""

    name = "TensorBoard"

    def __init__(self, flags: LoggingArguments, run_dir: Path, arguments: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(flags.tensorboard_dir)

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()


class SwanLab:
    """A SwanLab experiment; 'local' and 'offline' write into the run folder and send nothing."""

    name = "SwanLab"

    def __init__(self, flags: LoggingArguments, run_dir: Path, arguments: Mapping[str, Any]) -> None:
        import swanlab

        self._run = swanlab.init(
            project=flags.swanlab_project or "mindspeed_llm",
            mode=flags.swanlab_mode or "local",
            logdir=str(run_dir / "swanlab"),
            config=dict(arguments),
        )
        self._finish = swanlab.finish

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(figures), step=iteration)

    def close(self) -> None:
        self._finish()


class WeightsAndBiases:
    """A Weights & Biases run, offline: `wandb sync` sends it, if anybody wants that."""

    name = "Weights & Biases"

    def __init__(self, flags: LoggingArguments, run_dir: Path, arguments: Mapping[str, Any]) -> None:
        import wandb

        run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=flags.wandb_project,
            name=flags.wandb_exp_name,
            mode="offline",
            dir=str(run_dir),
            config=dict(arguments),
        )

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(figures), step=iteration)

    def close(self) -> None:
        self._run.finish()


# kind, the flag that asks for it, the package that it needs
_KINDS: tuple[tuple[Callable[..., ExperimentTracker], str, str], ...] = (
    (TensorBoard, "--tensorboard-dir", "tensorboard"),
    (SwanLab, "--swanlab-mode", "swanlab"),
    (WeightsAndBiases, "--wandb-project", "wandb"),
)


def _asked_for(flags: LoggingArguments) -> list[tuple[Callable[..., ExperimentTracker], str, str]]:
    wanted = (
        flags.tensorboard_dir is not None,
        flags.swanlab_mode is not None or flags.swanlab_project is not None,
        flags.wandb_project is not None,
    )
    return [kind for kind, is_wanted in zip(_KINDS, wanted, strict=True) if is_wanted]


def check_trackers(flags: LoggingArguments) -> None:
    """See that what was asked for is installed.

    Raises:
        ConfigError: it is not, with what to install.
    """
    problems = [
        f"{flag} needs the package {package}: pip install 'mindspeed_llm[{package}]', or leave the flag out "
        "(metrics.jsonl in the run folder has all figures)"
        for _, flag, package in _asked_for(flags)
        if importlib.util.find_spec(package) is None
    ]
    if problems:
        raise ConfigError(problems)


class ExperimentTrackers:
    """Those that the command asks for, opened on rank 0.

    Args:
        flags: of the logging group.
        run_dir: the run folder.
        arguments: all arguments, as plain values.
    """

    def __init__(self, flags: LoggingArguments, run_dir: Path, arguments: Mapping[str, Any]) -> None:
        self._open: list[ExperimentTracker] = []
        for kind, flag, _ in _asked_for(flags):
            try:
                self._open.append(kind(flags, run_dir, arguments))
            except Exception as error:  # noqa: PERF203 - a guest may fail in any way it likes
                logger.warning(f"{flag}: could not be started ({_short(error)}); training goes on without it")

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of metrics.jsonl."""
        prefix = str(values.get("split", kind))
        numbers = {
            f"{prefix}/{name}": float(value)
            for name, value in values.items()
            if name != "iteration" and isinstance(value, int | float) and math.isfinite(value)
        }
        for tracker in list(self._open):
            try:
                tracker.log(numbers, int(values["iteration"]))
            except Exception as error:  # noqa: PERF203
                self._open.remove(tracker)
                logger.warning(f"{tracker.name} failed ({_short(error)}) and is dropped; training goes on")

    def close(self) -> None:
        """Close all."""
        for tracker in self._open:
            try:
                tracker.close()
            except Exception as error:  # noqa: PERF203
                logger.warning(f"{tracker.name} failed at the end ({_short(error)})")
        self._open = []


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
