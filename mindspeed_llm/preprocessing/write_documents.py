"""Write documents: copy the stored tokens into the document files."""

from __future__ import annotations

import numpy as np

from mindspeed_llm.indexed_dataset import DocumentFilesWriter
from mindspeed_llm.tokenization import TokenStore

# Documents are written a million tokens at a time, so that memory does not grow with the data.
TOKENS_AT_ONCE = 1 << 20


def write_documents(out: DocumentFilesWriter, store: TokenStore, eos_id: int) -> int:
    """Write all documents in the order of the rows.

    Args:
        out: writer of the document files.
        store: tokens of all documents.
        eos_id: id of the end token.

    Returns:
        Number of documents that end with the end token.
    """
    lengths, ended, first = store.lengths, 0, 0
    ends = np.cumsum(lengths, dtype=np.int64)
    while first < len(lengths):
        begin = int(ends[first]) - int(lengths[first])
        # At least one document, however long it is.
        last = max(first + 1, int(np.searchsorted(ends, begin + TOKENS_AT_ONCE, side="right")))
        ids, _ = store.samples(first, last)
        ended += int(np.count_nonzero(ids[ends[first:last] - begin - 1] == eos_id))
        out.add_documents(ids, lengths[first:last])
        first = last
    return ended
