"""What is cut ends with a whole character, with tokenizers whose tokens are bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import Conversation, Turn, load_chat_template, plain_text_template
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.tokenization import SampleBuilder, Tokenizer, load_tokenizer
from tests.small_tokenizers import byte_level_folder, sentence_piece_folder

ANSWERS = ["🙂🙃 三三 é" * 6, "x🙂" * 20, "\ufffd\ufffd\ufffd" * 10, "plain words " * 8, "𐍈" * 20, "三\ufffd🙂" * 9]


def byte_fallback_folder(folder: Path) -> Path:
    """A tokenizer.json of a BPE model with byte fallback, as Llama 2 has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), "\u2581"]
    vocabulary += [chr(number) for number in range(32, 127)]
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "byte-fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param) / "tokenizer"
    made = {
        "byte-level": byte_level_folder,
        "sentencepiece": sentence_piece_folder,
        "byte-fallback": byte_fallback_folder,
    }
    return load_tokenizer("PretrainedFromHF", str(made[request.param](folder)))


def texts_of(tokenizer: Tokenizer, labels: np.ndarray) -> str:
    return tokenizer.decode(labels[labels != IGNORE_INDEX].tolist())


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_cut_answer_ends_with_a_whole_character(tokenizer: Tokenizer, answer: str) -> None:
    template = parse_template(
        {"name": "t", "user": ["Q: {{content}}\nA:"], "assistant": ["{{content}}", {"special": "end"}]}
    )
    conversation = Conversation([Turn("Why?", answer)])
    whole = len(SampleBuilder(tokenizer, template, None).build([conversation]).ids)
    for capacity in range(whole - 20, whole):
        batch = SampleBuilder(tokenizer, template, capacity).build([conversation])
        text = texts_of(tokenizer, batch.labels).strip()
        assert batch.truncated == 1 and text and answer.startswith(text)
        assert capacity - len(batch.ids) < 4


def test_an_answer_of_which_no_character_fits_is_listed(tokenizer: Tokenizer) -> None:
    template = parse_template({"name": "t", "assistant": ["{{content}}", {"special": "end"}]})
    builder = SampleBuilder(tokenizer, template, 2)
    batch = builder.build([Conversation([Turn("", "🙂🙂")])])
    if len(batch.ids):  # SentencePiece puts a space before the text
        assert tokenizer.decode(batch.ids.tolist()) == " "
    else:
        assert batch.skipped == [(0, "nothing left after cutting")]


def test_pieces_of_a_document_are_whole_characters(tokenizer: Tokenizer) -> None:
    builder = SampleBuilder(tokenizer, plain_text_template(False), 11, divide=True)
    batch = builder.build([Conversation([Turn("", "a🙂三é " * 12)])])
    pieces = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
    assert len(pieces) > 5 and all("\ufffd" not in tokenizer.decode(piece.tolist()) for piece in pieces)
    assert "".join(tokenizer.decode(piece.tolist()) for piece in pieces).count("🙂") == 12


def test_a_template_with_control_tokens_cuts_at_whole_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("PretrainedFromHF", str(byte_level_folder(tmp_path / "tokenizer")))
    builder = SampleBuilder(tokenizer, load_chat_template("qwen"), 60)
    batch = builder.build([Conversation([Turn("Name.", "🙂" * 60)], "s")])
    assert set(texts_of(tokenizer, batch.labels)) == {"🙂"}
