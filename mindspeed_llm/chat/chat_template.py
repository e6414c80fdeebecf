"""Chat templates as data, and the one engine that renders them.

A template is a JSON file of templates/, or the user's own (`--prompt-type-path`), of this shape; only `name` is needed:

    name             what `--prompt-type` calls it
    prefix           slots before everything else
    system           slots of the system text              default: {{content}}
    user             slots of a prompt                     default: {{content}}
    observation      slots of a tool's reply               default: those of user
    assistant        slots of an answer, all trained       default: {{content}} and the end token
    function         slots of an answer that calls functions, {{content}} being the calls; default as above
    after            slots after every answer, not trained
    separator        slots before every turn but the first
    default_system   system text of rows that have none
    end_token        the token that ends an answer         default: the tokenizer's end token
    end_once         one end token closes the sample instead of each answer; the model still learns to stop after
                     every answer, as the first token of each later prompt is labelled with the end token
    system_in_user   the system text stands inside the first prompt, right before the user's text
    tools            how tools are written: default, qwen or glm4 (tool_formats.py)
    replies          what stands between the replies of several tools to one answer      default: a line break
    call             how one call is written, with {{name}} and {{arguments}}; default: as `tools` has it
    thought          what opens and closes a thought, such as ["<think>\\n", "\\n</think>\\n\\n"]: see reasoning.py
    required_tokens  tokens that the tokenizer must have
    plain_markers    what looks like a token in the text of a slot and is plain text, such as "<human>"

A slot is text, in which {{content}} stands for the message and {{idx}} for the number of the turn, or
{"token": "<|x|>"}, {"special": "begin"}, {"special": "end"}. Each slot's text is tokenised on its own. A marker in it,
of whatever form (<|user|>, <start_of_turn>, <AI>), is meant as one token, which the tokenizer must have. Plain text are
[INST], <<SYS>> and words that come in pairs, such as <think> and </think>.

With user = ["<u>{{content}}<a>"] and assistant = ["{{content}}", {"special": "end"}], the conversation hi → yo is

    text      <u>hi<a> | yo      | (end)
    trained   no       | yes     | yes

The meaning of every field is that of LLaMA-Factory 0.8.2, whose template lists MindSpeed-LLM reads; a file in their
shape (format_user, stop_words, efficient_eos, ...) is read too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from mindspeed_llm.chat.conversation import Conversation, Turn
from mindspeed_llm.chat.reasoning import ReasoningFormat
from mindspeed_llm.chat.renderer import RenderedTurn, Span
from mindspeed_llm.chat.tool_formats import ToolFormat, tool_formats
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of

FOLDER = Path(__file__).with_name("templates")
CONTENT, INDEX = "{{content}}", "{{idx}}"
MARKER = re.compile(r"(?<!<)<[^<>/\s][^<>\s]*>(?!>)|\[gMASK\]")  # text of this form is meant as one token
SLOT_FIELDS = ("prefix", "system", "user", "observation", "assistant", "function", "after", "separator")
KINDS: dict[str, type] = {
    **dict.fromkeys(SLOT_FIELDS, list),
    "default_system": str,
    "end_token": str,
    "end_once": bool,
    "system_in_user": bool,
    "required_tokens": list,
    "plain_markers": list,
    "tools": str,
    "call": str,
    "replies": str,
    "thought": list,
}


class TemplateSlot(NamedTuple):
    """One slot, taken apart: text is `head` + message + `tail` if it has a message, otherwise `head`."""

    kind: Literal["text", "token", "begin", "end"]
    head: str
    tail: str = ""
    has_content: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """A template ready to render; the fields are those of the file.

    Attributes:
        call: None for that of `tools`.
        thoughts: None in a template without.
        sha256: of the meaning of the file, not of its layout.
    """

    name: str
    prefix: tuple[TemplateSlot, ...]
    system: tuple[TemplateSlot, ...]
    user: tuple[TemplateSlot, ...]
    observation: tuple[TemplateSlot, ...]
    assistant: tuple[TemplateSlot, ...]
    function: tuple[TemplateSlot, ...]
    after: tuple[TemplateSlot, ...]
    separator: tuple[TemplateSlot, ...]
    default_system: str
    end_token: str | None
    end_once: bool
    system_in_user: bool
    required_tokens: tuple[str, ...]
    plain_markers: tuple[str, ...]
    tools: ToolFormat
    call: str | None
    replies: str
    thoughts: ReasoningFormat | None
    sha256: str

    joined: ClassVar[bool] = False  # each span is tokenised on its own
    dated: ClassVar[bool] = False

    def with_options(self, tool_format: str | None = None, enable_thinking: bool | None = None) -> ChatTemplate:
        """The same with another way to write tools, or with or without thoughts, which its hash then shows.

        Raises:
            ConfigError: the template has no thoughts.
        """
        made = self
        if tool_format is not None and tool_format != self.tools.name:
            made = dataclasses.replace(made, tools=tool_formats()[tool_format], call=None)
        if enable_thinking is not None:
            if self.thoughts is None:
                raise ConfigError(f"--enable-thinking: the template {self.name} has no thoughts; leave it out")
            made = dataclasses.replace(made, thoughts=dataclasses.replace(self.thoughts, enabled=enable_thinking))
        if made is self:
            return self
        meaning = json.dumps([self.sha256, made.tools.name, enable_thinking])
        return dataclasses.replace(made, sha256=sha256_of(meaning.encode()))

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Every turn of `conversation`; the spans of `closing` belong after the last one.

        Raises:
            BadRow: calls that the tool format cannot have.
        """
        turns = conversation.turns
        system = conversation.system or self.default_system
        system += self.tools.describe(conversation.tools, system)
        shown = bool(system) or (conversation.no_tools and self.tools.marks_none)
        placed = [(turn, False) for turn in turns] if self.thoughts is None else self.thoughts.placed(turns)
        rendered = []
        for number, (turn, empty) in enumerate(placed):
            prompt, answer = self._render_turn(turn, number, system, shown)
            if self.end_once and number and prompt:
                prompt[0] = prompt[0]._replace(end_label=turns[number - 1].trained)
            if empty and self.thoughts is not None:
                thought = Span("text", self.thoughts.empty, bool(self.thoughts.enabled))
                if thought.trained:
                    answer.insert(0, thought)
                else:
                    prompt.append(thought)
            if not turn.trained:
                answer = [span.without_labels() for span in answer]
            rendered.append(RenderedTurn(prompt, answer))
        return rendered

    def _render_turn(self, turn: Turn, number: int, system: str, shown: bool) -> RenderedTurn:
        """One turn; the first of a sample carries prefix and (if `shown`) system, each later one the separator."""
        prompt: list[Span] = []
        in_user = ""
        if number == 0:
            prompt += _filled(self.prefix, "", number)
            if shown and self.system_in_user:
                in_user = "".join(slot.head + (system if slot.has_content else "") + slot.tail for slot in self.system)
            elif shown:
                prompt += _filled(self.system, system, number, is_message=False)
        else:
            prompt += _filled(self.separator, "", number)
        before = len(prompt)
        slots = self.user if turn.role == "user" else self.observation
        if turn.replies:
            text, longest = _joined([turn.prompt, *turn.replies], self.replies)
            prompt += _filled(slots, text, number, before=in_user, content=longest)
        else:
            prompt += _filled(slots, turn.prompt, number, before=in_user)
        if not turn.prompt_trained:
            prompt[before:] = [span.without_labels() for span in prompt[before:]]
        slots, text = self.assistant, turn.answer
        if turn.calls:
            slots = self.function
            always = self.thoughts is None and self.tools.breaks_before_calls  # reasoning.py writes its own
            text += "\n" if text and (always or not text.endswith("\n")) else ""
            text += self.tools.write_calls(turn.calls, self.call)
        answer = [*_filled(slots, text, number, trained=True), *_filled(self.after, "", number)]
        return RenderedTurn(prompt, answer)

    @property
    def closing(self) -> list[Span]:
        """What ends the sample."""
        return [Span("end", trained=True)] if self.end_once else []

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token that the tokenizer must have, by its text: those that are named, and markers in a slot's text."""
        slots = [slot for name in SLOT_FIELDS for slot in getattr(self, name)]
        named = [*self.required_tokens, *(slot.head for slot in slots if slot.kind == "token")]
        texts = [text for slot in slots if slot.kind == "text" for text in (slot.head, slot.tail)]
        whole = "".join(texts)
        written = [
            mark
            for text in texts
            for mark in MARKER.findall(text)
            if mark not in self.plain_markers and f"</{mark[1:]}" not in whole
        ]
        return tuple(dict.fromkeys([*named, *written, *([self.end_token] if self.end_token else [])]))

    @property
    def has_reasoning(self) -> bool:
        """Whether it writes thoughts."""
        return self.thoughts is not None

    @property
    def reasoning_markers(self) -> tuple[str, ...]:
        """What opens and closes a thought, without line breaks."""
        return () if self.thoughts is None else (self.thoughts.opening.strip(), self.thoughts.closing.strip())

    @property
    def begins(self) -> bool:
        """Whether it asks for the tokenizer's begin token."""
        return any(slot.kind == "begin" for name in SLOT_FIELDS for slot in getattr(self, name))


