"""Tokenizers give the ids of their libraries; samples have the right labels and, cut, keep what must stay."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CharacterTokenizer, byte_level_folder, sentence_piece_folder

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import Conversation, Turn, chat_template_names, load_chat_template
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization import (
    SampleBuilder,
    TokenBatch,
    Tokenizer,
    TokenStore,
    encode_words,
    find_end_token,
    load_tokenizer,
)
from mindspeed_llm.tokenization.encoded_texts import TokenOffsets

# Markers of one character each, so that lengths can be read off: p system # user a answer end
TINY = parse_template(
    {"name": "tiny", "prefix": ["p"], "system": ["{{content}}#"], "user": ["<{{content}}>"], "separator": ["|"]}
)
ONCE = parse_template({"name": "once", "user": ["<{{content}}>"], "separator": ["|"], "end_once": True})


def builder(capacity: int | None = None, template: object = TINY, **options: object) -> SampleBuilder:
    return SampleBuilder(CharacterTokenizer(), template, capacity, **options)  # type: ignore[arg-type]


def shown(batch: TokenBatch, made: SampleBuilder) -> list[tuple[str, str]]:
    """(text, the same text with a dot for every token that is not trained) of each sample."""
    assert isinstance(made.tokenizer, CharacterTokenizer)
    found, start = [], 0
    for length in batch.lengths.tolist():
        ids, labels = batch.ids[start : start + length], batch.labels[start : start + length]
        name = {int(made.eos_id): "E"}
        text = [
            "".join(name.get(int(i)) or made.tokenizer.decode([i]) for i in row if i != IGNORE_INDEX) for row in (ids,)
        ]
        marks = "".join("." if y == IGNORE_INDEX else name.get(int(y)) or made.tokenizer.decode([y]) for y in labels)
        found.append((text[0], marks))
        start += length
    return found


def one(conversation: Conversation, capacity: int | None = None, **options: object) -> tuple[str, str]:
    made = builder(capacity, **options)
    (sample,) = shown(made.build([conversation]), made)
    return sample


def test_ids_and_labels_of_whole_samples() -> None:
    made = builder()
    conversations = [Conversation([Turn("hi", "yo")]), Conversation([Turn("a", "b"), Turn("c", "d")], "S")]
    batch = made.build(conversations)
    assert shown(batch, made) == [("p<hi>yoE", ".....yoE"), ("pS#<a>bE|<c>dE", "......bE....dE")]
    assert (
        batch.lengths.tolist() == [8, 14] and batch.ids.dtype == batch.labels.dtype == batch.lengths.dtype == np.int32
    )
    assert batch.skipped == [] and batch.truncated == 0 and batch.end_inside


def test_an_empty_batch() -> None:
    batch = builder(8).build([])
    assert batch.ids.size == batch.labels.size == batch.lengths.size == 0


def test_end_inside_means_before_the_last_token() -> None:
    made = builder()
    assert not made.build([Conversation([Turn("hi", "yo")])] * 2).end_inside
    assert made.build([Conversation([Turn("hi</s>", "yo")])]).end_inside


def test_append_end_adds_one_end_token_where_there_is_none() -> None:
    empty = load_chat_template("empty")
    conversation = Conversation([Turn("hi", "yo")])
    assert one(conversation, template=empty) == ("hiyo", "..yo")
    assert one(conversation, template=empty, append_end=True) == ("hiyoE", "..yoE")
    assert one(conversation, append_end=True) == ("p<hi>yoE", ".....yoE")


def test_one_end_token_for_the_sample_is_also_the_label_of_later_prompts() -> None:
    conversation = Conversation([Turn("a", "b"), Turn("c", "d")])
    assert one(conversation, template=ONCE) == ("<a>b|<c>dE", "...bE...dE")


def test_a_sample_of_exactly_the_capacity_is_whole_and_one_more_is_cut() -> None:
    conversation = Conversation([Turn("hijklm", "yo")])  # p<hijklm>yoE
    assert one(conversation, 12) == ("p<hijklm>yoE", ".........yoE")
    assert one(conversation, 11) == ("p<hijlm>yoE", "........yoE")


def test_truncation_proceeds_in_three_steps() -> None:
    conversation = Conversation([Turn("first", "a"), Turn("next", "b"), Turn("uvwxyz", "answer")], "S")
    assert one(conversation, 28) == ("pS#<next>bE|<uvwxyz>answerE", ".........bE.........answerE")
    assert one(conversation, 18) == ("pS#<uvwxyz>answerE", "...........answerE")
    assert one(conversation, 16) == ("pS#<uvyz>answerE", ".........answerE")
    assert one(conversation, 14) == ("pS#<uvyz>answe", ".........answe"), "a quarter of 14 is 4: the answer's end goes"
    assert one(conversation, 8, append_end=True) == ("pS#<uz>a", ".......a"), "no end token is put back"


def test_a_cut_sample_begins_with_a_user_message() -> None:
    conversation = Conversation(
        [Turn("first", "a"), Turn("next", "b"), Turn("seen", "c", "observation"), Turn("u", "d")]
    )
    assert one(conversation, 24) == ("p<next>bE|<seen>cE|<u>dE", ".......bE.......cE....dE")
    assert one(conversation, 16) == ("p<u>dE", "....dE"), "not from the tool's reply on, though that would fit"


def test_a_long_reply_of_a_tool_keeps_its_question() -> None:
    conversation = Conversation([Turn("old", "a"), Turn("ask", "c"), Turn("abcdefghij", "told", "observation")])
    assert one(conversation, 26) == ("p<ask>cE|<abcdefghij>toldE", "......cE.............toldE")
    assert one(conversation, 22) == ("p<ask>cE|<abchij>toldE", "......cE.........toldE"), "a quarter of 22 is 6"
    assert one(conversation, 21) == ("p<ask>cE|<abchij>told", "......cE.........told"), (
        "the answer's end goes before the question"
    )
    assert builder(10).build([conversation]).skipped == [(0, "longer than seq_length")]
    assert builder(22).build([conversation]).truncated == 1


def test_template_tokens_longer_than_the_capacity() -> None:
    def reason(text: str, capacity: int) -> list[tuple[int, str]]:
        return builder(capacity).build([Conversation([Turn("hi", "yo")], text)]).skipped

    assert reason("S" * 8, 11) == [(0, "prefix, system and markers exceed seq_length")]
    assert reason("S" * 8, 12) == [(0, "nothing left after cutting")]
    assert reason("S" * 8, 20) == []


def test_overlong_samples_are_skipped_on_request() -> None:
    conversations = [Conversation([Turn("hi", "yo" * n)]) for n in (1, 9, 2)]
    for overlong in ("drop", "error"):
        batch = builder(10, overlong=overlong).build(conversations)
        assert batch.skipped == [(1, "longer than seq_length")] and batch.lengths.tolist() == [8, 10]


def test_an_answer_without_a_token_is_no_sample() -> None:
    class Deaf(CharacterTokenizer):
        def encode_with_offsets(self, text: str) -> TokenOffsets:
            return super().encode_with_offsets(text.replace("~", ""))

    made = SampleBuilder(Deaf(), load_chat_template("empty"), None)
    batch = made.build([Conversation([Turn("hi", "~")]), Conversation([Turn("hi", "yo")])])
    assert batch.skipped == [(0, "no trained token")] and batch.lengths.tolist() == [4]


def rule(conversation: Conversation, capacity: int) -> str:
    """The rule once more, on the text of TINY's samples; a reason in brackets for one that is skipped."""
    start = "p" + (conversation.system + "#" if conversation.system else "")
    for dropped in range(len(conversation.turns)):
        text = start + "E|".join(f"<{turn.prompt}>{turn.answer}" for turn in conversation.turns[dropped:]) + "E"
        if len(text) <= capacity:
            return text
    user, answer = conversation.turns[-1].prompt, conversation.turns[-1].answer
    markers = len(start) + 2
    if markers > capacity:
        return "[prefix, system and markers exceed seq_length]"
    over = max(0, markers + len(user) + len(answer) + 1 - capacity)
    left = max(len(user) - over, min(len(user), (capacity + 3) // 4))
    room = capacity - markers - left
    if room > len(answer):
        return f"{start}<{left}>{answer}E"
    return f"{start}<{left}>{answer[:room]}" if room > 0 else "[nothing left after cutting]"


words = st.text("abcdefgh", min_size=1, max_size=40)
conversations = st.builds(
    Conversation, st.lists(st.builds(Turn, words, words), min_size=1, max_size=4), st.text("S", max_size=9)
)


@given(st.lists(conversations, min_size=1, max_size=4), st.integers(4, 60), st.booleans())
def test_cut_samples_follow_the_rule(found: list[Conversation], capacity: int, append: bool) -> None:
    made = builder(capacity, append_end=append)
    batch = made.build(found)
    samples, reasons = iter(shown(batch, made)), dict(batch.skipped)
    for number, conversation in enumerate(found):
        expected = rule(conversation, capacity)
        if number in reasons:
            assert f"[{reasons[number]}]" == expected
            continue
        text, marks = next(samples)
        assert len(text) == len(marks) <= capacity
        answers = re.findall(r">([^|]*)", text)
        assert "".join(answers) == marks.replace(".", ""), "answers and end tokens are trained, all else is not"
        if text != expected:  # the user's text of the last turn is shorter: its beginning and its end are there
            head, user, rest = re.fullmatch("(.*<)(.*)(>.*)", text).groups()  # type: ignore[union-attr]
            assert f"{head}{len(user)}{rest}" == expected
            whole = conversation.turns[-1].prompt
            cuts = [n for n in range(len(user) + 1) if whole.startswith(user[:n]) and whole.endswith(user[n:])]
            assert any(abs(2 * n - len(user)) <= 1 for n in cuts)
            assert len(text) == capacity
    assert next(samples, None) is None


@given(
    st.lists(conversations, min_size=1, max_size=3),
    st.integers(20, 90),
    st.sampled_from(["qwen", "glm4", "llama2", "trl"]),
)
def test_cut_samples_of_real_templates_fit(found: list[Conversation], capacity: int, name: str) -> None:
    batch = builder(capacity, load_chat_template(name)).build(found)
    assert int(batch.lengths.max(initial=0)) <= capacity
    assert len(batch.lengths) + len(batch.skipped) == len(found)
    for conversation in found:
        alone = builder(capacity, load_chat_template(name)).build(
            [Conversation(conversation.turns[:1], conversation.system)]
        )
        if alone.truncated and alone.lengths.size:
            assert alone.lengths[0] == capacity


def test_the_cut_in_the_users_text_splits_no_character(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("PretrainedFromHF", str(byte_level_folder(tmp_path)))
    made = SampleBuilder(tokenizer, load_chat_template("qwen"), 100)
    conversation = Conversation([Turn("三🙂è" * 40, "yes")], "S")
    batch = made.build([conversation])
    assert batch.truncated == 1 and batch.lengths.tolist() == [100]
    import tokenizers

    text = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode(batch.ids.tolist(), False)
    assert "\ufffd" not in text and text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n三")
    assert text.endswith("è<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>")


@pytest.mark.parametrize("make", [byte_level_folder, sentence_piece_folder])
def test_tokenizers_agree_with_their_library_and_place_their_tokens(tmp_path: Path, make: object) -> None:
    tokenizer = load_tokenizer("PretrainedFromHF", str(make(tmp_path)))  # type: ignore[operator]
    texts = ["Describe the harbour.", " two", "  two", "", "a\nb", "三🙂è x", "Name<|im_end|>two</s> rivers", "\u2581x"]
    batch = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        places = tokenizer.encode_with_offsets(text)
        assert ids.dtype == np.int32 and np.array_equal(places.ids, ids), text
        assert np.array_equal(tokenizer.encode_batch([text])[0], ids)
        if text.strip():
            assert places.starts[0] == 0 and places.ends[-1] == len(text)
            covered = {
                c for a, b in zip(places.starts.tolist(), places.ends.tolist(), strict=True) for c in range(a, b)
            }
            assert covered == set(range(len(text))), text
    assert max(int(ids.max(initial=0)) for ids in batch) < tokenizer.vocab_size


@pytest.mark.parametrize("ids", [[0, 1, 2], [0, 1, 7], [3, 1, 2]])
def test_the_vocabulary_ends_after_its_greatest_id(tmp_path: Path, ids: list[int]) -> None:
    import tokenizers

    vocabulary = dict(zip(["a", "b", "</s>"], ids, strict=True))
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert load_tokenizer("PretrainedFromHF", str(tmp_path)).vocab_size == max(ids) + 1
    library.add_tokens(["<new>"])
    library.save(str(tmp_path / "tokenizer.json"))
    wanted = 1 + max(library.get_vocab(with_added_tokens=True).values())
    assert load_tokenizer("PretrainedFromHF", str(tmp_path)).vocab_size == wanted


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_tokenizer_in_another_encoding_is_left_to_the_library(tmp_path: Path, encoding: str) -> None:
    path = byte_level_folder(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer("PretrainedFromHF", str(tmp_path))


def test_texts_that_stay_in_every_attempt_to_cut_a_sample_are_tokenized_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = builder(20)
    asked: list[str] = []
    encode = made.tokenizer.encode_batch
    monkeypatch.setattr(made.tokenizer, "encode_batch", lambda texts: asked.extend(texts) or encode(texts))
    turns = [Turn(f"old question {number}", f"old answer {number}") for number in range(9)]
    batch = made.build([Conversation([*turns, Turn("new", "yes")])])
    assert batch.truncated == 1 and max(Counter(asked).values()) == 2, asked


def test_several_threads_may_ask_one_tokenizer_at_a_time(tmp_path: Path) -> None:
    texts = ["Name two rivers " + "x" * (n % 60) for n in range(450)]
    for folder in (sentence_piece_folder(tmp_path / "pieces"), byte_level_folder(tmp_path / "bytes")):
        tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
        single = [ids for text in texts for ids in tokenizer.encode_batch([text])]
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(tokenizer.encode_batch, [texts] * 12):
                assert all(np.array_equal(a, b) for a, b in zip(single, found, strict=True))


def test_the_space_before_a_sentence_piece_text(tmp_path: Path) -> None:
    folder = sentence_piece_folder(tmp_path)

    def pieces(text: str, fast: bool = True, **settings: object) -> list[str]:
        config = {"bos_token": "<s>", "eos_token": "</s>", "legacy": False, **settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer("PretrainedFromHF", str(folder), fast=fast)
        ids = tokenizer.encode_batch([text])[0].tolist()
        return [tokenizer._model.id_to_piece(number) for number in ids]  # type: ignore[attr-defined]

    assert "".join(pieces("a</s>b")) == "▁a</s>b"
    assert "".join(pieces(" a")) == "▁a" and "".join(pieces(" a", fast=False)) == "▁▁a"
    assert "".join(pieces("a</s>b", legacy=True)) == "▁a</s>▁b"
    assert "".join(pieces("a", add_prefix_space=False)) == "a"


def test_a_sentence_piece_model_alone(tmp_path: Path) -> None:
    model = sentence_piece_folder(tmp_path) / "tokenizer.model"
    tokenizer = load_tokenizer("GPTSentencePieceTokenizer", model=str(model))
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in ("Describe the harbour.", " a</s>b", "三"):
        assert tokenizer.encode_batch([text])[0].tolist() == library.encode(text)
        assert tokenizer.encode_with_offsets(text).ends[-1] == len(text)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)


def test_special_tokens_come_from_the_files_in_their_order(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, eos=None)

    def ids() -> tuple[int | None, int | None]:
        tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
        return tokenizer.eos_id, tokenizer.pad_id

    number = {
        name: load_tokenizer("PretrainedFromHF", str(folder)).token_id(f"<|{name}|>")
        for name in ("im_end", "endoftext")
    }
    assert ids() == (None, None)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [number["im_end"], 0]}))
    assert ids() == (number["im_end"], number["im_end"])
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert ids() == (number["endoftext"], number["endoftext"])
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert ids() == (number["endoftext"], number["endoftext"])
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": {}}))
    assert ids() == (number["im_end"], number["endoftext"])


def test_tokens_that_the_configuration_adds(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    plain = load_tokenizer("PretrainedFromHF", str(folder))
    added = {str(plain.vocab_size): {"content": "<|new|>", "special": True}}
    config = {"eos_token": "<|new|>", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
    assert tokenizer.eos_id == plain.vocab_size == tokenizer.vocab_size - 1
    assert plain.vocab_size in tokenizer.encode_batch(["a<|new|>b"])[0]
    config["added_tokens_decoder"] = {"9999": {"content": "<|new|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"declares <\|new\|> with the id 9999"):
        load_tokenizer("PretrainedFromHF", str(folder))


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    no_end = load_tokenizer("PretrainedFromHF", str(byte_level_folder(tmp_path / "a", eos=None)))
    with pytest.raises(ConfigError, match="no end token"):
        find_end_token(no_end, load_chat_template("default"))
    assert find_end_token(no_end, load_chat_template("qwen")) == no_end.token_id("<|im_end|>")
    bare = load_tokenizer("PretrainedFromHF", str(byte_level_folder(tmp_path / "b", markers=["<|endoftext|>"])))
    with pytest.raises(ConfigError, match=r"qwen: the tokenizer lacks <\|im_end\|>, <\|im_start\|>"):
        find_end_token(bare, load_chat_template("qwen"))
    with pytest.raises(ConfigError, match=r"lacks .*\[gMASK\], sop"):
        find_end_token(bare, load_chat_template("chatglm3"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "no such directory"),
        ("x", "", "neither tokenizer.json nor tokenizer.model"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer.json", "\xff", "cannot be read"),
        ("tokenizer.model", "x", "not a SentencePiece model"),
        ("tokenizer_config.json", "{", "not readable JSON"),
    ],
)
def test_bad_tokenizer_folders_are_named(tmp_path: Path, name: str | None, text: str, message: str) -> None:
    folder = tmp_path / "folder"
    if name is not None:
        folder.mkdir()
        (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message) as caught:
        load_tokenizer("PretrainedFromHF", str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--tokenizer-model"):
        load_tokenizer("GPTSentencePieceTokenizer", model=str(folder / "none"))


CODE = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_tokenizer_is_never_run(tmp_path: Path, trusted: bool) -> None:
    """A folder whose tokenizer is code is refused, with the way out; one that needs none is read as ever."""
    (tmp_path / "code").mkdir()
    sentence_piece_folder(tmp_path / "both")
    byte_level_folder(tmp_path / "fast")
    for name in ("code", "both", "fast"):
        path = tmp_path / name / "tokenizer_config.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**settings, "auto_map": CODE}))
        (tmp_path / name / "tokenization_own.py").write_text("raise SystemExit('was run')")
    for name in ("code", "both"):
        with pytest.raises(ConfigError) as caught:
            load_tokenizer("PretrainedFromHF", str(tmp_path / name), trusted=trusted)
        said = str(caught.value)
        assert "tokenization_own.OwnTokenizer" in said and "tokenizer.json" in said
        assert ("--trust-remote-code: code of a tokenizer's folder is never run" in said) == trusted
        assert ("--tokenizer-type GPTSentencePieceTokenizer" in said) == (name == "both")
    assert load_tokenizer("PretrainedFromHF", str(tmp_path / "fast"), trusted=trusted).vocab_size > 256
    (tmp_path / "both" / "tokenizer.json").write_bytes((tmp_path / "fast" / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="Leave --tokenizer-not-use-fast out"):
        load_tokenizer("PretrainedFromHF", str(tmp_path / "both"), fast=False, trusted=trusted)
    model = str(tmp_path / "both" / "tokenizer.model")
    assert load_tokenizer("GPTSentencePieceTokenizer", None, model, trusted=trusted).vocab_size > 3


@pytest.mark.parametrize("template", [TINY, ONCE])
def test_the_token_store_returns_the_stored_tokens(tmp_path: Path, template: object) -> None:
    made = builder(template=template)
    draw = random.Random(0)

    def conversation() -> Conversation:
        turns = [Turn("h" * draw.randint(1, 9), "y" * draw.randint(1, 9)) for _ in range(draw.randint(1, 3))]
        return Conversation(turns)

    conversations = [conversation() for _ in range(50)]
    store = TokenStore(tmp_path, made.eos_id)
    batches = [made.build(conversations[start : start + 7]) for start in range(0, 50, 7)]
    for batch in batches:
        store.append(encode_words(batch.ids, batch.labels, made.eos_id), batch.lengths)
    lengths = store.finish()
    assert lengths.tolist() == [length for batch in batches for length in batch.lengths]
    for first, last in ((49, 50), (0, 1), (13, 20), (0, 50)):
        ids, labels = store.samples(first, last)
        expected = made.build(conversations[first:last])
        assert np.array_equal(ids, expected.ids) and np.array_equal(labels, expected.labels)
    words = np.full(90, 3, np.uint32)
    store.read_into(words, np.array([30, 2]), np.array([lengths[2], 0]))
    ids, labels = store.decoded(words)
    expected = made.build([conversations[2], conversations[30]])
    size = len(expected.ids)
    assert ids.tolist() == [*expected.ids, *[3] * (90 - size)]
    assert labels.tolist() == [*expected.labels, *[IGNORE_INDEX] * (90 - size)]


def test_every_template_fits_a_tokenizer_that_has_its_tokens() -> None:
    for name in chat_template_names():
        made = builder(None, load_chat_template(name))
        batch = made.build([Conversation([Turn("hi", "yo"), Turn("so", "be")], "S")])
        trained = made.tokenizer.decode([i for i in batch.labels if i != IGNORE_INDEX])
        assert "yo" in trained and "be" in trained and isinstance(made.tokenizer, Tokenizer)
