"""Render conversations with a chat template in Jinja (`--prompt-type hf`), in a sandbox.

If the template marks answers with {% generation %} … {% endgeneration %}, these texts are trained, as in transformers'
apply_chat_template(return_assistant_tokens_mask=True). Otherwise answer_spans.py finds the answers in the rendered
text. As in transformers, a sample is tokenised as one text.

    template   ... <assistant>{% generation %}{{ message.content }}</s>{% endgeneration %} ...
    spans      <user>hi<assistant>   yo</s>
    trained    no                    yes
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from mindspeed_llm.chat.answer_spans import AnswerFinder, FoundAnswer, RenderedRow
from mindspeed_llm.chat.content_marks import has_noncharacter, read_marks
from mindspeed_llm.chat.conversation import Conversation, FunctionCall, InvalidRowError, Turn, iter_texts
from mindspeed_llm.chat.jinja_limits import MAX_OUTPUT, LimitExceededError
from mindspeed_llm.chat.jinja_reasoning import JinjaReasoning
from mindspeed_llm.chat.reasoning import History
from mindspeed_llm.chat.renderer import RenderedTurn, Span
from mindspeed_llm.chat.special_tokens import read_special_tokens
from mindspeed_llm.chat.template_files import choose_template, read_template
from mindspeed_llm.chat.template_messages import MessageForm, Messages, create_messages, read_reasoning_fields
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of

GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
PROBE = Conversation([Turn("first question", "first answer"), Turn("second question", "second answer")])
CALL_PROBE = Conversation(
    [
        Turn("question", "", calls=(FunctionCall("look_up", "{}", "callcall1"),)),
        Turn("reply", "first answer", "observation"),
        Turn("second question", "second answer"),
    ],
    tools=({"name": "look_up", "description": "", "parameters": {"type": "object", "properties": {}}},),
)


class JinjaTemplate:
    """Chat template of a tokenizer, or of a file. See Renderer for its interface.

    Args:
        source: the template in Jinja.
        special: name → text of special tokens, such as bos_token and eos_token, which are variables of the template.
        enable_thinking: passed to the template unless it is None.
        ends: texts of the tokens that end an answer; used if the template marks no answer with {% generation %}.
        reasoning_history: value of `--reasoning-history`; see jinja_reasoning.py.
        train_empty_reasoning: value of `--train-empty-reasoning`.

    Attributes:
        reasoning: the options for reasoning.

    Raises:
        ConfigError: the source is not valid Jinja.
    """

    name = "hf"
    tokens: tuple[str, ...] = ()
    begins = False
    joined = True
    passes_sources = True

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        enable_thinking: bool | None = None,
        ends: Sequence[str] = (),
        *,
        reasoning_history: History | None = None,
        train_empty_reasoning: bool = False,
    ) -> None:
        self.source = source
        self.reasoning = JinjaReasoning(source, reasoning_history, train_empty_reasoning)
        self.reasoning_markers = self.reasoning.markers
        # One date for all rows of a run, without the time of day, so that the tokens can be made again.
        self.date = date.today().isoformat() if "strftime_now" in source else ""
        self._context = dict(special) | self.reasoning.variables
        self._context |= {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._is_marked = GENERATION.search(source) is not None
        self._of_thread = threading.local()
        self._compiled()
        self._form = MessageForm(read_reasoning_fields(source), self._needs_parts())
        headers = ("", "") if self._is_marked else self._constant_headers()
        self._finder = AnswerFinder(self._form, ends, headers, enable_thinking is None)
        self.end_token = None if self._is_marked else self._find_ends()
        meaning: list[Any] = [source, self._context, *([] if self._is_marked else [list(ends)])]
        meaning += self.reasoning.options
        self.sha256 = sha256_of(json.dumps(meaning, sort_keys=True).encode())

    def _compiled(self) -> tuple[Any, Any, dict[str, Any]]:
        """Return the environment of this thread, the compiled template, and the variables that are always the same.

        Raises:
            ConfigError: the source is not valid Jinja.
        """
        if (known := getattr(self._of_thread, "compiled", None)) is not None:
            return known
        # Imported here, because jinja2 takes part of the start-up time of every other command.
        from mindspeed_llm.chat.jinja_environment import ChatEnvironment

        today = datetime.fromisoformat(self.date) if self.date else None
        environment = ChatEnvironment(lambda form: "" if today is None else today.strftime(form))
        try:
            template = environment.from_string(self.source)
        except Exception as error:  # jinja2.TemplateError, or any error of Python's compiler for the generated code
            raise ConfigError(
                f"--prompt-type hf: the chat template is not valid Jinja ({error or type(error).__name__})"
            ) from error
        self._of_thread.compiled = environment, template, dict(template.globals) | self._context
        return self._of_thread.compiled

    @property
    def has_reasoning(self) -> bool:
        """Whether the template reads a reasoning field of messages, or a row is bad if it does not."""
        return bool(self._form.reasoning) or self.reasoning.keeps

    @property
    def closing(self) -> list[Span]:
        """Always empty, because the template writes the complete sample."""
        return []

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Render a conversation.

        Args:
            conversation: the conversation of one row.

        Returns:
            One turn for each answer.

        Raises:
            InvalidRowError: the template raises an error, exceeds a limit or leaves out tools or calls; an answer
                cannot be found in the rendered text; or a text contains a noncharacter.
        """
        if any(has_noncharacter(text) for _, text in iter_texts(conversation)):
            raise InvalidRowError("text holds a noncharacter")
        conversation = self.reasoning.prepare(conversation)
        row = self._rendered_row(conversation, self._form)
        _check_nothing_left_out(conversation, row.text)
        self.reasoning.check_kept(conversation, lambda probed: self._rendered_row(probed, self._form).text)
        self._finder.place(row)
        found = self._finder.assign(row) if self._is_marked else self._finder.find(row)
        return self.reasoning.finish(_cut_turns(row, found))

    def render_prompt(self, messages: Messages) -> str:
        """Render messages and the beginning of the answer to them, as transformers does for a generation.

        Args:
            messages: messages with role and content; the last one is not the assistant's.

        Raises:
            InvalidRowError: the template raises an error or exceeds a limit.
        """
        if self._form.parts:
            messages = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
        return self._rendered(messages, None, True)

    def _rendered_row(self, conversation: Conversation, form: MessageForm) -> RenderedRow:
        """Render a conversation without marks."""
        messages = create_messages(conversation, form.reasoning)
        tools = [{"type": "function", "function": tool} for tool in conversation.tools] or None

        def render(some: Messages, prompt: bool) -> str:
            return self._rendered(some, tools, prompt)

        return RenderedRow(conversation.turns, messages, render, read_marks(render(messages.final(form), False)))

    def _rendered(self, messages: Messages, tools: list[dict[str, Any]] | None, prompt: bool) -> str:
        """Render messages to text.

        Args:
            messages: the messages in the form of the template.
            tools: tools in OpenAI's format.
            prompt: whether the beginning of an answer is written after the last message.

        Raises:
            InvalidRowError: the template raises an error, or exceeds a limit.
        """
        from mindspeed_llm.chat.jinja_environment import TemplateError

        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        environment, template, constant = self._compiled()
        environment.budget.reset()
        try:
            # Shared: jinja2 would copy its global variables from a ChainMap, which takes longer than the template.
            context = template.new_context({**constant, **variables}, shared=True)
            pieces = list(template.root_render_func(context))
            size = sum(map(len, pieces))
            if size * 4 > MAX_OUTPUT and sum(len(piece.encode()) for piece in pieces) > MAX_OUTPUT:
                raise LimitExceededError(f"writes more than {MAX_OUTPUT >> 20} MiB")
            return "".join(pieces)
        except TemplateError as error:
            raise InvalidRowError(f"the chat template refuses it: {error}") from None
        except LimitExceededError as error:
            raise InvalidRowError(f"the chat template {error}") from None
        except Exception as error:  # a template may raise anything, such as ZeroDivisionError or MemoryError
            raise InvalidRowError(f"the chat template fails on it: {str(error) or type(error).__name__}") from None

    def _needs_parts(self) -> bool:
        """Return whether the template writes content in parts, but not content that is text."""
        written = []
        for parts in (False, True):
            try:
                text = self._rendered_row(PROBE, MessageForm(parts=parts)).text
            except InvalidRowError:
                text = ""
            contents = [content for turn in PROBE.turns for content in (turn.prompt, turn.answer)]
            # A template that expects text writes the parts themselves.
            written.append(all(content in text for content in contents) and "type" not in text)
        return written == [False, True]

    def _constant_headers(self) -> tuple[str, str]:
        """Return the generation prompt, usual and with reasoning turned off, if it is constant; otherwise ""."""
        from mindspeed_llm.chat.jinja_environment import constant_generation_prompt

        rendered = constant_generation_prompt(self._compiled()[0], self.source, self._context)
        if rendered is None:
            return "", ""
        usual = rendered({})
        other = rendered({"enable_thinking": False}) if "enable_thinking" not in self._context else usual
        return (usual, other if other != usual and other.startswith(usual) else "") if usual.strip() else ("", "")

    def _find_ends(self) -> str | None:
        """Return the token that ends an answer, and tell the finder what it learns from conversations of this module.

        Answers that the template leaves without end token get those with which it ends an answer that is followed by
        another message.
        """
        ends = []
        for probe, answered in ((PROBE, 0), (CALL_PROBE, 1)):
            try:
                row = self._rendered_row(probe, self._form)
                self._finder.place(row)
                self._finder.learn_header(row, answered)
                first = self._finder.find(row)[0]
            except InvalidRowError:  # the template does not accept such a conversation
                ends.append("")
                continue
            ends.append(row.text[first.content[1] : first.pieces[-1][1]] if first.content else "")
        usual, after_calls = self._finder.missing_ends
        self._finder.missing_ends = ends[0] or usual, ends[1] or ends[0] or after_calls
        return self._finder.last_end(ends[0]) or None


