"""Random conversations with all features of real data, and their rows in every format.

A conversation is generated first as a value. Each writer then writes it in one of the forms that a format allows, so
the expected result does not depend on code that reads rows. Conversations that cannot be used are marked `bad`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from mindspeed_llm.chat import Conversation, FunctionCall, Turn

TEXTS = (
    "Hi", "Name two rivers.", "你好！ ", " (three\n\nlines)\n", "def f(x):\n    return x", "\nx", "🙂 done", "a  b",
    "tab\tand \r end", "\u3000wide\u00a0space", "e\u0301 é", "{{content}} {{idx}} {{name}} {{ tools }}",
    "[INST] a [/INST] <<SYS>>", "<think>", "Action: look_up\nAction Input: {}", '"quoted" \\n \\', "\n\n", "0", "null",
    "\u200b", "a\x85b\u2028c", "Human: x\nAssistant: y", "a\x00b\x1b[0m", "</tool_call>", "x" * 60,
)  # fmt: skip
EMPTY = ("", " ", "\n", "\t \r\n", "\u3000")
THOUGHTS = ("Why?", "2 and\n\n3", "", "\nodd\n", "你")
WORDS = ("Oslo", "你", 'a "b"', "<tag>", "")


@dataclass
class GeneratedConversation:
    """A random conversation and details of its rows.

    Attributes:
        bad: whether the conversation is invalid in every format.
        unanswered: whether the row ends with an additional prompt without an answer.
    """

    conversation: Conversation
    bad: bool = False
    unanswered: bool = False
    marks: list[Any] = field(default_factory=list)


class ConversationGenerator:
    """Generator of random conversations.

    Args:
        seed: seed of the random number generator.
        markers: control tokens that are sometimes inserted into texts.
        columnar: whether each field has one type and each object one key order, as columnar files require.
    """

    def __init__(self, seed: str, markers: list[str], columnar: bool) -> None:
        self.draw, self._markers, self._columnar = random.Random(seed), markers, columnar

    def text(self) -> str:
        draw = self.draw
        pieces = [draw.choice(TEXTS) for _ in range(draw.choice((1, 1, 2, 3)))]
        if draw.random() < 0.1:
            pieces.insert(draw.randrange(len(pieces) + 1), draw.choice(self._markers))
        text = draw.choice(("", " ", "\n")).join(pieces)
        return text if text.strip() else text + "."

    def call(self) -> FunctionCall:
        """Draw a call whose arguments contain no nulls in objects; the writers add those."""
        draw = self.draw
        arguments: dict[str, Any] = {}
        if draw.random() < 0.8:
            arguments["word"] = draw.choice((*WORDS, self.text()))
        if draw.random() < 0.4:
            arguments["list"] = draw.choice(([], [1.5, None], [2.5]))
        if draw.random() < 0.4:
            arguments["deep"] = {name: draw.choice(WORDS) for name in ("a", "b") if draw.random() < 0.5}
        return FunctionCall(draw.choice(("look_up", "add")), json.dumps(arguments, ensure_ascii=False))

    def tool(self) -> dict[str, Any]:
        draw = self.draw
        tool: dict[str, Any] = {"name": draw.choice(("look_up", "add", "查"))}
        if draw.random() < 0.8:
            tool["description"] = draw.choice(("Find a word.", "", self.text()))
        if draw.random() < 0.8:
            properties: dict[str, Any] = {}
            for name in ("word", "n"):
                if draw.random() < 0.7:
                    parameter: dict[str, Any] = {"type": draw.choice(("string", "array"))}
                    if draw.random() < 0.7:
                        parameter["description"] = draw.choice(("what", "das Wort", self.text()))
                    if draw.random() < 0.3:
                        parameter["enum"] = ["x", "y"]
                    if draw.random() < 0.3:
                        parameter["items"] = {"type": "string"}
                    properties[name] = parameter
            tool["parameters"] = {"type": "object", "properties": properties}
            if draw.random() < 0.5:
                tool["parameters"]["required"] = [name for name in properties if draw.random() < 0.5]
        return tool

    def generate(self, spoken: bool) -> GeneratedConversation:
        """Draw one conversation.

        Args:
            spoken: whether to include tools, calls, replies, reasoning and marks, not only prompts and answers.
        """
        draw, turns, bad, marks = self.draw, [], False, []
        called = 0
        for number in range(draw.choice((1, 1, 2, 3, 4))):
            replied = spoken and number > 0 and (called > 0 or draw.random() < 0.1)
            calls = tuple(self.call() for _ in range(draw.choice((1, 1, 2)))) if spoken and draw.random() < 0.3 else ()
            answer = draw.choice(("", self.text())) if calls else self.text()
            thought = draw.choice(THOUGHTS) if spoken and draw.random() < 0.2 else ""
            if thought.strip() and draw.random() < 0.3:  # in the text instead, or as well
                answer = f"<think>\n{thought}\n</think>\n\n{answer}"
                thought = draw.choice(("", thought, "another"))
            mark = draw.choice((None, None, None, None, 1, 0)) if spoken else None
            prompt = draw.choice(("", self.text())) if replied else self.text()
            if draw.random() < 0.01:
                prompt, bad = draw.choice(EMPTY[1:] if replied else EMPTY), True
            if draw.random() < 0.01 and not calls:
                answer, bad = draw.choice(EMPTY), True
            if spoken and draw.random() < 0.005:
                mark, bad = 2, True
            replies = tuple(draw.choice(("", self.text())) for _ in range(called - 1)) if replied else ()
            role = "observation" if replied else "user"
            turns.append(Turn(prompt, answer, role, calls, replies, thought, mark != 0))  # type: ignore[arg-type]
            marks.append(mark)
            called = len(calls)
        tools = tuple(self.tool() for _ in range(draw.randint(1, 2))) if spoken and draw.random() < 0.3 else ()
        no_tools = spoken and not tools and draw.random() < 0.1
        system = draw.choice(("", "", "Be brief.", self.text()))
        return GeneratedConversation(
            Conversation(turns, system, False, tools, no_tools), bad, draw.random() < 0.05, marks
        )


def as_alpaca(drawn: GeneratedConversation, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """Write an Alpaca row. Columns that the row does not need may be missing, empty or null."""
    conversation = drawn.conversation
    *earlier, last = conversation.turns
    instruction, _, query = last.prompt.partition("\n")
    if not (instruction.strip() and query) or draw.random() < 0.3:
        instruction, query = last.prompt, ""
    row: dict[str, Any] = {"instruction": instruction, "input": query or draw.choice(("", None)), "output": last.answer}
    row["system"] = conversation.system or draw.choice(("", None))
    row["history"] = [[turn.prompt, turn.answer] for turn in earlier] or draw.choice(([], None))
    return row if columnar else {key: value for key, value in row.items() if value is not None or draw.random() < 0.5}


def as_sharegpt(drawn: GeneratedConversation, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """Write a ShareGPT row; calls are the JSON text of a separate message."""
    conversation, messages = drawn.conversation, []
    for turn, mark in zip(conversation.turns, drawn.marks, strict=True):
        role = "human" if turn.role == "user" else "observation"
        messages += [{"from": role, "value": text} for text in (turn.prompt, *turn.replies)]
        answer: dict[str, Any] = {"from": "gpt", "value": turn.answer}
        if turn.calls:
            calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in turn.calls]
            value = calls[0] if len(calls) == 1 and draw.random() < 0.5 else calls
            answer = {"from": "function_call", "value": json.dumps(value, ensure_ascii=draw.random() < 0.5)}
        if turn.thought:
            answer["reasoning_content"] = turn.thought
        messages.append(_marked(answer, mark, draw))
    return _row(messages, drawn, draw, ("conversations", "system", "tools"), ("from", "value", "human"))


def as_openai(drawn: GeneratedConversation, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """Write a row of OpenAI messages with role and content, tool_calls or function_call."""
    conversation, messages = drawn.conversation, []
    for turn, mark in zip(conversation.turns, drawn.marks, strict=True):
        role = "user" if turn.role == "user" else "tool"
        messages += [{"role": role, "content": _content(text, draw, columnar)} for text in (turn.prompt, *turn.replies)]
        content = _content(turn.answer, draw, columnar)
        if turn.calls and not turn.answer:
            content = draw.choice((None, ""))
        answer: dict[str, Any] = {"role": "assistant", "content": content}
        if turn.thought:
            answer[draw.choice(("reasoning_content", "reasoning"))] = turn.thought
        if turn.calls:
            functions = [_call(call, draw, columnar) for call in turn.calls]
            if len(functions) == 1 and draw.random() < 0.3:
                answer["function_call"] = functions[0]
            else:
                answer["tool_calls"] = [{"id": "x", "type": "function", "function": one} for one in functions]
        messages.append(_marked(answer, mark, draw))
    row = _row(messages, drawn, draw, ("messages", "system_text", "functions"), ("role", "content", "user"))
    if conversation.tools and (columnar or draw.random() < 0.5):
        row["functions"] = [_tool(tool, draw, columnar) for tool in conversation.tools]
    elif columnar:  # no list can be "[]", and no column both
        row["functions"] = None
    return row


def _tool(tool: dict[str, Any], draw: random.Random, columnar: bool) -> dict[str, Any]:
    """Write a tool in OpenAI format with nulls for missing fields."""
    if columnar or draw.random() < 0.5:
        parameters = tool.get("parameters")
        if parameters is not None:
            properties = {name: _with_nulls(parameters["properties"].get(name)) for name in ("word", "n")}
            parameters = {"type": "object", "properties": properties, "required": parameters.get("required")}
        tool = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    return {"type": "function", "function": tool} if columnar or draw.random() < 0.5 else tool


def _with_nulls(parameter: dict[str, Any] | None) -> dict[str, Any] | None:
    return parameter and {name: parameter.get(name) for name in ("type", "description", "enum", "items")}


def _call(call: FunctionCall, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """Write a call with additional null arguments, as columnar files have for keys without a value."""
    arguments = json.loads(call.arguments)
    if not columnar and draw.random() < 0.3:
        return {"name": call.name, "arguments": json.dumps(arguments)}
    if columnar or draw.random() < 0.5:  # columns have one order of keys
        arguments = {name: arguments.get(name) for name in ("word", "list", "deep")}
        if isinstance(arguments["deep"], dict):
            arguments["deep"] = {name: arguments["deep"].get(name) for name in ("a", "b")}
    return {"name": call.name, "arguments": arguments}


def _content(text: str, draw: random.Random, columnar: bool) -> Any:
    if columnar or not text or draw.random() < 0.8:
        return text
    cut = draw.randrange(len(text) + 1)
    return [{"type": "text", "text": part} for part in (text[:cut], text[cut:])]


def _marked(answer: dict[str, Any], mark: int | None, draw: random.Random) -> dict[str, Any]:
    name = draw.choice(("weight", "train")) if mark is not None else None
    if name is not None:
        answer[name] = mark
    elif draw.random() < 0.2:
        answer["weight"] = None
    return answer


def _row(
    messages: list[dict[str, Any]],
    drawn: GeneratedConversation,
    draw: random.Random,
    columns: tuple[str, str, str],
    names: tuple[str, str, str],
) -> dict[str, Any]:
    role, text, user = names
    conversation, system = drawn.conversation, drawn.conversation.system
    if drawn.unanswered:
        messages.append({role: user, text: "And then?"})
    if system and draw.random() < 0.5:
        messages.insert(0, {role: "system", text: system})
        system = "overruled"
    tools: Any = (
        json.dumps(conversation.tools, ensure_ascii=draw.random() < 0.5)
        if conversation.tools
        else draw.choice(("", None))
    )
    return dict(
        zip(
            columns,
            (messages, system or draw.choice(("", None)), "[]" if conversation.no_tools else tools),
            strict=True,
        )
    )
