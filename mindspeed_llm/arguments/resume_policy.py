"""Declare what happens if a flag has another value on resume than in the run that wrote the checkpoint.

Every field of the argument groups of pretrain_gpt.py declares one policy in its metadata, under the key `resume`:

    refuse   part of the run's identity: a changed value is an error
    notice   a changed value is used, with a notice that names both values
    free     has no effect on the run, or affects the current start only: values are not compared

    no_shuffle: bool = field(default=False, metadata=REFUSE)
    lr: float = field(metadata=NOTICE | between(0, FLOAT32))

checkpoints/run_identity.py compares the values; docs/training.md lists the policy of each flag.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

ResumeClass = Literal["refuse", "notice", "free"]

REFUSE: dict[str, Any] = {"resume": "refuse"}
NOTICE: dict[str, Any] = {"resume": "notice"}
FREE: dict[str, Any] = {"resume": "free"}


def resume_policy_of(field: dataclasses.Field[Any]) -> ResumeClass:
    """Return the policy that a field declares.

    Raises:
        TypeError: the field declares none. This is a programming error, not a user error.
    """
    declared = field.metadata.get("resume")
    for known in get_args(ResumeClass):
        if declared == known:
            return known
    raise TypeError(f"{field.name}: its metadata must have resume='refuse', 'notice' or 'free', not {declared!r}")
