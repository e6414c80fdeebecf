"""The documents of one split as one stream of tokens, which is cut into blocks.

Documents follow one another in file order. An end token E is added where a document has none:

    documents      a0 a1 E | b0 b1 b2 | c0 E           b is in another split
    stream         a0 a1 E c0 E

The stream keeps one number per GROUP documents in memory. What a read needs beyond that is read from the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import DocumentFiles

# Documents per number in memory: three splits then take 6 bytes per 1,024 documents. A read from a random position
# reads the index of one group, 16 KiB.
GROUP = 4096
GROUPS_AT_ONCE = 64
# Numbers of documents that are kept where some documents of a file have an end token and others do not: 8 MiB. If there
# are more, last tokens are read when they are needed.
MAX_EXCEPTIONS = 1 << 20


class DocumentSelection(Protocol):
    """Protocol of the selections: which documents of a set of files belong to a split."""

    def mask(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Return whether documents first … last − 1 belong to the split; bool [last - first]."""
        ...


class EndedDocuments:
    """Document files together with their end token, which is added to documents that do not end with it.

    Args:
        files: the opened files.
        eod: id of the end token.

    Attributes:
        added: number of documents to which an end token is added.

    Raises:
        DataError: A file cannot be read.
    """

    def __init__(self, files: DocumentFiles, eod: int) -> None:
        self.files, self.eod = files, eod
        ended = self._ended_by_manifest()
        self.added = files.index.documents_with_tokens - (ended or 0)
        self._exceptions: npt.NDArray[np.int64] | None = np.zeros(0, np.int64)
        # If all documents are alike, the number in the manifest is enough.
        if ended is None or (ended and self.added):
            self.added, self._exceptions = self._read_ends()

    def _ended_by_manifest(self) -> int | None:
        """Return the number of documents that end with the end token; None if no manifest gives it."""
        manifest = self.files.manifest
        if manifest is None or manifest.documents is None or manifest.tokenizer.eod_id != self.eod:
            return None
        return manifest.documents.ended

    def _read_ends(self) -> tuple[int, npt.NDArray[np.int64] | None]:
        """Read the last token of each document.

        Returns:
            The number of documents without an end token, and the numbers of the minority: of documents with an end
            token if most have none, else of those without; None if there are more than MAX_EXCEPTIONS.
        """
        index = self.files.index
        counts = [0, 0]
        numbers: tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.int64]]] = ([], [])
        for first, last in index.parts():
            tokens = index.last_tokens(first, last)
            for kind, found in enumerate((tokens == self.eod, (tokens != self.eod) & (tokens >= 0))):
                counts[kind] += int(np.count_nonzero(found))
                if counts[kind] <= MAX_EXCEPTIONS:
                    numbers[kind].append(first + np.flatnonzero(found))
        rare = int(counts[1] <= counts[0])
        none = np.zeros(0, np.int64)
        exceptions = np.concatenate([none, *numbers[rare]]) if counts[rare] <= MAX_EXCEPTIONS else None
        return counts[1], exceptions

    def lengths(self, first: int, last: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the lengths of documents first … last − 1 in the file and the number of end tokens to add to each.

        Returns:
            Lengths in tokens, int64 [last - first], and 0 or 1 end tokens, int64 [last - first]. Nothing is added to a
            document without tokens.
        """
        lengths = self.files.index.lengths(first, last)
        filled = lengths > 0
        if self._exceptions is None:
            ended = self.files.index.last_tokens(first, last) == self.eod
            return lengths, (filled & ~ended).astype(np.int64)
        most = 2 * self.added > self.files.index.documents_with_tokens
        added = np.full(last - first, most)
        between = slice(*np.searchsorted(self._exceptions, [first, last]))
        added[self._exceptions[between] - first] = not most
        return lengths, (filled & added).astype(np.int64)


@dataclass(frozen=True)
class _Group:
    """The documents of a split in one group.

    Attributes:
        starts: offset of each document in the .bin file, in tokens; int64 [documents].
        lengths: length of each document in the file, in tokens; int64 [documents].
        added: end tokens that are added to each; int64 [documents].
        ends: end of each document in the stream, with the added token; int64 [documents].
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


class DocumentStream:
    """The tokens of the documents of one split. Any number of threads and forked processes may read.

    Args:
        documents: documents of the files.
        selection: which of them belong to the split.
        group_tokens: tokens of the split in each group of GROUP documents; int64 [groups].

    Attributes:
        tokens: number of tokens, with added end tokens.
    """

    def __init__(
        self, documents: EndedDocuments, selection: DocumentSelection, group_tokens: npt.NDArray[np.int64]
    ) -> None:
        self.documents, self.selection = documents, selection
        # Start of each group in the stream, and the end of the stream; int64 [groups + 1].
        self._group_starts = np.concatenate(([0], np.cumsum(group_tokens)))
        self.tokens = int(self._group_starts[-1])

    def read(self, start: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Read tokens of the stream.

        Args:
            start: position of the first token.
            count: number of tokens.

        Returns:
            Token ids, int64 [count], and the ends of the documents that end in this range, relative to `start`; int64
            [documents], between 1 and `count`.

        Raises:
            DataError: The range is not within the stream, or the file cannot be read.
        """
        if not 0 <= start <= start + count <= self.tokens:
            raise DataError(f"{self.documents.files.prefix}: tokens {start} … {start + count} of {self.tokens}")
        tokens = np.empty(count, np.int64)
        ends = []
        # side="right" skips groups without tokens of this split.
        group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        done = 0
        while done < count:
            part = self._group(group)
            first = int(np.searchsorted(part.ends, start + done, side="right"))
            last = min(int(np.searchsorted(part.ends, start + count)) + 1, len(part.ends))
            done += self._read_documents(part, first, last, start + done, tokens[done:])
            ends.append(part.ends[first:last] - start)
            group += 1
        every = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        return tokens, every[every <= count]

    def _group(self, number: int) -> _Group:
        index = self.documents.files.index
        first, last = number * GROUP, min((number + 1) * GROUP, index.documents)
        lengths, added = self.documents.lengths(first, last)
        starts = index.start(first) + np.cumsum(lengths) - lengths
        chosen = self.selection.mask(first, last) & (lengths > 0)
        lengths, added = lengths[chosen], added[chosen]
        ends = self._group_starts[number] + np.cumsum(lengths + added)
        return _Group(starts[chosen], lengths, added, ends)

    def _read_documents(
        self, group: _Group, first: int, last: int, position: int, target: npt.NDArray[np.int64]
    ) -> int:
        """Write the tokens from `position` of the stream on, of documents first … last − 1, to the start of `target`.

        Documents that follow one another in the file are read together, and the added end tokens written between them.

        Returns:
            Number of tokens written.
        """
        ends, lengths, added = (column[first:last] for column in (group.ends, group.lengths, group.added))
        count = min(int(ends[-1]) - position, len(target))
        is_added = np.zeros(count, np.bool_)
        places = (ends - 1 - position)[added > 0]
        is_added[places[(places >= 0) & (places < count)]] = True
        # The part of each document that is wanted: empty if only its end token is.
        begins = ends - lengths - added - position
        low, high = (np.clip(edge - begins, 0, lengths) for edge in (0, count))
        starts, sizes = group.starts[first:last] + low, high - low
        runs = np.flatnonzero(starts[1:] != starts[:-1] + sizes[:-1]) + 1
        read = self.documents.files.index.read
        parts = [read(int(starts[a]), int(sizes[a:b].sum())) for a, b in pairwise([0, *runs, len(starts)])]
        target[:count][is_added] = self.documents.eod
        target[:count][~is_added] = np.concatenate(parts)
        return count


def open_streams(documents: EndedDocuments, selections: Sequence[DocumentSelection]) -> list[DocumentStream]:
    """Return the streams of several splits of the same files, after one pass over the index.

    Args:
        documents: documents of the files.
        selections: the documents of each split.
    """
    index = documents.files.index
    groups = -(-index.documents // GROUP)
    tokens = np.zeros((len(selections), groups), np.int64)
    for first, last in index.parts(GROUP * GROUPS_AT_ONCE):
        lengths, added = documents.lengths(first, last)
        starts = np.arange(0, last - first, GROUP)
        columns = slice(first // GROUP, first // GROUP + len(starts))
        for number, selection in enumerate(selections):
            chosen = np.where(selection.mask(first, last), lengths + added, 0)
            tokens[number, columns] = np.add.reduceat(chosen, starts)
    return [DocumentStream(documents, each, row) for each, row in zip(selections, tokens, strict=True)]
