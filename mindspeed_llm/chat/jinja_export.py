"""Export a chat template of this project as Jinja, the format of transformers and vLLM.

`to_jinja` converts a ChatTemplate into Jinja that renders the same text: of a complete conversation, and with
`add_generation_prompt` of the text before the next answer. Messages have OpenAI's format:

    system (optional, first), then user or tool (consecutive ones: the replies to one answer), assistant, user, ...

The Jinja raises an exception for any other order and for calls that the tool format does not have, because such rows
are rejected in preprocessing. Without `add_generation_prompt` the header of the next answer is left out after a last
prompt, if its markers show where the header begins.

The caller may pass two variables: `tools`, whose empty list means the same as "[]" in a row, and `enable_thinking`. For
templates with reasoning, enable_thinking=false adds an empty reasoning block to the generation prompt, as in Qwen3's
published template. Reasoning in the history is written if training saw it (`--reasoning-history`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mindspeed_llm.chat.chat_template import ChatTemplate
from mindspeed_llm.chat.jinja_template import JinjaTemplate
from mindspeed_llm.chat.reasoning import ReasoningFormat
from mindspeed_llm.chat.renderer import Renderer
from mindspeed_llm.chat.slots import INDEX, TemplateSlot
from mindspeed_llm.chat.tool_formats import FIELD, SEVERAL_CALLS, ToolFormat

INDENT = "    "
MARK = re.compile(r"<[^<>\s]+>")
ORDER = "roles out of order: after an optional system message, user (or tool) and assistant speak in turn"
# Jinja expressions for the fields in tools.json. The loop over the tools collects {{parameters}}, {{tools}} and
# {{names}} in `ns` before they are used.
TOOL_FIELDS = {
    "name": "tool.name",
    "description": "(tool.get('description') if tool.get('description') is not none else '')",
    "json of function": "({'type': 'function', 'function': tool}|tojson)",
    "indented json": "(tool|tojson(indent=4))",
    "parameters": "ns.parameters",
}
TEXT_FIELDS = {"tools": "ns.tools", "names": "ns.names"}
CALL_FIELDS = {"name": "call.name", "arguments": "arguments"}
# Writes the parameters in the default format, the same as `_parameters` in tool_formats.py. It uses `.get('items')`,
# because `.items` is the method of the dictionary.
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
    """Return a chat template as Jinja: a tokenizer's own, one of this project converted, None for others.

    A tokenizer's own template is unchanged, unless `--reasoning-history` changed what training saw of it.
    """
    if isinstance(template, JinjaTemplate):
        return template.reasoning.jinja_prefix + template.source
    return to_jinja(template) if isinstance(template, ChatTemplate) else None


def to_jinja(template: ChatTemplate) -> str:
    """Convert a chat template into Jinja.

    Args:
        template: a template of this project.

    Returns:
        The Jinja source. It needs the environment of transformers, including the variables bos_token and eos_token.
    """
    # A namespace, because a plain variable that is set inside a loop of Jinja loses its value after the loop.
    lines = [
        "{%- set ns = namespace(system='', in_user='', tools='', names='', parameters='', text='', thought='',"
        " turn=0, asked=-1, user=false, before='assistant') %}",
        *_system(template),
        *_tools(template.tools),
        *_opening(template),
        *(_last_question() if template.thoughts and not template.thoughts.keeps_history else []),
        "{%- for message in loop_messages %}",
        *_indent(_message(template)),
        "{%- endfor %}",
        *(_empty_reasoning_in_prompt(template.thoughts) if template.thoughts else []),
    ]
    return "\n".join(lines)


def jinja_string(text: str) -> str:
    """Return `text` as a string literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return "'" + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", escaped) + "'"


class _Parts(NamedTuple):
    """Jinja expressions of the text before and after the message in the slots of a field."""

    before: list[str]
    after: list[str]


def _join(parts: Iterable[str]) -> str:
    """Concatenate expressions into one; "" if all are empty."""
    return " ~ ".join(part for part in parts if part != "''")


