"""The spans of many samples as one list, and what the builder of samples derives from their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.chat import RenderedTurn, Span
from mindspeed_llm.tokenization.encoded_texts import Ids

END = Span("end", trained=True)


@dataclass
class SampleParts:
    """The spans of several samples, one after the other.

        sample    hi → yo              bye → ok
        spans     <u>hi<a>  yo  end    <u>bye<a>  ok  end
        bounds    0                    3                    6

    Attributes:
        spans: the spans, in order.
        bounds: index of the first span of each sample, and the end.
        last_answers: number of spans of the last answer of each sample and of what closes the sample.
        excluded: indices of the samples whose last answer must not be trained.
    """

    spans: list[Span] = field(default_factory=list)
    bounds: list[int] = field(default_factory=lambda: [0])
    last_answers: list[int] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)

    def add(self, turns: Sequence[RenderedTurn], closing: Sequence[Span], append_end: bool, mask_history: bool) -> None:
        """Add the spans of one sample.

        Args:
            turns: its turns; none for a conversation that is rejected.
            closing: spans that end a sample.
            append_end: whether to add the end token after them.
            mask_history: whether only the last turn is trained.
        """
        spans, last = self.spans, len(turns) - 1
        for number, (prompt, answer) in enumerate(turns):
            if mask_history and number < last:
                spans += [span.without_labels() for span in (*prompt, *answer)]
            else:
                spans += prompt
                spans += answer
        if turns and (closing or append_end):
            # A row may exclude its last answer from training; the end of the sample is then excluded as well.
            excluded = any(span.untrainable for span in turns[last].answer)
            ends = [*closing, END] if append_end else closing
            spans += [span.without_labels() for span in ends] if excluded else ends
            if excluded:
                self.excluded.append(len(self.bounds) - 1)
        self.last_answers.append(len(turns[last].answer) + len(closing) if turns else 0)
        self.bounds.append(len(spans))

    def surplus_ends(self, ids: Ids, trained: NDArray[np.bool_], sizes: NDArray[np.int64], eos_id: int) -> list[int]:
        """Return the samples to which an end token was appended although they end with one (`append_end`).

        A sample ends with one if that is its last trained token; a sample whose last answer is excluded from training,
        if a span of that answer ends with it.

        Args:
            ids: ids of all spans, int32 [tokens].
            trained: whether each token is trained, bool [tokens].
            sizes: number of tokens of each span, int64 [spans].
            eos_id: id of the end token.
        """
        span_ends = np.cumsum(sizes)
        bounds = np.concatenate([np.zeros(1, np.int64), span_ends])[self.bounds]
        filled = bounds[1:] > bounds[:-1]
        # The appended token is the last one of its sample and does not count.
        own = trained.copy()
        own[bounds[1:][filled] - 1] = False
        latest = np.maximum.accumulate(np.where(own, np.arange(len(ids)), -1))
        last = np.where(filled, latest[bounds[1:] - 1], -1)
        ended = (last >= bounds[:-1]) & (ids[last] == eos_id)
        for sample in self.excluded:
            appended = self.bounds[sample + 1] - 1
            spans = range(appended - self.last_answers[sample], appended)
            ended[sample] = any(sizes[span] and ids[span_ends[span] - 1] == eos_id for span in spans)
        return np.flatnonzero(ended).tolist()