def _joined(replies: Sequence[str], separator: str) -> tuple[str, tuple[int, int]]:
    """Replies as one text, and which characters of it are the longest: the others, and what is between, are not cut."""
    longest = max(range(len(replies)), key=lambda number: len(replies[number]))
    start = sum(len(reply) + len(separator) for reply in replies[:longest])
    return separator.join(replies), (start, start + len(replies[longest]))


def _filled(
    slots: Sequence[TemplateSlot],
    message: str,
    number: int,
    *,
    trained: bool = False,
    is_message: bool = True,
    before: str = "",
    content: tuple[int, int] | None = None,
) -> list[Span]:
    """The spans of `slots`, with `before` and `message` in the place of {{content}}; empty text is left out.

    Args:
        content: characters of `message` that may be cut; None for all.
    """
    first, last = (0, len(message)) if content is None else content
    spans: list[Span] = []
    for kind, head, tail, has_content in slots:
        if kind != "text":
            spans.append(Span(kind, head, trained))
            continue
        if INDEX in head or INDEX in tail:
            head, tail = head.replace(INDEX, str(number)), tail.replace(INDEX, str(number))
        if not has_content:
            text, place = head, (0, 0)
        else:
            start = len(head) + len(before)
            text = f"{head}{before}{message}{tail}"
            place = (start + first, start + last) if is_message else (0, 0)
        if text:
            spans.append(Span("text", text, trained, place))
    return spans


