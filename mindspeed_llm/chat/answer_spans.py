r"""Find the answers in a rendered conversation: what is trained, and what is not.

The row is rendered twice: as it is, and with marks around the text of each message (content_marks.py). Without its
marks the second text must equal the first one, so the marks show where the template has put each message.

    rendered   <s><|user|>\n hi <|end|>\n<|assistant|>\n yo <|end|>\n
    marked     <s><|user|>\n[hi]<|end|>\n<|assistant|>\n[yo]<|end|>\n
    trained                                              yo <|end|>

An answer is what the model generates. It begins where the generation prompt ends: `<|assistant|>\n` here. It ends with
the end tokens that the template writes after it, or with the first token of the next message if that is an end token
(GLM). The line break after an end token is not trained, because generation has stopped before it.

A template may change an answer: it leaves out reasoning, or writes calls. Then the generation prompt, rendered with the
messages before, still shows where the answer begins, and the end tokens before the next message where it ends. An empty
block of reasoning that the template inserts belongs to the prompt: it tells the model not to reason. If no way gives a
result that agrees with the rendered text, the row is rejected.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mindspeed_llm.chat.content_marks import MarkedText, read_marks
from mindspeed_llm.chat.conversation import InvalidRowError, Turn
from mindspeed_llm.chat.template_messages import ConversationMessages, MessageForm, Messages

ANSWER_NOT_FOUND = "the chat template changes an answer, so that it cannot be found in the rendered text"
# A block of reasoning without reasoning: <think>\n\n</think>\n\n, [THINK][/THINK].
EMPTY_BLOCK = re.compile(r"\s*(?:<([^<>/\s]+)>\s*</\1>|\[(\w+)\]\s*\[/\2\])\s*")
BLOCK_LENGTH = 64  # maximum number of characters of such a block before the end of the generation prompt


@dataclass
class FoundAnswer:
    """Where an answer is in the rendered text.

    Attributes:
        pieces: (start, end) of each text that is trained, in order; empty if none is.
        content: start and end of what truncation may cut, without end tokens.
        missing_end: end token that the template does not write after the last answer; "" if it does.
    """

    pieces: list[tuple[int, int]]
    content: tuple[int, int] | None = None
    missing_end: str = ""


@dataclass
class RenderedRow:
    """A rendered conversation.

    Attributes:
        turns: the turns of the conversation.
        messages: its messages.
        render: renders some of its messages: (messages, whether to write a generation prompt) → text with marks.
        rendered: the text and what the template marks with {% generation %}.
        placed: where the content of each message is, as far as that is known.
    """

    turns: Sequence[Turn]
    messages: ConversationMessages
    render: Callable[[Messages, bool], str]
    rendered: MarkedText
    placed: MarkedText = field(default_factory=lambda: MarkedText(""))

    @property
    def text(self) -> str:
        """The text of the row."""
        return self.rendered.text

    def next_start(self, turn: int) -> int | None:
        """Return where the message after an answer begins, at the latest; None if that is not known."""
        if turn + 1 == len(self.turns):
            return len(self.text)
        return self.placed.starts.get(self.messages.prompts[turn + 1][0])

    def prompt_end(self, turn: int) -> int | None:
        """Return where the content of the last message before an answer ends; None if that is not known."""
        return self.placed.ends.get(self.messages.prompts[turn][-1])


class AnswerFinder:
    """Find the answers that a template has rendered.

    Args:
        form: how the template expects messages.
        ends: texts of the end tokens: those at which generation stops.
        headers: constant texts of the generation prompt, see `jinja_template.constant_headers`: the usual one, and one
            that contains an empty block of reasoning; "" for one that is not constant or does not exist.
        skip_empty_block: whether an empty block of reasoning before an answer belongs to the prompt.
    """

    def __init__(
        self,
        form: MessageForm,
        ends: Sequence[str],
        headers: tuple[str, str] = ("", ""),
        skip_empty_block: bool = True,
    ) -> None:
        self._form, self._headers = form, headers
        self._skip_empty_block = skip_empty_block
        longest_first = sorted(ends, key=len, reverse=True)
        self._end = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._final_ends = re.compile(f"((?:{self._end.pattern})+)\\s*\\Z")
        # End tokens that a text without one gets: after an answer, and after calls.
        self.missing_ends = (ends[0], ends[0]) if ends else ("", "")
        self.learned_headers: dict[str, str] = {}

    def last_end(self, text: str) -> str:
        """Return the last end token of a text; "" if there is none."""
        return next(reversed(self._end.findall(text)), "")

    def learn_header(self, row: RenderedRow, number: int) -> None:
        """Learn the text between a message and the answer to it from an answer whose text is its own beginning.

        It shows where an answer begins if the generation prompt differs from what precedes earlier answers, because
        it asks for reasoning, for example.
        """
        opened, prompt_end = row.placed.starts.get(row.messages.answers[number]), row.prompt_end(number)
        if opened is not None and prompt_end is not None:
            self.learned_headers[row.turns[number].role] = row.text[prompt_end:opened]

    def place(self, row: RenderedRow) -> None:
        """Find where the content of each message is, with as few further renderings as possible."""
        answers = row.messages.answers
        everything = [number for numbers in row.messages.prompts for number in numbers] + answers
        for numbers in (everything, answers):
            if (placed := self._marked(row, numbers)) is not None:
                row.placed = placed
                return
        row.placed = MarkedText(row.text)
        for number in answers:
            if (placed := self._marked(row, [number])) is not None:
                row.placed.starts |= placed.starts
                row.placed.ends |= placed.ends

    def _marked(self, row: RenderedRow, numbers: list[int]) -> MarkedText | None:
        """Return where the messages `numbers` are; None if the template renders them in another way with marks."""
        try:
            marked = read_marks(row.render(row.messages.final(self._form, numbers), False))
        except InvalidRowError:
            return None
        same = marked.text == row.text and marked.generation == row.rendered.generation
        return marked if same else None

    def find(self, row: RenderedRow) -> list[FoundAnswer]:
        """Return where each answer is.

        Raises:
            InvalidRowError: an answer cannot be found.
        """
        found: list[FoundAnswer] = []
        position = 0
        for number in range(len(row.turns)):
            start = self._start(row, number)
            answer = self._answer(row, number, start)
            end = answer.pieces[0][1]
            closed = row.placed.ends.get(row.messages.answers[number], start)
            if not position <= start < end or not start <= closed <= end:
                raise InvalidRowError(ANSWER_NOT_FOUND)
            found.append(answer)
            position = end
        return found

    def _start(self, row: RenderedRow, number: int) -> int:
        """Return where an answer begins."""
        message = row.messages.answers[number]
        opened, closed = row.placed.starts.get(message), row.placed.ends.get(message)
        limit = opened if opened is not None else closed if closed is not None else row.next_start(number)
        if (start := self._after_constant_header(row, number, limit)) is not None:
            return start
        prompt = self._rendered_part(row, message, True)
        if prompt is not None and row.text.startswith(prompt) and len(prompt) <= (closed or len(row.text)):
            return self._after_empty_block(row, number, len(prompt), limit)
        without = self._rendered_part(row, message, False)
        if prompt is not None and without is not None and prompt.startswith(without):
            start = self._after_header(row, number, prompt[len(without) :], limit)
            if start is not None:
                return self._after_empty_block(row, number, start, limit)
        if (start := self._after_learned_header(row, number)) is not None:
            return self._after_empty_block(row, number, start, limit)
        if opened is None:
            raise InvalidRowError(ANSWER_NOT_FOUND)
        return self._before_white_space(row, message, opened)

    def _before_white_space(self, row: RenderedRow, message: int, opened: int) -> int:
        """Return where the white space begins that a template has kept at the start of an answer.

        The same white space may end the header, so it is counted by rendering the answer without it.
        """
        messages = list(row.messages.messages)
        messages[message] = {**messages[message], "content": messages[message]["content"].lstrip()}
        if messages == row.messages.messages:
            return opened
        without = replace(row.messages, messages=messages).final(self._form)
        text = read_marks(row.render(without, False)).text
        start = opened - (len(row.text) - len(text))
        if start > opened or row.text[:start] + row.text[opened:] != text:
            raise InvalidRowError(ANSWER_NOT_FOUND)
        return start

    def _after_learned_header(self, row: RenderedRow, number: int) -> int | None:
        """Return the end of a learned header that follows the message before an answer; None if none does."""
        turn, prompt_end = row.turns[number], row.prompt_end(number)
        header = self.learned_headers.get(turn.role)
        if header and prompt_end is not None:
            prompt = turn.replies[-1] if turn.replies else turn.prompt
            for start in range(prompt_end, prompt_end + 1 + _kept_after(row.text, prompt_end, prompt)):
                if row.text.startswith(header, start):
                    return start + len(header)
        return None

    def _after_constant_header(self, row: RenderedRow, number: int, limit: int | None) -> int | None:
        """Return the end of a constant generation prompt between the message before an answer and the answer.

        It saves rendering the messages before the answer: the generation prompt is always the same text, which the
        rendered row contains where it has to be.
        """
        usual, with_block = self._headers
        end = self._after_header(row, number, usual, limit)
        if end is None or limit is None:
            return None
        longer = end - len(usual) + len(with_block)
        if with_block and row.text.startswith(with_block, end - len(usual)) and longer <= limit:
            return longer
        return self._after_empty_block(row, number, end, limit)

    def _after_header(self, row: RenderedRow, number: int, header: str, limit: int | None) -> int | None:
        """Return the end of the text `header` between the message before an answer and `limit`; None if not there."""
        prompt_end = row.prompt_end(number)
        if not header.strip() or prompt_end is None or limit is None:
            return None
        start = row.text.find(header, prompt_end, limit)
        return start + len(header) if start >= 0 else None

    def _after_empty_block(self, row: RenderedRow, number: int, start: int, limit: int | None) -> int:
        """Return the end of an empty block of reasoning that begins at `start` or contains it; otherwise `start`."""
        if not self._skip_empty_block or limit is None or start >= limit:
            return start
        answer = row.turns[number].answer
        limit -= _kept_before(row.text, limit, answer) if row.messages.answers[number] in row.placed.starts else 0
        first = row.prompt_end(number)
        first = max(0, start - BLOCK_LENGTH) if first is None else first
        for block in EMPTY_BLOCK.finditer(row.text, first, limit):
            if block.start() <= start <= block.end():
                return block.end()
        return start

    def _answer(self, row: RenderedRow, number: int, start: int) -> FoundAnswer:
        """Return an answer that begins at `start`."""
        turn, text = row.turns[number], row.text
        closed, bound = row.placed.ends.get(row.messages.answers[number]), row.next_start(number)
        # The template may leave these out, so end tokens in them cannot be counted.
        unsure = (turn.answer, turn.thought) if closed is None else ()
        whole = closed is not None and not turn.calls  # nothing of the answer follows its text
        if (bound is None and not whole) or any(map(self._end.search, unsure)):
            return self._answer_of_prefix(row, number, start)
        first = start if closed is None else max(start, closed)
        last = len(text) if bound is None else bound
        # Calls follow the text of the answer; the end tokens in their own text do not end the answer.
        own = sum(len(self._end.findall(part)) for call in turn.calls for part in call)
        ends = list(self._end.finditer(text, first, last))[own:]
        if ends and (bound is not None or not text[first : ends[0].start()].strip()):
            end = ends[0].end()
            for following in ends[1:]:
                end = following.end() if following.start() == end else end
            return FoundAnswer([(start, end)], (start, ends[0].start()))
        if not whole:
            return self._answer_of_prefix(row, number, start)
        return self._without_end(row, number, start, first + _kept_after(text, first, turn.answer))

    def _answer_of_prefix(self, row: RenderedRow, number: int, start: int) -> FoundAnswer:
        """Return an answer whose end is where the messages up to it end, rendered alone."""
        part = self._rendered_part(row, row.messages.answers[number] + 1, False)
        if part is None or not row.text.startswith(part) or len(part) <= start:
            raise InvalidRowError(ANSWER_NOT_FOUND)
        if (ends := self._final_ends.search(part, start)) is not None:
            return FoundAnswer([(start, ends.end(1))], (start, ends.start(1)))
        if (following := self._end.match(row.text, len(part))) is not None:
            return FoundAnswer([(start, following.end())], (start, following.start()))
        return self._without_end(row, number, start, len(part.rstrip()))

    def _without_end(self, row: RenderedRow, number: int, start: int, end: int) -> FoundAnswer:
        """Return an answer without an end token; the last one of a row gets one."""
        last = number + 1 == len(row.turns)
        missing = self.missing_ends[bool(row.turns[number].calls)] if last else ""
        return FoundAnswer([(start, end)], (start, end), missing)

    def _rendered_part(self, row: RenderedRow, count: int, prompt: bool) -> str | None:
        """Render the first `count` messages; None if the template refuses them."""
        try:
            return read_marks(row.render(row.messages.final(self._form)[:count], prompt)).text
        except InvalidRowError:
            return None

    def assign(self, row: RenderedRow) -> list[FoundAnswer]:
        """Assign the texts that a template marks with {% generation %} to the answers of a row.

        Raises:
            InvalidRowError: nothing is marked, or it is not known which answer a marked text belongs to.
        """
        pieces = row.rendered.generation
        if not pieces:
            raise InvalidRowError("the chat template marks no answer of it")
        found = [FoundAnswer([], _content(row, number)) for number in range(len(row.turns))]
        starts = [0]
        for number in range(1, len(row.turns)):
            start = self._turn_start(row, number)
            if start is None:
                break
            starts.append(start)
        if len(starts) == len(found):
            for piece in pieces:
                found[bisect_right(starts, piece[0]) - 1].pieces.append(piece)
        elif len(pieces) == len(found):
            for answer, piece in zip(found, pieces, strict=True):
                answer.pieces.append(piece)
        else:
            raise InvalidRowError("the chat template marks more or fewer answers than it has")
        return found

    def _turn_start(self, row: RenderedRow, number: int) -> int | None:
        """Return a place between the answer before a turn and the answer of the turn; None if none is known."""
        if (start := row.next_start(number - 1)) is not None:
            return start
        prompt = self._rendered_part(row, row.messages.answers[number], True)
        return len(prompt) if prompt is not None and row.text.startswith(prompt) else None


def _kept_before(text: str, position: int, answer: str) -> int:
    """Return how many characters of white space at the start of an answer the template has written."""
    lead = answer[: len(answer) - len(answer.lstrip())]
    while lead and not text.endswith(lead, 0, position):
        lead = lead[1:]
    return len(lead)


def _kept_after(text: str, position: int, answer: str) -> int:
    """Return how many characters of white space at the end of an answer the template has written."""
    tail = answer[len(answer.rstrip()) :]
    while tail and not text.startswith(tail, position):
        tail = tail[:-1]
    return len(tail)


def _content(row: RenderedRow, number: int) -> tuple[int, int] | None:
    """Return start and end of the text of an answer with its white space; None if that is not known."""
    message, answer = row.messages.answers[number], row.turns[number].answer
    start, end = row.placed.starts.get(message), row.placed.ends.get(message)
    if start is None or end is None:
        return None
    return start - _kept_before(row.text, start, answer), end + _kept_after(row.text, end, answer)
