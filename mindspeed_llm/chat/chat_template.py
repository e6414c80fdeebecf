r"""Load a chat template from a JSON file, and render conversations with it.

A template is a JSON file in templates/ or of the user (`--prompt-type-path`). Only the field `name` is required:

    name             value of `--prompt-type`
    prefix           slots at the start of a sample
    system           slots of the system text              default: {{content}}
    user             slots of a prompt                     default: {{content}}
    observation      slots of a tool's reply               default: those of user
    assistant        slots of an answer, all trained       default: {{content}} and the end token
    function         slots of an answer that calls functions; {{content}} is its text and calls; default as above
    after            slots after every answer, not trained
    separator        slots before every turn except the first
    default_system   system text for rows without one
    end_token        token that ends an answer             default: the tokenizer's end token
    end_once         whether one end token ends the sample instead of each answer. The model still learns to stop after
                     every answer: the first token of each later prompt has the end token as its label
    system_in_user   whether the system text is inside the first prompt, directly before the user's text
    tools            tool format: default, qwen or glm4 (tool_formats.py)
    replies          text between the replies of several tools to one answer      default: a line break
    call             text of one call, with {{name}} and {{arguments}}; default: that of `tools`
    thought          opening and closing marker of reasoning, such as ["<think>\n", "\n</think>\n\n"] (reasoning.py)
    required_tokens  tokens that the tokenizer must have
    plain_markers    plain text in slots that has the form of a token, such as "<human>"

A slot is text, or {"token": "<|x|>"}, {"special": "begin"} or {"special": "end"}. In its text {{content}} is replaced
by the message and {{idx}} by the number of the turn. The text of each slot is tokenised on its own. A marker in it
(<|user|>, <start_of_turn>, <AI>) is one token, which the tokenizer must have. [INST], <<SYS>> and pairs of tags such as
<think> and </think> are plain text.

With user = ["<u>{{content}}<a>"] and assistant = ["{{content}}", {"special": "end"}], the conversation hi → yo,
bye → ok is rendered as

    turn       0                     1
    part       prompt    answer      prompt     answer
    spans      <u>hi<a>  yo   end    <u>bye<a>  ok   end
    trained    no        yes  yes    no         yes  yes

and with assistant = ["{{content}}"] and end_once as

    spans      <u>hi<a>  yo          <u>bye<a>  ok          end
    trained    no        yes         (end)      yes         yes      (end): its first token has the end token as label

The fields have the meaning of LLaMA-Factory 0.8.2, whose template lists MindSpeed-LLM reads. A file in their format
(format_user, stop_words, efficient_eos, ...) is read too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mindspeed_llm.chat.conversation import Conversation, Turn
from mindspeed_llm.chat.reasoning import History, ReasoningFormat, refuse_options
from mindspeed_llm.chat.renderer import RenderedTurn, Span
from mindspeed_llm.chat.slots import CONTENT, SlotFiller, TemplateSlot, parse_slot
from mindspeed_llm.chat.tool_formats import ToolFormat, tool_formats
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.hashing import sha256_of

FOLDER = Path(__file__).with_name("templates")
# Text of this form is one token. The lookarounds exclude <<SYS>>, and the first character closing tags.
MARKER = re.compile(r"(?<!<)<[^<>/\s][^<>\s]*>(?!>)|\[gMASK\]")
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


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template ready to render. See Renderer for its interface.

    The attributes that are not listed here are the fields of the JSON file.

    Attributes:
        end_token: None for the tokenizer's end token.
        call: text of one call; None for that of `tools`.
        thoughts: how reasoning is written; None for a template without reasoning.
        sha256: hash of the meaning of the file, not of its JSON formatting.
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
    date: ClassVar[str] = ""
    passes_sources: ClassVar[bool] = False

    def with_options(
        self,
        tool_format: str | None = None,
        enable_thinking: bool | None = None,
        reasoning_history: History | None = None,
        train_empty_reasoning: bool = False,
    ) -> ChatTemplate:
        """Return the template with other options; the hash differs if an option changes something.

        Args:
            tool_format: value of `--tool-format`; None keeps that of the template.
            enable_thinking: value of `--enable-thinking`; None keeps the default of reasoning.py.
            reasoning_history: value of `--reasoning-history`; None is the same as "template".
            train_empty_reasoning: value of `--train-empty-reasoning`.

        Raises:
            ConfigError: an option for reasoning is given, but the template has no reasoning.
        """
        changed = self
        if tool_format is not None and tool_format != self.tools.name:
            # The template's own `call` belongs to the tool format that is replaced.
            changed = dataclasses.replace(changed, tools=tool_formats()[tool_format], call=None)
        given = (enable_thinking, reasoning_history, train_empty_reasoning)
        if self.thoughts is None:
            refuse_options(self.name, *given)
        elif given != (None, None, False):
            thoughts = self.thoughts.with_options(*given)
            if thoughts != self.thoughts:
                changed = dataclasses.replace(changed, thoughts=thoughts)
        if changed is self:
            return self
        # Options are hashed even if they change only what is trained.
        options = [None] if changed.thoughts is None else changed.thoughts.options
        meaning = json.dumps([self.sha256, changed.tools.name, *options])
        return dataclasses.replace(changed, sha256=sha256_of(meaning.encode()))

    def render(self, conversation: Conversation) -> list[RenderedTurn]:
        """Render the turns of a conversation; the caller appends `closing` after the last one.

        Raises:
            InvalidRowError: several calls in one answer, which the tool format does not have.
        """
        turns = conversation.turns
        system = conversation.system or self.default_system
        if conversation.tools:
            system += self.tools.describe(conversation.tools, system)
        shown = bool(system) or (conversation.no_tools and self.tools.writes_empty_system)
        placed = [(turn, False) for turn in turns] if self.thoughts is None else self.thoughts.placed(turns)
        rendered = []
        for number, (turn, empty) in enumerate(placed):
            prompt, answer = self._render_turn(turn, number, system, shown)
            if self.end_once and number and prompt:
                # No end token follows the previous answer. This label trains the model to stop after it.
                prompt[0] = prompt[0]._replace(end_label=turns[number - 1].trained)
            if empty and self.thoughts is not None:
                thought = Span("text", self.thoughts.empty, self.thoughts.trains_empty)
                # Trained as the model's own decision, or context that switches reasoning off (reasoning.py).
                if thought.trained:
                    answer.insert(0, thought)
                else:
                    prompt.append(thought)
            if not turn.trained:
                answer = [span.without_labels() for span in answer]
            rendered.append(RenderedTurn(prompt, answer))
        return rendered

    @cached_property
    def _fillers(self) -> dict[str, SlotFiller]:
        """Return the filler of each slot field."""
        return {name: SlotFiller(getattr(self, name), name in ("assistant", "function")) for name in SLOT_FIELDS}

    def _render_turn(self, turn: Turn, number: int, system: str, shown: bool) -> tuple[list[Span], list[Span]]:
        """Return prompt and answer of a turn.

        The first one begins with prefix and (if `shown`) system text, each later one with the separator.
        """
        fillers = self._fillers
        in_user = ""
        prompt = fillers["separator" if number else "prefix"].fixed(number).copy()
        if number == 0 and shown:
            if self.system_in_user:
                # As text inside the slot of the user, so that it is tokenised together with the user's text.
                in_user = "".join(slot.head + (system if slot.has_content else "") + slot.tail for slot in self.system)
            else:
                # Not a message, so that truncation never cuts the system text.
                prompt += fillers["system"].fill(number, system, is_message=False)
        text, longest = turn.prompt, None
        if turn.replies:
            text, longest = _join_replies([turn.prompt, *turn.replies], self.replies)
        asked = fillers["user" if turn.role == "user" else "observation"].fill(number, text, in_user, longest)
        if not turn.prompt_trained:
            # The mark of a message does not apply to prefix, system text and separator.
            asked = [span.without_labels() for span in asked]
        field, text = "assistant", turn.answer
        if turn.calls:
            field = "function"
            # With reasoning, ReasoningFormat.placed has already appended the line break.
            always = self.thoughts is None and self.tools.breaks_before_calls
            text += "\n" if text and (always or not text.endswith("\n")) else ""
            text += self.tools.write_calls(turn.calls, self.call)
        answer = fillers[field].fill(number, text)
        return prompt + asked, answer + fillers["after"].fixed(number)

    @property
    def closing(self) -> list[Span]:
        """Spans that end a sample."""
        return [Span("end", trained=True)] if self.end_once else []

    @property
    def tokens(self) -> tuple[str, ...]:
        """Texts of the tokens that the tokenizer must have: named tokens, and markers in the text of slots."""
        slots = [slot for name in SLOT_FIELDS for slot in getattr(self, name)]
        named = [*self.required_tokens, *(slot.head for slot in slots if slot.kind == "token")]
        texts = [text for slot in slots if slot.kind == "text" for text in (slot.head, slot.tail)]
        # A tag with a closing tag is plain text. The two may be in different slots.
        all_text = "".join(texts)
        written = [
            mark
            for text in texts
            for mark in MARKER.findall(text)
            if mark not in self.plain_markers and f"</{mark[1:]}" not in all_text
        ]
        return tuple(dict.fromkeys([*named, *written, *([self.end_token] if self.end_token else [])]))

    @property
    def has_reasoning(self) -> bool:
        """Whether the template writes reasoning."""
        return self.thoughts is not None

    @property
    def reasoning_markers(self) -> tuple[str, ...]:
        """Opening and closing marker of reasoning, without line breaks; empty for a template without reasoning."""
        return () if self.thoughts is None else (self.thoughts.opening.strip(), self.thoughts.closing.strip())

    @property
    def begins(self) -> bool:
        """Whether the template uses the tokenizer's begin token."""
        return any(slot.kind == "begin" for name in SLOT_FIELDS for slot in getattr(self, name))