def plain_text_template(begin: bool) -> ChatTemplate:
    """For documents without roles (the pretraining handlers): the begin token, if asked for, and the text."""
    prefix = [{"special": "begin"}] if begin else []
    return parse_template({"name": "plain text", "prefix": prefix, "assistant": [CONTENT]})


def chat_template_names() -> list[str]:
    """The templates that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_chat_template(name: str, path: str | None = None) -> ChatTemplate:
    """The template `name`, from the project's own or from the user's file (one template, or a list of them).

    Raises:
        ConfigError: no such template or file, or a file that is not in one of the two shapes.
    """
    if path is None:
        if name not in chat_template_names():
            raise ConfigError(f"--prompt-type {name}: no such template; there are {', '.join(chat_template_names())}")
        return parse_template(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    where = f"--prompt-type-path {path}"
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error}); correct the file") from error
    entries = entries if isinstance(entries, list) else [entries]
    found = [entry for entry in entries if isinstance(entry, dict) and entry.get("name") == name]
    if len(found) != 1:
        held = ", ".join(str(entry.get("name")) for entry in entries if isinstance(entry, dict))
        fault = "several templates" if found else "no template"
        raise ConfigError(f"{where}: {fault} named '{name}'; the file holds {held or 'none'}")
    return parse_template(found[0], where)


def parse_template(entry: Mapping[str, Any], where: str = "template") -> ChatTemplate:
    """The template that a JSON object describes, in our shape or in MindSpeed-LLM's.

    Raises:
        ConfigError: an unknown field or a malformed value; all of them.
    """
    if any(key.startswith("format_") or key in ("stop_words", "efficient_eos", "replace_eos") for key in entry):
        entry = _of_mindspeed(entry)
    where = f"{where}: {entry.get('name')}"
    known = ["name", *KINDS]
    problems = [
        f"{where}: unknown field '{key}'; known are {', '.join(sorted(known))}" for key in entry if key not in known
    ]
    problems += [
        f"{where}: '{key}' is not a {'list' if kind is list else kind.__name__}"
        for key, kind in KINDS.items()
        if entry.get(key) is not None and not isinstance(entry[key], kind)
    ]
    if problems:
        raise ConfigError(problems)
    end_once = bool(entry.get("end_once"))
    answer = [CONTENT] if end_once else [CONTENT, {"special": "end"}]
    user = entry.get("user", [CONTENT])
    defaults = {"system": [CONTENT], "user": user, "observation": user, "assistant": answer, "function": answer}
    raw = {name: entry.get(name, defaults.get(name, [])) for name in SLOT_FIELDS}
    rest: dict[str, Any] = {
        "default_system": entry.get("default_system") or "",
        "end_token": entry.get("end_token"),
        "end_once": end_once,
        "system_in_user": bool(entry.get("system_in_user")),
        "required_tokens": [str(token) for token in entry.get("required_tokens", [])],
        "tools": entry.get("tools") or "default",
        "call": entry.get("call"),
        "replies": entry.get("replies") or "\n",
        "thought": entry.get("thought"),
    }
    read = {name: [_slot(slot) for slot in value] for name, value in raw.items()}
    problems += [
        f"{where}: {name}: {json.dumps(slot, ensure_ascii=False)} is not a slot"
        for name, value in raw.items()
        for slot, one in zip(value, read[name], strict=True)
        if one is None
    ]
    slots: dict[str, Any] = {
        name: tuple(one or TemplateSlot("text", "") for one in value) for name, value in read.items()
    }
    problems += [f"{where}: {problem}" for problem in _meaning_problems(slots, rest)]
    if problems:
        raise ConfigError(problems)
    meaning = json.dumps([raw, rest], sort_keys=True, ensure_ascii=False)
    rest["required_tokens"] = tuple(rest["required_tokens"])
    rest["tools"] = tool_formats()[rest["tools"]]
    thought = rest.pop("thought")
    return ChatTemplate(
        name=str(entry.get("name", "")),
        **slots,
        **rest,
        plain_markers=tuple(map(str, entry.get("plain_markers") or ())),  # not hashed: they change no token
        thoughts=ReasoningFormat(*thought) if thought else None,
        sha256=sha256_of(meaning.encode()),
    )


def _meaning_problems(slots: Mapping[str, tuple[TemplateSlot, ...]], rest: Mapping[str, Any]) -> Iterator[str]:
    for name in SLOT_FIELDS:
        messages = sum(slot.has_content for slot in slots[name])
        if name in ("prefix", "separator", "after"):
            if messages:
                yield f"'{name}' has no message to put in the place of {CONTENT}"
        elif messages != 1:
            yield f"'{name}' is to hold {CONTENT} once"
    if rest["system_in_user"] and any(slot.kind != "text" for slot in slots["system"]):
        yield "with system_in_user 'system' is to be text alone"
    if rest["tools"] not in tool_formats():
        yield f"'tools' is one of {', '.join(tool_formats())}"
    call, thought = rest["call"], rest["thought"]
    if call is not None and not ("{{name}}" in call and "{{arguments}}" in call):
        yield "'call' is to hold {{name}} and {{arguments}}"
    if thought is not None and not (
        len(thought) == 2 and all(isinstance(word, str) and word.strip() for word in thought)
    ):
        yield "'thought' is a list of two texts, what opens and what closes a thought"


def _slot(slot: Any) -> TemplateSlot | None:
    """The slot that an entry of a template's JSON stands for; None if it is none."""
    if isinstance(slot, str):
        head, mark, tail = slot.partition(CONTENT)
        if CONTENT not in tail:
            return TemplateSlot("text", head, tail, bool(mark))
    elif isinstance(slot, dict) and len(slot) == 1:
        ((key, value),) = slot.items()
        if key == "special" and value in ("begin", "end"):
            return TemplateSlot(value, "")
        if key == "token" and isinstance(value, str) and value:
            return TemplateSlot("token", value)
    return None


