"""Spans: what a chat template renders a conversation into, and the interface of every template.

A span is text or one special token. It is trained or not, and marks which of its characters are the message. With
user = ["<u>{{content}}<a>"] and assistant = ["{{content}}", {"special": "end"}], the conversation hi → yo becomes

    span       "<u>hi<a>"           "yo"      end
    part of    prompt               answer    answer
    trained    no                   yes       yes
    content    (3, 5)               (0, 2)    (0, 0)
    tokens     <u>   hi    <a>      yo        </s>       </s> is the end token
    labels     -100  -100  -100     yo        </s>       not shifted
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from mindspeed_llm.chat.conversation import Conversation


class Span(NamedTuple):
    """A piece of a sample: text that is tokenised on its own, or one special token.

    Attributes:
        kind: 'text'; 'token': the token written as `text`; 'begin': the tokenizer's begin token; 'end': the
            template's end token.
        text: empty for 'begin' and 'end'.
        trained: whether its tokens are labels.
        content: first and last + 1 character of the message in `text`; the rest are markers, which are never cut.
        end_label: whether the label of its first token is the end token (`end_once` in chat_template.py).
        untrainable: whether its tokens are no labels even where prompts are trained, because the row marks the
            message as not to be trained.
    """

    kind: Literal["text", "token", "begin", "end"]
    text: str = ""
    trained: bool = False
    content: tuple[int, int] = (0, 0)
    end_label: bool = False
    untrainable: bool = False

    def without_labels(self) -> Span:
        """Return a copy that is never trained."""
        return self._replace(trained=False, untrainable=True)


class RenderedTurn(NamedTuple):
    """The spans of one turn.

    Attributes:
        prompt: prefix and system text (first turn) or separator (later turns), then the prompt.
        answer: the answer and what the template writes after it.
    """

    prompt: list[Span]
    answer: list[Span]


class Renderer(Protocol):
    """The interface of a chat template: one of this project (ChatTemplate) or a tokenizer's own (JinjaTemplate)."""

    @property
    def name(self) -> str:
        """Name of the template; "hf" for a tokenizer's own."""

    @property
    def sha256(self) -> str:
        """Hash of everything that changes what the template writes."""

    @property
    def end_token(self) -> str | None:
        """Token that ends an answer; None for the tokenizer's end token."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Texts of the tokens that the tokenizer must have."""

    @property
    def begins(self) -> bool:
        """Whether the template uses the tokenizer's begin token."""

    @property
    def joined(self) -> bool:
        """Whether the spans of a sample are tokenised as one text instead of each on its own."""

    @property
    def date(self) -> str:
        """Date that the template writes; "" if the rendered text does not depend on the date."""

    @property
    def passes_sources(self) -> bool:
        """Whether the template gets ids of calls, and which call of which tool a reply answers."""

    @property
    def has_reasoning(self) -> bool:
        """Whether the template writes reasoning that a row keeps in a field beside the text of the answer."""

    @property
    def reasoning_markers(self) -> tuple[str, ...]:
        """Opening and closing marker of reasoning, which answers in the data may contain; empty if not known."""

    @property
    def closing(self) -> list[Span]:
        """Spans that end a sample."""

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Render the turns of a conversation; the caller appends `closing` after the last one.

        Raises:
            InvalidRowError: the template cannot express the conversation.
        """
        ...
