"""Independent reference implementation of the template fields of MindSpeed-LLM.

It knows nothing of this project's template files or engine: it takes the entries of mindspeed_templates.json
message by message, and tokenises slot by slot.
"""

from __future__ import annotations

from typing import Any

from mindspeed_llm.chat import Conversation
from mindspeed_llm.tokenization import Tokenizer

TOOL = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {
        "type": "object",
        "properties": {
            "word": {"type": "string", "description": "the word"},
            "kind": {"type": "string", "enum": ["noun", "verb"], "description": "its kind"},
            "more": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["word"],
    },
}


TOOL_TEXT = (
    "You have access to the following tools:\n> Tool Name: look_up\nTool Description: Looks a word up.\nTool Args:\n"
    "  - word (string, required): the word\n  - kind (string): its kind, should be one of [noun, verb]\n"
    "  - more (array): , where each item should be string\n\n"
    "Use the following format if using a tool:\n```\nAction: tool name (one of [look_up]).\nAction Input: the input to "
    'the tool, in a JSON format representing the kwargs (e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n'
)


TEXTS = [
    "Hi",
    "Name two rivers.",
    "你好！ ",
    " (three\n\nlines)\n",
    "def f(x):\n    return x",
    "\nx",
    "🙂 done",
    "a  b",
]


NAMES = [
    *("alpaca", "baichuan2", "chatglm2", "chatglm3", "chatglm3_system", "chatml", "chatml_de", "cpm", "deepseek2"),
    *("deepseek2-lite", "deepseek3", "default", "empty", "gemma", "glm4", "hunyuan", "intern2", "llama2", "llama3"),
    *("minicpm3", "mistral", "mixtral", "qwen", "qwen_math_r1", "qwen_r1", "trl"),
]


def slots_of(entry: dict[str, Any], field: str, default: list[Any]) -> list[Any]:
    return (entry.get(field) or {}).get("slots") or default


def tokens_of(slots: list[Any], tokenizer: Tokenizer, end: int, fields: dict[str, str]) -> list[int]:
    """Tokenize each slot separately."""
    ids: list[int] = []
    for slot in slots:
        if isinstance(slot, dict):
            number = tokenizer.token_id(slot["token"])
            assert number is not None
            ids.append(number)
        elif isinstance(slot, list):
            number = end if slot == ["eos_token"] else tokenizer.bos_id
            ids += [] if number is None else [number]
        else:
            for name, value in fields.items():
                slot = slot.replace("{{" + name + "}}", value)
            ids += tokenizer.encode_batch([slot])[0].tolist() if slot else []
    return ids


def expected(
    entry: dict[str, Any], conversation: Conversation, tokenizer: Tokenizer, end: int
) -> tuple[list[int], list[int]]:
    once = bool(entry.get("efficient_eos"))
    ending: list[Any] = [] if once else [["eos_token"]]
    user = slots_of(entry, "format_user", ["{{content}}"])
    system = conversation.system or entry.get("default_system", "")
    system += TOOL_TEXT if conversation.tools else ""
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(conversation.turns):
        prompt: list[int] = []
        content = turn.prompt
        if number > 0:
            prompt += tokens_of(slots_of(entry, "format_separator", []), tokenizer, end, {})
        else:
            prompt += tokens_of(slots_of(entry, "format_prefix", []), tokenizer, end, {})
            slots = slots_of(entry, "format_system", ["{{content}}"])
            if system and entry["name"].startswith("llama2"):
                content = slots[0].replace("{{content}}", system) + content
            elif system:
                prompt += tokens_of(slots, tokenizer, end, {"content": system})
        slots = user if turn.role == "user" else slots_of(entry, "format_observation", user)
        prompt += tokens_of(slots, tokenizer, end, {"idx": str(number), "content": content})
        if turn.calls:
            called = ["Action: {{name}}\nAction Input: {{arguments}}", *ending]
            answer = tokens_of(slots_of(entry, "format_function", called), tokenizer, end, turn.calls[0]._asdict())
        else:
            default = ["{{content}}", *ending]
            answer = tokens_of(slots_of(entry, "format_assistant", default), tokenizer, end, {"content": turn.answer})
        first = [end] if once and number else [-100]  # of a prompt that may be empty
        labels += first[: len(prompt)] + [-100] * (len(prompt) - 1) + answer
        ids += prompt + answer
    return ([*ids, end], [*labels, end]) if once else (ids, labels)
