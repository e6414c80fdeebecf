"""Random conversations and their messages in OpenAI format, for tests of chat templates."""

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


def random_conversation(draw: random.Random, thoughts: bool = False) -> Conversation:
    """Draw a conversation of one to four turns with all kinds of text, tools, calls and replies."""
    turns: list[Turn] = []
    called = 0
    for _ in range(draw.randint(1, 4)):
        replied = bool(called) or draw.random() < 0.05
        calls = tuple(draw.sample(CALLS, draw.choice([1, 1, 2]))) if draw.random() < 0.35 else ()
        answer = draw.choice(["", draw.choice(TEXTS)]) if calls else draw.choice(TEXTS)
        apart = draw.choice(["", "why", "\na\n\nb\n"]) if thoughts and draw.random() < 0.4 else ""
        if thoughts and not apart:
            answer = draw.choice(THOUGHTS) + answer
        others = tuple(draw.choice(TEXTS) for _ in range(called - 1))
        turns.append(Turn(draw.choice(TEXTS), answer, "observation" if replied else "user", calls, others, apart))
        called = len(calls)
    tools = parse_tools(json.dumps(draw.sample(TOOLS, draw.randint(1, 3)))) if draw.random() < 0.4 else ()
    no_tools = not tools and draw.random() < 0.1
    return Conversation(turns, draw.choice(["", "", "Be brief.\n"]), tools=tools, no_tools=no_tools)


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages of a conversation, including the answers."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        role = "user" if turn.role == "user" else "tool"
        messages += [{"role": role, "content": text} for text in (turn.prompt, *turn.replies)]
        messages.append({"role": "assistant", "content": turn.answer})
        if turn.thought:
            messages[-1]["reasoning_content"] = turn.thought
        if turn.calls:
            messages[-1]["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in turn.calls
            ]
    return messages


def tools_of(conversation: Conversation) -> list[dict[str, Any]] | None:
    """Return the tools in the format of apply_chat_template."""
    return [{"type": "function", "function": tool} for tool in conversation.tools] or (
        [] if conversation.no_tools else None
    )


def text_of(template: ChatTemplate, conversation: Conversation, answered: bool = True) -> str:
    """Render a conversation with begin and end tokens written as BEGIN and END (or the end token of the template).

    Args:
        answered: whether to include the last answer.
    """
    turns = template.render(conversation)
    spans = [span for turn in turns[:-1] for part in turn for span in part] + turns[-1].prompt
    if answered:
        spans += [*turns[-1].answer, *template.closing]
    words = {"begin": BEGIN, "end": template.end_token or END}
    return "".join(words.get(span.kind, span.text) for span in spans)
