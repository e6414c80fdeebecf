"""Manifest of packed files or document files: their contents, how they were made, and their hashes.

A manifest may come from an untrusted source. Therefore it is pure JSON, and the type of every field is checked.
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
    """Tokenizer that made the data.

    Attributes:
        kind: --tokenizer-type.
        sha256: hash of the files of the tokenizer.
        vocab_size: vocabulary size.
        pad_id: padding token, or None.
        eod_id: token that ends an answer, as the chat template defines it, or None.
    """

    kind: str
    sha256: str
    vocab_size: int
    pad_id: int | None
    eod_id: int | None


@dataclass(frozen=True)
class TemplateInfo:
    """Chat template that made the data.

    Attributes:
        name: --prompt-type.
        sha256: hash of the definition of the template.
        jinja: the template in Jinja, for exported models; None in manifests of earlier versions.
        ends: ids of the tokens that end an answer; None in manifests of earlier versions.
    """

    name: str
    sha256: str
    jinja: str | None = field(default=None, compare=False)
    ends: list[int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SourceFile:
    """Name and size in bytes of an input file."""

    name: str
    size: int


@dataclass(frozen=True)
class RowCounts:
    """Number of rows that were kept, skipped and truncated, with the reasons.

    Attributes:
        rows_read: number of rows of the input; equal to `kept` plus the sum of `skipped`.
        kept: number of rows that became samples.
        skipped: number of skipped rows by reason.
        truncated: number of kept rows that were truncated.
        dropped: number of skipped rows that were too long (--overlong drop).
        cuts: for each method of truncation, how often it was needed.
        unanswered_prompts: number of kept rows that ended with a prompt without an answer; the prompt is removed.
        control_rows: number of rows with control tokens in their text, kept or skipped.
        control_tokens: number of these control tokens by token.
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
    """How samples were packed.

    Attributes:
        method: name of the packing algorithm.
        seed: seed of the packing.
    """

    method: str
    seed: int


@dataclass(frozen=True)
class Histograms:
    """Distributions, as lists of [value, count] in ascending order of the values.

    Attributes:
        sample_length: lengths of the samples in tokens.
        samples_per_pack: numbers of samples in the packs.
    """

    sample_length: list[list[int]] = field(default_factory=list)
    samples_per_pack: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class DocumentInfo:
    """Document files (--output-format document), which contain token ids only.

    Attributes:
        key: KEY in the name of the files, PREFIX_KEY_document.
        ended: number of documents that end with the end token.
    """

    key: str
    ended: int


@dataclass(frozen=True)
class Manifest:
    """Contents of the manifest, PREFIX_packed_manifest.json; the fields have the names of the JSON keys.

    Files that are not packed (`packed` false) contain one sample per document, not padded; `packs` is then the number
    of samples. The manifest of document files, PREFIX_KEY_document_manifest.json, has `documents` as well. `tokens`
    counts slots without padding, `trained_tokens` labels other than -100, and `fill` is tokens ÷ slots, from 0 to 1.
    `files` has the size and the hash of each file by name.
    """

    packed: bool
    neat: bool
    seq_length: int
    append_eod: bool
    eod_inside_sample: bool
    """Whether an end token occurs inside a sample, before its last token."""
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
    """Each sample of a pack starts at a multiple of this; the padding belongs to the sample before it."""
    virtual_tokens: int = 0
    """Reserved slots at the beginning of each sample; they count neither as tokens nor as filled."""
    control_tokens_in_text: Literal["keep", "plain", "reject"] = "keep"
    """--control-tokens-in-text; for merged files the least strict value of the merged sets."""
    histograms: Histograms = field(default_factory=Histograms)
    documents: DocumentInfo | None = None
    files: dict[str, FileDigest] = field(default_factory=dict)
    format: str = FORMAT
    version: int = VERSION
    state: Literal["complete", "in progress"] = "complete"

    @property
    def virtual_share(self) -> float:
        """Share of the slots that are reserved for virtual tokens, from 0 to 1."""
        return self.samples * self.virtual_tokens / max(1, self.packs * self.seq_length)

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON. The file at `path` is replaced atomically."""
        # "surrogatepass", because names of source files that are not UTF-8 contain surrogates.
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(path), text.encode("utf-8", "surrogatepass"))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as dictionaries and lists, with format, version and state first."""
        values = asdict(self)
        return {name: values.pop(name) for name in ("format", "version", "state")} | values

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read and check a manifest.

        Raises:
            DataError: The file cannot be read, is not a manifest of this version, or has a missing or wrong field.
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
        # True == 1 in Python, so a boolean needs its own check.
        if version != VERSION or isinstance(version, bool):
            raise DataError(
                f"{path}: manifest version {reprlib.repr(version)}, this program reads {VERSION}; "
                "use the version of the program that wrote it, or run preprocess_data.py again"
            )
        try:
            manifest: Manifest = decode_dataclass(values, cls, "")
            if not 1 <= manifest.pad_to_multiple_of <= max(1, manifest.seq_length):
                raise ValueError(f"pad_to_multiple_of {manifest.pad_to_multiple_of} is not between 1 and seq_length")
            if not 0 <= manifest.virtual_tokens < max(1, manifest.seq_length):
                raise ValueError(f"virtual_tokens {manifest.virtual_tokens} is not between 0 and seq_length")
            if manifest.virtual_tokens and not (manifest.packed and manifest.neat):
                raise ValueError("virtual_tokens without neat packs")
            return manifest
        except ValueError as error:
            raise DataError(f"{path}: {error}; run preprocess_data.py again") from error


def _no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which json.loads accepts but JSON does not have."""
    raise ValueError(f"{name} is not a number")
