"""What a template makes of a conversation: spans of text, some of them trained."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from mindspeed_llm.chat.conversation import Conversation


class Span(NamedTuple):
    """A piece of a sample: text that is tokenised on its own, or one special token.

    Attributes:
        kind: 'text'; 'token': the token written as `text`; 'begin' and 'end': the tokenizer's and the template's.
        trained: its tokens are labels.
        content: characters of `text` that are the message; the rest are markers, which are never cut.
        end_label: the label of its first token is the end token (see Template, end_once).
        untrainable: its tokens are no labels even where prompts are trained: the row marks the message so.
    """

    kind: Literal["text", "token", "begin", "end"]
    text: str = ""
    trained: bool = False
    content: tuple[int, int] = (0, 0)
    end_label: bool = False
    untrainable: bool = False

    def without_labels(self) -> Span:
        """The same, never trained."""
        return self._replace(trained=False, untrainable=True)


class RenderedTurn(NamedTuple):
    """The spans of one turn; those of the prompt include prefix, system and separator."""

    prompt: list[Span]
    answer: list[Span]


class Renderer(Protocol):
    """What the rest of the program needs of a template: one of ours (Template), or a tokenizer's own (ChatTemplate).

    Attributes:
        sha256: of its meaning.
        end_token: the token that ends an answer; None for the tokenizer's.
        tokens: tokens that the tokenizer must have.
        begins: asks for the tokenizer's begin token.
        joined: the spans of a sample are one text to the tokenizer, not one each.
        closing: what ends a sample.
        dated: what it writes depends on the day.
        has_reasoning: it has a place for thoughts that a row keeps apart from the answer's text.
        reasoning_markers: what opens and closes a thought, which answers of the data may hold.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def end_token(self) -> str | None: ...
    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def begins(self) -> bool: ...
    @property
    def joined(self) -> bool: ...
    @property
    def dated(self) -> bool: ...
    @property
    def has_reasoning(self) -> bool: ...
    @property
    def reasoning_markers(self) -> tuple[str, ...]: ...
    @property
    def closing(self) -> list[Span]: ...

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Every turn of `conversation`; `closing` belongs after the last one.

        Raises:
            BadRow: the template cannot say it.
        """
        ...
