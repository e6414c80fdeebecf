"""Which tokens end an answer, for the generation settings of a model that was trained on a template."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mindspeed_llm.chat import Conversation, FunctionCall, InvalidRowError, Renderer, Span, Turn
from mindspeed_llm.tokenization.sample_builder import find_end_token
from mindspeed_llm.tokenization.tokenizer import Tokenizer

TOKEN = re.compile(r"\s*(<[^<>\s]+>)")  # <|im_end|>, <end_of_turn>, </s>
PROBES = (
    Conversation([Turn("question", "answer")]),
    Conversation([Turn("question", "", calls=(FunctionCall("name", "{}"),))]),
)


def find_stop_ids(template: Renderer, tokenizer: Tokenizer, append_end: bool) -> list[int]:
    """The ids of the tokens that a model learns to write where an answer, or a call of functions, is over.

    It is the first trained token after the message: the end token, or a token that the template writes as text
    (intern2: `<|im_end|>` and a line break). Where the template trains nothing there (answers of empty, trl) there is
    none.

    Args:
        append_end: --append-eod: the end token closes every sample.
    """
    end = find_end_token(tokenizer, template)
    found = []
    for probe in PROBES:
        try:
            turn = template.render(probe)[-1]
        except InvalidRowError:  # the template knows no calls
            continue
        found += [_first_id(_after_message([*turn.answer, *template.closing]), tokenizer, end)]
    ids = [number for number in found if number is not None]
    return list(dict.fromkeys([*ids, *([end] if append_end else [])]))


def _after_message(spans: list[Span]) -> Iterator[Span]:
    """The spans behind the message, and what is left of the one that holds it."""
    place = next((number for number, span in enumerate(spans) if span.content != (0, 0)), len(spans))
    for number, span in enumerate(spans[place:]):
        yield span._replace(text=span.text[span.content[1] :]) if number == 0 else span


def _first_id(spans: Iterator[Span], tokenizer: Tokenizer, end: int) -> int | None:
    for span in spans:
        if not span.trained or span.kind == "begin":
            return None
        if span.kind != "text":
            return end if span.kind == "end" else tokenizer.token_id(span.text)
        if span.text.strip():
            written = TOKEN.match(span.text)
            return tokenizer.token_id(written[1]) if written else None
    return None
