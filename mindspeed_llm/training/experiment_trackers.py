"""Log metrics to TensorBoard, SwanLab or Weights & Biases.

metrics.jsonl is always written, and the reports read only that file. Trackers are optional: each needs its own package,
is opened on rank 0 only, and is disabled with a warning if it fails. A tracker never ends a run.
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
    """Interface of an experiment tracker.

    Attributes:
        name: name of the service, for messages.
    """

    name: str

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        """Log the metrics of one iteration.

        Args:
            figures: name → value, with names such as 'train/loss' and 'valid/loss'.
            iteration: number of the iteration.
        """
        ...

    def close(self) -> None:
        """Write buffered metrics and close the tracker."""
        ...


class TensorBoard:
    """Tracker that writes TensorBoard event files to --tensorboard-dir."""

    name = "TensorBoard"

    def __init__(self, flags: LoggingArguments, run_dir: Path, arguments: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(flags.tensorboard_dir)

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        """Write one scalar per metric."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class SwanLab:
    """Tracker for a SwanLab experiment. The modes 'local' and 'offline' write to the run directory and send nothing."""

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
        """Log the metrics as one step of the run."""
        self._run.log(dict(figures), step=iteration)

    def close(self) -> None:
        """Finish the experiment."""
        self._finish()


class WeightsAndBiases:
    """Tracker for a Weights & Biases run. It is always offline; `wandb sync` uploads it later."""

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
        """Log the metrics as one step of the run."""
        self._run.log(dict(figures), step=iteration)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


# (class, flag that requests it, package that it needs)
_KINDS: tuple[tuple[Callable[..., ExperimentTracker], str, str], ...] = (
    (TensorBoard, "--tensorboard-dir", "tensorboard"),
    (SwanLab, "--swanlab-mode", "swanlab"),
    (WeightsAndBiases, "--wandb-project", "wandb"),
)


def _requested(flags: LoggingArguments) -> list[tuple[Callable[..., ExperimentTracker], str, str]]:
    """Return the entries of `_KINDS` that the command requests."""
    wanted = (
        flags.tensorboard_dir is not None,
        flags.swanlab_mode is not None or flags.swanlab_project is not None,
        flags.wandb_project is not None,
    )
    return [kind for kind, is_wanted in zip(_KINDS, wanted, strict=True) if is_wanted]


def check_trackers(flags: LoggingArguments) -> None:
    """Check that the packages of the requested trackers are installed.

    Raises:
        ConfigError: a package is missing. The message contains the command that installs it.
    """
    problems = [
        f"{flag} needs the package {package}: pip install -e '.[{package}]', or leave the flag out "
        "(metrics.jsonl in the run folder has all metrics)"
        for _, flag, package in _requested(flags)
        if importlib.util.find_spec(package) is None
    ]
    if problems:
        raise ConfigError(problems)


class ExperimentTrackers:
    """All trackers that the command requests. Used on rank 0 only.

    Args:
        flags: the logging flags.
        run_dir: the run directory.
        arguments: all arguments of the run as plain values; the trackers show them as the configuration.
    """

    def __init__(self, flags: LoggingArguments, run_dir: Path, arguments: Mapping[str, Any]) -> None:
        self._open: list[ExperimentTracker] = []
        for kind, flag, _ in _requested(flags):
            try:
                self._open.append(kind(flags, run_dir, arguments))
            except Exception as error:  # noqa: PERF203 - third-party code may raise anything
                logger.warning(f"{flag}: could not be started ({_short(error)}); training continues without it")

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Log the finite numbers of one line of metrics.jsonl.

        Args:
            kind: kind of the line; it prefixes the metric names unless the line has a "split".
            values: values of the line, with "iteration".
        """
        prefix = str(values.get("split", kind))
        numbers = {
            f"{prefix}/{name}": float(value)
            for name, value in values.items()
            if name != "iteration" and isinstance(value, int | float) and math.isfinite(value)
        }
        for tracker in list(self._open):  # a copy, because a tracker that fails is removed from the list
            try:
                tracker.log(numbers, int(values["iteration"]))
            except Exception as error:  # noqa: PERF203
                self._open.remove(tracker)
                logger.warning(f"{tracker.name} failed ({_short(error)}) and is disabled; training continues")

    def close(self) -> None:
        """Close all trackers; a failure is logged."""
        for tracker in self._open:
            try:
                tracker.close()
            except Exception as error:  # noqa: PERF203
                logger.warning(f"{tracker.name} failed at the end ({_short(error)})")
        self._open = []


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
