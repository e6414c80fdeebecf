"""Chat templates as data, and the one engine that renders them.

A template is a JSON file of templates/, or the user's own (`--prompt-type-path`), of this shape; only `name` is needed:

    name             what `--prompt-type` calls it
    prefix           slots before everything else
    system           slots of the system text              default: {{content}}
    user             slots of a prompt                     default: {{content}}
    observation      slots of a tool's reply               default: those of user
    assistant        slots of an answer, all trained       default: {{content}} and the end token
    separator        slots before every turn but the first
    default_system   system text of rows that have none
    end_token        the token that ends an answer         default: the tokenizer's end token
    end_once         one end token closes the sample instead of each answer; the model still learns to stop after
                     every answer, as the first token of each later prompt is labelled with the end token
    system_in_user   the system text stands inside the first prompt, right before the user's text
    required_tokens  tokens that the tokenizer must have

A slot is text, in which {{content}} stands for the message and {{idx}} for the number of the turn, or
{"token": "<|x|>"}, {"special": "begin"}, {"special": "end"}. Each slot's text is tokenised on its own.

With user = ["<u>{{content}}<a>"] and assistant = ["{{content}}", {"special": "end"}], the conversation hi → yo is

    text      <u>hi<a> | yo      | (end)
    trained   no       | yes     | yes

The meaning of every field is that of LLaMA-Factory 0.8.2, whose template lists MindSpeed-LLM reads; a file in their
shape (format_user, stop_words, efficient_eos, ...) is read too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mindspeed_llm.chat.conversation import Conversation, Turn
from mindspeed_llm.errors import ConfigError

FOLDER = Path(__file__).with_name("templates")
CONTENT, INDEX = "{{content}}", "{{idx}}"
MARKER = re.compile(r"<\|[^|<>\s]+\|>")  # text of this form is meant as one token
SLOT_FIELDS = ("prefix", "system", "user", "observation", "assistant", "separator")
FIELDS = {"name", "default_system", "end_token", "end_once", "system_in_user", "required_tokens", *SLOT_FIELDS}


class Span(NamedTuple):
    """A piece of a sample: text that is tokenised on its own, or one special token.

    Attributes:
        kind: 'text'; 'token': the token written as `text`; 'begin' and 'end': the tokenizer's and the template's.
        trained: its tokens are labels.
        content: characters of `text` that are the message; the rest are markers, which are never cut.
        end_label: the label of its first token is the end token (see end_once).
    """

    kind: Literal["text", "token", "begin", "end"]
    text: str = ""
    trained: bool = False
    content: tuple[int, int] = (0, 0)
    end_label: bool = False


class RenderedTurn(NamedTuple):
    """The spans of one turn; those of the prompt include prefix, system and separator."""

    prompt: list[Span]
    answer: list[Span]


class Slot(NamedTuple):
    """One slot, taken apart: text is `head` + message + `tail` if it has a message, otherwise `head`."""

    kind: Literal["text", "token", "begin", "end"]
    head: str
    tail: str = ""
    has_content: bool = False


@dataclass(frozen=True)
class Template:
    """A template ready to render; the fields are those of the file.

    Attributes:
        sha256: of the meaning of the file, not of its layout.
    """

    name: str
    prefix: tuple[Slot, ...]
    system: tuple[Slot, ...]
    user: tuple[Slot, ...]
    observation: tuple[Slot, ...]
    assistant: tuple[Slot, ...]
    separator: tuple[Slot, ...]
    default_system: str
    end_token: str | None
    end_once: bool
    system_in_user: bool
    required_tokens: tuple[str, ...]
    sha256: str

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Every turn of `conversation`; the spans of `closing` belong after the last one."""
        system = conversation.system or self.default_system
        return [self.render_turn(turn, number, number == 0, system) for number, turn in enumerate(conversation.turns)]

    def render_turn(self, turn: Turn, number: int, first: bool, system: str) -> RenderedTurn:
        """One turn, which carries prefix and system if it is the `first` of its sample, else the separator."""
        prompt: list[Span] = []
        in_user = ""
        if first:
            _fill(prompt, self.prefix, "", number)
            if system and self.system_in_user:
                in_user = "".join(slot.head + (system if slot.has_content else "") + slot.tail for slot in self.system)
            elif system:
                _fill(prompt, self.system, system, number, is_message=False)
        else:
            _fill(prompt, self.separator, "", number)
        _fill(prompt, self.user if turn.role == "user" else self.observation, turn.prompt, number, before=in_user)
        if self.end_once and not first and prompt:
            prompt[0] = prompt[0]._replace(end_label=True)
        answer: list[Span] = []
        _fill(answer, self.assistant, turn.answer, number, trained=True)
        return RenderedTurn(prompt, answer)

    @property
    def closing(self) -> list[Span]:
        """What ends the sample."""
        return [Span("end", trained=True)] if self.end_once else []

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token that the tokenizer must have, by its text: those that are named, and <|...|> in a slot's text."""
        slots = [slot for name in SLOT_FIELDS for slot in getattr(self, name)]
        named = [*self.required_tokens, *(slot.head for slot in slots if slot.kind == "token")]
        written = [mark for slot in slots if slot.kind == "text" for mark in MARKER.findall(slot.head + slot.tail)]
        return tuple(dict.fromkeys([*named, *written, *([self.end_token] if self.end_token else [])]))

    @property
    def begins(self) -> bool:
        """Whether it asks for the tokenizer's begin token."""
        return any(slot.kind == "begin" for name in SLOT_FIELDS for slot in getattr(self, name))


