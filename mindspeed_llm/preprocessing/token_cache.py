"""Tokens that `--cache-dir` keeps from run to run: to pack the same rows in another way begins with them.

    DIR/tokens-KEY/tokens           tokens.TokenStore
                   lengths.npy      of the samples, int32
                   rejected.jsonl   if rows were skipped
                   control_tokens.jsonl   if rows with control tokens are listed
                   kept.json        what they were made from, the tally, sizes and hashes; written last

KEY is a hash of all that the tokens depend on: each input file (where it lies, its size, its times of change), the
tokenizer's files, the meaning of the template, every flag of input and samples, the code of this program and the
versions of its libraries. What changes while it is read is not kept, nor what a template has written of the day.
What is packed, and where, is not among it: other --seed, --pack, --neat-pack, --pad-to-multiple-of, --output-prefix.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.preprocessing.batch_outcome import RowTally
from mindspeed_llm.preprocessing.control_token_rows import ControlTokenRows
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.preprocessing.rejected_rows import RejectedRows
from mindspeed_llm.storage.atomic_write import rename, write_atomically
from mindspeed_llm.storage.hashing import FileDigest, sha256_of, sha256_of_blocks
from mindspeed_llm.tokenization import SampleBuilder, TokenStore

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
FORMAT = 1
FACTS, LENGTHS = "kept.json", "lengths.npy"
LIBRARIES = ("tokenizers", "sentencepiece", "jinja2")  # that tokens may depend on
DESCRIPTIONS = ("*.json", "*.jinja", "*.model", "*.txt")  # of a tokenizer's folder
LARGEST_DESCRIPTION = 1 << 26


class TokenCache:
    """The tokens that fit one command, whether they are there or not.

    Attributes:
        folder: where they lie.
    """

    def __init__(
        self, directory: str, arguments: PreprocessArguments, parts: PreprocessingInputs, builder: SampleBuilder
    ) -> None:
        self._given = (arguments, parts, builder)
        self._made_from = _made_from(arguments, parts, builder)
        self.folder = Path(directory) / f"tokens-{_key(self._made_from)[:16]}"
        self._eos_id = builder.eos_id

    def opened(self) -> tuple[TokenStore, RowTally, RejectedRows, ControlTokenRows] | None:
        """What was kept, ready to be packed; None if there is nothing, or nothing whole, which is said."""
        try:
            if not (self.folder / FACTS).is_file():
                return None
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            own = facts.pop("sha256")
            if own != _key(facts) or facts["files"] != {name: _hashed(self.folder / name) for name in facts["files"]}:
                raise ValueError("their bytes have changed")
            tally = RowTally.of_json(facts["tally"])
            lengths = np.load(self.folder / LENGTHS, allow_pickle=False)
            rejected = RejectedRows(self.folder, tally.skipped)
            listed = self._given[0].sample.control_tokens_in_text != "reject"
            control_rows = ControlTokenRows(self.folder, tally.control_tokens if listed else None)
            store = TokenStore.reopened(self.folder, self._eos_id, lengths)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.info(f"notice: the tokens kept in {self.folder} are not whole ({error}); they are made again")
            return None
        logger.info(f"the tokens kept in {self.folder} are used; --overwrite-cache makes them again")
        return store, tally, rejected, control_rows

    def keep(self, folder: Path, lengths: np.ndarray, tally: RowTally) -> None:
        """Move the tokens, which lie finished in `folder`, to where the next run finds them; says it if that fails."""
        try:
            # Libraries that were imported meanwhile (ray brings some) made nothing of it.
            if self._made_from != _made_from(*self._given) | {"versions": self._made_from["versions"]}:
                logger.info("notice: the tokens are not kept: input or tokenizer have changed while they were read")
                return
            np.save(folder / LENGTHS, lengths, allow_pickle=False)
            files = {path.name: _hashed(path) for path in sorted(folder.iterdir())}
            facts = {"format": FORMAT, "made_from": self._made_from, "tally": tally.to_json(), "files": files}
            write_atomically(folder / FACTS, json.dumps({**facts, "sha256": _key(facts)}, indent=1).encode())
            self.discard()
            rename(folder, self.folder)
        except OSError as error:
            logger.info(f"notice: the tokens cannot be kept in {self.folder} ({error.strerror or error})")

    def discard(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _key(values: dict[str, Any]) -> str:
    return sha256_of(json.dumps(values, sort_keys=True).encode())


def _hashed(path: Path) -> dict[str, Any]:
    return dataclasses.asdict(FileDigest.of(path))


def _made_from(arguments: PreprocessArguments, parts: PreprocessingInputs, builder: SampleBuilder) -> dict[str, Any]:
    given, tokenizer = arguments.input, parts.tokenizer
    return {
        "format": FORMAT,
        "code": _code(),
        "versions": {name: str(sys.modules[name].__version__) for name in LIBRARIES if name in sys.modules},
        "files": [[_identity(file.path) for file in source] for source in parts.sources],
        "input": dataclasses.asdict(dataclasses.replace(given, input=[])),
        "sample": dataclasses.asdict(arguments.sample),
        "template": parts.template.sha256,
        "tokenizer": [tokenizer.kind, tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, builder.eos_id],
        "tokenizer_flags": dataclasses.asdict(arguments.tokenizer),
        "tokenizer_files": _descriptions(arguments.tokenizer.tokenizer_name_or_path),
        "seed": arguments.output.seed if given.interleave_probs is not None else None,
    }


def _identity(path: Path) -> list[Any]:
    facts = path.stat()
    times = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    return [str(path), str(path.absolute()), str(path.resolve()), *times]


def _code() -> str:
    """A hash of the rooms that make tokens."""
    rooms = ("rawdata", "chat", "tokenization", "preprocessing")
    paths = (path for room in rooms for path in sorted((PACKAGE / room).rglob("*.*")))
    return sha256_of_blocks(path.read_bytes() for path in paths if path.suffix in (".py", ".json"))


def _descriptions(folder: str | None) -> dict[str, Any]:
    """The small files of a tokenizer's folder: which tokens it adds and how it begins a text stands in several."""
    if folder is None:
        return {}
    paths = sorted(path for pattern in DESCRIPTIONS for path in Path(folder).glob(pattern) if path.is_file())
    return {path.name: _hashed(path) for path in paths if path.stat().st_size <= LARGEST_DESCRIPTION}
