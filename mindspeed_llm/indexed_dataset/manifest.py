"""PREFIX_packed_manifest.json: what the packed files hold, how they were made, and how to tell damage.

A manifest may come from anywhere, so it is data only, and its types are checked field by field.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mindspeed_llm.errors import DataError
from mindspeed_llm.storage.atomic_write import write_atomically
from mindspeed_llm.storage.hashing import FileDigest
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_bytes

FORMAT = "mindspeed_llm.packed"
VERSION = 1


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer: its kind, the SHA-256 of its files, and the ids that matter to training."""

    kind: str
    sha256: str
    vocab_size: int
    pad_id: int | None
    eod_id: int | None


@dataclass(frozen=True)
class TemplateInfo:
    """The chat template (--prompt-type), and the SHA-256 of its definition.

    jinja: the same in Jinja, for exported models; ends: ids of the tokens that end an answer. None in manifests of
    earlier versions.
    """

    name: str
    sha256: str
    jinja: str | None = field(default=None, compare=False)
    ends: list[int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SourceFile:
    """An input file: its name and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows: rows_read = kept + the sum of skipped.

    skipped: how many for each reason; truncated: of those kept; dropped: of those skipped, too long, with `--overlong
    drop`; cuts: of those truncated, how often each way of cutting was needed; unanswered_prompts: of those kept, how
    many ended with a prompt without an answer, which is left out; control_rows: rows with control tokens in their text,
    kept or not; control_tokens: how many of them for each token.
    """

    rows_read: int = 0
    kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    dropped: int = 0
    cuts: dict[str, int] = field(default_factory=dict)
    unanswered_prompts: int = 0
    control_rows: int = 0
    control_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PackingInfo:
    """How samples were put into packs."""

    method: str
    seed: int


@dataclass(frozen=True)
class Histograms:
    """Distributions, as [value, how many] in ascending order: of sample lengths, and of samples per pack."""

    sample_length: list[list[int]] = field(default_factory=list)
    samples_per_pack: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """What stands in PREFIX_packed_manifest.json; the fields have its names.

    Token: not padding. Trained token: label other than -100. Fill: tokens per slot, 0 to 1. Files that were not
    packed (`packed` false) hold one sample to a document, not padded; `packs` is then the number of samples.
    """

    packed: bool
    neat: bool
    seq_length: int
    append_eod: bool
    eod_inside_sample: bool
    """An end token stands inside a sample, before its last token."""
    tokenizer: TokenizerInfo
    template: TemplateInfo | None
    handler: str
    sources: list[SourceFile]
    counts: RowCounts
    samples: int
    tokens: int
    trained_tokens: int
    packs: int
    fill: float
    packing: PackingInfo | None
    pad_to_multiple_of: int = 1
    """Each sample of a pack begins at a multiple of this; the padding before it has the number of the one before."""
    control_tokens_in_text: Literal["keep", "plain", "reject"] = "keep"
    """--control-tokens-in-text; of a merged set what the least strict of its sets was made with."""
    histograms: Histograms = field(default_factory=Histograms)
    files: dict[str, FileDigest] = field(default_factory=dict)
    format: str = FORMAT
    version: int = VERSION
    state: Literal["complete", "in progress"] = "complete"

    def write(self, path: str | Path) -> None:
        """Write as JSON, at once or not at all."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(path), text.encode("utf-8", "surrogatepass"))

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, the identifying fields first."""
        values = asdict(self)
        return {name: values.pop(name) for name in ("format", "version", "state")} | values

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read and check.

        Raises:
            DataError: not a manifest, one of a newer version, or with a field missing or of a wrong type.
        """
        path = Path(path)
        try:
            values = json.loads(read_file_bytes(path), parse_constant=_no_constant)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error}); run preprocess_data.py again") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f'{path}: not a manifest of packed files (its "format" is not "{FORMAT}")')
        version = values.get("version")
        if version != VERSION or isinstance(version, bool):
            raise DataError(
                f"{path}: manifest version {reprlib.repr(version)}, this program reads {VERSION}; "
                "use the version of the program that wrote it, or run preprocess_data.py again"
            )
        try:
            manifest: Manifest = decode_dataclass(values, cls, "")
            if not 1 <= manifest.pad_to_multiple_of <= max(1, manifest.seq_length):
                raise ValueError(f"pad_to_multiple_of {manifest.pad_to_multiple_of} is not between 1 and seq_length")
            return manifest
        except ValueError as error:
            raise DataError(f"{path}: {error}; run preprocess_data.py again") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
