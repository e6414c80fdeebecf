"""Metadata of one monkey patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindspeed_llm.devices.device_traits import Kind

MEGATRON_CORE = "megatron-core 0.16.1"


@dataclass(frozen=True)
class Patch:
    """A change to code of another project at run time.

    Attributes:
        target: the functions, classes or attributes that are replaced.
        reason: the problem without the patch.
        versions: the versions of the other project that need it.
        remove_when: the condition under which the patch can be removed.
        kinds: kinds of devices on which it is applied.
        before_import: whether it must be applied before megatron.core is imported.
        apply: applies the patch; its argument is the kind of device.
    """

    target: str
    reason: str
    versions: str
    remove_when: str
    kinds: frozenset[Kind]
    before_import: bool
    apply: Callable[[Kind], None]
