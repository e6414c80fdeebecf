r"""Control tokens in the text of the data (`--control-tokens-in-text`).

A tokenizer reads a control token wherever its string occurs. In an answer of the data, `<|im_end|>\n<|im_start|>user`
therefore ends the turn and starts one that the template did not write, and the model is trained to generate it.

    keep      they are read as control tokens, as in MindSpeed-LLM
    plain     they are read as ordinary text; those that the template writes stay control tokens (see
              plain_control_tokens.py)
    reject    the row is rejected

Control tokens are the tokens that the tokenizer declares as special and the tokens that the template writes. The
reasoning markers of a template (<think>) do not count, because answers of the data contain them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from mindspeed_llm.chat import Conversation, InvalidRowError, RenderedTurn, Renderer, iter_texts, map_texts
from mindspeed_llm.tokenization.plain_control_tokens import NONCHARACTER, PlainControlTokenizer
from mindspeed_llm.tokenization.tokenizer import ControlTokenSet, Tokenizer

CONTROL_MODES = ("keep", "plain", "reject")  # from the least to the most strict
FoundControls = dict[str, list[str]]  # control token → names of the fields that contain it


class ControlTokenFinder:
    """Find control tokens in the texts of conversations and treat them as the mode specifies.

    Args:
        tokenizer: tokenizer of the model.
        template: chat template; its tokens are control tokens, its reasoning markers are not.
        mode: one of CONTROL_MODES.

    Attributes:
        tokenizer: tokenizer for the conversations that `prepared` returns.

    Raises:
        ConfigError: the mode is 'plain' and the tokenizer cannot read a control token as ordinary text.
    """

    def __init__(self, tokenizer: Tokenizer, template: Renderer, mode: str) -> None:
        assert mode in CONTROL_MODES
        self._mode, self._template = mode, template
        controls = tokenizer.controls(template.tokens)
        texts = controls.texts.difference(template.reasoning_markers)
        self._controls = ControlTokenSet(texts, controls.normalize, controls.ascii_too)
        self._pattern = _any_of(texts)
        # The tokenizer matches such a token in the normalized text, so this class searches there for its normalized
        # form.
        self._normal = {controls.normalize(text): text for text in texts} if controls.normalize is not None else {}
        self._normal_pattern = _any_of(self._normal)
        self._plain = PlainControlTokenizer(tokenizer, self._controls) if mode == "plain" else None
        # A template in Jinja refuses the other noncharacters, because they mark answers.
        self._refuses_noncharacters = self._plain is not None or template.joined
        self.tokenizer = self._plain or tokenizer

    def found(self, conversation: Conversation) -> FoundControls:
        """Return the control tokens in the texts of `conversation`, each with the fields that contain it."""
        # Nearly all conversations contain none, which a search without the names of the fields detects faster.
        if not self._has_control_token(conversation):
            return {}
        found: FoundControls = {}
        for field, text in iter_texts(conversation):
            for token in self._tokens_in(text):
                fields = found.setdefault(token, [])
                if field not in fields:
                    fields.append(field)
        return found

    def prepared(self, conversation: Conversation, found: FoundControls) -> Conversation:
        """Return `conversation` as it has to be rendered: in mode 'plain' with placeholders for its control tokens.

        Args:
            conversation: a conversation of the data.
            found: the control tokens in its texts, from `found`.

        Raises:
            InvalidRowError: the mode is 'reject' and a text contains a control token; or a text contains a noncharacter
                and the mode is 'plain' or the template one in Jinja; or the mode is 'plain' and the template changes
                a text, so that the control tokens of the data cannot be distinguished from those of the template.
        """
        if self._refuses_noncharacters and any(
            not text.isascii() and NONCHARACTER.search(text) for _, text in iter_texts(conversation)
        ):
            raise InvalidRowError("text holds a noncharacter")
        if not found or self._mode == "keep":
            return conversation
        token, fields = next(iter(found.items()))
        if self._plain is None:
            raise InvalidRowError(f"control token {token} in {fields[0]}")
        # A template in Jinja may change a text before it writes it. The conversation is therefore rendered both ways:
        # only if the results agree, each placeholder marks a control token of the data.
        hidden = map_texts(conversation, self._plain.hidden)
        rendered = map(self._plain.shown, _span_texts(self._template.render(hidden)))
        if list(rendered) != _span_texts(self._template.render(conversation)):
            raise InvalidRowError(f"control token {token} in {fields[0]}, which the template does not write as it is")
        return hidden

    def _has_control_token(self, conversation: Conversation) -> bool:
        """Return whether any text of `conversation` contains a control token."""
        if self._normal:
            return any(True for _, text in iter_texts(conversation) for _ in self._tokens_in(text))
        # The fields that every conversation has come first: most rows have no calls, replies or tools.
        search, more = self._pattern.search, bool(conversation.tools)
        for turn in conversation.turns:
            if search(turn.prompt) or search(turn.answer):
                return True
            more = more or bool(turn.replies or turn.calls or turn.thought)
        if conversation.system and search(conversation.system):
            return True
        return more and any(search(text) for _, text in iter_texts(conversation))

    def _tokens_in(self, text: str) -> Iterator[str]:
        """Yield the control tokens in `text`, as it is and in its normalized form."""
        yield from self._pattern.findall(text)
        normalize = self._controls.normalize
        if normalize is not None and (self._controls.ascii_too or not text.isascii()):
            yield from (self._normal[token] for token in self._normal_pattern.findall(normalize(text)))


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that matches each of `texts`; without texts it matches nothing."""
    # Longest first, because the first alternative that matches wins and a token may be the beginning of another.
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _span_texts(turns: Sequence[RenderedTurn]) -> list[str]:
    """Return the text of every span of `turns`, in order."""
    return [span.text for turn in turns for part in turn for span in part]
