"""--prompt-type hf of preprocess_data.py: which template is used, bad rows, and what the manifest records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_template_traits import NO_END, THOUGHTS, TRIMMED, TWO_MARKS, USUAL
from preprocess_command import Command, rows
from small_tokenizers import byte_level_folder

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import ANSWER_NOT_FOUND, Conversation, JinjaTemplate, Turn
from mindspeed_llm.chat.template_files import choose_template, find_templates
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.tokenization import SampleBuilder, end_texts, find_stop_ids, load_tokenizer

MARKERS = ("<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|tool|>")
# A later message changes what is written for the earlier ones, unless the first one is short.
FAILS_ON_LONG = USUAL.replace("m.content", "m.content if messages[0].content | length < 9 else messages[-1].content")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    folder = byte_level_folder(tmp_path / "tokenizer", markers=MARKERS, eos="</s>", bos="<s>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [token_id(folder, "<|end|>")]}))
    (folder / "chat_template.jinja").write_text(USUAL)
    made = Command(tmp_path, folder, rows(12))
    made.flags["--prompt-type"] = "hf"
    return made


def token_id(folder: Path, token: str) -> int:
    number = load_tokenizer("PretrainedFromHF", str(folder)).token_id(token)
    assert number is not None
    return number


def decoded(command: Command) -> list[str]:
    """Return the trained text of each sample."""
    tokenizer = load_tokenizer("PretrainedFromHF", str(command.folder / "tokenizer"))
    return [tokenizer.decode([label for label in labels if label != IGNORE_INDEX]) for _, labels in command.samples()]


def test_a_published_template_needs_no_marks(command: Command) -> None:
    manifest = command.run()
    assert sorted(decoded(command)) == sorted(f"{row['output']}<|end|>" for row in rows(12))
    end = token_id(command.folder / "tokenizer", "<|end|>")
    assert manifest.template is not None and manifest.template.name == "hf" and manifest.template.jinja == USUAL
    assert manifest.template.ends == [end] and manifest.tokenizer.eod_id == end and manifest.counts.kept == 12


def test_the_prompt_type_may_be_left_out(command: Command, caplog: pytest.LogCaptureFixture) -> None:
    command.run()
    expected = command.written()
    with caplog.at_level("INFO"):
        command.run(without=("--prompt-type",))
    assert command.written() == expected
    assert (
        sum("--prompt-type is not given: the chat template of the tokenizer" in line for line in caplog.messages) == 1
    )
    (command.folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"--prompt-type is required: .* such as qwen; or hf, with a tokenizer"):
        command.run(without=("--prompt-type",))
    file = command.folder / "mine.jinja"
    file.write_text(USUAL)
    command.run("--chat-template", str(file), without=("--prompt-type",))
    assert command.written() == expected
    with pytest.raises(ConfigError, match="no roles"):
        command.run("--chat-template", str(file), "--handler-name", "AlpacaPretrainHandler", without=("--prompt-type",))
    with pytest.raises(ConfigError) as error:
        command.run("--tokenizer-name-or-path", str(command.folder / "nowhere"), without=("--prompt-type",))
    assert "no such directory" in str(error.value) and "--prompt-type" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--chat-template", "FILE", "--prompt-type", "qwen"), "choose the template of --prompt-type hf"),
        (("--chat-template", "FILE", "--chat-template-name", "x"), "leave one of them out"),
        (("--chat-template", "nowhere"), "nowhere cannot be read"),
        (("--chat-template", "LATIN"), "is not UTF-8"),
        (("--chat-template-name", "x"), "no chat template of this name; it contains default"),
    ],
)
def test_wrong_templates_are_refused(command: Command, flags: tuple[str, ...], message: str) -> None:
    files = {"FILE": command.folder / "file.jinja", "LATIN": command.folder / "latin.jinja"}
    files["FILE"].write_text(USUAL)
    files["LATIN"].write_bytes(b"\xe4{{ messages }}")
    with pytest.raises(ConfigError, match=message):
        command.run(*(str(files.get(flag, flag)) for flag in flags))
    assert command.written() == {}


def test_templates_are_found_as_transformers_finds_them(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())

    def configured(template: Any) -> dict[str, str]:
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        return find_templates(folder)

    assert find_templates(folder) == {} and configured("a") == {"default": "a"}
    named = configured([{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}])
    assert named == {"default": "a", "rag": "b"}
    assert (choose_template(str(folder), None), choose_template(str(folder), "rag")) == ("a", "b")
    configured([{"name": "rag", "template": "b"}])
    with pytest.raises(ConfigError, match=r"several chat templates and no default one; choose one with .*rag"):
        choose_template(str(folder), None)
    (folder / "chat_template.jinja").write_text("c")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("d")
    assert find_templates(folder) == {"default": "c", "tool_use": "d"}


def data(bad: set[int], count: int) -> list[dict[str, Any]]:
    return [{"instruction": "too long text" if n in bad else "short", "output": f"o{n}"} for n in range(count)]


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize(
    ("bad", "count", "stops"), [(2, 20, False), (3, 20, True), (100, 1200, False), (101, 1200, True)]
)
def test_a_tenth_of_the_first_rows_may_be_bad(
    command: Command, bad: int, count: int, stops: bool, workers: str
) -> None:
    (command.folder / "tokenizer" / "chat_template.jinja").write_text(FAILS_ON_LONG)
    command.input.write_text(json.dumps(data({999 - n if count > 1000 else n for n in range(bad)}, count)))
    if stops:
        expected = f"{bad} of the first {min(count, 1000):,} rows: {ANSWER_NOT_FOUND}; give a template"
        with pytest.raises(DataError, match=expected):
            command.run("--workers", workers)
        assert command.status("--workers", workers) == 2 and command.written() == {}
        command.run("--workers", workers, "--max-bad-rows", str(count))
    else:
        command.run("--workers", workers)
    assert len(command.rejected()) == bad


def test_later_bad_rows_do_not_stop_the_run(command: Command) -> None:
    (command.folder / "tokenizer" / "chat_template.jinja").write_text(FAILS_ON_LONG)
    command.input.write_text(json.dumps(data(set(range(1000, 1400)), 1400)))
    assert command.run().counts.skipped == {ANSWER_NOT_FOUND: 400}


def builder(command: Command, source: str, capacity: int | None = None, **options: Any) -> SampleBuilder:
    folder = command.folder / "tokenizer"
    tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
    ends = end_texts(tokenizer, [token_id(folder, token) for token in ("<|end|>", "<|user|>", "<|tool|>")])
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return SampleBuilder(tokenizer, JinjaTemplate(source, special, None, ends), capacity, **options)


def test_mask_history_trains_the_whole_last_answer(command: Command) -> None:
    made = builder(command, TWO_MARKS, mask_history=True)
    batch = made.build([Conversation([Turn("a", "old"), Turn("b", "new")])])
    assert made.tokenizer.decode(batch.labels[batch.labels != IGNORE_INDEX].tolist()) == "new<|end|>"


@pytest.mark.parametrize("source", [TWO_MARKS, TRIMMED, THOUGHTS, NO_END])
@pytest.mark.parametrize("before", ["", " \n"])
def test_long_rows_are_cut(command: Command, source: str, before: str) -> None:
    row = Conversation([Turn("older", "gone"), Turn(f"{before}{'word ' * 100}x", "answer")])
    made = builder(command, source, 64)
    batch = made.build([row])
    assert batch.lengths.tolist() == [64] and not batch.skipped
    assert dict(batch.steps) == {"oldest turns left out": 1, "user texts shortened": 1}
    trained = made.tokenizer.decode(batch.labels[batch.labels != IGNORE_INDEX].tolist())
    assert trained.strip() in ("answer<|end|>", "answer<|user|>")
    long = made.build([Conversation([Turn("a", "answer " * 100)])])
    assert long.lengths.tolist() == [64] and "<|" not in made.tokenizer.decode([int(long.ids[-1])])


def test_stop_ids(command: Command) -> None:
    ids = {token: token_id(command.folder / "tokenizer", token) for token in MARKERS}
    for source, expected in (
        (USUAL, ["<|end|>"]),
        (TWO_MARKS, ["<|end|>"]),
        (THOUGHTS, ["<|end|>"]),
        (NO_END, ["<|user|>", "<|tool|>"]),
    ):
        made = builder(command, source)
        found = find_stop_ids(made.template, made.tokenizer, False)
        assert found == [ids[token] for token in expected]


def test_the_date_is_that_of_the_start(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.chat import jinja_template

    class Day(jinja_template.date):
        today_is = "2031-05-06"

        @classmethod
        def today(cls) -> Any:
            return cls.fromisoformat(cls.today_is)

    monkeypatch.setattr(jinja_template, "date", Day)
    template = JinjaTemplate("{{ strftime_now('%d %b %Y %H:%M') }}" + USUAL, {}, None, ["<|end|>"])
    monkeypatch.setattr(Day, "today_is", "2031-05-07")
    row = Conversation([Turn("a", "b")])
    assert template.render(row)[0].prompt[0].text.startswith("06 May 2031 00:00") and template.date == "2031-05-06"
    other = JinjaTemplate(template.source, {}, None, ["<|end|>"])
    assert (other.date, other.sha256) == ("2031-05-07", template.sha256)
    assert JinjaTemplate(USUAL, {}).date == ""


def test_special_tokens_are_those_of_the_tokenizer(command: Command) -> None:
    (command.folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    command.run()
    assert sorted(decoded(command))[0].endswith("<|end|>")
