"""Character offsets of SentencePiece tokens, with normalizers that change the length of a text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from mindspeed_llm.chat import Span
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer
from mindspeed_llm.tokenization.encoded_texts import TokenOffsets
from mindspeed_llm.tokenization.truncation import split_by_spans
from tests.random_texts import TextGenerator

SENTENCES = ["the quick brown fox", "a lazy dog jumps twice", "user assistant system", "ABC 012 3456789 load x"]
SPACE = "\u2581"
TOKENS = ("<s>", "</s>", "[M]", "[/M]")


def train(folder: Path, **settings: Any) -> Path:
    """Write a model with a small vocabulary into `folder`, by default with the normalizer nmt_nfkc."""
    import sentencepiece

    model = io.BytesIO()
    settings = {"vocab_size": 330, "model_type": "bpe", "byte_fallback": True, "minloglevel": 9, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 50), model_writer=model, **settings)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = '"added_tokens_decoder": {"1000": {"content": "[M]"}, "1001": {"content": "[/M]", "special": true}}'
    (folder / "tokenizer_config.json").write_text('{"legacy": false, "eos_token": "</s>", ' + added + "}")
    return folder


@pytest.fixture(scope="module")
def normalizing(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer whose normalizer changes characters, but removes no spaces."""
    folder = train(tmp_path_factory.mktemp("nfkc"), remove_extra_whitespaces=False)
    return load_tokenizer("PretrainedFromHF", str(folder))


@pytest.fixture(scope="module")
def collapsing(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer whose normalizer also removes spaces, as by default."""
    return load_tokenizer("PretrainedFromHF", str(train(tmp_path_factory.mktemp("default"))))


def pieces(tokenizer: Tokenizer, offsets: TokenOffsets, text: str) -> list[tuple[str, str]]:
    """Return (text of the token, its characters in `text`) of each token."""
    return [
        (tokenizer.decode([number]), text[start:end])
        for number, start, end in zip(offsets.ids.tolist(), offsets.starts, offsets.ends, strict=True)
    ]


def assert_offsets_are_those_of_the_definition(tokenizer: Any, text: str) -> None:
    """Compare the offsets in a text without special tokens with the definition of a normalizer.

    Normalized character n stands for the text up to the shortest prefix whose normalized form contains it, from where
    the form of the text before it ends.
    """
    model = tokenizer._model
    spaced = tokenizer._with_space(text, True)
    added = len(spaced) - len(text)
    normal = model.normalize(spaced)
    # A border lies where both sides can be normalized independently.
    borders = [0]
    lengths = [0]
    for index in range(1, len(spaced) + 1):
        before = model.normalize(spaced[:index])
        if before + model.normalize(spaced[index:]) == normal:
            borders.append(index)
            lengths.append(len(before))
    found = tokenizer.encode_with_offsets(text)
    position = 0  # bytes of the normalized text
    starts_of_bytes = [number for number, char in enumerate(normal) for _ in char.encode()]
    for index, number in enumerate(found.ids.tolist()):
        is_byte = bool(tokenizer._is_byte[number])
        size = 1 if is_byte else len(model.id_to_piece(number).encode())
        first, last = starts_of_bytes[position], starts_of_bytes[position + size - 1]
        position += size
        start = max(border for border, length in zip(borders, lengths, strict=True) if length <= first)
        end = min(border for border, length in zip(borders, lengths, strict=True) if length > last)
        start, end = max(start - added, 0), max(end - added, 0)
        actual = (int(found.starts[index]), int(found.ends[index]))
        if actual[0] == actual[1]:  # a token before the last one of an expanded character
            assert start <= actual[0] < end and not (index == 0), (text, index)
        else:
            assert actual[0] >= start and actual[1] <= max(end, 1), (text, index, actual, (start, end))
    assert position == len(normal.encode())