def _join_replies(replies: Sequence[str], separator: str) -> tuple[str, tuple[int, int]]:
    """Join replies into one text; return it with first and last + 1 character of the longest reply."""
    # Truncation may cut only the longest reply, so that the separators and the other replies stay intact.
    longest = max(range(len(replies)), key=lambda number: len(replies[number]))
    start = sum(len(reply) + len(separator) for reply in replies[:longest])
    return separator.join(replies), (start, start + len(replies[longest]))


def plain_text_template(begin: bool) -> ChatTemplate:
    """Return the template of documents without roles (pretraining handlers): a begin token if `begin`, and the text."""
    prefix = [{"special": "begin"}] if begin else []
    return parse_template({"name": "plain text", "prefix": prefix, "assistant": [CONTENT]})


def chat_template_names() -> list[str]:
    """Return the names of this project's templates, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_chat_template(name: str, path: str | None = None) -> ChatTemplate:
    """Load a chat template.

    Args:
        name: value of `--prompt-type`.
        path: value of `--prompt-type-path`, a JSON file with one template or a list; None for this project's templates.

    Raises:
        ConfigError: there is no such template or file, or the file is in neither of the two formats.
    """
    if path is None:
        if name not in chat_template_names():
            raise ConfigError(
                f"--prompt-type {name}: no such template; the templates are {', '.join(chat_template_names())}"
            )
        return parse_template(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    where = f"--prompt-type-path {path}"
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error}); correct the file") from error
    entries = entries if isinstance(entries, list) else [entries]
    matches = [entry for entry in entries if isinstance(entry, dict) and entry.get("name") == name]
    if len(matches) != 1:
        names = ", ".join(str(entry.get("name")) for entry in entries if isinstance(entry, dict))
        fault = "several templates" if matches else "no template"
        raise ConfigError(f"{where}: {fault} named '{name}'; the file contains {names or 'none'}")
    return parse_template(matches[0], where)


def parse_template(entry: Mapping[str, Any], where: str = "template") -> ChatTemplate:
    """Parse a template from a JSON object, in this project's format or in MindSpeed-LLM's.

    `where` names flag and file in error messages.

    Raises:
        ConfigError: unknown fields or malformed values; the error lists all of them.
    """
    if any(key.startswith("format_") or key in ("stop_words", "efficient_eos", "replace_eos") for key in entry):
        entry = _from_mindspeed_format(entry)
    where = f"{where}: {entry.get('name')}"
    known = ["name", *KINDS]
    problems = [
        f"{where}: unknown field '{key}'; the fields are {', '.join(sorted(known))}"
        for key in entry
        if key not in known
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
    parsed = {name: [parse_slot(slot) for slot in value] for name, value in raw.items()}
    problems += [
        f"{where}: {name}: {json.dumps(slot, ensure_ascii=False)} is not a slot"
        for name, value in raw.items()
        for slot, result in zip(value, parsed[name], strict=True)
        if result is None
    ]
    # An empty slot in place of each invalid one, so that the problems of other fields are reported at once.
    slots: dict[str, Any] = {
        name: tuple(slot or TemplateSlot("text", "") for slot in value) for name, value in parsed.items()
    }
    problems += [f"{where}: {problem}" for problem in _meaning_problems(slots, rest)]
    if problems:
        raise ConfigError(problems)
    # With the defaults filled in, so that a file that spells out a default has the same hash.
    meaning = json.dumps([raw, rest], sort_keys=True, ensure_ascii=False)
    rest["required_tokens"] = tuple(rest["required_tokens"])
    rest["tools"] = tool_formats()[rest["tools"]]
    thought = rest.pop("thought")
    return ChatTemplate(
        name=str(entry.get("name", "")),
        **slots,
        **rest,
        plain_markers=tuple(map(str, entry.get("plain_markers") or ())),  # not hashed, because they change no token
        thoughts=ReasoningFormat(*thought) if thought else None,
        sha256=sha256_of(meaning.encode()),
    )


def _meaning_problems(slots: Mapping[str, tuple[TemplateSlot, ...]], rest: Mapping[str, Any]) -> Iterator[str]:
    """Yield one message for each field whose type is right, but whose value is not usable."""
    for name in SLOT_FIELDS:
        messages = sum(slot.has_content for slot in slots[name])
        if name in ("prefix", "separator", "after"):
            if messages:
                yield f"'{name}' has no message and must not contain {CONTENT}"
        elif messages != 1:
            yield f"'{name}' must contain {CONTENT} once"
    if rest["system_in_user"] and any(slot.kind != "text" for slot in slots["system"]):
        yield "with system_in_user, 'system' must contain only text"
    if rest["tools"] not in tool_formats():
        yield f"'tools' must be one of {', '.join(tool_formats())}"
    call, thought = rest["call"], rest["thought"]
    if call is not None and not ("{{name}}" in call and "{{arguments}}" in call):
        yield "'call' must contain {{name}} and {{arguments}}"
    if thought is not None and not (
        len(thought) == 2 and all(isinstance(marker, str) and marker.strip() for marker in thought)
    ):
        yield "'thought' must be a list of two texts: the opening and the closing marker of reasoning"


def _from_mindspeed_format(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an entry of MindSpeed-LLM's template list into this project's format."""
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
        # In MindSpeed-LLM format_tools sets only how tools are described; calls keep their default format.
        ours["call"] = tool_formats()["default"].call
    stop_words = entry.get("stop_words") or []
    ours["required_tokens"] = stop_words
    ours["plain_markers"] = entry.get("plain_markers")
    if entry.get("replace_eos") and stop_words:
        ours["end_token"] = stop_words[0]
    ours["end_once"] = bool(entry.get("efficient_eos"))
    # The file has no field for this: as in LLaMA-Factory 0.8.2, the name of the template decides.
    ours["system_in_user"] = str(entry.get("name")).startswith("llama2")
    system = entry.get("default_system") or ""
    ours["default_system"] = "".join(map(str, system)) if isinstance(system, list) else system
    if entry.get("template_class") == "ReasoningTemplate":
        ours["thought"] = entry.get("reasoning_markers") or ["<think>\n", "\n</think>\n\n"]
    return ours
