"""Tokens that end an answer, for the generation settings of a model that was trained with a template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mindspeed_llm.chat import Conversation, FunctionCall, InvalidRowError, Renderer, Span, Turn
from mindspeed_llm.tokenization.sample_builder import find_end_token
from mindspeed_llm.tokenization.tokenizer import Tokenizer

TOKEN = re.compile(r"\s*(<[^<>\s]+>)")  # <|im_end|>, <end_of_turn>, </s>
# An answer and a function call, because a template may end them with different tokens.
PROBES = (
    Conversation([Turn("question", "answer")]),
    Conversation([Turn("question", "", calls=(FunctionCall("name", "{}"),))]),
)


def token_text(tokenizer: Tokenizer, number: int | None) -> str | None:
    """Return the text that the tokenizer reads as the token `number`; None if there is none."""
    text = "" if number is None else tokenizer.decode([number])
    return text if text and tokenizer.token_id(text) == number else None


def end_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the texts of the tokens that end an answer, the tokenizer's own first.

    Args:
        tokenizer: tokenizer of the model.
        ids: further ids at which generation stops.
    """
    texts = [token_text(tokenizer, number) for number in (tokenizer.eos_id, *ids)]
    return [text for text in dict.fromkeys(texts) if text is not None]


def find_stop_ids(template: Renderer, tokenizer: Tokenizer, append_end: bool) -> list[int]:
    """Return the ids of the tokens that a model learns to write at the end of an answer or of a function call.

    Each is the first trained token after the message: the end token, or a token that the template writes as text
    (intern2: `<|im_end|>` and a line break). Without
    `append_end`, a template that trains nothing there (answers of empty, trl) has none.

    Args:
        template: chat template of the training data.
        tokenizer: tokenizer of the model.
        append_end: whether the end token closes every sample (--append-eod). Its id is then always in the
            list, as the last one unless it is there already.

    Raises:
        ConfigError: the tokenizer does not fit the template, see `find_end_token`.
    """
    end = find_end_token(tokenizer, template)
    first_ids = []
    for probe in PROBES:
        try:
            turn = template.render(probe)[-1]
        except InvalidRowError:  # the template does not support function calls
            continue
        # A template in Jinja may mark an answer in several pieces, between which the text is not trained.
        answer = [span for span in turn.answer if span.trained] if template.joined else turn.answer
        first_ids += [_first_id(_after_message([*answer, *template.closing]), tokenizer, end)]
    ids = [number for number in first_ids if number is not None]
    return list(dict.fromkeys([*ids, *([end] if append_end else [])]))


def _after_message(spans: list[Span]) -> Iterator[Span]:
    """Yield the spans after the message, beginning with the rest of the span that contains it."""
    message = next((number for number, span in enumerate(spans) if span.content != (0, 0)), len(spans))
    for number, span in enumerate(spans[message:]):
        yield span._replace(text=span.text[span.content[1] :]) if number == 0 else span


def _first_id(spans: Iterator[Span], tokenizer: Tokenizer, end: int) -> int | None:
    """Return the id of the first token of `spans` if it is trained; None otherwise."""
    for span in spans:
        if not span.trained or span.kind == "begin":
            return None
        if span.kind != "text":
            return end if span.kind == "end" else tokenizer.token_id(span.text)
        if span.text.strip():
            match = TOKEN.match(span.text)
            return tokenizer.token_id(match[1]) if match else None
    return None
