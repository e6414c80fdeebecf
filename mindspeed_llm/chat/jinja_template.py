"""`--prompt-type hf`: the chat template that comes with a tokenizer, written in Jinja, in a sandbox.

What is trained is what the template itself marks: {% generation %} … {% endgeneration %}, as transformers'
apply_chat_template(return_assistant_tokens_mask=True) reads it. A template that marks nothing is refused: which tokens
are an answer cannot be guessed. The whole sample is one text to the tokenizer, as it is there.
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
# Noncharacters: no text may hold them, so they can mark where an answer begins and ends.
OPEN, CLOSE = "\U0010fffe", "\U0010ffff"


class JinjaTemplate:
    """A tokenizer's own template; see Renderer.

    Args:
        source: Jinja.
        special: bos_token, eos_token and the like, as text.
        enable_thinking: handed to the template if not None.

    Raises:
        ConfigError: not a template, or one that marks no answer.
    """

    name = "hf"
    end_token = None
    tokens: tuple[str, ...] = ()
    begins = False
    joined = True
    reasoning_markers: tuple[str, ...] = ()  # not known of a template in Jinja

    def __init__(self, source: str, special: Mapping[str, str], enable_thinking: bool | None = None) -> None:
        import jinja2

        if not MARK.search(source):
            raise ConfigError(
                "--prompt-type hf: the tokenizer's chat template marks no answer with {% generation %}, so nothing "
                "could be trained; name one of this project's templates, or put the marks into the template"
            )
        self._jinja: Any = jinja2
        self.source = source
        self.dated = "strftime_now" in source
        # The names under which it looks for the thought of a message, such as m.reasoning_content or m['thinking'].
        self._thoughts = [name for name in THOUGHTS if re.search(rf"""[.'"]{name}\b""", source)]
        self._context = dict(special) | ({} if enable_thinking is None else {"enable_thinking": enable_thinking})
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # jinja2.TemplateError, or what Python's compiler raises for what Jinja wrote
            raise ConfigError(
                f"--prompt-type hf: the tokenizer's chat template is not valid Jinja ({error or type(error).__name__})"
            ) from error
        meaning = json.dumps([source, self._context], sort_keys=True)
        self.sha256 = sha256_of(meaning.encode())

    @property
    def has_reasoning(self) -> bool:
        """Whether it looks for thoughts."""
        return bool(self._thoughts)

    @property
    def closing(self) -> list[Span]:
        """Nothing: the template says it all."""
        return []

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """A turn for each answer that the template marks."""
        messages = _messages(conversation, self._thoughts)
        tools = [{"type": "function", "function": tool} for tool in conversation.tools] or None
        try:
            text = self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=False, **self._context
            )
        except self._jinja.TemplateError as error:
            raise InvalidRowError(f"the chat template refuses it: {error}") from None
        except Exception as error:  # a template may raise any: it divides by 0, or asks for too much memory
            raise InvalidRowError(f"the chat template fails on it: {str(error) or type(error).__name__}") from None
        _refuse_what_is_lost(conversation, text)
        pieces = re.split(f"[{OPEN}{CLOSE}]", text)
        marks = [character for character in text if character in (OPEN, CLOSE)]
        if not marks or marks != [OPEN, CLOSE] * (len(marks) // 2):
            raise InvalidRowError("the chat template marks no answer of it")
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
        if pieces[-1]:
            turns[-1].answer.append(Span("text", pieces[-1]))
        return turns


def _refuse_what_is_lost(conversation: Conversation, text: str) -> None:
    """A template that knows no tools writes nothing of them, and an empty answer would be trained for a call."""

    def lost(name: str) -> bool:
        escaped = (json.dumps(name, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        return name not in text and not any(form in text for form in escaped)

    if any(lost(call.name) for turn in conversation.turns for call in turn.calls):
        raise InvalidRowError("the chat template leaves function calls out")
    if any(lost(str(tool.get("name", ""))) for tool in conversation.tools):
        raise InvalidRowError("the chat template leaves tools out")


def _aligned(conversation: Conversation, answers: int) -> list[Turn]:
    """The turns that the last `answers` marked answers belong to, counted from the end."""
    turns = conversation.turns[-answers:]
    return [Turn("", "")] * (answers - len(turns)) + turns


def _prompt(text: str, turn: Turn) -> Span:
    start = text.rfind(turn.prompt) if turn.prompt else -1
    span = Span("text", text, content=(start, start + len(turn.prompt)) if start >= 0 else (0, 0))
    return span if turn.prompt_trained else span.without_labels()


def _answer(text: str, turn: Turn) -> Span:
    start = text.find(turn.answer) if turn.answer else -1
    span = Span("text", text, True, (start, start + len(turn.answer)) if start >= 0 else (0, len(text)))
    return span if turn.trained else span.without_labels()


def _messages(conversation: Conversation, thoughts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """In OpenAI's shape, which templates expect; `thoughts` are the fields in which they expect a thought."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        role = "user" if turn.role == "user" else "tool"
        messages += [{"role": role, "content": content} for content in (turn.prompt, *turn.replies)]
        answer: dict[str, Any] = {"role": "assistant", "content": turn.answer}
        if turn.thought:
            answer |= dict.fromkeys(thoughts, turn.thought)
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
    """Jinja as transformers sets it up, in the sandbox that lets a template change nothing."""
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
    """The template of a tokenizer's folder: chat_template.jinja, or chat_template of tokenizer_config.json.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    if folder is None:
        raise ConfigError("--prompt-type hf needs --tokenizer-name-or-path DIR: the chat template lies there")
    special = read_special_tokens(Path(folder))
    own = Path(folder) / "chat_template.jinja"
    source = own.read_text(encoding="utf-8") if own.is_file() else special.settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise ConfigError(f"--prompt-type hf: {folder} holds no chat template; name one of this project's templates")
    return JinjaTemplate(source, special.named, enable_thinking)
