"""Token cache (`--cache-dir`): tokens of an earlier run, reused by a run that only packs the same rows in another way.

    DIR/tokens-KEY/tokens                 see TokenStore
                   lengths.npy            sample lengths in tokens, int32 [samples]
                   rejected.jsonl         if rows were skipped
                   control_tokens.jsonl   if rows with control tokens are listed
                   kept.json              inputs of the tokens, the tally, sizes and hashes; written last

KEY is a hash of everything that the tokens depend on: each input file (path, size, times of change), the files of the
tokenizer, the content of the template, every flag of the groups input and samples, the source code of this program and
the versions of its libraries. It does not depend on how the samples are packed: --seed, --pack, --neat-pack,
--pad-to-multiple-of, --output-prefix.

Tokens are not cached if an input changes while it is read. If the template writes the current date, the date is part
of KEY.
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
from mindspeed_llm.interrupts import hold_interrupts
from mindspeed_llm.preprocessing.batch_outcome import RowTally
from mindspeed_llm.preprocessing.control_token_rows import ControlTokenRows
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.preprocessing.provenance import (
    LIBRARIES,
    TOKEN_PACKAGES,
    code_hash,
    file_digest,
    file_identity,
    key_of,
    tokenizer_descriptions,
)
from mindspeed_llm.preprocessing.rejected_rows import RejectedRows
from mindspeed_llm.storage.atomic_write import rename, write_atomically
from mindspeed_llm.tokenization import SampleBuilder, TokenStore

logger = logging.getLogger(__name__)

FORMAT = 1
FACTS, LENGTHS = "kept.json", "lengths.npy"


class TokenCache:
    """The cached tokens of one command, whether they exist or not.

    Args:
        directory: --cache-dir.
        arguments: the command line.
        inputs: files, handler, template and tokenizer.
        builder: makes samples of conversations.

    Attributes:
        folder: directory of the tokens.
    """

    def __init__(
        self, directory: str, arguments: PreprocessArguments, inputs: PreprocessingInputs, builder: SampleBuilder
    ) -> None:
        self._given = (arguments, inputs, builder)
        self._made_from = _made_from(arguments, inputs, builder)
        self.folder = Path(directory) / f"tokens-{key_of(self._made_from)[:16]}"
        self._eos_id = builder.eos_id

    def opened(self) -> tuple[TokenStore, RowTally, RejectedRows, ControlTokenRows] | None:
        """Open the cached tokens. Return None if there are none, or, with a notice, if they are damaged."""
        try:
            if not (self.folder / FACTS).is_file():
                return None
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            own = facts.pop("sha256")
            if own != key_of(facts) or facts["files"] != {
                name: file_digest(self.folder / name) for name in facts["files"]
            }:
                raise ValueError("their bytes have changed")
            tally = RowTally.of_json(facts["tally"])
            lengths = np.load(self.folder / LENGTHS, allow_pickle=False)
            rejected = RejectedRows(self.folder, tally.skipped)
            listed = self._given[0].sample.control_tokens_in_text != "reject"
            control_rows = ControlTokenRows(self.folder, tally.control_tokens if listed else None)
            store = TokenStore.reopened(self.folder, self._eos_id, lengths)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.info(f"notice: the cached tokens in {self.folder} are damaged ({error}); they are created again")
            return None
        logger.info(f"using the cached tokens in {self.folder}; --overwrite-cache creates them again")
        return store, tally, rejected, control_rows

    def keep(self, folder: Path, lengths: np.ndarray, tally: RowTally) -> None:
        """Move complete tokens into the cache. A failure is a notice: the run does not need the cache any more.

        Args:
            folder: directory of the tokens on the same file system.
            lengths: sample lengths in tokens, int32 [samples].
            tally: counts of the rows.
        """
        try:
            # Libraries that were imported in the meantime (ray imports some) did not take part in the tokenisation.
            if self._made_from != _made_from(*self._given) | {"versions": self._made_from["versions"]}:
                logger.info("notice: the tokens are not cached: input or tokenizer changed while they were read")
                return
            np.save(folder / LENGTHS, lengths, allow_pickle=False)
            files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
            facts = {"format": FORMAT, "made_from": self._made_from, "tally": tally.to_json(), "files": files}
            write_atomically(folder / FACTS, json.dumps({**facts, "sha256": key_of(facts)}, indent=1).encode())
            with hold_interrupts():
                self.discard()
                rename(folder, self.folder)
        except OSError as error:
            logger.info(f"notice: the tokens cannot be cached in {self.folder} ({error.strerror or error})")

    def discard(self) -> None:
        """Remove the cached tokens."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _made_from(arguments: PreprocessArguments, inputs: PreprocessingInputs, builder: SampleBuilder) -> dict[str, Any]:
    given, tokenizer = arguments.input, inputs.tokenizer
    return {
        "format": FORMAT,
        "code": code_hash(TOKEN_PACKAGES),
        "versions": {name: str(sys.modules[name].__version__) for name in LIBRARIES if name in sys.modules},
        "files": [[file_identity(file.path) for file in source] for source in inputs.sources],
        "input": dataclasses.asdict(dataclasses.replace(given, input=[])),
        "sample": dataclasses.asdict(arguments.sample),
        "template": [inputs.template.sha256, inputs.template.date],
        "tokenizer": [tokenizer.kind, tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, builder.eos_id],
        "library": tokenizer.library,
        "tokenizer_flags": dataclasses.asdict(arguments.tokenizer),
        "tokenizer_files": tokenizer_descriptions(arguments.tokenizer.tokenizer_name_or_path),
        "seed": arguments.output.seed if given.interleave_probs is not None else None,
    }
