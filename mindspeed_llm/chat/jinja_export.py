"""A template of this project written in Jinja, as transformers and vLLM read chat templates.

`to_jinja` turns a Template into Jinja that gives the same text: for a whole conversation, and with
`add_generation_prompt` for what stands before the next answer. Messages are in OpenAI's shape:

    system (optional, first), then user or tool (several in a row: the replies to one answer), assistant, user, ...

The Jinja raises an exception for other orders and for calls that the tool format cannot have, as rows like that are
refused in training. Without `add_generation_prompt` the header of the next answer is left out after a last prompt,
where markers show where it begins.

Two words belong to the caller: `tools`, where an empty list is a row that says "[]", and `enable_thinking`, which for
templates with thoughts puts an empty thought into the generation prompt if it is false, as Qwen3's own template does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mindspeed_llm.chat.chat_template import INDEX, ChatTemplate, TemplateSlot
from mindspeed_llm.chat.jinja_template import JinjaTemplate
from mindspeed_llm.chat.reasoning import ReasoningFormat
from mindspeed_llm.chat.renderer import Renderer
from mindspeed_llm.chat.tool_formats import FIELD, SEVERAL_CALLS, ToolFormat

INDENT = "    "
MARK = re.compile(r"<[^<>\s]+>")
ORDER = "roles out of order: after an optional system message, user (or tool) and assistant speak in turn"
# Jinja for the fields of tools.json; {{parameters}} and the lists over all tools are collected before they are used.
TOOL_FIELDS = {
    "name": "tool.name",
    "description": "(tool.get('description') if tool.get('description') is not none else '')",
    "json of function": "({'type': 'function', 'function': tool}|tojson)",
    "indented json": "(tool|tojson(indent=4))",
    "parameters": "ns.parameters",
}
TEXT_FIELDS = {"tools": "ns.tools", "names": "ns.names"}
CALL_FIELDS = {"name": "call.name", "arguments": "arguments"}
# As tool_formats.py writes the parameters of the default format. `.get('items')`: `.items` would be the dictionary's
# method.
PARAMETERS = """\
{%- set ns.parameters = '' %}
{%- set schema = tool.get('parameters') or {} %}
{%- set required = schema.get('required') or [] %}
{%- for name, parameter in (schema.get('properties') or {}).items() if parameter is not none %}
    {%- set allowed = parameter.get('enum') %}
    {%- set each = parameter.get('items') %}
    {%- set of = each.get('type') if each else none %}
    {%- set kind, text = parameter.get('type'), parameter.get('description') %}
    {%- set ns.parameters = ns.parameters ~ '  - ' ~ name ~ ' (' ~ (kind if kind is not none else '')
        ~ (', required' if name in required else '') ~ '): ' ~ (text if text is not none else '')
        ~ (', should be one of [' ~ allowed|join(', ') ~ ']' if allowed else '')
        ~ (', where each item should be ' ~ (of if of is not none else '') if each else '') ~ '\\n' %}
{%- endfor %}"""


def export_chat_template(template: Renderer) -> str | None:
    """The Jinja of a renderer: a tokenizer's own as it is, one of this project written anew; None for others."""
    if isinstance(template, JinjaTemplate):
        return template.source
    return to_jinja(template) if isinstance(template, ChatTemplate) else None


def to_jinja(template: ChatTemplate) -> str:
    """Write a template in Jinja. Needs the variables of transformers' environment, bos_token and eos_token too."""
    lines = [
        "{%- set ns = namespace(system='', in_user='', tools='', names='', parameters='', text='', thought='',"
        " turn=0, asked=-1, user=false, before='assistant') %}",
        *_system(template),
        *_tools(template.tools),
        *_opening(template),
        *(_last_question() if template.thoughts else []),
        "{%- for message in loop_messages %}",
        *_indented(_message(template)),
        "{%- endfor %}",
        *(_empty_thought_to_answer(template.thoughts) if template.thoughts else []),
    ]
    return "\n".join(lines)