def _output(parts: Iterable[str]) -> list[str]:
    """Return the line that outputs the concatenated expressions; no line if all are empty."""
    expression = _join(parts)
    return [f"{{{{- {expression} }}}}"] if expression else []


def _indent(lines: Iterable[str]) -> list[str]:
    return [INDENT + line.replace("\n", "\n" + INDENT) for line in lines]


def _if(condition: str, lines: Sequence[str]) -> list[str]:
    """Return the lines of an if block; no line if its body is empty."""
    return [f"{{%- if {condition} %}}", *_indent(lines), "{%- endif %}"] if lines else []


def _raise(reason: str) -> str:
    return f"{{{{- raise_exception({jinja_string(reason)}) }}}}"


def _text(text: str, numbered: bool = True) -> list[str]:
    """Return the expressions of a slot's text, with the number of the turn for {{idx}} if `numbered`."""
    pieces = text.split(INDEX) if numbered else [text]
    parts = [jinja_string(pieces[0])]
    for piece in pieces[1:]:
        parts += ["ns.turn", jinja_string(piece)]
    return [part for part in parts if part != "''"]


def _fill_fields(pattern: str, fields: dict[str, str]) -> str:
    """Return the expression of a pattern with {{field}} in it (tool_formats.py); unknown fields stay text."""
    parts, start = [], 0
    for match in FIELD.finditer(pattern):
        if match[1] in fields:
            parts += [jinja_string(pattern[start : match.start()]), fields[match[1]]]
            start = match.end()
    return _join([*parts, jinja_string(pattern[start:])]) or "''"


def _end_token(template: ChatTemplate) -> str:
    """Return the expression of the token that ends an answer."""
    return jinja_string(template.end_token) if template.end_token else "(eos_token or '')"


def _parts(template: ChatTemplate, slots: Sequence[TemplateSlot], numbered: bool = True) -> _Parts:
    """Return the expressions before and after the message in `slots`."""
    parts = _Parts([], [])
    side = parts.before
    for slot in slots:
        if slot.kind == "text":
            side += _text(slot.head, numbered)
            if slot.has_content:
                side = parts.after
                side += _text(slot.tail, numbered)
        else:
            side.append(
                {"begin": "(bos_token or '')", "end": _end_token(template)}.get(slot.kind) or jinja_string(slot.head)
            )
    return parts


def _system(template: ChatTemplate) -> list[str]:
    """Separate the system message from the others, or use the default system text."""
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
    text = _fill_fields(tools.text, TEXT_FIELDS)
    per_tool = ["{%- set tool = tool.function if tool.function is defined else tool %}"]
    if "{{parameters}}" in tools.tool:
        per_tool += PARAMETERS.splitlines()
    per_tool.append(f"{{%- set ns.tools = ns.tools ~ {_fill_fields(tools.tool, TOOL_FIELDS)} %}}")
    if "{{names}}" in tools.text:
        per_tool.append("{%- set ns.names = ns.names ~ ('' if loop.first else ', ') ~ tool.name %}")
    return _if(
        "tools",
        [
            "{%- for tool in tools %}",
            *_indent(per_tool),
            "{%- endfor %}",
            f"{{%- set text = {text} %}}",
            "{%- set ns.system = ns.system ~ (text if ns.system else text.lstrip('\\n')) %}",
        ],
    )


def _opening(template: ChatTemplate) -> list[str]:
    """Write prefix and system text before the first turn, or keep the system text for its prompt (system_in_user)."""
    # In a prompt the text of the slot is not numbered, the same as in ChatTemplate.render.
    system = _parts(template, template.system, numbered=not template.system_in_user)
    text = [*system.before, "ns.system", *system.after]
    condition = "ns.system"
    if template.tools.writes_empty_system:
        condition += " or (tools is defined and tools is not none and not tools)"
    prefix = _parts(template, template.prefix)
    inner = [f"{{%- set ns.in_user = {_join(text)} %}}"] if template.system_in_user else _output(text)
    return [*_output(prefix.before), *_if(condition, inner)]