def _of_mindspeed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of MindSpeed-LLM's template list in our shape."""
    special = {"bos_token": "begin", "eos_token": "end"}

    def slots(value: Mapping[str, Any]) -> list[Any]:
        return [
            {"special": special.get(slot[0], slot[0])} if isinstance(slot, list) and slot else slot
            for slot in value.get("slots", [])
        ]

    ours: dict[str, Any] = {"name": entry.get("name")}
    for name in ("prefix", "system", "user", "observation", "assistant", "separator"):
        if "slots" in (entry.get(f"format_{name}") or {}):
            ours[name] = slots(entry[f"format_{name}"])
    tools = (entry.get("format_tools") or {}).get("tool_format")
    if tools in tool_formats():
        ours["tools"] = tools
    if "slots" in (entry.get("format_function") or {}):
        ours["function"] = slots(entry["format_function"])
        for number, slot in enumerate(ours["function"]):
            if isinstance(slot, str) and "{{name}}" in slot and "{{arguments}}" in slot:
                ours["call"], ours["function"][number] = slot, CONTENT
    elif ours.get("tools", "default") != "default":
        ours["call"] = tool_formats()["default"].call
    stop_words = entry.get("stop_words") or []
    ours["required_tokens"] = stop_words
    ours["plain_markers"] = entry.get("plain_markers")
    if entry.get("replace_eos") and stop_words:
        ours["end_token"] = stop_words[0]
    ours["end_once"] = bool(entry.get("efficient_eos"))
    ours["system_in_user"] = str(entry.get("name")).startswith("llama2")
    system = entry.get("default_system") or ""
    ours["default_system"] = "".join(map(str, system)) if isinstance(system, list) else system
    if entry.get("template_class") == "ReasoningTemplate":
        ours["thought"] = entry.get("reasoning_markers") or ["<think>\n", "\n</think>\n\n"]
    return ours
