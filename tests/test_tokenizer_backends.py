"""gigatoken and the reference libraries return the same ids; where they do not, it is noticed before it matters."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mindspeed_llm.chat import Conversation, Renderer, Turn, load_chat_template, load_jinja_template
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.tokenization import (
    CONTROL_MODES,
    SampleBuilder,
    TokenBatch,
    Tokenizer,
    backend_verification,
    load_tokenizer,
)
from mindspeed_llm.tokenization.backend_verification import (
    COMPARED_CHARACTERS,
    TEXTS_PER_COMPARISON,
    EncoderPair,
    SampledComparison,
    first_difference,
    verify_backend,
)
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts
from mindspeed_llm.tokenization.gigatoken_encoder import GigatokenEncoder
from mindspeed_llm.tokenization.hard_strings import LONGEST_RUN, hard_strings
from mindspeed_llm.tokenization.recent_characters import has_recent_characters
from mindspeed_llm.tokenization.sentencepiece_model import without_added_space
from mindspeed_llm.tokenization.stop_tokens import token_text
from tests.random_texts import TextGenerator
from tests.small_tokenizers import byte_level_folder, sentence_piece_folder

DEMO = Path(__file__).parents[1] / "examples" / "demo"
TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<tool_call>")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tokenizer of the demo data."""
    folder = tmp_path_factory.mktemp("demo")
    for words in (["make_data.py", folder / "demo.json"], ["make_tokenizer.py", folder / "demo.json", folder]):
        subprocess.run([sys.executable, *map(str, [DEMO / words[0], *words[1:]])], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module", params=["qwen25", "demo", "llama2"])
def both(request: pytest.FixtureRequest, shared: Path, demo_folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """Return a tokenizer by its reference library and by gigatoken."""
    pytest.importorskip("gigatoken")
    folder = demo_folder if request.param == "demo" else shared / "assets" / f"{request.param}-tokenizer"
    reference = "sentencepiece" if request.param == "llama2" else "tokenizers"
    slow, fast = (load_tokenizer("PretrainedFromHF", str(folder), backend=name) for name in (reference, "gigatoken"))
    assert slow.library.startswith(reference) and fast.library.startswith("gigatoken")
    return slow, fast


def assert_equal_ids(both: tuple[Tokenizer, Tokenizer], seed: int, count: int) -> None:
    slow, fast = both
    tokens = 0
    for texts in TextGenerator(seed, TOKENS).chunks(count):
        assert first_difference(slow.encode_batch, fast.encode_batch, texts) is None
        tokens += len(fast.encode_batch(texts).ids)
    assert tokens > 10 * count


def test_ids_of_generated_texts_are_equal(both: tuple[Tokenizer, Tokenizer]) -> None:
    assert_equal_ids(both, 1, 5_000)


@pytest.mark.long
def test_ids_of_a_million_generated_texts_are_equal(both: tuple[Tokenizer, Tokenizer]) -> None:
    assert_equal_ids(both, 2, 1_000_000)


# Writes each answer between its header and an end token, as the templates that models publish do.
PUBLISHED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + EOS + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("mode", CONTROL_MODES)
@pytest.mark.parametrize("own", [False, True], ids=["built-in template", "own template"])
def test_samples_are_equal(both: tuple[Tokenizer, Tokenizer], tmp_path: Path, mode: str, own: bool) -> None:
    """Both libraries make the same samples of the same rows, with control tokens, long texts and offsets."""
    template: Renderer = load_chat_template("llama2" if both[0].token_id("<|im_end|>") is None else "qwen")
    if own:
        eos = token_text(both[0], both[0].eos_id)
        assert eos is not None
        (tmp_path / "own.jinja").write_text(PUBLISHED.replace("EOS", repr(eos)), encoding="utf-8")
        template = load_jinja_template(None, None, str(tmp_path / "own.jinja"), ends=[eos])
    texts = iter(TextGenerator(3, TOKENS).texts(600))
    conversations = [Conversation([Turn(*turn)]) for turn in zip(texts, texts, strict=True)]
    slow, fast = (SampleBuilder(one, template, 64, controls=mode).build(conversations) for one in both)
    for name in TokenBatch.__dataclass_fields__:
        one, other = getattr(slow, name), getattr(fast, name)
        assert one.tolist() == other.tolist() if isinstance(one, np.ndarray) else one == other, name
    assert fast.lengths.size > 50 and fast.truncated and fast.controls


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("fast_rules", [True, False])
def test_spaces_of_sentence_piece_follow_the_same_rules(tmp_path: Path, legacy: bool, fast_rules: bool) -> None:
    pytest.importorskip("gigatoken")
    folder = str(sentence_piece_folder(tmp_path, ["<|im_end|>"], legacy=legacy))
    slow, fast = (
        load_tokenizer("PretrainedFromHF", folder, fast=fast_rules, backend=name)
        for name in ("sentencepiece", "gigatoken")
    )
    texts = ["x", " x", "  x ", "", " ", "\u2581x", "x<|im_end|> y<|im_end|>z", "<|im_end|>", "<s> x</s>", "\n", "é€"]
    for one, other in zip(map(slow.encode_with_offsets, texts), map(fast.encode_with_offsets, texts), strict=True):
        assert all((getattr(one, name) == getattr(other, name)).all() for name in ("ids", "starts", "ends"))
    assert first_difference(slow.encode_batch, fast.encode_batch, texts) is None


def test_a_sentence_piece_model_alone_reads_control_tokens_as_text(tmp_path: Path) -> None:
    pytest.importorskip("gigatoken")
    model = str(sentence_piece_folder(tmp_path) / "tokenizer.model")
    kind = "GPTSentencePieceTokenizer"
    slow, fast = (load_tokenizer(kind, model=model, backend=name) for name in ("sentencepiece", "gigatoken"))
    for texts in (["a <s> b", "way"], ["way to", "", " the"]):
        assert first_difference(slow.encode_batch, fast.encode_batch, texts) is None
    assert fast.token_id("<s>") not in fast.encode_batch(["a <s> b"]).ids


def test_only_the_added_space_is_switched_off(tmp_path: Path) -> None:
    content = (sentence_piece_folder(tmp_path) / "tokenizer.model").read_bytes()
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=without_added_space(content))
    assert model.normalize(" a  b ") == "\u2581a\u2581\u2581b\u2581"  # the other settings remain
    with pytest.raises(ValueError, match="truncated"):
        without_added_space(content[:-3])


def test_hard_strings_are_deterministic_and_contain_each_kind() -> None:
    texts = hard_strings(TOKENS)
    assert texts == hard_strings(TOKENS) and len(set(texts)) == len(texts)
    assert "" in texts and "=" * LONGEST_RUN in texts and "a<|im_start|>b" in texts
    together = "".join(texts)
    for character in "\0\x85\xa0\u2028\u3000\u200b\ufeff\u2581\u0301\ufffe\U0010ffff\ue000\U00020bb7":
        assert character in together, ascii(character)
    assert not any(0xD800 <= ord(character) < 0xE000 for character in together)


def test_hard_strings_without_tokens_and_with_thousands_of_them() -> None:
    assert len(hard_strings([])) > 1000
    many = hard_strings([f"<reserved_{number}>" for number in range(5000)])
    assert "a<reserved_4999>b" in many and sum(map(len, many)) < 3_000_000


def test_characters_that_the_libraries_know_from_different_versions_of_unicode(demo_folder: Path) -> None:
    pytest.importorskip("gigatoken")
    slow, fast = (
        load_tokenizer("PretrainedFromHF", str(demo_folder), backend=name) for name in ("tokenizers", "gigatoken")
    )
    # Marks of Unicode 14 and 11 after others, and an ideograph of Unicode 17. Without `RoutedEncoder` the marks differ.
    texts = ["\U0001e001\U00010f83", "\u034b\u08d3", "\U00032a24\n \n", "plain", "", "中 \U0001f642"]
    alone = GigatokenEncoder.of_json((demo_folder / "tokenizer.json").read_bytes()).encode_batch
    assert all(first_difference(slow.encode_batch, alone, [text]) == text for text in texts[:2])
    assert first_difference(slow.encode_batch, fast.encode_batch, texts) is None
    assert [has_recent_characters(text) for text in texts] == [True, True, True, False, False, False]


def test_characters_of_old_scripts_and_emoji_are_not_recent() -> None:
    rows = {
        first: "".join(
            chr(n) for n in range(first, first + 32) if unicodedata.ucd_3_2_0.category(chr(n)) not in ("Cn", "Cs")
        )
        for first in (*range(0x20, 0x10000, 32), *range(0x1D400, 0x1D800, 32), *range(0x20000, 0x2A6D6, 32))
    }
    assert sum(map(len, rows.values())) > 90_000
    assert [first for first, text in rows.items() if has_recent_characters(text)] == [0x1700]  # Tagalog
    assert not has_recent_characters("".join(map(chr, range(0x1F300, 0x1FB00))))


# ---- a fast encoder that is wrong


def characters(texts: Sequence[str]) -> EncodedTexts:
    return EncodedTexts.of_lists([list(map(ord, text)) for text in texts])


def wrong_for(mark: str) -> Callable[[Sequence[str]], EncodedTexts]:
    """Return an encoder that loses a token of each text with `mark`."""
    return lambda texts: EncodedTexts.of_lists([list(map(ord, text))[mark in text :] for text in texts])


def pair(fast: Callable[[Sequence[str]], EncodedTexts]) -> EncoderPair:
    return EncoderPair(characters, fast, "reference 1", "fast 2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mindspeed_llm" / "tokenizer_backends"


def test_verification_names_the_text(cache: Path) -> None:
    reason = verify_backend(pair(wrong_for("\x85")), "hash", [])
    assert reason.startswith("fast 2 and reference 1 return different ids for the text '") and "\\x85" in reason
    assert verify_backend(pair(wrong_for("a" * LONGEST_RUN)), "hash b", []).endswith("… (100,000 characters)")


def test_verification_is_cached_by_everything_that_it_depends_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_verification, "hard_strings", lambda tokens: ["a", *tokens])
    calls: list[int] = []

    def counted(texts: Sequence[str]) -> EncodedTexts:
        calls.append(len(texts))
        return wrong_for("<x>")(texts)

    def verify(libraries: tuple[str, str] = ("r 1", "f 1"), tokenizer: str = "hash", tokens: Sequence[str] = ()) -> str:
        return verify_backend(EncoderPair(characters, counted, *libraries), tokenizer, tokens)

    assert verify() == verify() == "" and len(calls) == 1
    assert verify(("r 2", "f 1")) == verify(("r 1", "f 2")) == verify(tokenizer="other") == "" and len(calls) == 4
    other_rule = verify_backend(EncoderPair(characters, counted, "r 1", "f 1"), "hash", [], lambda text: text == "a")
    assert other_rule == "" and len(calls) == 5 and calls.pop() == 0
    # A difference is cached too.
    assert "<x>" in verify(tokens=["<x>"]) and "<x>" in verify(tokens=["<x>"]) and len(calls) == 5
    for path in cache.rglob("*.json"):
        path.write_text("damaged")
    assert verify() == "" and len(calls) == 6


def test_verification_works_without_a_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verify_backend(pair(characters), "hash", []) == ""
    assert verify_backend(pair(wrong_for("word")), "hash", []) != ""


def test_a_panic_of_the_fast_library_is_a_reason_not_to_use_it(cache: Path) -> None:
    class PanicException(BaseException):
        """Like that of Rust libraries, which is not an Exception."""

    def panics(texts: Sequence[str]) -> EncodedTexts:
        raise PanicException

    assert verify_backend(pair(panics), "hash", []) == "fast 2 failed on the texts of the comparison (PanicException)"


def test_one_text_of_a_thousand_is_compared() -> None:
    compared: list[str] = []

    def reference(texts: Sequence[str]) -> EncodedTexts:
        compared.extend(texts)
        return characters(texts)

    encode = SampledComparison(EncoderPair(reference, characters, "r", "f"), "--flag r")
    texts = [str(number) for number in range(2 * TEXTS_PER_COMPARISON + 1)]
    start = 0
    for size in (1, 0, 7, 1500, 2, 491):
        assert [ids.tolist() for ids in encode(texts[start : start + size])] == [
            list(map(ord, text)) for text in texts[start : start + size]
        ]
        start += size
    assert start == len(texts) and compared == ["0", "1000", "2000"]


def test_a_difference_during_the_run_names_the_text() -> None:
    encode = SampledComparison(pair(wrong_for("1999\n")), "--tokenizer-backend reference")
    encode([f"{number}\n" for number in range(1999)])
    encode(["1999\n is not compared"])
    encode(["x"] * 998)
    with pytest.raises(DataError) as error:
        encode(["y", "z", "1999\n\x1b[31m" + "é" * 100])
    assert str(error.value).startswith(
        r"fast 2 and reference 1 return different ids for the text '1999\n\x1b[31m\xe9"
    ), error.value
    assert "… (110 characters); give --tokenizer-backend reference" in str(error.value)


def test_only_the_beginning_of_a_very_long_text_is_compared() -> None:
    lengths: list[int] = []

    def reference(texts: Sequence[str]) -> EncodedTexts:
        lengths.extend(map(len, texts))
        return characters(texts)

    encode = SampledComparison(EncoderPair(reference, characters, "r", "f"), "--flag")
    assert len(encode(["a" * (3 * COMPARED_CHARACTERS)])[0]) == 3 * COMPARED_CHARACTERS
    assert lengths == [COMPARED_CHARACTERS]


def test_a_wrong_library_is_not_used_for_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gigatoken")
    correct = GigatokenEncoder.encode_batch

    def wrong(self: GigatokenEncoder, texts: Sequence[str]) -> EncodedTexts:
        return correct(self, [text.replace("\u2029", " ") for text in texts])

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(GigatokenEncoder, "encode_batch", wrong)
    folder = str(byte_level_folder(tmp_path / "tokenizer"))
    tokenizer = load_tokenizer("PretrainedFromHF", folder, backend="auto")
    assert tokenizer.library.startswith("tokenizers ") and "\\u2029" in tokenizer.fallback_reason
    with pytest.raises(ConfigError, match=r"--tokenizer-backend gigatoken: .*different ids.*give auto or tokenizers"):
        load_tokenizer("PretrainedFromHF", folder, backend="gigatoken")


def test_a_wrong_id_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gigatoken")
    folder = str(byte_level_folder(tmp_path))
    load_tokenizer("PretrainedFromHF", folder, backend="gigatoken")  # the result of the verification is cached
    correct = GigatokenEncoder.encode_batch
    monkeypatch.setattr(GigatokenEncoder, "encode_batch", lambda self, texts: correct(self, [f"{t} " for t in texts]))
    tokenizer = load_tokenizer("PretrainedFromHF", folder, backend="auto")
    with pytest.raises(DataError, match=r"different ids for the text 'way'; give --tokenizer-backend tokenizers"):
        tokenizer.encode_batch(["way"])