def _fill(
    spans: list[Span],
    slots: Sequence[Slot],
    message: str,
    number: int,
    *,
    trained: bool = False,
    is_message: bool = True,
    before: str = "",
) -> None:
    """Append the spans of `slots`, with `before` and `message` in the place of {{content}}; empty text is left out."""
    for kind, head, tail, has_content in slots:
        if kind != "text":
            spans.append(Span(kind, head, trained))
            continue
        if INDEX in head or INDEX in tail:
            head, tail = head.replace(INDEX, str(number)), tail.replace(INDEX, str(number))
        if not has_content:
            text, content = head, (0, 0)
        else:
            start = len(head) + len(before)
            text = f"{head}{before}{message}{tail}"
            content = (start, start + len(message)) if is_message else (0, 0)
        if text:
            spans.append(Span("text", text, trained, content))


def template_names() -> list[str]:
    """The templates that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_template(name: str, path: str | None = None) -> Template:
    """The template `name`, from the project's own or from the user's file (one template, or a list of them).

    Raises:
        ConfigError: no such template or file, or a file that is not in one of the two shapes.
    """
    if path is None:
        if name not in template_names():
            raise ConfigError(f"--prompt-type {name}: no such template; there are {', '.join(template_names())}")
        return template_of(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    where = f"--prompt-type-path {path}"
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error}); correct the file") from error
    entries = entries if isinstance(entries, list) else [entries]
    found = [entry for entry in entries if isinstance(entry, dict) and entry.get("name") == name]
    if len(found) != 1:
        held = ", ".join(str(entry.get("name")) for entry in entries if isinstance(entry, dict))
        fault = "several templates" if found else "no template"
        raise ConfigError(f"{where}: {fault} named '{name}'; the file holds {held or 'none'}")
    return template_of(found[0], where)


def template_of(entry: Mapping[str, Any], where: str = "template") -> Template:
    """The template that a JSON object describes, in our shape or in MindSpeed-LLM's.

    Raises:
        ConfigError: an unknown field or a malformed value; all of them.
    """
    if any(key.startswith("format_") or key in ("stop_words", "efficient_eos", "replace_eos") for key in entry):
        entry = _of_mindspeed(entry)
    where = f"{where}: {entry.get('name')}"
    problems = [
        f"{where}: unknown field '{key}'; known are {', '.join(sorted(FIELDS))}" for key in entry.keys() - FIELDS
    ]
    kinds: dict[str, type] = dict.fromkeys(SLOT_FIELDS, list)
    kinds |= {
        "end_once": bool,
        "system_in_user": bool,
        "required_tokens": list,
        "default_system": str,
        "end_token": str,
    }
    problems += [
        f"{where}: '{key}' is not a {'list' if kind is list else kind.__name__}"
        for key, kind in kinds.items()
        if entry.get(key) is not None and not isinstance(entry[key], kind)
    ]
    if problems:
        raise ConfigError(problems)
    end_once = bool(entry.get("end_once"))
    user = entry.get("user", [CONTENT])
    raw = {
        "prefix": entry.get("prefix", []),
        "system": entry.get("system", [CONTENT]),
        "user": user,
        "observation": entry.get("observation", user),
        "assistant": entry.get("assistant", [CONTENT] if end_once else [CONTENT, {"special": "end"}]),
        "separator": entry.get("separator", []),
    }
    rest: dict[str, Any] = {
        "default_system": entry.get("default_system") or "",
        "end_token": entry.get("end_token"),
        "end_once": end_once,
        "system_in_user": bool(entry.get("system_in_user")),
        "required_tokens": [str(token) for token in entry.get("required_tokens", [])],
    }
    slots: dict[str, Any] = {
        name: tuple(_slot(slot, f"{where}: {name}", problems) for slot in value) for name, value in raw.items()
    }
    for name in ("user", "observation", "assistant", "system"):
        if sum(slot.has_content for slot in slots[name]) != 1:
            problems.append(f"{where}: '{name}' is to hold {CONTENT} once")
    for name in ("prefix", "separator"):
        if any(slot.has_content for slot in slots[name]):
            problems.append(f"{where}: '{name}' has no message to put in the place of {CONTENT}")
    if rest["system_in_user"] and any(slot.kind != "text" for slot in slots["system"]):
        problems.append(f"{where}: with system_in_user 'system' is to be text alone")
    if problems:
        raise ConfigError(problems)
    meaning = json.dumps([raw, rest], sort_keys=True, ensure_ascii=False)
    rest["required_tokens"] = tuple(rest["required_tokens"])
    return Template(
        name=str(entry.get("name", "")), **slots, **rest, sha256=hashlib.sha256(meaning.encode()).hexdigest()
    )


def _slot(slot: Any, where: str, problems: list[str]) -> Slot:
    if isinstance(slot, str):
        head, mark, tail = slot.partition(CONTENT)
        if CONTENT not in tail:
            return Slot("text", head, tail, bool(mark))
    elif isinstance(slot, dict) and len(slot) == 1:
        ((key, value),) = slot.items()
        if key == "special" and value in ("begin", "end"):
            return Slot(value, "")
        if key == "token" and isinstance(value, str) and value:
            return Slot("token", value)
    problems.append(f"{where}: {json.dumps(slot, ensure_ascii=False)} is not a slot")
    return Slot("text", "")


def _of_mindspeed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of MindSpeed-LLM's template list in our shape."""
    special = {"bos_token": "begin", "eos_token": "end"}

    def slots(value: Mapping[str, Any]) -> list[Any]:
        return [
            {"special": special.get(slot[0], slot[0])} if isinstance(slot, list) and slot else slot
            for slot in value.get("slots", [])
        ]

    ours: dict[str, Any] = {"name": entry.get("name")}
    for name in SLOT_FIELDS:
        if "slots" in (entry.get(f"format_{name}") or {}):
            ours[name] = slots(entry[f"format_{name}"])
    stop_words = entry.get("stop_words") or []
    ours["required_tokens"] = stop_words
    if entry.get("replace_eos") and stop_words:
        ours["end_token"] = stop_words[0]
    ours["end_once"] = bool(entry.get("efficient_eos"))
    ours["system_in_user"] = str(entry.get("name")).startswith("llama2")
    ours["default_system"] = entry.get("default_system") or ""
    return ours
