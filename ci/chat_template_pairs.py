"""Compare the trained text that is found in published chat templates with the marks of edited templates.

    git clone https://github.com/huggingface/trl PATH
    python ci/chat_template_pairs.py PATH [--conversations 300]

TRL's repository has published templates in trl/chat_templates/, and beside each of them an edited one, in which a
person has put {% generation %} marks around what the model generates. For each pair this program renders random
conversations with both, and compares what answer_spans.py finds in the published template with these marks. Left out of
the comparison are what follows an end token, because generation stops there, and what the generation prompt supplies.

The table shows for each pair how many conversations are equal, how many both templates refuse, and how many differ for
a reason. The reasons are rules (EXPLAINED), which are checked for every conversation. Status 1: any other difference.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_llm.chat import ANSWER_NOT_FOUND, Conversation, FunctionCall, InvalidRowError, JinjaTemplate, Turn
from mindspeed_llm.chat.conversation import ReplySource
from mindspeed_llm.chat.jinja_template import CALL_PROBE

EDITED = "_training"
SHOWN = 3  # maximum number of unexplained differences that are printed for a pair

TEXTS = (
    "Hi", "Name two rivers.", "你好！ ", " (three\n\nlines)\n", "def f(x):\n    return x\n", "\n\nx", "🙂 done", "a  b",
    "tab\tand \r end", "\u3000wide\u00a0space", "é e\u0301", "{{ messages }} {% if x %}", "0", "null", "\\n 'q' \"q\"",
    "[INST] a [/INST] <<SYS>>", "<|im_start|>user\nforged<|im_end|>", "<|user|>", "<|eot_id|>", "</s>", "a\u2028b",
    "<end_of_turn>\n<start_of_turn>model\n", "<|assistant|>\nx<|end|>", "Human: x\nAssistant: y", "<tool_response>",
)  # fmt: skip
THOUGHTS = ("Why?", "2 and\n\n3", " odd \n", "你")
SYSTEM_PROBE = Conversation([Turn("question", "answer")], "Be brief.")
WORDS = ("Oslo", "你", 'a "b"', "<tag>")
# Tokens at which generation stops, by the beginning of a template's name; the first one is eos_token.
END_TOKENS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseekv3": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>", "<|tool_response>", "<eos>"],
    "gemma": ["<end_of_turn>", "<eos>"],
    "glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|call|>", "<|endoftext|>"],
    "idefics3": ["<end_of_utterance>"],
    "lfm2": ["<|im_end|>"],
    "llama3": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
    "llava_next": ["</s>"],
    "nemotron": ["<|im_end|>"],
    "phi3": ["<|endoftext|>", "<|end|>"],
    "qwen": ["<|im_end|>", "<|endoftext|>"],
}


def end_tokens(name: str) -> list[str]:
    """Return the end tokens of a template."""
    return next(tokens for prefix, tokens in END_TOKENS.items() if name.startswith(prefix))


def random_text(draw: random.Random) -> str:
    """Draw a text that is not only white space."""
    text = draw.choice(("", " ", "\n")).join(draw.choice(TEXTS) for _ in range(draw.choice((1, 1, 2, 3))))
    return draw.choice(("", "", " ", "\n")) + text + draw.choice(("", "", " ", "\n"))


def random_conversation(draw: random.Random, with_system: bool, with_tools: bool, with_thoughts: bool) -> Conversation:
    """Draw a conversation of one to six turns."""
    turns: list[Turn] = []
    called: tuple[FunctionCall, ...] = ()
    for number in range(draw.randint(1, 6)):
        role = "observation" if called else "user"
        sources = tuple(ReplySource(call.name, call.id) for call in called)
        replies = tuple(random_text(draw) for _ in called[1:])
        calls = ()
        if with_tools and draw.random() < 0.4:
            arguments = {key: draw.choice((*WORDS, random_text(draw))) for key in draw.choice(("", "a", "ab"))}
            calls = tuple(
                FunctionCall(draw.choice(("look_up", "add")), json.dumps(arguments), f"call{number}{index:04}")
                for index in range(draw.choice((1, 1, 2)))
            )
        answer = "" if calls and draw.random() < 0.5 else random_text(draw)
        thought = draw.choice(THOUGHTS) if with_thoughts and draw.random() < 0.3 else ""
        if thought and answer and draw.random() < 0.5:  # in the text of the answer instead
            answer, thought = f"<think>\n{thought}\n</think>\n\n{answer}", ""
        turns.append(Turn(random_text(draw), answer, role, calls, replies, thought, sources=sources))  # type: ignore[arg-type]
        called = calls
    tools = tuple(
        {"name": name, "description": draw.choice(WORDS), "parameters": {"type": "object", "properties": {}}}
        for name in ("look_up", "add")
    )
    system = draw.choice(("", "Be brief.", random_text(draw))) if with_system else ""
    return Conversation(turns, system, tools=tools if with_tools and draw.random() < 0.8 else ())


class Answer(NamedTuple):
    """One answer in both templates.

    Attributes:
        ours: text that is trained with the published template.
        theirs: text that is marked in the edited template.
        turn: the turn.
        ends: end tokens.
        supplied: the generation prompt of the published template after a user's text.
    """

    ours: str
    theirs: str
    turn: Turn
    ends: list[str]
    supplied: str


Rule = Callable[[Answer], bool]


def is_equal(answer: Answer) -> bool:
    """Return whether the two agree, apart from what follows an end token and what the generation prompt supplies."""
    supplied = (answer.supplied[-n:] for n in range(1, len(answer.supplied) + 1))
    shorter = [answer.theirs[len(text) :] for text in supplied if answer.theirs.startswith(text)]
    return any(_is_same_start(answer, theirs) for theirs in (answer.theirs, *shorter))


def _is_same_start(answer: Answer, theirs: str) -> bool:
    """Return whether `theirs` is the answer, or the answer and further end tokens and white space."""
    if theirs == answer.ours:
        return True
    rest = theirs.removeprefix(answer.ours)
    for token in answer.ends:
        rest = rest.replace(token, "")
    return answer.ours.endswith(tuple(answer.ends)) and theirs.startswith(answer.ours) and not rest.strip()


def with_thought(answer: Answer) -> bool:
    """Return whether they differ by a block with the reasoning of the row, or without reasoning, before the answer."""
    block = re.match(r"\s*<think>(.*?)</think>\s*", answer.theirs, re.DOTALL)
    if block is None or block[1].strip() not in answer.turn.thought + answer.turn.answer:
        return False
    rest = answer.theirs[block.end() :]
    # The white space between the block and the answer is part of either of them.
    kept = answer.ours[: len(answer.ours) - len(answer.ours.lstrip())]
    return is_equal(answer._replace(ours=answer.ours.lstrip(), theirs=rest)) or is_equal(
        answer._replace(theirs=kept + rest)
    )


def with_header(header: str, end: str = "") -> Rule:
    """Return the rule that the marks include the header of the answer, and its end."""
    return lambda answer: (
        answer.theirs.removesuffix(end) == header + answer.ours
        or is_equal(answer._replace(theirs=answer.theirs.removeprefix(header)))
    )


def without_end(token: str) -> Rule:
    """Return the rule that the marks leave out the end token."""
    return lambda answer: answer.ours == answer.theirs + token


def without_header(header: str, end: str) -> Rule:
    """Return the rule that the marks leave out the header, which no generation prompt supplies here, and the end."""
    return lambda answer: any(is_equal(answer._replace(theirs=header + answer.theirs + one)) for one in ("", end))


EMPTY = "the edited template writes reasoning, or an empty block of it, where the published one does not, and trains it"
BLOCK = "an empty block of reasoning before the answer is marked; here it belongs to the prompt"
# Beginning of a template's name → (reason, rule) for each kind of difference.
EXPLAINED: dict[str, list[tuple[str, Rule]]] = {
    "deepseekv3": [
        ("the header <｜Assistant｜> is marked, but generation begins after it", with_header("<｜Assistant｜>"))
    ],
    "diffusion_gemma": [
        ("the end token <|tool_response> of calls is not marked", without_end("<|tool_response>")),
        (
            "after the reply of a tool the published generation prompt is empty, and an answer begins with its header",
            without_header("<|turn>model\n", "<|tool_response>"),
        ),
    ],
    "glm4moe": [(BLOCK, with_thought)],
    "gptoss": [
        (
            "the header <|start|>assistant and <|end|>, at which generation does not stop, are marked",
            with_header("<|start|>assistant", "<|end|>"),
        )
    ],
    "nemotron": [(BLOCK, with_thought)],
    "qwen3_5": [(EMPTY, with_thought)],
    "qwen3_6": [(EMPTY, with_thought)],
    "qwen3": [(EMPTY, with_thought)],
}
# The same for conversations that only the published template refuses: reason, and the beginning of the message.
EXPLAINED_REFUSALS = {
    "deepseekv3": (
        "the published template needs arguments of calls as text",
        "the chat template fails on it: can only",
    ),
    "diffusion_gemma": ("the text of an answer with calls is written after the replies of the tools", ANSWER_NOT_FOUND),
    "gptoss": ("the text of an answer with calls is left out if a later answer has none", ANSWER_NOT_FOUND),
}


def trained_texts(template: JinjaTemplate, conversation: Conversation) -> list[str] | str:
    """Return the trained text of each answer, or the reason why the template refuses the conversation."""
    try:
        turns = template.render(conversation)
    except InvalidRowError as reason:
        return str(reason)
    return ["".join(span.text for span in turn.answer if span.trained) for turn in turns]


def difference(name: str, published: JinjaTemplate, edited: JinjaTemplate, conversation: Conversation) -> str:
    """Return the kind of a conversation: "equal", "refused by both", a reason of the tables, or "? " and the texts."""
    ours, theirs = trained_texts(published, conversation), trained_texts(edited, conversation)
    if isinstance(ours, str):
        if isinstance(theirs, str):
            return "refused by both"
        reason, message = explained(name, EXPLAINED_REFUSALS, ("", "\0"))
        return reason if ours.startswith(message) else f"? refused: {ours}"
    if isinstance(theirs, str):
        return f"? only the edited template refuses it: {theirs}"
    kinds = set()
    rules = explained(name, EXPLAINED, [])
    supplied = generation_prompt(published)
    for turn, one, other in zip(conversation.turns, ours, theirs, strict=True):
        answer = Answer(one, other, turn, end_tokens(name), supplied)
        if not is_equal(answer):
            kinds.add(next((reason for reason, rule in rules if rule(answer)), f"? {one!r} {other!r}"))
    return max(kinds, default="equal", key=lambda kind: kind.startswith("?"))


def explained(name: str, table: dict[str, Any], default: Any) -> Any:
    """Return the entry of a table for a template."""
    return next((entry for prefix, entry in table.items() if name.startswith(prefix)), default)


def generation_prompt(template: JinjaTemplate) -> str:
    """Return what a template writes after a user's text if it is asked for the beginning of an answer."""
    conversation = Conversation([Turn("question", "answer")])
    row = template._rendered_row(conversation, template._form)
    rendered = [row.render(row.messages.final(template._form)[:1], prompt) for prompt in (False, True)]
    return rendered[1][rendered[1].rindex("question") + len("question") :]


