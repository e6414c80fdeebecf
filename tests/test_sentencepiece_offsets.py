"""Character offsets of SentencePiece tokens, also with normalizers that change the length of a text."""

from __future__ import annotations

import bisect
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindspeed_llm.chat import Span
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer
from mindspeed_llm.tokenization.truncation import split_by_spans
from tests.random_texts import TextGenerator

SENTENCES = ["the quick brown fox", "a lazy dog jumps twice", "user assistant system", "ABC 012 3456789 load x"]
MARKERS = ("[M]", "[/M]")
CONTROLS = re.compile("|".join(map(re.escape, (*MARKERS, "<s>", "</s>", "<unk>"))))


def model_folder(folder: Path, **settings: Any) -> Path:
    """Write a Hugging Face folder with a small model, whose normalizer is nmt_nfkc unless `settings` name another."""
    import sentencepiece

    model = io.BytesIO()
    settings = {"vocab_size": 330, "model_type": "bpe", "byte_fallback": True, "minloglevel": 9, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 50), model_writer=model, **settings)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = {1000 + number: {"content": marker, "special": True} for number, marker in enumerate(MARKERS)}
    described = {"legacy": False, "bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module", params=["llama2", "nfkc", "llama2 without gigatoken"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Tokenizer:
    """Return Llama 2's tokenizer, or one whose normalizer changes characters, but removes no spaces."""
    if request.param == "nfkc":
        folder = model_folder(tmp_path_factory.mktemp("nfkc"), remove_extra_whitespaces=False)
    else:
        folder = shared / "assets" / "llama2-tokenizer"
    return load_tokenizer("PretrainedFromHF", str(folder), backend=None if "without" in request.param else "auto")


@pytest.fixture(scope="module")
def collapsing(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer whose normalizer also removes spaces, which is the default."""
    return load_tokenizer("PretrainedFromHF", str(model_folder(tmp_path_factory.mktemp("default"))))


def reference_offsets(tokenizer: Any, text: str) -> list[tuple[int, int, int]]:
    """Return (start, smallest end, largest end) of the tokens of a text without special tokens.

    The text has a border where both of its sides can be normalized independently. What is written for the characters
    between two borders cannot be divided among them. A token that contains only its beginning may end before or after
    these characters. Characters that the normalizer removes may belong to the token before them.
    """
    model, spaced = tokenizer._model, tokenizer._with_space(text, True)
    normal, added = model.normalize(spaced), len(spaced) - len(text)
    borders, sizes = [0], [0]  # characters of the text, bytes that are written for them
    for index in range(1, len(spaced) + 1):
        before = model.normalize(spaced[:index])
        if before + model.normalize(spaced[index:]) == normal:
            borders.append(index)
            sizes.append(len(before.encode()))
    found, position = [], 0
    for number in model.encode(spaced):
        end = position + (1 if model.is_byte(number) else len(model.id_to_piece(number).encode()))
        start = borders[bisect.bisect_right(sizes, position) - 1]
        complete = sizes[bisect.bisect_right(sizes, end) - 1]  # bytes of the characters that end in this token
        smallest = borders[bisect.bisect_left(sizes, complete)]
        largest = borders[bisect.bisect_right(sizes, sizes[bisect.bisect_left(sizes, end)]) - 1]
        found.append((max(start - added, 0), max(smallest - added, 0), max(largest - added, 0)))
        position = end
    assert position == len(normal.encode())
    return found


def assert_offsets(tokenizer: Any, texts: Sequence[str]) -> None:
    """Compare the offsets of all tokens of `texts` with `reference_offsets`."""
    plain = [text for text in (CONTROLS.sub("", text) for text in texts) if text and not CONTROLS.search(text)]
    found = tokenizer.encode_batch_with_offsets(plain)
    for number, text in enumerate(plain):
        wanted = reference_offsets(tokenizer, text)
        actual = list(zip(found[number].starts.tolist(), found[number].ends.tolist(), strict=True))
        unchanged = tokenizer._model.normalize(text) == text.replace(" ", "\u2581")
        for index, ((start, end), (first, smallest, largest)) in enumerate(zip(actual, wanted, strict=True)):
            assert start == first, (text, start)
            # The added space alone is given the first character.
            assert smallest <= end <= max(largest, int(index == 0)), (text, start, end)
            assert end > start or not unchanged, (text, start)


def test_offsets_agree_with_the_definition_of_the_normalizer(tokenizer: Tokenizer) -> None:
    fixed = [
        "load \u2581\u2583\u2587 ok",
        "\u2581x",
        "\u2581",
        "  two  spaces ",
        "½ load",
        "ﬃx",
        "\uff21 fox\u3000dog",
        "🙂",
    ]
    assert_offsets(tokenizer, [*fixed, *TextGenerator(3, MARKERS).texts(1_700)])


@pytest.mark.long
def test_offsets_of_200_000_texts_agree_with_the_definition_of_the_normalizer(tokenizer: Tokenizer) -> None:
    for texts in TextGenerator(4, MARKERS).chunks(200_000):
        assert_offsets(tokenizer, texts)


def test_special_tokens_divide_a_text(tokenizer: Tokenizer) -> None:
    text = "</s>fox\u2581 x</s></s>🙂"
    found = tokenizer.encode_with_offsets(text)
    special = np.flatnonzero(found.ids == tokenizer.token_id("</s>"))
    assert [text[found.starts[n] : found.ends[n]] for n in special] == ["</s>"] * 3
    assert found.starts[0] == 0 and found.ends[-1] == len(text)
    assert (found.ends >= found.starts).all() and (found.starts[1:] >= found.starts[:-1]).all()
    assert found.ids.tolist() == tokenizer.encode_batch([text])[0].tolist()


def trained_pieces(tokenizer: Any, answers: Sequence[str]) -> list[list[str]]:
    """Return the trained tokens of each answer, after a prompt that is one text with it."""
    prompt = Span("text", "[M]assistant\n", trained=False)
    spans = [[prompt, Span("text", answer, trained=True), Span("text", "[/M]\n", trained=False)] for answer in answers]
    texts = ["".join(span.text for span in some) for some in spans]
    encoded = tokenizer.encode_batch_with_offsets(texts)
    ids, sizes = split_by_spans(encoded, [span for some in spans for span in some], range(0, 3 * len(spans) + 1, 3))
    ends = sizes.cumsum()
    return [
        [tokenizer._model.id_to_piece(number) for number in ids[ends[n - 1] : ends[n]].tolist()]
        for n in range(1, len(ends), 3)
    ]


def test_only_the_answer_is_trained_after_a_text_that_the_normalizer_changes(collapsing: Tokenizer) -> None:
    # The line break before the answer becomes a space, which may be a part of the answer's first token.
    trained = {
        "load  twice": ["\u2581l", "o", "ad", "\u2581t", "w", "ic", "e"],
        "\uff21\uff22\uff23 load": ["ABC", "\u2581l", "o", "ad"],
        "fox\u3000dog": ["fo", "x", "\u2581", "do", "g"],
        "\U0001f642 x": ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "\u2581x"],
        "x\u2581fox": ["\u2581x", "\u2581", "fo", "x"],
        # The library gives the character to the last token of "1\u20442".
        "\u00bd": ["2"],
    }
    assert trained_pieces(collapsing, list(trained)) == list(trained.values())


def test_a_text_that_changes_but_keeps_its_length_is_left_to_the_library(tmp_path: Path) -> None:
    folder = str(model_folder(tmp_path, remove_extra_whitespaces=False))
    tokenizer: Any = load_tokenizer("PretrainedFromHF", folder)
    text = "\uff21\uff21\uff21\u00bd\u00bd"  # "AAA1⁄21⁄2": 13 bytes before and after
    wanted = tokenizer.encode_with_offsets(text)
    # As if gigatoken gave the ids of this model.
    tokenizer._encoder = dataclasses.replace(tokenizer._encoder, fast=tokenizer)
    assert tokenizer._byte_offsets is None
    del tokenizer._byte_offsets
    assert tokenizer._byte_offsets is not None
    found = tokenizer.encode_with_offsets(text)
    assert all((getattr(found, name) == getattr(wanted, name)).all() for name in ("ids", "starts", "ends"))
