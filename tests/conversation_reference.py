"""Independent reference for the token ids and labels of random conversations under each template.

Extends template_reference.py to all features of conversations. The slots come from the entries of MindSpeed-LLM; the
formats of tools, of several calls and replies, and of reasoning are implemented here again from the published
templates. Neither the templates nor the template engine of this project are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from template_reference import slots_of

from mindspeed_llm.chat import Conversation, Turn
from mindspeed_llm.tokenization import Tokenizer

Labelled = tuple[list[int], list[int]]
# Separator between two tool replies, which closes one tool message and opens the next. The default is a line break.
REPLIES = {
    **dict.fromkeys(("chatml", "chatml_de", "qwen", "qwen_r1", "qwen_math_r1"), "<|im_end|>\n<|im_start|>tool\n"),
    "gemma": "<end_of_turn>\n<start_of_turn>tool\n",
    "glm4": "<|observation|>\n",
    "llama3": "<|eot_id|><|start_header_id|>tool<|end_header_id|>\n\n",
    **dict.fromkeys(("qwen2.5", "qwen3"), "\n</tool_response>\n<tool_response>\n"),
}
GLM_TOOLS = ("glm4", "chatglm3")  # one call in an answer
PUBLISHED = ("qwen2.5", "qwen3")
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class Flags(NamedTuple):
    """Flags of preprocess_data.py that change the tokens or the labels."""

    append_eod: bool = False
    mask_history: bool = False
    enable_thinking: bool | None = None
    reasoning_history: str | None = None
    train_empty_reasoning: bool = False

    def words(self) -> list[str]:
        """Return the flags as command line arguments."""
        given = {
            "--append-eod": self.append_eod,
            "--mask-history": self.mask_history,
            "--train-empty-reasoning": self.train_empty_reasoning,
        }
        thinking = [] if self.enable_thinking is None else ["--enable-thinking", str(self.enable_thinking).lower()]
        history = [] if self.reasoning_history is None else ["--reasoning-history", self.reasoning_history]
        return [name for name, value in given.items() if value] + thinking + history


def reference(
    entry: Mapping[str, Any], conversation: Conversation, tokenizer: Tokenizer, end: int, flags: Flags
) -> Labelled | None:
    """Return ids and labels, or None if the template cannot render the conversation or nothing is trained."""
    name = entry["name"]
    if name in GLM_TOOLS and any(len(turn.calls) > 1 for turn in conversation.turns):
        return None
    once = bool(entry.get("efficient_eos"))
    pieces = _published(name, conversation, flags) if name in PUBLISHED else _of_slots(entry, conversation)
    last, ended = len(conversation.turns) - 1, once
    ids: list[int] = []
    labels: list[int] = []
    for text, kind, turn in pieces:
        if text is END:
            found = [end]
        elif text is BEGIN:
            found = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        elif isinstance(text, Token):
            number = tokenizer.token_id(text.text)
            assert number is not None
            found = [number]
        else:
            found = tokenizer.encode_batch([text])[0].tolist() if text else []
        trained = kind == "answer" and conversation.turns[turn].trained and not (flags.mask_history and turn < last)
        ended = ended or (kind == "answer" and turn == last and found[-1:] == [end])
        labels += found if trained else [-100] * len(found)
        if (
            once
            and kind == "first"
            and turn > 0
            and found
            and conversation.turns[turn - 1].trained
            and not flags.mask_history
        ):
            labels[len(ids)] = end
        ids += found
    if once:
        ids.append(end)
        labels.append(end if conversation.turns[-1].trained else -100)
    if conversation.turns[-1].trained:  # what is trained last is to be the end token
        ended = next((label for label in reversed(labels) if label != -100), None) == end
    if flags.append_eod and not ended:
        ids.append(end)
        labels.append(end if conversation.turns[-1].trained else -100)
    return (ids, labels) if any(label != -100 for label in labels) else None


class Token:
    """A token that a slot names."""

    def __init__(self, text: str) -> None:
        self.text = text


BEGIN, END = Token("begin"), Token("end")
Piece = tuple[Any, str, int]  # text, kind, number of the turn


def _of_slots(entry: Mapping[str, Any], conversation: Conversation) -> Iterator[Piece]:
    """Yield the pieces of every turn with their kind: 'answer', 'first' (first piece of a prompt) or 'prompt'."""
    name, once = entry["name"], bool(entry.get("efficient_eos"))
    user = slots_of(entry, "format_user", ["{{content}}"])
    answer_slots = slots_of(entry, "format_assistant", ["{{content}}", *([] if once else [["eos_token"]])])
    called = (entry.get("format_function") or {}).get("slots")
    pattern = called[0] if called else "Action: {{name}}\nAction Input: {{arguments}}"
    calling = ["{{content}}", *called[1:]] if called else ["{{content}}", *([] if once else [["eos_token"]])]
    tools = _glm_tools(conversation) if name in GLM_TOOLS else _tools(conversation)
    system = (conversation.system or entry.get("default_system", "")) + tools
    for number, turn in enumerate(conversation.turns):
        before = ""
        slots: list[Any] = list(slots_of(entry, "format_prefix", [])) if number == 0 else []
        prompt = _filled(slots, "", number)
        if number == 0 and (system or conversation.no_tools):
            if name.startswith("llama2"):
                before = "".join(slots_of(entry, "format_system", [])).replace("{{content}}", system)
            else:
                prompt += _filled(slots_of(entry, "format_system", ["{{content}}"]), system, number)
        if number > 0:
            prompt = _filled(slots_of(entry, "format_separator", []), "", number)
        slots = user if turn.role == "user" else slots_of(entry, "format_observation", user)
        content = before + REPLIES.get(name, "\n").join((turn.prompt, *turn.replies))
        prompt += _filled(slots, content, number)
        for place, text in enumerate(piece for piece in prompt if piece != ""):
            yield text, "first" if place == 0 else "prompt", number
        calls = "\n".join(_call(pattern, call.name, call.arguments) for call in turn.calls)
        gap = "\n" if calls and turn.answer and not turn.answer.endswith("\n") else ""
        for text in _filled(calling if turn.calls else answer_slots, turn.answer + gap + calls, number):
            yield text, "answer", number


def _filled(slots: list[Any], content: str, number: int) -> list[Any]:
    """Insert a message into slots; placeholders inside the message are not replaced."""
    found: list[Any] = []
    for slot in slots:
        if isinstance(slot, dict):
            found.append(Token(slot["token"]))
        elif isinstance(slot, list):
            found.append(END if slot == ["eos_token"] else BEGIN)
        else:
            parts = slot.replace("{{idx}}", str(number)).split("{{content}}")
            found.append(content.join(parts))
    return found


def _call(pattern: str, name: str, arguments: str) -> str:
    before, rest = pattern.split("{{name}}")
    between, after = rest.split("{{arguments}}")
    return before + name + between + arguments + after


def _tools(conversation: Conversation) -> str:
    """Render tools in the default format of LLaMA-Factory 0.8.2."""
    if not conversation.tools:
        return ""
    text = "You have access to the following tools:\n"
    for tool in conversation.tools:
        text += f"> Tool Name: {tool['name']}\nTool Description: {tool.get('description', '')}\nTool Args:\n"
        schema = tool.get("parameters", {})
        for name, parameter in schema.get("properties", {}).items():
            required = ", required" if name in schema.get("required", []) else ""
            enum = f", should be one of [{', '.join(parameter['enum'])}]" if parameter.get("enum") else ""
            items = f", where each item should be {parameter['items']['type']}" if parameter.get("items") else ""
            description = parameter.get("description", "")
            text += f"  - {name} ({parameter['type']}{required}): {description}{enum}{items}\n"
        text += "\n"
    names = ", ".join(tool["name"] for tool in conversation.tools)
    return (
        f"{text}Use the following format if using a tool:\n```\nAction: tool name (one of [{names}]).\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n'
    )


def _glm_tools(conversation: Conversation) -> str:
    """Render tools in the format of GLM-4."""
    if not conversation.tools:
        return ""
    text = (
        "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
    )
    for tool in conversation.tools:
        shown = json.dumps(tool, indent=4, ensure_ascii=False)
        text += f"\n\n## {tool['name']}\n\n{shown}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
    return text


def _published(name: str, conversation: Conversation, flags: Flags) -> Iterator[Piece]:
    """Yield the pieces of the published templates of Qwen2.5 and Qwen3, with the thoughts that `flags` ask for."""
    keep = name == "qwen3" and flags.reasoning_history == "keep"
    empty = "answer" if flags.train_empty_reasoning or flags.enable_thinking else "prompt"
    system = conversation.system or (QWEN_SYSTEM if name == "qwen2.5" else "")
    tools = _qwen_tools(conversation)
    if system or tools:
        gap = "\n\n" if system and tools else ""
        yield f"<|im_start|>system\n{system}{gap}{tools}<|im_end|>\n", "prompt", 0
    asked = max(
        (number for number, turn in enumerate(conversation.turns) if turn.role == "user"),
        default=len(conversation.turns) - 1,
    )
    for number, turn in enumerate(conversation.turns):
        if turn.role == "user":
            yield f"<|im_start|>user\n{turn.prompt}<|im_end|>\n<|im_start|>assistant\n", "prompt", number
        else:
            replies = "".join(f"\n<tool_response>\n{reply}\n</tool_response>" for reply in (turn.prompt, *turn.replies))
            yield f"<|im_start|>user{replies}<|im_end|>\n<|im_start|>assistant\n", "prompt", number
        thought, content = _thought(turn) if name == "qwen3" else ("", turn.answer)
        thought = "" if flags.enable_thinking is False else thought
        if keep or (name == "qwen3" and number >= asked and (thought or number == len(conversation.turns) - 1)):
            opened = f"<think>\n{thought}\n</think>\n\n"
            content = content.lstrip("\n")
            if not thought:
                yield opened, empty, number
            content = (opened if thought else "") + content + ("\n" if turn.calls and content else "")
        elif turn.calls and content:
            content += "\n"
        calls = [f'<tool_call>\n{{"name": "{c.name}", "arguments": {c.arguments}}}\n</tool_call>' for c in turn.calls]
        yield content + "\n".join(calls), "answer", number
        yield END, "answer", number
        yield "\n", "prompt", number


def _thought(turn: Turn) -> tuple[str, str]:
    """Return (reasoning, content) from the separate field or from the text."""
    inside, content = "", turn.answer
    if "</think>" in turn.answer:
        inside = turn.answer.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
        content = turn.answer.split("</think>")[-1].lstrip("\n")
    if apart := turn.thought.strip("\n"):
        return apart, content if inside.strip() == apart.strip() else turn.answer
    return inside, content


def _qwen_tools(conversation: Conversation) -> str:
    if not conversation.tools:
        return ""
    listed = "".join(
        "\n" + json.dumps({"type": "function", "function": tool}, ensure_ascii=False) for tool in conversation.tools
    )
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        f"function signatures within <tools></tools> XML tags:\n<tools>{listed}\n</tools>\n\nFor each function call, "
        "return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