def jinja_string(text: str) -> str:
    """`text` as a string of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return "'" + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", escaped) + "'"


class _Parts(NamedTuple):
    """Expressions before and after the message of some slots."""

    before: list[str]
    after: list[str]


def _joined(parts: Iterable[str]) -> str:
    """One expression out of several; empty for none."""
    return " ~ ".join(part for part in parts if part != "''")


def _shown(parts: Iterable[str]) -> list[str]:
    """A line that writes an expression; none if there is nothing to write."""
    expression = _joined(parts)
    return [f"{{{{- {expression} }}}}"] if expression else []


def _indented(lines: Iterable[str]) -> list[str]:
    return [INDENT + line.replace("\n", "\n" + INDENT) for line in lines]


def _when(condition: str, lines: Sequence[str]) -> list[str]:
    return [f"{{%- if {condition} %}}", *_indented(lines), "{%- endif %}"] if lines else []


def _refused(reason: str) -> str:
    return f"{{{{- raise_exception({jinja_string(reason)}) }}}}"


def _text(text: str, numbered: bool = True) -> list[str]:
    """Expressions of a slot's text, with the number of the turn in the place of {{idx}}."""
    pieces = text.split(INDEX) if numbered else [text]
    found = [jinja_string(pieces[0])]
    for piece in pieces[1:]:
        found += ["ns.turn", jinja_string(piece)]
    return [part for part in found if part != "''"]


def _filled(pattern: str, fields: dict[str, str]) -> str:
    """The expression of a pattern with {{field}} in it (tool_formats.py); names that are no field stay as they are."""
    parts, start = [], 0
    for found in FIELD.finditer(pattern):
        if found[1] in fields:
            parts += [jinja_string(pattern[start : found.start()]), fields[found[1]]]
            start = found.end()
    return _joined([*parts, jinja_string(pattern[start:])]) or "''"


def _end(template: ChatTemplate) -> str:
    return jinja_string(template.end_token) if template.end_token else "(eos_token or '')"


def _parts(template: ChatTemplate, slots: Sequence[TemplateSlot], numbered: bool = True) -> _Parts:
    parts = _Parts([], [])
    side = parts.before
    for slot in slots:
        if slot.kind == "text":
            side += _text(slot.head, numbered)
            if slot.has_content:
                side = parts.after
                side += _text(slot.tail, numbered)
        else:
            side.append({"begin": "(bos_token or '')", "end": _end(template)}.get(slot.kind) or jinja_string(slot.head))
    return parts


def _system(template: ChatTemplate) -> list[str]:
    """Take the system message off, or take the default."""
    lines = [
        "{%- set loop_messages = messages %}",
        "{%- if messages and messages[0].role == 'system' %}",
        "    {%- set ns.system = messages[0].content or '' %}",
        "    {%- set loop_messages = messages[1:] %}",
        "{%- endif %}",
    ]
    if template.default_system:
        lines.append(f"{{%- set ns.system = ns.system or {jinja_string(template.default_system)} %}}")
    return lines


def _tools(tools: ToolFormat) -> list[str]:
    """Append the description of the tools to the system text."""
    text = _filled(tools.text, TEXT_FIELDS)
    of_each = ["{%- set tool = tool.function if tool.function is defined else tool %}"]
    if "{{parameters}}" in tools.tool:
        of_each += PARAMETERS.splitlines()
    of_each.append(f"{{%- set ns.tools = ns.tools ~ {_filled(tools.tool, TOOL_FIELDS)} %}}")
    if "{{names}}" in tools.text:
        of_each.append("{%- set ns.names = ns.names ~ ('' if loop.first else ', ') ~ tool.name %}")
    return _when(
        "tools",
        [
            "{%- for tool in tools %}",
            *_indented(of_each),
            "{%- endfor %}",
            f"{{%- set text = {text} %}}",
            "{%- set ns.system = ns.system ~ (text if ns.system else text.lstrip('\\n')) %}",
        ],
    )


