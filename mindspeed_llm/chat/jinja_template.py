"""Render conversations with the Jinja chat template of a tokenizer (`--prompt-type hf`), in a sandbox.

The trained text is what the template marks with {% generation %} … {% endgeneration %}, as in transformers'
apply_chat_template(return_assistant_tokens_mask=True). A template without these blocks is refused, because which text
is an answer cannot be derived reliably. As in transformers, a sample is tokenised as one text.

    template   ... <assistant>{% generation %}{{ message.content }}</s>{% endgeneration %} ...
    spans      <user>hi<assistant>   yo</s>
    trained    no                    yes
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mindspeed_llm.chat.conversation import Conversation, InvalidRowError, Turn
from mindspeed_llm.chat.messages import THOUGHTS
from mindspeed_llm.chat.renderer import RenderedTurn, Span
from mindspeed_llm.chat.special_tokens import read_special_tokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of

MARK = re.compile(r"\{%[-+]?\s*generation\b")
# Noncharacters mark where an answer begins and ends. Rows that contain them are rejected, so they are unambiguous.
OPEN, CLOSE = "\U0010fffe", "\U0010ffff"


class JinjaTemplate:
    """Chat template of a tokenizer. See Renderer for its interface.

    Args:
        source: the template in Jinja.
        special: name → text of special tokens, such as bos_token and eos_token, which are variables of the template.
        enable_thinking: passed to the template unless it is None.

    Raises:
        ConfigError: the source is not valid Jinja, or contains no {% generation %} block.
    """

    name = "hf"
    end_token = None
    tokens: tuple[str, ...] = ()
    begins = False
    joined = True
    reasoning_markers: tuple[str, ...] = ()  # cannot be read from a template in Jinja

    def __init__(self, source: str, special: Mapping[str, str], enable_thinking: bool | None = None) -> None:
        import jinja2

        if not MARK.search(source):
            raise ConfigError(
                "--prompt-type hf: the tokenizer's chat template marks no answer with {% generation %}, so there "
                "is nothing to train; use one of this project's templates, or add {% generation %} blocks to this one"
            )
        self._jinja: Any = jinja2
        self.source = source
        self.dated = "strftime_now" in source
        # Fields in which the template expects reasoning, such as m.reasoning_content or m['thinking'].
        self._reasoning_fields = [name for name in THOUGHTS if re.search(rf"""[.'"]{name}\b""", source)]
        self._context = dict(special) | ({} if enable_thinking is None else {"enable_thinking": enable_thinking})
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # jinja2.TemplateError, or any error of Python's compiler for the generated code
            raise ConfigError(
                f"--prompt-type hf: the tokenizer's chat template is not valid Jinja ({error or type(error).__name__})"
            ) from error
        meaning = json.dumps([source, self._context], sort_keys=True)
        self.sha256 = sha256_of(meaning.encode())

    @property
    def has_reasoning(self) -> bool:
        """Whether the template reads a reasoning field of messages."""
        return bool(self._reasoning_fields)

    @property
    def closing(self) -> list[Span]:
        """Always empty, because the template writes the complete sample."""
        return []

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Render a conversation.

        Args:
            conversation: the conversation of one row.

        Returns:
            One turn for each answer that the template marks.

        Raises:
            InvalidRowError: the template raises an error, leaves out tools or calls, or marks no answer; it marks
                another number of answers than there are, and not all are trained; or a text contains a noncharacter.
        """
        messages = _messages(conversation, self._reasoning_fields)
        tools = [{"type": "function", "function": tool} for tool in conversation.tools] or None
        try:
            text = self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=False, **self._context
            )
        except self._jinja.TemplateError as error:
            raise InvalidRowError(f"the chat template refuses it: {error}") from None
        except Exception as error:  # a template may raise anything, such as ZeroDivisionError or MemoryError
            raise InvalidRowError(f"the chat template fails on it: {str(error) or type(error).__name__}") from None
        _check_nothing_left_out(conversation, text)
        # Text outside and inside of marks alternates: prompt, answer, prompt, answer, ..., text after the last answer.
        pieces = re.split(f"[{OPEN}{CLOSE}]", text)
        marks = [character for character in text if character in (OPEN, CLOSE)]
        if not marks or marks != [OPEN, CLOSE] * (len(marks) // 2):
            raise InvalidRowError("the chat template marks no answer of it")
        # If all answers are trained, it does not matter which of them a marked text belongs to.
        if len(pieces) // 2 != len(conversation.turns) and not all(turn.trained for turn in conversation.turns):
            raise InvalidRowError(
                "the chat template marks more or fewer answers than it has, and not all are to be trained"
            )
        turns = [
            RenderedTurn([_prompt(before, turn)], [_answer(answer, turn)])
            for before, answer, turn in zip(
                pieces[::2], pieces[1::2], _aligned(conversation, len(pieces) // 2), strict=False
            )
        ]
        # Text after the last answer is part of the sample, but not trained.
        if pieces[-1]:
            turns[-1].answer.append(Span("text", pieces[-1]))
        return turns


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


def _aligned(conversation: Conversation, answers: int) -> list[Turn]:
    """Return the turns of the marked answers, aligned at the end; surplus answers at the start get empty turns."""
    turns = conversation.turns[-answers:]
    return [Turn("", "")] * (answers - len(turns)) + turns


def _prompt(text: str, turn: Turn) -> Span:
    """Return the span of a prompt; its content is the user's text if the template writes it unchanged."""
    # The last occurrence, because the text before the prompt, such as the system text, may contain the same words.
    start = text.rfind(turn.prompt) if turn.prompt else -1
    span = Span("text", text, content=(start, start + len(turn.prompt)) if start >= 0 else (0, 0))
    return span if turn.prompt_trained else span.without_labels()


def _answer(text: str, turn: Turn) -> Span:
    """Return the span of an answer; its content is the answer's text if the template writes it unchanged, else all."""
    start = text.find(turn.answer) if turn.answer else -1
    span = Span("text", text, True, (start, start + len(turn.answer)) if start >= 0 else (0, len(text)))
    return span if turn.trained else span.without_labels()


def _messages(conversation: Conversation, reasoning_fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a conversation as OpenAI's messages, which templates expect, with reasoning in `reasoning_fields`."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        role = "user" if turn.role == "user" else "tool"
        messages += [{"role": role, "content": content} for content in (turn.prompt, *turn.replies)]
        answer: dict[str, Any] = {"role": "assistant", "content": turn.answer}
        if turn.thought:
            answer |= dict.fromkeys(reasoning_fields, turn.thought)
        if turn.calls:
            answer["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in turn.calls
            ]
        messages.append(answer)
    texts = [message["content"] for message in messages] + [turn.thought for turn in conversation.turns]
    if any(mark in text for text in texts for mark in (OPEN, CLOSE)):
        raise InvalidRowError("text holds a noncharacter")
    return messages


def _environment() -> Any:
    """Return a Jinja environment with the settings, filters and functions of transformers, in a sandbox.

    In the sandbox a template cannot modify its arguments or reach Python's internals.
    """
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return OPEN + caller() + CLOSE

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # As in transformers: Jinja's own filter escapes characters of HTML such as <, which changes the tokens.
    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def load_jinja_template(folder: str | None, enable_thinking: bool | None) -> JinjaTemplate:
    """Load the chat template of a tokenizer: chat_template.jinja, or chat_template in tokenizer_config.json.

    Args:
        folder: Hugging Face folder of the tokenizer; None if `--tokenizer-name-or-path` is not given.
        enable_thinking: value of `--enable-thinking`; None if the flag is not given.

    Raises:
        ConfigError: there is no template, it is not valid Jinja, or it contains no {% generation %} block.
    """
    if folder is None:
        raise ConfigError("--prompt-type hf needs --tokenizer-name-or-path DIR: the chat template is read from it")
    special = read_special_tokens(Path(folder))
    separate = Path(folder) / "chat_template.jinja"
    source = separate.read_text(encoding="utf-8") if separate.is_file() else special.settings.get("chat_template")
    if isinstance(source, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise ConfigError(f"--prompt-type hf: {folder} contains no chat template; use one of this project's templates")
    return JinjaTemplate(source, special.named, enable_thinking)