def compare_pair(folder: Path, name: str, conversations: int) -> Counter[str]:
    """Compare both templates on random conversations; return the number of conversations of each kind."""
    ends = end_tokens(name)
    special = {"bos_token": "<s>", "eos_token": ends[0]}
    pair = [
        JinjaTemplate((folder / f"{name}{kind}.jinja").read_text(encoding="utf-8"), special, None, ends)
        for kind in ("", EDITED)
    ]
    draw = random.Random(name)
    system, tools = (isinstance(trained_texts(pair[1], probe), list) for probe in (SYSTEM_PROBE, CALL_PROBE))
    return Counter(
        difference(name, *pair, random_conversation(draw, system, tools and number % 3 == 2, number % 2 == 1))
        for number in range(conversations)
    )


def main() -> int:
    """Compare all pairs of a checkout and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="checkout of huggingface/trl")
    parser.add_argument("--conversations", type=int, default=300, help="number of conversations for each pair")
    given = parser.parse_args()
    folder = given.checkout / "trl" / "chat_templates"
    names = sorted(path.name.removesuffix(f"{EDITED}.jinja") for path in folder.glob(f"*{EDITED}.jinja"))
    if not names:
        print(f"{folder} holds no pairs of templates; give a checkout of huggingface/trl", file=sys.stderr)
        return 2
    unexplained = 0
    print(f"{'template':22} {'equal':>6} {'refused':>8} {'explained':>10} {'unexplained':>12}")
    for name in names:
        kinds = compare_pair(folder, name, given.conversations)
        unknown = {kind: count for kind, count in kinds.items() if kind.startswith("?")}
        reasons = {kind: count for kind, count in kinds.items() if kind not in ("equal", "refused by both", *unknown)}
        counts = (kinds["equal"], kinds["refused by both"], sum(reasons.values()), sum(unknown.values()))
        print(f"{name:22} {counts[0]:6} {counts[1]:8} {counts[2]:10} {counts[3]:12}")
        for kind, count in [*reasons.items(), *list(unknown.items())[:SHOWN]]:
            print(f"    {count:4}  {kind}")
        unexplained += counts[3]
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
