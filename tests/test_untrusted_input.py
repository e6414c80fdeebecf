"""Input that no program writes is an error of one line or a bad row, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_llm.chat import Conversation, InvalidRowError, Turn
from mindspeed_llm.chat.handlers import SharegptHandler, create_handler
from mindspeed_llm.chat.jinja_template import JinjaTemplate
from mindspeed_llm.errors import ConfigError, DataError, escape_control_characters
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.reports.loss_plot import draw_runs
from mindspeed_llm.tokenization import load_tokenizer
from tests.preprocess_command import Command, rows
from tests.small_tokenizers import byte_level_folder

DEEP = "[" * 100_000


@pytest.mark.parametrize("given", ['{"tags":null}', '{"tags":{}}'])
def test_tags_without_a_value_are_the_usual_ones(given: str) -> None:
    handler, problems = create_handler("SharegptStyleInstructionHandler", given)
    assert not problems and handler is not None and handler.tags == SharegptHandler.TAGS


def test_text_that_is_nested_too_deeply_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert create_handler("AlpacaStyleInstructionHandler", DEEP)[1][0].startswith("--map-keys: not JSON")
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), rows(3))
    (tmp_path / "own.json").write_text(DEEP)
    assert command.status("--prompt-type-path", str(tmp_path / "own.json")) == 2
    (tmp_path / "tokenizer" / "special_tokens_map.json").write_text(DEEP)
    assert command.status() == 2
    said = capsys.readouterr().err
    assert "own.json: not JSON" in said and "special_tokens_map.json is not readable JSON" in said


@pytest.mark.parametrize("value", ["1" + "0" * 30, "1e30", "0", "-8", "4096"])
def test_a_manifest_with_an_impossible_number_is_refused(tmp_path: Path, value: str) -> None:
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), rows(5))
    command.run()
    path = command.prefix.with_name("set_packed_manifest.json")
    whole = path.read_text()
    path.write_text(whole.replace('"pad_to_multiple_of": 1', f'"pad_to_multiple_of": {value}'))
    with pytest.raises(DataError, match=r"manifest\.json: pad_to_multiple_of"):
        Manifest.read(path)
    path.write_text(whole.replace('"fill": ', '"fill": ' + "9" * 400 + ', "was": '))
    with pytest.raises(DataError, match="fill has more than 64 bits"):
        Manifest.read(path)


def test_a_dollar_in_the_name_of_a_run_is_no_formula(tmp_path: Path) -> None:
    folder = tmp_path / r"a$\frac{b$"
    folder.mkdir()
    line = {"kind": "train", "iteration": 1, "loss": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0, "fill": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line | {"tokens_per_second": 9.0}) + "\n")
    assert draw_runs([folder, folder], tmp_path / "runs.png", [r"a$\frac{b$", "$x_$"]).is_file()


@pytest.mark.parametrize("number", [1 << 30, (1 << 31) - 1, 1 << 31])
def test_token_ids_beyond_the_range_of_the_store_are_refused(tmp_path: Path, number: int) -> None:
    folder = byte_level_folder(tmp_path / "tokenizer")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["vocab"]["harbours"] = number
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=f"token id {number:,}"):
        load_tokenizer("PretrainedFromHF", str(folder))


@pytest.mark.parametrize(
    "expression",
    ["1 // 0", "10.0 ** 1000", "'a'.encode('none')", "{}['a']['b']", "'x' * 10 ** 15", "'%c' % -1"],
)
def test_an_exception_of_a_template_is_a_bad_row(expression: str) -> None:
    source = "{% for m in messages %}{% generation %}{{ X }}{% endgeneration %}{% endfor %}".replace("X", expression)
    conversation = Conversation([Turn("a", "b")])
    with pytest.raises((InvalidRowError, ConfigError)) as caught:
        JinjaTemplate(source, {}).render(conversation)
    assert not str(caught.value).endswith(": ")


def test_control_characters_of_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert escape_control_characters("a\x1b[2J\x9b1m\x7f\r\n\tü\ud800") == "a\\x1b[2J\\x9b1m\\x7f\\r\n\tü\\ud800"
    name = "\x1b]0;title\x07\nerror: x\u009b"
    data: list[dict[str, Any]] = [{name: "a"}]
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), data)
    assert command.status() == 2
    assert command.status("--map-keys", '{"prompt":"instructions"}') == 2
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and "\x9b" not in said and said.count("\\x1b]0;title\\x07\\nerror: x\\x9b") == 2
