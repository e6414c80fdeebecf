"""Record what a step read and wrote, and decide whether it has to run again.

OUTPUT/steps/NAME.json has the arguments of the step, and size and SHA-256 of all files that it read and wrote. It is
written when the step has ended with status 0, so a step that failed or was interrupted runs again and continues what
its program can continue. A file with the size, modification time and inode of the record is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mindspeed_llm.recipe.recipe_steps import RecipeStep, files_of
from mindspeed_llm.storage.atomic_write import write_atomically
from mindspeed_llm.storage.hashing import FileDigest
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_bytes


@dataclass(frozen=True)
class RecordedFile:
    """One file of a step.

    Attributes:
        size: size in bytes.
        mtime_ns: modification time in nanoseconds.
        inode: inode number.
        sha256: hash of its content.
    """

    size: int
    mtime_ns: int
    inode: int
    sha256: str


@dataclass(frozen=True)
class StepRecord:
    """Record of a step that is complete.

    Attributes:
        arguments: arguments of its program.
        inputs: path → file that it read.
        outputs: path → file that it wrote.
    """

    arguments: list[str]
    inputs: dict[str, RecordedFile] = field(default_factory=dict)
    outputs: dict[str, RecordedFile] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> StepRecord | None:
        """Read a record; None if there is none, or if it is damaged."""
        try:
            record: StepRecord = decode_dataclass(json.loads(read_file_bytes(path)), cls, "")
        except (OSError, ValueError, RecursionError):
            return None
        return record

    @classmethod
    def of(cls, step: RecipeStep, before: StepRecord | None) -> StepRecord:
        """Hash the files of a step.

        Args:
            step: the step.
            before: its last record, whose hashes are used for unchanged files.

        Raises:
            OSError: a file cannot be read.
        """
        known = {**before.inputs, **before.outputs} if before else {}
        return cls(list(step.arguments), _hashed(step.inputs, known), _hashed(step.outputs, known))

    def write(self, path: Path) -> None:
        """Write the record atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode("utf-8", "surrogateescape"))


def reason_to_run(step: RecipeStep, record: StepRecord | None) -> str | None:
    """Return why a step has to run; None if flags, inputs and outputs are those of its record.

    Args:
        step: the step.
        record: its last record.

    Raises:
        OSError: a file cannot be read.
    """
    if record is None:
        return "it is not complete"
    if record.arguments != list(step.arguments):
        return "its flags have changed"
    now = StepRecord.of(step, record)
    for kind, before, after in (("input", record.inputs, now.inputs), ("output", record.outputs, now.outputs)):
        if changed := _difference(before, after):
            return f"an {kind} has changed: {changed}"
    return None if record.outputs else "it has no output"


def _hashed(names: Iterable[str], known: Mapping[str, RecordedFile]) -> dict[str, RecordedFile]:
    """Return the files of paths and prefixes with their hashes."""
    found = {}
    for path in dict.fromkeys(file for name in names for file in files_of(name)):
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns, status.st_ino)
        before = known.get(str(path))
        is_same = before is not None and (before.size, before.mtime_ns, before.inode) == state
        sha256 = before.sha256 if before is not None and is_same else FileDigest.of(path).sha256
        found[str(path)] = RecordedFile(*state, sha256)
    return found


def _difference(before: Mapping[str, RecordedFile], after: Mapping[str, RecordedFile]) -> str | None:
    """Return the first path whose content differs; None if there is none."""
    for path in sorted({*before, *after}):
        if path not in after or path not in before or before[path].sha256 != after[path].sha256:
            return path
    return None
