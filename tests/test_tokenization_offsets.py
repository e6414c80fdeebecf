"""Offsets that are computed from the bytes of tokens are those of the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_texts import TextGenerator
from small_tokenizers import byte_level_folder

from mindspeed_llm.tokenization import load_tokenizer
from mindspeed_llm.tokenization.byte_offsets import ByteOffsets
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts
from mindspeed_llm.tokenization.hugging_face_tokenizer import HuggingFaceTokenizer

TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>")
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "as published": lambda content: None,
    "trimmed": lambda content: content.update(
        post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ),
    "tokens that take white space": lambda content: content["added_tokens"][1].update(lstrip=True, rstrip=True),
}


def assert_equal_offsets(folder: Path, count: int) -> None:
    pytest.importorskip("gigatoken")
    fast = load_tokenizer("PretrainedFromHF", str(folder), backend="gigatoken")
    slow = load_tokenizer("PretrainedFromHF", str(folder))
    assert isinstance(fast, HuggingFaceTokenizer) and isinstance(slow, HuggingFaceTokenizer)
    assert fast._byte_offsets is not None and slow._byte_offsets is None
    for texts in TextGenerator(11, TOKENS).chunks(count):
        found, expected = fast.encode_batch_with_offsets(texts), slow.encode_batch_with_offsets(texts)
        for name in ("starts", "ends"):
            different = np.flatnonzero(getattr(found, name) != getattr(expected, name))
            text = np.searchsorted(expected.texts.bounds, different[:1], side="right") - 1
            assert not different.size, (name, texts[int(text[0])])
        assert np.array_equal(found.texts.ids, expected.texts.ids)


@pytest.mark.parametrize("change", CHANGES)
def test_offsets_of_generated_texts(tmp_path: Path, change: str) -> None:
    path = byte_level_folder(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    CHANGES[change](content)
    path.write_text(json.dumps(content))
    assert_equal_offsets(tmp_path, 1_000)


def test_offsets_of_a_published_tokenizer(shared: Path) -> None:
    assert_equal_offsets(shared / "assets" / "qwen25-tokenizer", 2_000)


@pytest.mark.long
def test_offsets_of_200_000_texts(shared: Path) -> None:
    assert_equal_offsets(shared / "assets" / "qwen25-tokenizer", 200_000)


def test_a_text_whose_tokens_have_other_bytes_is_not_exact() -> None:
    offsets = ByteOffsets({0: b"a", 1: " é".encode(), 2: b"\xc3", 3: b"\xa9"}, trimmed=False)
    starts, ends, exact = offsets.compute(
        ["aé", "a", "é é", ""], EncodedTexts.of_lists([[0, 2, 3], [0, 0], [2, 3, 1], []])
    )
    assert exact.tolist() == [True, False, True, True]
    assert starts[:3].tolist() == [0, 1, 1] and ends[:3].tolist() == [1, 2, 2]
    assert starts[5:].tolist() == [0, 0, 1] and ends[5:].tolist() == [1, 1, 3]
