"""What happens when a flag has another value on resume than in the run that wrote the checkpoint.

Every field of the groups of pretrain_gpt.py declares one class in its metadata, under the key `resume`:

    refuse   part of the run's identity: another value is refused
    notice   another value is honoured, with one line that names both values
    free     without effect on the run, or on this start alone: nothing is compared

    no_shuffle: bool = field(default=False, metadata=REFUSE)
    lr: float = field(metadata=NOTICE | between(0, FLOAT32))

checkpoints/run_identity.py compares; README.md has the table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

ResumeClass = Literal["refuse", "notice", "free"]

REFUSE: dict[str, Any] = {"resume": "refuse"}
NOTICE: dict[str, Any] = {"resume": "notice"}
FREE: dict[str, Any] = {"resume": "free"}


def resume_policy_of(field: dataclasses.Field[Any]) -> ResumeClass:
    """Return the class that a field declares.

    Raises:
        TypeError: it declares none.
    """
    declared = field.metadata.get("resume")
    for known in get_args(ResumeClass):
        if declared == known:
            return known
    raise TypeError(f"{field.name}: its metadata must have resume='refuse', 'notice' or 'free', not {declared!r}")
