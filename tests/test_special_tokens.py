"""Tokens that the files of a folder declare: text, ids and names are those that transformers finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preprocess_command import Command
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.chat.special_tokens import read_special_tokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization import load_tokenizer

NEXT = 319  # the first free id of the small tokenizers
TEXT = "Name <a>two <b> rivers<c>, <|im_end|>the <tool> old<|im_start|> harbour [X]."
Files = dict[str, dict[str, Any]]

AS_DECLARED: dict[str, Files] = {
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": ["<a>", "<|im_end|>", "<b>"]}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": ["<a>"], "eos_token": "<b>"}},
    "extra_special_tokens by name": {"tokenizer_config": {"extra_special_tokens": {"tool_token": "<tool>"}}},
    "both": {"tokenizer_config": {"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]}},
    "a token of the model's own": {"tokenizer_config": {"image_token": "<a>", "pad_token": "<b>", "unk_token": "<c>"}},
    "the map alone": {"special_tokens_map": {"eos_token": "<|im_end|>", "pad_token": "<a>"}},
    "the map against the configuration": {
        "tokenizer_config": {"eos_token": "<|endoftext|>", "pad_token": "<b>"},
        "special_tokens_map": {"eos_token": "<|im_end|>"},
    },
    "the map against ids": {
        "tokenizer_config": {
            "eos_token": "<|endoftext|>",
            "added_tokens_decoder": {str(NEXT): {"content": "<a>", "lstrip": True, "special": False}},
        },
        "special_tokens_map": {"eos_token": "<|im_end|>"},
    },
    "flags in the map": {
        "special_tokens_map": {"eos_token": {"content": "<a>", "lstrip": True, "rstrip": True, "normalized": False}}
    },
    "a list in the map": {"special_tokens_map": {"additional_special_tokens": ["<b>", "<a>"], "eos_token": "<c>"}},
    "added_tokens": {
        "tokenizer_config": {"eos_token": "<b>"},
        "added_tokens": {"<a>": NEXT, "<b>": NEXT + 1, "<|im_end|>": NEXT - 1},
    },
    "a word of the vocabulary": {"tokenizer_config": {"additional_special_tokens": ["harb", "<a>"]}},
    "null": {"tokenizer_config": {"eos_token": None, "added_tokens_decoder": {}}},
    "nothing": {},
}


def write(folder: Path, files: Files) -> Path:
    """A byte-level folder with these files in place of its own configuration."""
    byte_level_folder(folder)
    config = {"tokenizer_class": "TokenizersBackend", **files.get("tokenizer_config", {})}
    for name, value in {**files, "tokenizer_config": config}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("name", AS_DECLARED)
def test_tokens_are_those_that_transformers_finds(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path, AS_DECLARED[name])
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    ours, special = load_tokenizer("PretrainedFromHF", str(folder)), read_special_tokens(folder)
    assert ours.encode_batch([TEXT])[0].tolist() == theirs.encode(TEXT, add_special_tokens=False)
    assert ours.encode_with_offsets(TEXT).ids.tolist() == ours.encode_batch([TEXT])[0].tolist()
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.pad_id == (theirs.eos_token_id if theirs.pad_token_id is None else theirs.pad_token_id)
    assert special.named == theirs.special_tokens_map


def test_the_first_free_id_is_as_said(tmp_path: Path) -> None:
    assert load_tokenizer("PretrainedFromHF", str(byte_level_folder(tmp_path))).vocab_size == NEXT


def test_a_chat_template_sees_the_same_names(tmp_path: Path) -> None:
    """An end token that only special_tokens_map.json names is rendered, and trained."""
    answer = "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    source = "{% for m in messages %}{% if m.role == 'assistant' %}" + answer + "{% endif %}{% endfor %}"
    folder = write(tmp_path / "tokenizer", {"special_tokens_map": {"eos_token": "<|im_end|>"}})
    (folder / "chat_template.jinja").write_text(source)
    command = Command(tmp_path, folder, [{"instruction": "Ask", "output": "Tell"}])
    command.run("--prompt-type", "hf")
    ((ids, labels),) = command.samples()
    end = load_tokenizer("PretrainedFromHF", str(folder)).token_id("<|im_end|>")
    assert ids[-1] == labels[-1] == end


def test_files_that_disagree_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "tokenizer", AS_DECLARED["the map against the configuration"])
    Command(tmp_path, folder, [{"instruction": "Ask", "output": "Tell"}]).run()
    said = capsys.readouterr().err
    assert "name different tokens as eos_token; special_tokens_map.json is used" in said
    assert "tokenizer_config.json is used" in "".join(
        read_special_tokens(write(tmp_path / "b", AS_DECLARED["the map against ids"])).disagreements
    )
    with pytest.raises(ConfigError, match=r"added_tokens\.json declares <a> with the id 400, but .* is 319"):
        load_tokenizer("PretrainedFromHF", str(write(tmp_path / "c", {"added_tokens": {"<a>": 400}})))
    folder = write(tmp_path / "d", {"tokenizer_config": {"add_prefix_space": True, "eos_token": "<|im_end|>"}})
    with pytest.raises(ConfigError, match=r"add_prefix_space is true in tokenizer_config\.json and false in"):
        load_tokenizer("PretrainedFromHF", str(folder))
    folder = write(tmp_path / "e", {"tokenizer_config": {"add_prefix_space": False, "eos_token": "<|im_end|>"}})
    assert load_tokenizer("PretrainedFromHF", str(folder)).eos_id == NEXT - 1


@pytest.mark.parametrize(("prefix", "named"), [("Prepend", True), ("Metaspace", False), ("Metaspace", True)])
def test_a_prefix_space_of_sentence_piece_like_files(tmp_path: Path, prefix: str, named: bool) -> None:
    import tokenizers

    path = write(tmp_path, {"tokenizer_config": {"add_prefix_space": named}}) / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    library.pre_tokenizer = None  # type: ignore[assignment]
    if prefix == "Prepend":
        library.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("\u2581")])
    else:
        library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first" if named else "never")
    library.save(str(path))
    load_tokenizer("PretrainedFromHF", str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": not named}))
    with pytest.raises(ConfigError, match="add_prefix_space"):
        load_tokenizer("PretrainedFromHF", str(tmp_path))


def test_a_sentence_piece_folder_has_the_same_tokens(tmp_path: Path) -> None:
    folder = sentence_piece_folder(tmp_path)
    plain = load_tokenizer("PretrainedFromHF", str(folder))
    config = {"legacy": False, "additional_special_tokens": ["<b>", "</s>", "\u2581the"], "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<end>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": plain.vocab_size}))
    found = load_tokenizer("PretrainedFromHF", str(folder))
    wanted = {"<a>": 0, "<end>": 1, "<pad>": 2, "<b>": 3}
    assert {text: found.token_id(text) for text in wanted} == {t: plain.vocab_size + n for t, n in wanted.items()}
    assert found.vocab_size == plain.vocab_size + 4 and found.token_id("</s>") == plain.token_id("</s>")
    assert (found.eos_id, found.pad_id) == (plain.vocab_size + 1, plain.vocab_size + 2)
    assert plain.vocab_size + 3 in found.encode_batch(["Name<b>two"])[0]
