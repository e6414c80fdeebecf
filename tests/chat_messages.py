"""Random conversations, and the same as messages in OpenAI's shape, for tests of chat templates."""

from __future__ import annotations

import json
import random
from typing import Any

from mindspeed_llm.chat import ChatTemplate, Conversation, FunctionCall, Turn
from mindspeed_llm.chat.tool_formats import parse_tools

BEGIN, END = "<begin>", "<end>"
TEXTS = [
    "Hi",
    "  two\nlines \n",
    "\n\nbreaks around\n",
    "你好 – é 🙂",
    "{{ messages }} {% if x %} {# no #} {{content}} {{idx}} {{name}}",
    "'quotes' \"and\" \\n backslashes \\",
    "<|im_end|> and <|user|> as text, [INST] too",
    "tab\tand \r return",
    " ",
]
THOUGHTS = ["<think>\nwhy\n</think>\n\n", "<think>\n\n</think>\n\n", "<think>a\nb</think>", "no opening</think>\n", ""]
TOOLS = [
    {"name": "look_up", "description": "Find – a word", "parameters": {"type": "object", "properties": {}}},
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "properties": {
                    "n": {"type": "integer", "description": "a number", "enum": [1, 2.5, True, None, "x"]},
                    "list": {"type": ["array", "null"], "items": {"type": "string"}},
                    "empty": {},
                },
                "required": ["n"],
            },
        },
    },
    {"name": "bare", "description": None},
]
CALLS = [
    FunctionCall("look_up", '{"word": "你", "n": [1, 2.5]}'),
    FunctionCall("add", "{}"),
    FunctionCall("x", '{"a": {"b": null}, "c": true}'),
]


def random_talk(draw: random.Random, thoughts: bool = False) -> Conversation:
    """A conversation of one to four turns: texts of all kinds, calls, replies of tools, tools, system text."""
    turns: list[Turn] = []
    called = 0
    for _ in range(draw.randint(1, 4)):
        replied = bool(called) or draw.random() < 0.05
        calls = tuple(draw.sample(CALLS, draw.choice([1, 1, 2]))) if draw.random() < 0.35 else ()
        answer = draw.choice(["", draw.choice(TEXTS)]) if calls else draw.choice(TEXTS)
        if thoughts:
            answer = draw.choice(THOUGHTS) + answer
        others = tuple(draw.choice(TEXTS) for _ in range(called - 1))
        turns.append(Turn(draw.choice(TEXTS), answer, "observation" if replied else "user", calls, others))
        called = len(calls)
    tools = parse_tools(json.dumps(draw.sample(TOOLS, draw.randint(1, 3)))) if draw.random() < 0.4 else ()
    no_tools = not tools and draw.random() < 0.1
    return Conversation(turns, draw.choice(["", "", "Be brief.\n"]), tools=tools, no_tools=no_tools)


def messages_of(talk: Conversation) -> list[dict[str, Any]]:
    """The messages of a conversation, answers included."""
    found: list[dict[str, Any]] = [{"role": "system", "content": talk.system}] if talk.system else []
    for turn in talk.turns:
        role = "user" if turn.role == "user" else "tool"
        found += [{"role": role, "content": text} for text in (turn.prompt, *turn.replies)]
        found.append({"role": "assistant", "content": turn.answer})
        if turn.calls:
            found[-1]["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in turn.calls
            ]
    return found


def tools_of(talk: Conversation) -> list[dict[str, Any]] | None:
    """The tools as callers of apply_chat_template give them."""
    return [{"type": "function", "function": tool} for tool in talk.tools] or ([] if talk.no_tools else None)


def text_of(template: ChatTemplate, talk: Conversation, answered: bool = True) -> str:
    """The text that a template gives, begin and end tokens as BEGIN and END (or the template's own end token).

    Args:
        answered: False leaves the last answer out.
    """
    turns = template.render(talk)
    spans = [span for turn in turns[:-1] for part in turn for span in part] + turns[-1].prompt
    if answered:
        spans += [*turns[-1].answer, *template.closing]
    words = {"begin": BEGIN, "end": template.end_token or END}
    return "".join(words.get(span.kind, span.text) for span in spans)
