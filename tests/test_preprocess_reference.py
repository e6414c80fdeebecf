"""Rows of every format through the whole program, token for token, against the reference of test_chat_reference.py.

Conversations are drawn first and then written down as rows: as Alpaca's columns with history and system, as ShareGPT's
roles with tools, calls and observations, as OpenAI's messages under --map-keys; into JSON, JSON lines, CSV, parquet
and Arrow files. So nothing that reads rows has a say in what is expected of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from preprocess_command import Command
from row_files import OPENAI_KEYS, write_rows
from template_reference import NAMES, TEXTS, TOOL, expected

from mindspeed_llm.chat import Conversation, FunctionCall, Turn
from mindspeed_llm.preprocessing import inputs
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer

SHAREGPT = "SharegptStyleInstructionHandler"
TAGS = {"user": "human", "answer": "gpt", "observation": "observation", "call": "function_call", "system": "system"}
OPENAI_TAGS = {"user": "user", "answer": "assistant", "observation": "tool", "call": "function", "system": "system"}
ARGUMENTS = {"word": "你", "n": [1, 2.5]}
OPENING = "5b73c20a2f969d3b8ff31ee95c1aee7837d12b1a88e413975f347506b5711cd6"
Sample = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small sets are written: no file waits for the disk, and no tokenizer is read twice."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(inputs, "load_tokenizer", read_tokenizer)


@cache
def read_tokenizer(kind: str, name_or_path: str, model: str | None = None, **_: Any) -> Tokenizer:
    """Each of the real ones once for all tests."""
    return load_tokenizer(kind, name_or_path, model)


def random_conversations(seed: int, roles: bool, tools: bool) -> list[Conversation]:
    draw, found = random.Random(seed), []
    for _ in range(14):
        turns = []
        for number in range(draw.randint(1, 4)):
            observed = roles and number > 0 and draw.random() < 0.3
            calls = roles and draw.random() < 0.3
            turns.append(
                Turn(
                    draw.choice(TEXTS),
                    "" if calls else draw.choice(TEXTS),
                    "observation" if observed else "user",
                    (FunctionCall("look_up", json.dumps(ARGUMENTS, ensure_ascii=False)),) if calls else (),
                )
            )
        known = (TOOL,) if tools and draw.random() < 0.4 else ()
        found.append(Conversation(turns, draw.choice(["", "Be brief.", "用中文\n"]), tools=known))
    silent = Turn("", "Nothing.", "observation")  # a function that gives nothing back
    return [*found, Conversation([Turn("Hi", "Yo"), silent])] if roles else found


def as_alpaca(conversation: Conversation, draw: random.Random) -> dict[str, Any]:
    *earlier, last = conversation.turns
    instruction, _, query = last.prompt.partition("\n")
    if not (instruction.strip() and query) or draw.random() < 0.3:
        instruction, query = last.prompt, ""
    history = [[turn.prompt, turn.answer] for turn in earlier]
    return {
        "instruction": instruction,
        "input": query,
        "output": last.answer,
        "system": conversation.system,
        "history": history,
    }


def as_messages(conversation: Conversation, draw: random.Random, openai: bool) -> dict[str, Any]:
    tags, (role, text) = (OPENAI_TAGS, ("role", "content")) if openai else (TAGS, ("from", "value"))
    messages = []
    first = bool(conversation.system) and draw.random() < 0.5
    if first:
        messages.append({role: tags["system"], text: conversation.system})
    for turn in conversation.turns:
        messages.append({role: tags[turn.role], text: turn.prompt})
        if turn.calls:
            call = json.dumps({"name": "look_up", "arguments": ARGUMENTS}, ensure_ascii=draw.random() < 0.5)
            messages.append({role: tags["call"], text: call})
        else:
            messages.append({role: tags["answer"], text: turn.answer})
    columns = ("messages", "system_text", "functions") if openai else ("conversations", "system", "tools")
    tools = json.dumps(conversation.tools) if conversation.tools else ""
    return dict(zip(columns, (messages, "overruled" if first else conversation.system, tools), strict=True))


def wanted(entry: dict[str, Any], conversation: Conversation, tokenizer: Tokenizer, end: int, append: bool) -> Sample:
    ids, labels = expected(entry, conversation, tokenizer, end)
    more = [end] if append and ids[-1] != end else []
    return tuple(ids + more), tuple(labels + more)


def pairs() -> list[tuple[str, str]]:
    """(template, tokenizer) of which the tokenizer has every marker of the template."""
    qwen = {"chatml", "chatml_de", "intern2", "qwen", "qwen_math_r1", "qwen_r1"}
    neither = {"chatglm2", "chatglm3", "chatglm3_system", "glm4", "llama3", "baichuan2", "cpm", "deepseek3", "gemma"}
    return [
        (name, folder)
        for name in NAMES
        for folder in ("qwen25-tokenizer", "llama2-tokenizer")
        if name not in neither and not (name in qwen and folder == "llama2-tokenizer")
    ]


@pytest.mark.parametrize(("name", "folder"), pairs())
def test_rows_of_every_format_give_the_tokens_of_their_templates(
    shared: Path, tmp_path: Path, name: str, folder: str
) -> None:
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    (entry,) = [entry for entry in entries if entry["name"] == name]
    tokenizer = read_tokenizer("PretrainedFromHF", str(shared / "assets" / folder), None)
    end = tokenizer.token_id(entry["stop_words"][0]) if entry.get("replace_eos") else tokenizer.eos_id
    assert end is not None
    draw = random.Random(f"{name} {folder}")
    command = Command(tmp_path, shared / "assets" / folder)
    command.flags |= {"--prompt-type": name, "--seq-length": "4096"}
    cases: list[tuple[list[Conversation], list[dict[str, Any]], list[str], list[str]]] = []
    plain, spoken = (
        random_conversations(draw.randrange(99), False, False),
        random_conversations(draw.randrange(99), True, True),
    )
    single = [Conversation(conversation.turns[-1:]) for conversation in plain]
    cases.append(
        (plain, [as_alpaca(conversation, draw) for conversation in plain], ["jsonl", "json", "parquet", "arrow"], [])
    )
    one = [
        {key: row[key] for key in ("instruction", "input", "output")} for row in (as_alpaca(t, draw) for t in single)
    ]
    cases.append((single, one, ["csv", "jsonl.gz"], []))
    renamed = [{"q": row["instruction"], "i": row["input"], "a": row["output"]} for row in one]
    cases.append((single, renamed, ["csv"], ["--map-keys", '{"prompt": "q", "query": "i", "response": "a"}']))
    handler = ["--handler-name", SHAREGPT]
    cases.append((spoken, [as_messages(t, draw, False) for t in spoken], ["json", "parquet"], handler))
    mapped = [*handler, "--map-keys", json.dumps(OPENAI_KEYS)]
    cases.append((spoken, [as_messages(t, draw, True) for t in spoken], ["jsonl", "arrow"], mapped))
    for conversations, rows, kinds, flags in cases:
        append = draw.random() < 0.5
        samples = [wanted(entry, conversation, tokenizer, end, append) for conversation in conversations]
        for kind in draw.sample(kinds, 1):
            given = ["--input", str(write_rows(tmp_path, rows, kind)), *flags, *(["--append-eod"] if append else [])]
            manifest = command.run(*given, without=("--pack", "--neat-pack"))
            assert command.samples() == samples, (kind, flags)
            assert manifest.counts.kept == len(rows) and manifest.tokens == sum(len(ids) for ids, _ in samples)
        command.run(*given)
        assert Counter(command.samples()) == Counter(samples)
        packed = command.written()
        command.run(*given, without=("--neat-pack",))
        differing = {key for key, content in command.written().items() if packed[key] != content}
        assert differing == {"set_packed_attention_mask_document.bin", "set_packed_manifest.json"}


def test_an_empty_list_of_tools_is_written_as_mindspeed_writes_it(shared: Path, tmp_path: Path) -> None:
    """'[]' brings the markers of the system text, also without one; a list, and no tools at all, do not."""
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer("PretrainedFromHF", str(shared / "assets" / "llama2-tokenizer"))
    assert tokenizer.eos_id is not None
    for name in ("default", "llama2"):
        (entry,) = [entry for entry in entries if entry["name"] == name]
        marks = entry["format_system"]["slots"][0].replace("{{content}}", "")
        assert marks
        command = Command(tmp_path, shared / "assets" / "llama2-tokenizer")
        conversation = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
        for tools, shown in (("[]", True), ([], False), ("", False), (None, False)):
            command.input.write_text(json.dumps([{"conversations": conversation, "tools": tools}]))
            command.run("--handler-name", SHAREGPT, "--prompt-type", name)
            if name == "llama2":  # the system text is part of the first user text
                told = Conversation([Turn(marks + "Hi" if shown else "Hi", "Yo")])
                found = expected(entry, told, tokenizer, tokenizer.eos_id)
            else:
                ids, labels = expected(entry, Conversation([Turn("Hi", "Yo")]), tokenizer, tokenizer.eos_id)
                before = tokenizer.encode_batch([marks])[0].tolist() if shown else []
                found = (before + ids, [-100] * len(before) + labels)
            assert command.samples() == [(tuple(found[0]), tuple(found[1]))], (name, tools)


@pytest.mark.parametrize("folder", ["qwen25-tokenizer", "llama2-tokenizer"])
@pytest.mark.parametrize("append", [False, True])
def test_plain_text_of_every_format(shared: Path, tmp_path: Path, folder: str, append: bool) -> None:
    """Begin token where the tokenizer's own rule has one, every token trained, the end token if asked for."""
    tokenizer = read_tokenizer("PretrainedFromHF", str(shared / "assets" / folder), None)
    begin = [1] if folder.startswith("llama2") else []
    end = [tokenizer.eos_id] if append else []
    command = Command(tmp_path, shared / "assets" / folder)
    without = ("--pack", "--neat-pack", "--prompt-type", "--seq-length")
    texts = [text.strip("\n") for text in TEXTS if "\n" not in text.strip("\n")]
    for kind in ("txt", "jsonl", "csv", "parquet"):
        rows = [{"text": text} for text in texts]
        path = write_rows(tmp_path, rows, kind) if kind != "txt" else tmp_path / "rows.txt"
        if kind == "txt":
            path.write_text("\n\n".join(texts), encoding="utf-8")
        flags = ["--input", str(path), "--handler-name", "GeneralPretrainHandler"]
        command.run(*flags, *(["--append-eod"] if append else []), without=without)
        ids = [tuple(begin + encoded.tolist() + end) for encoded in tokenizer.encode_batch(texts)]
        assert command.samples() == [(one, one) for one in ids], kind
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Say.", "input": "", "output": "Y"}]
    flags = ["--input", str(write_rows(tmp_path, rows, "csv")), "--handler-name", "AlpacaPretrainHandler"]
    command.run(*flags, *(["--append-eod"] if append else []), without=without)
    samples = [list(ids[len(begin) : len(ids) - append]) for ids, _ in command.samples()]
    texts = [tokenizer.decode(ids).removeprefix(" ") for ids in samples]
    assert samples == [encoded.tolist() for encoded in tokenizer.encode_batch(texts)]
    for text, said in zip(texts, ("Add.\n\n### Input:\n1 2", "Say.\n\n###None"), strict=True):
        opening, _, rest = text.partition("### Instruction:\n")
        assert rest == f"{said}\n\n### Response: ASSISTANT: {'3' if '1' in said else 'Y'}"
        assert hashlib.sha256(opening.encode()).hexdigest() == OPENING, "the opening words of MindSpeed-LLM 2.1.0"
