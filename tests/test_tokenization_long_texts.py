"""Very long texts are shortened before they are tokenized; the samples are those of the complete texts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.chat import Conversation, Renderer, Turn, load_chat_template, load_jinja_template
from mindspeed_llm.tokenization import SampleBuilder, Tokenizer, load_tokenizer
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts
from mindspeed_llm.tokenization.long_texts import LONG_PER_TOKEN, LongTextShortener

CAPACITY = 64
LONG = LONG_PER_TOKEN * CAPACITY
WORDS = (
    "Describe",
    "the",
    "harbour",
    "two",
    "rivers.",
    "三🙂",
    "è",
    "e\u0301",
    "Name\n",
    "\n\n",
    "  ",
    "42",
    "</s>",
    "yes",
)


def text(chosen: random.Random, characters: int) -> str:
    words: list[str] = []
    while characters > 0:
        words.append(chosen.choice(WORDS))
        characters -= len(words[-1]) + 1
    return " ".join(words)


def conversation(chosen: random.Random) -> Conversation:
    """One to four turns, any text of which may be long."""

    def length() -> int:
        return chosen.choice([3, 20, 100, LONG + 50, 3 * LONG])

    turns = []
    for number in range(chosen.randint(1, 4)):
        role = "observation" if number and chosen.random() < 0.3 else "user"
        turns.append(Turn(text(chosen, length()), text(chosen, length()), role))  # type: ignore[arg-type]
    return Conversation(turns, text(chosen, LONG + 9) if chosen.random() < 0.1 else "")


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


@pytest.fixture(params=["byte-level", "sentence piece", "hf"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, Renderer]:
    if request.param == "sentence piece":
        folder = sentence_piece_folder(tmp_path)
        return load_tokenizer("PretrainedFromHF", str(folder)), load_chat_template("llama2")
    folder = byte_level_folder(tmp_path)
    tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
    if request.param == "byte-level":
        return tokenizer, load_chat_template("qwen")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer, load_jinja_template(str(folder), None)


def test_samples_are_those_of_the_complete_texts(
    setting: tuple[Tokenizer, Renderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = random.Random(3)
    conversations = [conversation(chosen) for _ in range(15)]
    short = SampleBuilder(*setting, CAPACITY).build(conversations)
    monkeypatch.setattr(LongTextShortener, "shorten", lambda self, conversation: conversation)
    complete = SampleBuilder(*setting, CAPACITY).build(conversations)
    assert short.ids.tolist() == complete.ids.tolist() and short.labels.tolist() == complete.labels.tolist()
    assert short.skipped == complete.skipped and short.steps == complete.steps
    assert len(complete.skipped) < 15 and len(complete.steps) == 3


def test_only_a_part_of_a_long_text_is_tokenized(setting: tuple[Tokenizer, Renderer]) -> None:
    tokenizer, _ = setting
    shortener = LongTextShortener(tokenizer, CAPACITY)
    usual = Conversation([Turn("x" * LONG, "y", replies=("z",))], "s")
    assert shortener.shorten(usual) is usual
    words = "word " * 400_000
    long = shortener.shorten(Conversation([Turn(words, words, "observation", replies=("z", words))], words))
    turn = long.turns[0]
    for shortened in (turn.prompt, turn.answer, turn.replies[1], long.system):
        assert len(shortened) < LONG and shortened.startswith("word word") and shortened.endswith("word ")
    assert turn.replies[0] == "z"


def test_halves_with_few_tokens_grow() -> None:
    class Runs(Tokenizer):
        """A run of 50 equal characters is one token."""

        encode_with_offsets = decode = token_id = None  # type: ignore[assignment]

        def encode_batch(self, texts: list[str]) -> EncodedTexts:  # type: ignore[override]
            return EncodedTexts.of_lists([[0] * (len(text) // 50) for text in texts])

    Runs.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    shortener = LongTextShortener(Runs(), CAPACITY)
    shortened = shortener.shorten(Conversation([Turn("a" * 10_000_000, "y")])).turns[0].prompt
    assert 2 * 50 * CAPACITY < len(shortened) < 50 * 50 * CAPACITY
    whole = Conversation([Turn("a" * (LONG + 1), "y")])
    assert shortener.shorten(whole).turns[0].prompt == "a" * (LONG + 1), "its halves together are not shorter"