def _last_question() -> list[str]:
    """Find the last message of the user: reasoning before it is history (reasoning.py)."""
    return [
        "{%- for message in loop_messages %}",
        "    {%- if message.role == 'user' or (message.role == 'tool' and not ns.user) %}",
        "        {%- set ns.asked = loop.index0 %}",
        "        {%- set ns.user = ns.user or message.role == 'user' %}",
        "    {%- endif %}",
        "{%- endfor %}",
    ]


def _message(template: ChatTemplate) -> list[str]:
    """Return the body of the loop over messages."""
    return [
        "{%- set content = message.content or '' %}",
        *_if("content is not string", [_raise("the content of a message is to be text")]),
        "{%- if message.role == 'user' %}",
        *_indent(_user(template)),
        "{%- elif message.role == 'tool' %}",
        *_indent(_tool(template)),
        "{%- elif message.role == 'assistant' %}",
        *_indent(_assistant(template)),
        "{%- else %}",
        INDENT + _raise(ORDER),
        "{%- endif %}",
        "{%- set ns.before = message.role %}",
    ]


def _user(template: ChatTemplate) -> list[str]:
    """Write a message of the user: a prompt, and the header of the answer."""
    parts = _parts(template, template.user)
    closing, header = _split_header(template.user, parts)
    in_user = ["ns.in_user"] if template.system_in_user else []
    return [
        *_if("ns.before != 'assistant'", [_raise(ORDER)]),
        *_separator(template),
        *_output([*parts.before, *in_user, "content", *closing]),
        *(["{%- set ns.in_user = '' %}"] if in_user else []),
        *_if("add_generation_prompt or not loop.last", _output(header)),
    ]


def _tool(template: ChatTemplate) -> list[str]:
    """Write a reply of a tool; consecutive replies share the text before and after them."""
    parts = _parts(template, template.observation)
    closing, header = _split_header(template.observation, parts)
    in_user = ["ns.in_user"] if template.system_in_user else []
    first_reply = [
        *_separator(template),
        *_output([*parts.before, *in_user]),
        *(["{%- set ns.in_user = '' %}"] if in_user else []),
    ]
    return [
        "{%- if ns.before == 'tool' %}",
        *_indent(_output([jinja_string(template.replies)])),
        "{%- elif ns.before == 'assistant' %}",
        *_indent(first_reply),
        "{%- else %}",
        INDENT + _raise(ORDER),
        "{%- endif %}",
        "{{- content }}",
        *_if(
            "loop.last or loop.nextitem.role != 'tool'",
            [*_output(closing), *_if("add_generation_prompt or not loop.last", _output(header))],
        ),
    ]


def _separator(template: ChatTemplate) -> list[str]:
    return _if("ns.turn", _output(_parts(template, template.separator).before))


def _split_header(slots: Sequence[TemplateSlot], parts: _Parts) -> tuple[list[str], list[str]]:
    r"""Split the text after a prompt into the end of the prompt and the header of the answer.

    - `<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n`: the header begins at the last marker that is
      the same as the marker before the prompt.
    - `<|user|>{{content}}<|assistant|>`: a single marker is the header.
    - `User: {{content}}\n\nAssistant:`: it is not clear where the header begins, so all text belongs to the prompt.
    """
    if any(slot.kind not in ("text", "token") for slot in slots):
        return parts.after, []
    with_content = next(number for number, slot in enumerate(slots) if slot.has_content)
    after = slots[with_content].tail + "".join(slot.head for slot in slots[with_content + 1 :])
    opening = MARK.match("".join(slot.head for slot in slots[: with_content + 1]))
    if MARK.fullmatch(after):
        return [], parts.after
    start = after.rfind(opening[0]) if opening else -1
    return (parts.after, []) if start < 0 else (_text(after[:start]), _text(after[start:]))


