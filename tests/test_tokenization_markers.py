"""A template is refused by a tokenizer that lacks its markers, of whatever form, and by no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.chat import ChatTemplate, chat_template_names, load_chat_template
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization import Tokenizer, find_end_token, load_tokenizer

CHATML = ["<|im_start|>", "<|im_end|>"]
CHATGLM = ["[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
MARKERS = {
    "baichuan2": ["<reserved_106>", "<reserved_107>"],
    "chatglm2": CHATGLM[:2],
    "chatglm3": CHATGLM,
    "chatglm3_system": CHATGLM,
    "cpm": ["<用户>", "<AI>"],
    "deepseek3": ["<｜User｜>", "<｜Assistant｜>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "glm4": ["[gMASK]", "<sop>", *CHATGLM[2:]],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    **dict.fromkeys(("chatml", "chatml_de", "intern2", "qwen", "qwen2.5", "qwen3", "qwen_math_r1", "qwen_r1"), CHATML),
}
# Their markers, if they have any, are plain text to the models that they are of.
PLAIN = {
    *("alpaca", "deepseek2", "deepseek2-lite", "default", "empty", "hunyuan", "llama2", "minicpm3", "mistral"),
    *("mixtral", "trl"),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """Tokenizers of both libraries, with no marker but an end token."""
    folder = tmp_path_factory.mktemp("bare")
    folders = [byte_level_folder(folder / "bytes", markers=["<|endoftext|>"]), sentence_piece_folder(folder / "pieces")]
    return [load_tokenizer("PretrainedFromHF", str(one)) for one in folders]


def lacking(tokenizer: Tokenizer, template: ChatTemplate) -> set[str]:
    """The tokens that the refusal names; none if the template is accepted."""
    try:
        find_end_token(tokenizer, template)
    except ConfigError as error:
        return set(str(error).split("lacks ")[1].split("; ")[0].split(", "))
    return set()


def test_every_template_is_known_here() -> None:
    assert set(chat_template_names()) >= MARKERS.keys() | PLAIN


@pytest.mark.parametrize("name", sorted(MARKERS))
def test_a_tokenizer_without_the_markers_is_refused(bare: list[Tokenizer], tmp_path: Path, name: str) -> None:
    template, markers = load_chat_template(name), MARKERS[name]
    for tokenizer in bare:
        assert lacking(tokenizer, template) == set(markers)
    first, *rest = markers
    some = load_tokenizer("PretrainedFromHF", str(byte_level_folder(tmp_path / "b", markers=["<|endoftext|>", *rest])))
    assert lacking(some, template) == {first}
    folder = sentence_piece_folder(tmp_path / "pieces")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    size = bare[1].vocab_size
    added = {str(size + number): {"content": marker, "special": True} for number, marker in enumerate(markers)}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}))
    whole = byte_level_folder(tmp_path / "whole", markers=["<|endoftext|>", *markers])
    for one in (folder, whole):
        assert not lacking(load_tokenizer("PretrainedFromHF", str(one)), template)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_text_markers_are_accepted(bare: list[Tokenizer], name: str) -> None:
    assert not any(lacking(tokenizer, load_chat_template(name)) for tokenizer in bare)


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ({"user": ["<human>: {{content}}\n<bot>:"]}, {"<human>", "<bot>"}),
        ({"user": ["<human>: {{content}}\n<bot>:"], "plain_markers": ["<human>", "<bot>"]}, set()),
        ({"user": ["<q>{{content}}</q>"], "assistant": ["<think>\n{{content}}</think>"]}, set()),
        ({"user": ["<q>{{content}}</a>"]}, {"<q>"}),
        ({"user": ["if a < b, c > d: {{content}} <- > <<x>>"]}, set()),
        ({"user": ["<{{content}}>"], "separator": ["<sep>"]}, {"<sep>"}),
        ({"format_user": {"slots": ["<｜User｜>{{content}}"]}}, {"<｜User｜>"}),
        ({"format_user": {"slots": ["<U>{{content}}"]}, "plain_markers": ["<U>"]}, set()),
    ],
)
def test_markers_of_a_users_own_template(bare: list[Tokenizer], entry: dict[str, Any], missing: set[str]) -> None:
    assert lacking(bare[0], parse_template({"name": "own", **entry})) == missing


def test_plain_markers_change_no_hash() -> None:
    entry = {"name": "own", "user": ["<human>: {{content}}"]}
    assert parse_template(entry).sha256 == parse_template({**entry, "plain_markers": ["<human>"]}).sha256
    with pytest.raises(ConfigError, match="'plain_markers' is not a list"):
        parse_template({**entry, "plain_markers": "<human>"})