def _opening(template: ChatTemplate) -> list[str]:
    """Prefix and system text, which stand before the first turn, or in its prompt (system_in_user)."""
    system = _parts(template, template.system, numbered=not template.system_in_user)
    whole = [*system.before, "ns.system", *system.after]
    shown = "ns.system"
    if template.tools.marks_none:
        shown += " or (tools is defined and tools is not none and not tools)"
    prefix = _parts(template, template.prefix)
    inner = [f"{{%- set ns.in_user = {_joined(whole)} %}}"] if template.system_in_user else _shown(whole)
    return [*_shown(prefix.before), *_when(shown, inner)]


def _last_question() -> list[str]:
    """Find the last message of the user: thoughts before it are history (reasoning.py)."""
    return [
        "{%- for message in loop_messages %}",
        "    {%- if message.role == 'user' or (message.role == 'tool' and not ns.user) %}",
        "        {%- set ns.asked = loop.index0 %}",
        "        {%- set ns.user = ns.user or message.role == 'user' %}",
        "    {%- endif %}",
        "{%- endfor %}",
    ]


def _message(template: ChatTemplate) -> list[str]:
    """The body of the loop over messages."""
    return [
        "{%- set content = message.content or '' %}",
        *_when("content is not string", [_refused("the content of a message is to be text")]),
        "{%- if message.role == 'user' %}",
        *_indented(_user(template)),
        "{%- elif message.role == 'tool' %}",
        *_indented(_tool(template)),
        "{%- elif message.role == 'assistant' %}",
        *_indented(_assistant(template)),
        "{%- else %}",
        INDENT + _refused(ORDER),
        "{%- endif %}",
        "{%- set ns.before = message.role %}",
    ]


def _user(template: ChatTemplate) -> list[str]:
    asked = _parts(template, template.user)
    closing, header = _split_header(template.user, asked)
    in_user = ["ns.in_user"] if template.system_in_user else []
    return [
        *_when("ns.before != 'assistant'", [_refused(ORDER)]),
        *_separator(template),
        *_shown([*asked.before, *in_user, "content", *closing]),
        *(["{%- set ns.in_user = '' %}"] if in_user else []),
        *_when("add_generation_prompt or not loop.last", _shown(header)),
    ]


def _tool(template: ChatTemplate) -> list[str]:
    replied = _parts(template, template.observation)
    closing, header = _split_header(template.observation, replied)
    in_user = ["ns.in_user"] if template.system_in_user else []
    opened = [
        *_separator(template),
        *_shown([*replied.before, *in_user]),
        *(["{%- set ns.in_user = '' %}"] if in_user else []),
    ]
    return [
        "{%- if ns.before == 'tool' %}",
        *_indented(_shown([jinja_string(template.replies)])),
        "{%- elif ns.before == 'assistant' %}",
        *_indented(opened),
        "{%- else %}",
        INDENT + _refused(ORDER),
        "{%- endif %}",
        "{{- content }}",
        *_when(
            "loop.last or loop.nextitem.role != 'tool'",
            [*_shown(closing), *_when("add_generation_prompt or not loop.last", _shown(header))],
        ),
    ]


def _separator(template: ChatTemplate) -> list[str]:
    return _when("ns.turn", _shown(_parts(template, template.separator).before))


def _split_header(slots: Sequence[TemplateSlot], parts: _Parts) -> tuple[list[str], list[str]]:
    """What follows a prompt, taken apart: what closes it, and the header of the answer.

    `<|im_start|>user\\n{{content}}<|im_end|>\\n<|im_start|>assistant\\n`: the header begins at the marker that opens
    the prompt as well. A single marker, as in `<|user|>{{content}}<|assistant|>`, is all header. Elsewhere
    (`User: {{content}}\\n\\nAssistant:`) nothing shows where it begins, and it counts as part of the prompt.
    """
    if any(slot.kind not in ("text", "token") for slot in slots):
        return parts.after, []
    place = next(number for number, slot in enumerate(slots) if slot.has_content)
    after = slots[place].tail + "".join(slot.head for slot in slots[place + 1 :])
    opening = MARK.match("".join(slot.head for slot in slots[: place + 1]))
    if MARK.fullmatch(after):
        return [], parts.after
    start = after.rfind(opening[0]) if opening else -1
    return (parts.after, []) if start < 0 else (_text(after[:start]), _text(after[start:]))


