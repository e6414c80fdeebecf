"""Random conversations with all that data hold, and the same as rows of every format.

A conversation is drawn first, as a value; each writer then puts it down in one of the shapes that a format allows. So
nothing that reads rows has a say in what is expected of them. What is drawn and cannot be used is marked `bad`.
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
class Drawn:
    """One conversation and how it is to be written down.

    Attributes:
        bad: no format can use it.
        unanswered: a last prompt without answer.
    """

    talk: Conversation
    bad: bool = False
    unanswered: bool = False
    marks: list[Any] = field(default_factory=list)


class Talks:
    """Draws conversations.

    Args:
        markers: control tokens, which stand in texts now and then.
        columnar: every value of a field has one type, and keys of objects one order, as columns have them.
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
        """Arguments without nulls in objects: rows have them in addition."""
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

    def drawn(self, spoken: bool) -> Drawn:
        """One conversation.

        Args:
            spoken: with tools, calls, replies, thoughts and marks; else prompts and answers alone.
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
        return Drawn(Conversation(turns, system, False, tools, no_tools), bad, draw.random() < 0.05, marks)


def as_alpaca(drawn: Drawn, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """instruction, input, output, system, history. Columns that a row does not need may be missing, empty or null."""
    talk = drawn.talk
    *earlier, last = talk.turns
    instruction, _, query = last.prompt.partition("\n")
    if not (instruction.strip() and query) or draw.random() < 0.3:
        instruction, query = last.prompt, ""
    row: dict[str, Any] = {"instruction": instruction, "input": query or draw.choice(("", None)), "output": last.answer}
    row["system"] = talk.system or draw.choice(("", None))
    row["history"] = [[turn.prompt, turn.answer] for turn in earlier] or draw.choice(([], None))
    return row if columnar else {key: value for key, value in row.items() if value is not None or draw.random() < 0.5}


def as_sharegpt(drawn: Drawn, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """conversations with from and value; calls are the JSON text of a message of their own kind."""
    talk, messages = drawn.talk, []
    for turn, mark in zip(talk.turns, drawn.marks, strict=True):
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


def as_openai(drawn: Drawn, draw: random.Random, columnar: bool) -> dict[str, Any]:
    """messages with role and content, tool_calls or function_call."""
    talk, messages = drawn.talk, []
    for turn, mark in zip(talk.turns, drawn.marks, strict=True):
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
    row = _row(messages, drawn, draw, ("messages", "told", "functions"), ("role", "content", "user"))
    if talk.tools and (columnar or draw.random() < 0.5):
        row["functions"] = [_tool(tool, draw, columnar) for tool in talk.tools]
    elif columnar:  # no list can be "[]", and no column both
        row["functions"] = None
    return row


def _tool(tool: dict[str, Any], draw: random.Random, columnar: bool) -> dict[str, Any]:
    """A tool in OpenAI's shape, with nulls for what it does not have."""
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
    """A call with nulls in its arguments, which are none of them: of an object that has no value for a key."""
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
    drawn: Drawn,
    draw: random.Random,
    columns: tuple[str, str, str],
    names: tuple[str, str, str],
) -> dict[str, Any]:
    role, text, user = names
    talk, system = drawn.talk, drawn.talk.system
    if drawn.unanswered:
        messages.append({role: user, text: "And then?"})
    if system and draw.random() < 0.5:
        messages.insert(0, {role: "system", text: system})
        system = "overruled"
    tools: Any = json.dumps(talk.tools, ensure_ascii=draw.random() < 0.5) if talk.tools else draw.choice(("", None))
    return dict(
        zip(columns, (messages, system or draw.choice(("", None)), "[]" if talk.no_tools else tools), strict=True)
    )
