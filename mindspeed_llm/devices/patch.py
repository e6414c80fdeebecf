"""What is written down of a patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindspeed_llm.devices.device_traits import Kind

MEGATRON_CORE = "megatron-core 0.16.1"


@dataclass(frozen=True)
class Patch:
    """One change to code that is not ours.

    Attributes:
        target: what is replaced.
        reason: what goes wrong without it.
        versions: where it was found necessary.
        remove_when: what makes it superfluous.
        kinds: devices it is applied on.
        before_import: True if it must be in place before megatron.core is imported.
        apply: puts it in place; takes the kind of device.
    """

    target: str
    reason: str
    versions: str
    remove_when: str
    kinds: frozenset[Kind]
    before_import: bool
    apply: Callable[[Kind], None]