def _assistant(template: ChatTemplate) -> list[str]:
    told, called = _parts(template, template.assistant), _parts(template, template.function)
    pattern = template.call or template.tools.call
    return [
        *_when("ns.before == 'assistant'", [_refused(ORDER)]),
        "{%- set ns.text = content %}",
        *(_thought(template.thoughts) if template.thoughts else []),
        "{%- if message.tool_calls %}",
        *_indented(_calls(template.tools, pattern, template.thoughts is None)),
        *_indented(_shown([*called.before, "ns.text", *called.after])),
        "{%- else %}",
        *_indented(_shown([*told.before, "ns.text", *told.after])),
        "{%- endif %}",
        *_shown(_parts(template, template.after).before),
        *(_when("loop.last", _shown([_end(template)])) if template.end_once else []),
        "{%- set ns.turn = ns.turn + 1 %}",
    ]


def _thought(thoughts: ReasoningFormat) -> list[str]:
    """Take the thought off the answer and put it back where the model is to see it (reasoning.py)."""
    opening, closing = jinja_string(thoughts.opening.strip()), jinja_string(thoughts.closing.strip())
    before, after = jinja_string(thoughts.opening), jinja_string(thoughts.closing)
    hidden = [] if thoughts.enabled is False else _when("loop.index0 < ns.asked", ["{%- set ns.thought = '' %}"])
    return [
        "{%- set ns.thought = '' %}",
        "{%- if message.reasoning_content is string %}",
        "    {%- set ns.thought = message.reasoning_content.strip('\\n') %}",
        f"{{%- elif {closing} in content %}}",
        f"    {{%- set ns.thought = content.split({closing})[0].rstrip('\\n').split({opening})[-1].strip('\\n') %}}",
        f"    {{%- set ns.text = content.split({closing})[-1].lstrip('\\n') %}}",
        "{%- endif %}",
        *(["{%- set ns.thought = '' %}"] if thoughts.enabled is False else hidden),
        *_when("message.tool_calls and ns.text", ["{%- set ns.text = ns.text ~ '\\n' %}"]),
        *_when("ns.thought or loop.last", ["{%- set ns.text = ns.text.lstrip('\\n') %}"]),
        "{%- if ns.thought %}",
        f"    {{%- set ns.text = {before} ~ ns.thought ~ {after} ~ ns.text %}}",
        "{%- elif loop.last %}",
        *_indented(_shown([jinja_string(thoughts.empty)])),
        "{%- endif %}",
    ]


def _calls(tools: ToolFormat, pattern: str, alone: bool) -> list[str]:
    """Append the calls to the text of the answer, which no thought has changed if it is `alone`."""
    open_line = "" if alone and tools.breaks_before_calls else " and not ns.text.endswith('\\n')"
    several = _when("message.tool_calls|length > 1", [_refused(SEVERAL_CALLS)]) if tools.separator is None else []
    between = f"('' if loop.first else {jinja_string(tools.separator or '')})"
    return [
        *several,
        *_when(f"ns.text{open_line}", ["{%- set ns.text = ns.text ~ '\\n' %}"]),
        "{%- for call in message.tool_calls %}",
        "    {%- set call = call.function if call.function is defined else call %}",
        "    {%- set arguments = call.arguments if call.arguments is string else call.arguments|tojson %}",
        f"    {{%- set ns.text = ns.text ~ {between} ~ {_filled(pattern, CALL_FIELDS)} %}}",
        "{%- endfor %}",
    ]


def _empty_thought_to_answer(thoughts: ReasoningFormat) -> list[str]:
    """The empty thought of the generation prompt: if asked for, or if the model was trained without thoughts."""
    asked = "enable_thinking is defined and enable_thinking is "
    wanted = f"not ({asked}true)" if thoughts.enabled is False else f"{asked}false"
    return _when(
        f"add_generation_prompt and ns.before != 'assistant' and {wanted}", _shown([jinja_string(thoughts.empty)])
    )
