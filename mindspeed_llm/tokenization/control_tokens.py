"""Control tokens in the text of the data (`--control-tokens-in-text`).

A tokenizer reads a control token wherever its string stands. In an answer of the data `<|im_end|>\\n<|im_start|>user`
thus ends the turn and begins one that no template has written, and the model is trained to write it.

    keep      they become control tokens, as in MindSpeed-LLM
    plain     they become ordinary text; those that the template writes stay what they are (plain_control_tokens.py)
    reject    the row is a bad one

Control tokens are what the tokenizer declares as special, and what the template writes as a token. The words of a
template's thoughts (<think>) are none: answers of the data hold them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from mindspeed_llm.chat import Conversation, InvalidRowError, RenderedTurn, Renderer, iter_texts, map_texts
from mindspeed_llm.tokenization.plain_control_tokens import NONCHARACTER, PlainControlTokenizer
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Tokenizer

CONTROL_MODES = ("keep", "plain", "reject")  # the least strict first
FoundControls = dict[str, list[str]]  # control token → the fields that hold it


class ControlTokenFinder:
    """Finds control tokens in the texts of conversations, and does with them what is asked for.

    Attributes:
        tokenizer: the one to use for what `prepared` returns.

    Raises:
        ConfigError: the tokenizer cannot do it.
    """

    def __init__(self, tokenizer: Tokenizer, template: Renderer, mode: str) -> None:
        assert mode in CONTROL_MODES
        self._mode, self._template = mode, template
        found = tokenizer.controls(template.tokens)
        texts = found.texts.difference(template.reasoning_markers)
        self._controls = ControlTokenSet(texts, found.normalize, found.ascii_too)
        self._pattern = _any_of(texts)
        self._normal = {found.normalize(text): text for text in texts} if found.normalize is not None else {}
        self._normal_pattern = _any_of(self._normal)
        self._plain = PlainControlTokenizer(tokenizer, self._controls) if mode == "plain" else None
        self.tokenizer = self._plain or tokenizer

    def found(self, conversation: Conversation) -> FoundControls:
        """The control tokens in the texts of `conversation`; nearly always none, which is found out quickly."""
        if not self._suspicious(conversation):
            return {}
        found: FoundControls = {}
        for field, text in iter_texts(conversation):
            for token in self._in_text(text):
                fields = found.setdefault(token, [])
                if field not in fields:
                    fields.append(field)
        return found

    def prepared(self, conversation: Conversation, found: FoundControls) -> Conversation:
        """`conversation` with the tokens of `found` as they are to be rendered.

        Raises:
            BadRow: it is to be rejected, or they cannot be told from what the template writes.
        """
        if self._plain is not None and any(NONCHARACTER.search(text) for _, text in iter_texts(conversation)):
            raise InvalidRowError("text holds a noncharacter")
        if not found or self._mode == "keep":
            return conversation
        token, fields = next(iter(found.items()))
        if self._plain is None:
            raise InvalidRowError(f"control token {token} in {fields[0]}")
        hidden = map_texts(conversation, self._plain.hidden)
        rendered = map(self._plain.shown, _span_texts(self._template.render(hidden)))
        if list(rendered) != _span_texts(self._template.render(conversation)):
            raise InvalidRowError(f"control token {token} in {fields[0]}, which the template does not write as it is")
        return hidden

    def _suspicious(self, conversation: Conversation) -> bool:
        if self._normal:
            return any(True for _, text in iter_texts(conversation) for _ in self._in_text(text))
        search, more = self._pattern.search, bool(conversation.tools)
        for turn in conversation.turns:
            if search(turn.prompt) or search(turn.answer):
                return True
            more = more or bool(turn.replies or turn.calls or turn.thought)
        if conversation.system and search(conversation.system):
            return True
        return more and any(search(text) for _, text in iter_texts(conversation))

    def _in_text(self, text: str) -> Iterator[str]:
        yield from self._pattern.findall(text)
        normalize = self._controls.normalize
        if normalize is not None and (self._controls.ascii_too or not text.isascii()):
            yield from (self._normal[token] for token in self._normal_pattern.findall(normalize(text)))


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern for each of `texts`, longest first; without any it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _span_texts(turns: Sequence[RenderedTurn]) -> list[str]:
    """The text of every span."""
    return [span.text for turn in turns for part in turn for span in part]