def _assistant(template: ChatTemplate) -> list[str]:
    """Write an answer: reasoning, text and calls, then `after` and the end token of `end_once`."""
    text_parts, call_parts = _parts(template, template.assistant), _parts(template, template.function)
    pattern = template.call or template.tools.call
    return [
        *_if("ns.before == 'assistant'", [_raise(ORDER)]),
        "{%- set ns.text = content %}",
        *(_reasoning(template.thoughts) if template.thoughts else []),
        "{%- if message.tool_calls %}",
        *_indent(_calls(template.tools, pattern, template.thoughts is None)),
        *_indent(_output([*call_parts.before, "ns.text", *call_parts.after])),
        "{%- else %}",
        *_indent(_output([*text_parts.before, "ns.text", *text_parts.after])),
        "{%- endif %}",
        *_output(_parts(template, template.after).before),
        *(_if("loop.last", _output([_end_token(template)])) if template.end_once else []),
        "{%- set ns.turn = ns.turn + 1 %}",
    ]


def _reasoning(thoughts: ReasoningFormat) -> list[str]:
    """Separate the reasoning from the answer, and write it only in answers where it belongs (reasoning.py)."""
    opening, closing = jinja_string(thoughts.opening.strip()), jinja_string(thoughts.closing.strip())
    before, after = jinja_string(thoughts.opening), jinja_string(thoughts.closing)
    hidden = ["{%- set ns.thought = '' %}"]
    if thoughts.enabled is not False:
        hidden = [] if thoughts.keeps_history else _if("loop.index0 < ns.asked", hidden)
    stripped = ["{%- set ns.text = ns.text.lstrip('\\n') %}"]
    return [
        "{%- set ns.thought = '' %}",
        "{%- if message.reasoning_content is string %}",
        "    {%- set ns.thought = message.reasoning_content.strip('\\n') %}",
        f"{{%- elif {closing} in content %}}",
        f"    {{%- set ns.thought = content.split({closing})[0].rstrip('\\n').split({opening})[-1].strip('\\n') %}}",
        f"    {{%- set ns.text = content.split({closing})[-1].lstrip('\\n') %}}",
        "{%- endif %}",
        *hidden,
        *_if("message.tool_calls and ns.text", ["{%- set ns.text = ns.text ~ '\\n' %}"]),
        *(stripped if thoughts.keeps_history else _if("ns.thought or loop.last", stripped)),
        "{%- if ns.thought %}",
        f"    {{%- set ns.text = {before} ~ ns.thought ~ {after} ~ ns.text %}}",
        "{%- else %}" if thoughts.keeps_history else "{%- elif loop.last %}",
        *_indent(_output([jinja_string(thoughts.empty)])),
        "{%- endif %}",
    ]


def _calls(tools: ToolFormat, pattern: str, without_reasoning: bool) -> list[str]:
    """Append the calls to the text of the answer."""
    # With reasoning, `_reasoning` has already appended the line break before the calls.
    open_line = "" if without_reasoning and tools.breaks_before_calls else " and not ns.text.endswith('\\n')"
    several = _if("message.tool_calls|length > 1", [_raise(SEVERAL_CALLS)]) if tools.separator is None else []
    between = f"('' if loop.first else {jinja_string(tools.separator or '')})"
    return [
        *several,
        *_if(f"ns.text{open_line}", ["{%- set ns.text = ns.text ~ '\\n' %}"]),
        "{%- for call in message.tool_calls %}",
        "    {%- set call = call.function if call.function is defined else call %}",
        "    {%- set arguments = call.arguments if call.arguments is string else call.arguments|tojson %}",
        f"    {{%- set ns.text = ns.text ~ {between} ~ {_fill_fields(pattern, CALL_FIELDS)} %}}",
        "{%- endfor %}",
    ]


def _empty_reasoning_in_prompt(thoughts: ReasoningFormat) -> list[str]:
    """Write the empty reasoning block of the generation prompt.

    It is written if the caller asks for it, or by default if the model was trained without reasoning and did not learn
    to write the block itself.
    """
    by_default = thoughts.enabled is False and not thoughts.trains_empty
    asked = "enable_thinking is defined and enable_thinking is "
    wanted = f"not ({asked}true)" if by_default else f"{asked}false"
    return _if(
        f"add_generation_prompt and ns.before != 'assistant' and {wanted}", _output([jinja_string(thoughts.empty)])
    )
