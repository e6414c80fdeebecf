"""The interface of work that an entry point adds to each evaluation, such as generating answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class EvaluationNote:
    """What the callback has found; written by rank 0.

    Attributes:
        kind: kind of the line in metrics.jsonl.
        values: the line in metrics.jsonl, with "iteration".
        log_line: the log line.
        file_name: name of a JSONL file in the run directory.
        lines: objects that are appended to this file.
    """

    kind: str
    values: Mapping[str, Any]
    log_line: str
    file_name: str
    lines: Sequence[Mapping[str, Any]] = field(default=())


class EvaluationCallback(Protocol):
    """Work at each evaluation. It must change neither the model nor the state of any random number generator."""

    def __call__(self, chunks: list[torch.nn.Module], device: torch.device, iteration: int) -> EvaluationNote | None:
        """Run the work. Collective.

        Args:
            chunks: model chunks of this rank.
            device: device of this rank.
            iteration: number of updates so far.

        Returns:
            What is written, on rank 0; None on the other ranks.
        """
        ...
