"""Over-long conversations with tools: samples begin with a user and keep calls with replies, or the row is listed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from preprocess_command import Command
from small_tokenizers import CharacterTokenizer, byte_level_folder

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import Conversation, FunctionCall, JinjaTemplate, Turn, load_chat_template
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.chat.renderer import Renderer
from mindspeed_llm.errors import DataError
from mindspeed_llm.tokenization import SampleBuilder

BARE = parse_template({"name": "bare", "assistant": ["{{content}}"], "function": ["{{content}}"]})
CALL = (FunctionCall("f", "1"),)
SOURCE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }}){% endfor %};{% endgeneration %}{% else %}"
    "{{ m.content }};{% endif %}{% endfor %}"
)


def cut(conversation: Conversation, capacity: int, template: Renderer) -> tuple[str, str] | str:
    """(sample, trained part) as text, or the reason why there is none."""
    tokenizer = CharacterTokenizer()
    batch = SampleBuilder(tokenizer, template, capacity).build([conversation])
    if batch.skipped:
        return batch.skipped[0][1]
    assert int(batch.lengths[0]) <= capacity
    return tokenizer.decode(batch.ids.tolist()), tokenizer.decode(
        [one for one in batch.labels.tolist() if one != IGNORE_INDEX]
    )


def random_conversation(draw: random.Random) -> Conversation:
    turns: list[Turn] = []
    for number in range(draw.randint(1, 7)):
        replied = bool(turns) and bool(turns[-1].calls)
        calls = CALL * draw.randint(1, 3) if draw.random() < 0.6 else ()
        wanted = len(turns[-1].calls) - 1 if replied else 0
        replies = tuple("r" * draw.choice([1, 30]) for _ in range(wanted))
        words = ("r" if replied else "q") * draw.choice([1, 5, 60])
        answer = f"a{number}" + "a" * draw.choice([0, 40]) if not calls or draw.random() < 0.3 else ""
        turns.append(Turn(words, answer, "observation" if replied else "user", calls, replies))
    return Conversation(turns, draw.choice(["", "sys"]))


MARKS = re.compile(r"<\|im_start\|>(user\n(?:<tool_response>)?|tool|assistant)|\[(user|tool|assistant)\]")
SAME = {"user\n": "user", "user\n<tool_response>": "tool"}


@pytest.mark.parametrize("name", ["qwen", "qwen3", "hf"])
def test_a_cut_conversation_is_still_valid(name: str) -> None:
    """Whatever the length, the roles are those of a suffix of the row that begins with a user."""
    template = JinjaTemplate(SOURCE, {}) if name == "hf" else load_chat_template(name)
    draw, kept, listed = random.Random(name), 0, 0
    for _ in range(150):
        conversation = random_conversation(draw)
        found = cut(conversation, draw.randint(60, 400), template)
        if isinstance(found, str):
            assert found in (
                "longer than seq_length",
                "prefix, system and markers exceed seq_length",
                "nothing left after cutting",
            )
            asked = max(number for number, turn in enumerate(conversation.turns) if turn.role == "user")
            assert found == "longer than seq_length" or asked == len(conversation.turns) - 1
            listed += 1
            continue
        roles = [SAME.get(one, one) for pair in MARKS.findall(found[0]) for one in pair if one]
        whole = [
            role
            for turn in conversation.turns
            for role in [{"user": "user", "observation": "tool"}[turn.role], *["tool"] * len(turn.replies), "assistant"]
        ]
        if name == "qwen3":  # its replies share one message
            whole = [a for a, b in zip(whole, ["", *whole], strict=False) if (a, b) != ("tool", "tool")]
        assert roles == whole[len(whole) - len(roles) :] and roles[0] == "user", (conversation, found)
        kept += 1
    assert kept > 50 and listed > 5


def test_the_longest_text_of_a_chain_is_shortened() -> None:
    template = BARE
    conversation = Conversation([Turn("q" * 40, "", calls=CALL), Turn("r" * 9, "yes", "observation")])
    assert cut(conversation, 60, template) == (
        "q" * 23 + "Action: f\nAction Input: 1" + "r" * 9 + "yes",
        "Action: f\nAction Input: 1yes",
    )
    conversation.turns[1] = Turn("r", "yes", "observation", replies=("s" * 40, "t"))
    conversation.turns[0] = Turn("qqq", "", calls=CALL * 3)
    found = cut(conversation, 125, template)
    assert isinstance(found, tuple) and re.search(r"qqqAction.*1r\ns{38}\ntyes$", found[0], re.DOTALL), found
    silent = Conversation([Turn("q" * 9, "", calls=CALL), Turn("", "yes" * 20, "observation")])
    assert cut(silent, 40, template) == (
        "q" * 9 + "Action: f\nAction Input: 1yesyes",
        "Action: f\nAction Input: 1yesyes",
    )


def test_a_row_that_begins_with_a_reply_is_not_cut() -> None:
    conversation = Conversation([Turn("r" * 50, "yes", "observation")])
    assert cut(conversation, 40, BARE) == "longer than seq_length"
    assert cut(conversation, 53, BARE) == ("r" * 50 + "yes", "yes")


def test_rows_that_cannot_be_cut_are_listed_and_stop_a_strict_run(tmp_path: Path) -> None:
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"))
    call = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"a": "x" * 900}})}
    told = [{"from": "observation", "value": "42"}, {"from": "gpt", "value": "It is."}]
    short = [{"from": "human", "value": "Ask."}, {"from": "gpt", "value": "Told."}]
    rows = [{"conversations": [short[0], call, *told]}, {"conversations": short}]
    command.input.write_text(json.dumps(rows))
    handler = ["--handler-name", "SharegptStyleInstructionHandler"]
    counts = command.run(*handler).counts
    assert (counts.kept, counts.skipped, counts.dropped) == (1, {"longer than seq_length": 1}, 1)
    assert [row["reason"] for row in command.rejected()] == ["longer than seq_length"]
    with pytest.raises(DataError, match=r"rows\.json:1: longer than seq_length"):
        command.run(*handler, "--strict")
    assert command.run(*handler, "--strict", "--overlong", "drop").counts.kept == 1, "as asked"