def _check_nothing_left_out(conversation: Conversation, text: str) -> None:
    """Raise InvalidRowError if the rendered text lacks the name of a tool or of a called function."""
    # A template without support for tools ignores them silently, and a call would be trained as an empty answer.

    def left_out(name: str) -> bool:
        # The template may write the name as JSON.
        escaped = (json.dumps(name, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        return name not in text and not any(form in text for form in escaped)

    if any(left_out(call.name) for turn in conversation.turns for call in turn.calls):
        raise InvalidRowError("the chat template leaves function calls out")
    if any(left_out(str(tool.get("name", ""))) for tool in conversation.tools):
        raise InvalidRowError("the chat template leaves tools out")


def _cut_turns(row: RenderedRow, found: Sequence[FoundAnswer]) -> list[RenderedTurn]:
    """Cut the text of a row into the spans of its turns."""
    text, position = row.text, 0
    rendered: list[RenderedTurn] = []
    for number, (turn, answer) in enumerate(zip(row.turns, found, strict=True)):
        prompt: list[Span] = []
        spans: list[Span] = []
        for start, end in answer.pieces:
            if not spans:
                prompt = [_prompt(row, number, position, start)]
            elif start > position:
                spans.append(
                    Span("text", text[position:start], content=_inside(answer.content, position, start) or (0, 0))
                )
            spans.append(_answer(turn, text[start:end], _inside(answer.content, start, end)))
            position = end
        if answer.missing_end:
            spans.append(Span("text", answer.missing_end, True))
        rendered.append(RenderedTurn(prompt, spans))
    # Text after the last answer is part of the sample, but not trained.
    if position < len(text):
        rendered[-1].answer.append(Span("text", text[position:]))
    if not all(turn.trained for turn in row.turns):
        for turn, (_, spans) in zip(row.turns, rendered, strict=True):
            spans[:] = spans if turn.trained else [span.without_labels() for span in spans]
    return rendered


def _inside(content: tuple[int, int] | None, start: int, end: int) -> tuple[int, int] | None:
    """Return the part of `content` in the text from `start` to `end`, counted from `start`; None if it is unknown."""
    if content is None:
        return None
    first, last = max(content[0], start), min(content[1], end)
    return (first - start, last - start) if first < last else (0, 0)


def _prompt(row: RenderedRow, number: int, start: int, end: int) -> Span:
    """Return the span of a prompt; its content is the longest message before the answer, if its place is known."""
    turn, text = row.turns[number], row.text[start:end]
    starts, ends = row.placed.starts, row.placed.ends
    places = [(starts[n], ends[n]) for n in row.messages.prompts[number] if n in starts and n in ends]
    places = [(first - start, last - start) for first, last in places if start <= first < last <= end]
    if not places and turn.prompt:
        # The last occurrence, because the text before the prompt, such as the system text, may contain the same words.
        found = text.rfind(turn.prompt)
        places = [(found, found + len(turn.prompt))] if found >= 0 else []
    span = Span("text", text, content=max(places, key=lambda place: place[1] - place[0], default=(0, 0)))
    return span if turn.prompt_trained else span.without_labels()


def _answer(turn: Turn, text: str, content: tuple[int, int] | None) -> Span:
    """Return the span of an answer; without known content it is the answer's text if it is unchanged, else all."""
    if content is None:
        start = text.find(turn.answer) if turn.answer else -1
        content = (start, start + len(turn.answer)) if start >= 0 else (0, len(text))
    return Span("text", text, True, content)


def load_jinja_template(
    folder: str | None,
    enable_thinking: bool | None,
    file: str | None = None,
    name: str | None = None,
    *,
    special: Mapping[str, str] | None = None,
    ends: Sequence[str] = (),
    reasoning_history: History | None = None,
    train_empty_reasoning: bool = False,
) -> JinjaTemplate:
    """Load a chat template in Jinja, of a tokenizer or of a file.

    Args:
        folder: Hugging Face folder of the tokenizer; None if `--tokenizer-name-or-path` is not given.
        enable_thinking: value of `--enable-thinking`; None if the flag is not given.
        file: value of `--chat-template`: a file that is used instead of the tokenizer's template.
        name: value of `--chat-template-name`: one of several templates of the tokenizer.
        special: name → text of special tokens of the tokenizer that its folder does not name.
        ends: texts of the tokens at which generation stops.
        reasoning_history: value of `--reasoning-history`; None if the flag is not given.
        train_empty_reasoning: value of `--train-empty-reasoning`.

    Raises:
        ConfigError: there is no such template, or it is not valid Jinja.
    """
    source = choose_template(folder, name) if file is None else read_template(Path(file), "--chat-template")
    named = read_special_tokens(Path(folder)).named if folder is not None else {}
    return JinjaTemplate(
        source,
        {**(special or {}), **named},
        enable_thinking,
        ends,
        reasoning_history=reasoning_history,
        train_empty_reasoning=train_empty_reasoning,
    )
