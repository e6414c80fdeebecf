"""Data as users have them: the handler by the columns, directories with a README, and advice that fits the fault."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from preprocess_command import ALPACA, Command, rows
from row_files import write_rows
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.arguments.data_arguments import TokenizerArguments
from mindspeed_llm.arguments.inspect_arguments import DecodingArguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.preprocessing.rejected_rows import MAX_REASONS, OTHER_REASONS, RejectedRows
from mindspeed_llm.preprocessing.summary_table import listed_counts
from mindspeed_llm.rawdata import Row
from mindspeed_llm.rawdata.text_encodings import fitting_encoding
from mindspeed_llm.storage.hub_names import download_advice

SHAREGPT = "SharegptStyleInstructionHandler"
MESSAGES = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]
ENGLISH = [{"instruction": "Name a river.", "output": "The Elbe."}] * 8
GERMAN = [{"instruction": f"Größe Nr. {n}?", "output": "Übergroß – für Äpfel."} for n in range(8)]
CHINESE = [{"instruction": f"请写一首关于春天的诗，第{n}首。", "output": "春眠不觉晓，处处闻啼鸟。"} for n in range(8)]
KOREAN = [{"instruction": "봄에 대한 시를 써 주세요.", "output": "봄이 오면 산에 들에 진달래 피네."}] * 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture
def command(tmp_path: Path, tokenizer: Path) -> Command:
    return Command(tmp_path, tokenizer, rows(20))


def lines_of(data: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data)


def error_of(command: Command, capsys: pytest.CaptureFixture[str], *more: str, without: tuple[str, ...] = ()) -> str:
    """Run a command that is refused, and return the line of its only error."""
    before = sorted(command.folder.rglob("*"))
    capsys.readouterr()
    assert command.status(*more, without=without) == 2
    assert sorted(command.folder.rglob("*")) == before
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1, errors
    return errors[0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("data", "handler", "columns"),
    [
        (rows(9), ALPACA, "instruction, input, output"),
        ([{"messages": MESSAGES}] * 9, SHAREGPT, "messages"),
        ([{"text": "A document."}] * 9, "GeneralPretrainHandler", "text"),
    ],
)
def test_the_handler_may_be_left_out(
    command: Command, capsys: pytest.CaptureFixture[str], data: list[Any], handler: str, columns: str, kind: str
) -> None:
    given = ["--input", str(write_rows(command.folder, data, kind))]
    plain = ("--prompt-type",) if "Pretrain" in handler else ()
    named = command.run(*given, "--handler-name", handler, without=plain)
    written = command.written()
    capsys.readouterr()
    assert command.run(*given, without=("--handler-name", *plain)) == named and command.written() == written
    line = f"--handler-name {handler}, chosen by the columns of the rows ({columns})"
    assert capsys.readouterr().err.splitlines().count(line) == 1


def test_columns_that_do_not_decide_it(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    path = command.folder / "qa.jsonl"
    path.write_text(lines_of([3, {"question": "a", "answer\x1b": "b"}]))
    given, without = ["--input", str(path)], ("--handler-name",)
    message = error_of(command, capsys, *given, without=without)
    assert "(question, answer\\u001b) fit no handler; AlpacaStyleInstructionHandler reads instruction" in message
    assert "SharegptStyleInstructionHandler reads conversations or messages" in message
    path.write_text(lines_of([{"question": "a", "answer": "b"}]))
    keys = ["--map-keys", '{"prompt": "question", "response": "answer"}']
    assert command.run(*given, *keys, without=without).handler == ALPACA
    assert command.run(*given, *given, *keys, without=without).counts.rows_read == 2, "the same input twice"
    path.write_text(lines_of([{"instruction": "a", "output": "b", "messages": MESSAGES}]))
    assert f"fit {ALPACA} and {SHAREGPT}" in error_of(command, capsys, *given, without=without)
    other = command.folder / "other.jsonl"
    path.write_text(lines_of([{"messages": MESSAGES}]))
    other.write_text(lines_of(rows(2)))
    both = ["--input", str(path), "--input", str(other)]
    message = error_of(command, capsys, *both, without=(*without, "--input"))
    assert f"the columns differ: {path} for {SHAREGPT}, {other} for {ALPACA}" in message


def test_flags_that_do_not_fit_the_chosen_handler(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    path = command.folder / "documents.jsonl"
    path.write_text(lines_of([{"text": "a"}]))
    message = error_of(command, capsys, "--input", str(path), without=("--handler-name",))
    assert "--prompt-type: GeneralPretrainHandler reads plain text" in message


def test_a_row_with_an_unknown_role_is_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    path = command.folder / "rows.jsonl"
    bad = [{"role": "narrator", "content": "Once."}]
    path.write_text(lines_of([{"messages": MESSAGES}, {"messages": MESSAGES + bad}, {"messages": bad}]))
    given = ["--input", str(path), "--handler-name", SHAREGPT]
    counts = command.run(*given).counts
    assert counts.skipped == {"unknown role 'narrator' in messages[].role": 2}, "one reason for all positions"
    assert [(row["line"], row["reason"]) for row in command.rejected()] == [
        (2, "unknown role 'narrator' in messages[2].role"),
        (3, "unknown role 'narrator' in messages[0].role"),
    ]
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notice:")]
    assert "the roles are user_tag: human or user; assistant_tag: gpt or assistant" in notices[0]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: unknown role 'narrator' in messages\[2\]\.role; correct"):
        command.run(*given, "--strict")
    with pytest.raises(DataError, match=r"none of 2 rows .*the roles are user_tag: bob; assistant_tag"):
        path.write_text(lines_of([{"messages": MESSAGES}] * 2))
        command.run(*given, "--map-keys", '{"tags": {"user_tag": "bob"}}')


def test_the_number_of_counted_reasons_is_bounded(tmp_path: Path) -> None:
    rejected = RejectedRows(tmp_path)
    for number in range(MAX_REASONS + 50):
        rejected.add(Row("rows.jsonl", number, None), f"unknown role 'r{number}'")
    rejected.add(Row("rows.jsonl", 0, None), "unknown role 'r0'")
    rejected.close()
    assert len(rejected.counts) == MAX_REASONS + 1 and rejected.counts[OTHER_REASONS] == 50
    assert rejected.counts["unknown role 'r0'"] == 2
    listed = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert len(listed) == MAX_REASONS + 51 and f"r{MAX_REASONS + 49}" in listed[-2]
    assert listed_counts(Counter({f"reason {n:02}": 99 - n for n in range(20)})).endswith(
        "reason 11: 88, 8 others: 668"
    )


def test_a_directory_with_a_readme_is_read(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder = command.folder / "data"
    folder.mkdir()
    for name in ("README.md", "LICENSE", "dataset_infos.json", ".gitattributes", "load.py", "readme.txt"):
        (folder / name).write_text("{}")
    (folder / "a.json").write_text(json.dumps(rows(3)))
    (folder / "b.json").write_text(json.dumps(rows(4)))
    for name in (str(folder), str(folder / "*")):
        assert command.run("--input", name).counts.rows_read == 7
        lines = capsys.readouterr().err.splitlines()
        notices = [
            line for line in lines if line.startswith("notice:") and "packed files there are replaced" not in line
        ]
        skipped = "LICENSE, README.md, dataset_infos.json, load.py, readme.txt"
        assert notices == [f"notice: --input {name}: not read, because they are not data: {skipped}"]
    (folder / "c.jsonl").write_text(lines_of(rows(2)))
    assert "several formats (2 .json, 1 .jsonl)" in error_of(command, capsys, "--input", str(folder))


def test_a_saved_data_set_with_its_state_is_read(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder = command.folder / "saved"
    folder.mkdir()
    shutil.move(write_rows(folder, rows(5), "arrow"), folder / "data-00000-of-00001.arrow")
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    assert command.run("--input", str(folder)).counts.rows_read == 5
    only = command.folder / "only"
    only.mkdir()
    (only / "README.md").write_text("x")
    assert ".md is not supported" in error_of(command, capsys, "--input", str(only))


def csv_text(separator: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([["instruction", "output"], *([row["instruction"], row["output"]] for row in rows(5))])
    return out.getvalue()


WRONG_CONTENT: dict[str, tuple[str, bytes, str]] = {
    "GBK": ("rows.jsonl", lines_of(CHINESE).encode("gbk"), "fits GBK; convert it with 'iconv -f GBK -t UTF-8 {path} >"),
    "GBK array": ("rows.json", json.dumps(CHINESE, ensure_ascii=False).encode("gbk"), "fits GBK"),
    "cp1252": ("rows.jsonl", lines_of(GERMAN).encode("cp1252"), "fits CP1252; convert it with 'iconv -f CP1252"),
    "cp1252, half": ("rows.jsonl", lines_of(GERMAN + ENGLISH).encode("cp1252"), "fits CP1252"),
    "cp1252, CSV": (
        "rows.csv",
        b"instruction,output\n" + 9 * "Größe?,Äußerst groß\n".encode("cp1252"),
        "fits CP1252",
    ),
    "EUC-KR": ("rows.jsonl", lines_of(KOREAN).encode("euc-kr"), "fits EUC-KR"),
    "GBK, compressed": ("rows.jsonl.gz", gzip.compress(lines_of(CHINESE).encode("gbk")), "fits GBK"),
    "UTF-16": ("rows.json", json.dumps(rows(3)).encode("utf-16"), "is text in UTF-16, which its name does not say"),
    "UTF-16, big end": ("rows.csv", b"\xfe\xff" + csv_text(",").encode("utf-16-be"), "'iconv -f UTF-16 -t UTF-8"),
    "UTF-32": ("rows.txt", "a\n".encode("utf-32"), "is text in UTF-32"),
    "semicolons": ("rows.csv", csv_text(";").encode(), "{path}:1: a semicolon separates the columns, not a comma"),
    "tabs": ("rows.csv", csv_text("\t").encode(), "delimiter='\\t'))\" < {path} > NEW.csv"),
    "array in lines": ("rows.jsonl", json.dumps(rows(3)).encode(), "a JSON array, not one JSON value per line; rename"),
    "array over lines": ("rows.jsonl", b"[\n" + lines_of(rows(3)).replace("}\n", "},\n").encode(), "a JSON array"),
    "pretty array": ("rows.jsonl", json.dumps(rows(3), indent=1).encode(), "a JSON array"),
    "Excel": ("rows.csv", b"PK\x03\x04\x14\x00", "is an Excel file or a ZIP archive"),
    "old Excel": ("rows.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "save the sheet as CSV (UTF-8)"),
    "gzip": ("rows.jsonl", gzip.compress(b"{}"), "which its name does not say; rename it to rows.jsonl.gz"),
    "page": ("rows.json", b"<!DOCTYPE HTML>\n<html>", "is a web page"),
    "LFS": ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "'git lfs pull'"),
    "data": ("rows.json", json.dumps({"data": rows(3)}).encode(), "the rows are in 'data' of one object; extract them"),
    "version and data": ("rows.json", json.dumps({"version": 1, "train": rows(3)}, indent=1).encode(), "['train']"),
    "empty answers": (
        "rows.jsonl",
        lines_of([{"instruction": "a", "output": ""}, {"instruction": "b", "output": " "}]).encode(),
        'the column \'output\' has no text; name the column of the answers as "response" in --map-keys',
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CONTENT)
def test_advice_fits_the_fault(command: Command, capsys: pytest.CaptureFixture[str], case: str) -> None:
    name, content, message = WRONG_CONTENT[case]
    path = command.folder / "in" / name
    path.parent.mkdir()
    path.write_bytes(content)
    assert message.replace("{path}", str(path)) in error_of(command, capsys, "--input", str(path))


def test_the_commands_of_the_advice_work(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, ending in (
        ("a.csv", csv_text(";").encode(), "csv"),
        ("b.json", json.dumps({"data": rows(3)}).encode(), "json"),
    ):
        path = command.folder / name
        path.write_bytes(content)
        assert "python3 -c" in error_of(command, capsys, "--input", str(path), without=("--handler-name",))
        shell = "python3 -c" + error_of(command, capsys, "--input", str(path)).partition("python3 -c")[2]
        new = command.folder / f"new.{ending}"
        subprocess.run(["bash", "-c", shell.replace(f"NEW.{ending}", str(new))], check=True)
        assert command.run("--input", str(new)).counts.kept >= 3
        shutil.rmtree(command.folder / "out")


def test_files_without_a_fault_are_read(command: Command) -> None:
    sound = {
        "a.json": lines_of(GERMAN + CHINESE).encode(),
        "b.csv": b"\xef\xbb\xbf" + csv_text(",").encode(),
        "c.jsonl": b"[1, 2]\n" + lines_of(rows(3)).encode(),  # a row that is no object
        "d.jsonl": b'[{"a": 1}]\n' + lines_of(rows(3)).encode(),
        "e.jsonl": lines_of(CHINESE).encode() + b'{"instruction": "\xff\xfe"}\n',
        "f.jsonl": lines_of(ENGLISH * 2 + GERMAN[:4]).encode("cp1252"),  # most rows can be used
    }
    for name, content in sound.items():
        path = command.folder / name
        path.write_bytes(content)
        assert command.run("--input", str(path)).counts.kept >= 3, name


def test_rows_in_another_encoding_beside_others_are_explained(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = command.folder / "rows.jsonl"
    path.write_bytes(lines_of(ENGLISH * 2 + GERMAN[:4]).encode("cp1252"))
    assert command.run("--input", str(path)).counts.skipped == {"not UTF-8": 4}
    assert f"notice: 4 rows are not UTF-8: {path}: the text is not UTF-8, it fits CP1252" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Ça va très bien, merci : « à bientôt »", "CP1252"),
        ("老师说：“今天下午两点开会。”", "GBK"),
        ("안녕하세요, 만나서 반갑습니다", "EUC-KR"),
    ],
)
def test_encodings_are_recognised(text: str, encoding: str) -> None:
    written = (text * 3).encode(encoding.lower())
    assert fitting_encoding(written) == encoding and fitting_encoding(written[:-1]) == encoding
    assert fitting_encoding((text * 3).encode()) is None
    assert fitting_encoding("Größe".encode("cp1252")) is None, "too little to judge by"


@pytest.mark.parametrize("other", ["koi8-r", "shift-jis", "euc-jp"])
def test_no_encoding_is_guessed_for_other_alphabets(other: str) -> None:
    text = "Все счастливые семьи похожи" if other == "koi8-r" else "これはペンです。ありがとうございます。"
    assert fitting_encoding((text * 3).encode(other)) is None


def test_a_file_of_the_tokenizer_means_its_folder(command: Command, tokenizer: Path) -> None:
    named = command.run()
    written = command.written()
    assert command.run("--tokenizer-name-or-path", str(tokenizer / "tokenizer.json")) == named
    assert command.written() == written
    folder = sentence_piece_folder(command.folder / "pieces")
    command.flags |= {"--prompt-type": "llama2"}
    pieces = command.run("--tokenizer-name-or-path", str(folder))
    assert command.run("--tokenizer-name-or-path", str(folder / "tokenizer.model")).tokenizer == pieces.tokenizer
    # If both files exist, the file that is named is read.
    shutil.copy(tokenizer / "tokenizer.json", folder)
    for group in (TokenizerArguments, DecodingArguments):
        model = group(tokenizer_name_or_path=str(folder / "tokenizer.model"))
        described = group(tokenizer_name_or_path=str(folder / "tokenizer.json"), tokenizer_not_use_fast=True)
        assert (model.tokenizer_name_or_path, model.tokenizer_not_use_fast) == (str(folder), True)
        assert (described.tokenizer_name_or_path, described.tokenizer_not_use_fast) == (str(folder), False)
    with pytest.raises(ConfigError, match=r"a file; give its directory, or .*--tokenizer-model"):
        command.run("--tokenizer-name-or-path", str(command.input))


def test_the_name_of_a_hub_model_gets_the_command_that_downloads_it(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_of(command, capsys, "--tokenizer-name-or-path", "Qwen/Qwen2.5-7B-Instruct")
    wanted = "'hf download Qwen/Qwen2.5-7B-Instruct --local-dir Qwen2.5-7B-Instruct --exclude '*.safetensors''"
    assert "no such directory; if it is a model of the Hugging Face Hub, download it with " + wanted in message
    assert download_advice("Qwen/Qwen2.5-7B").endswith("Qwen2.5-7B' and give ./Qwen2.5-7B")
    (tmp_path / "models").mkdir()
    for path in ("models/qwen", "./Qwen/x", "/Qwen/x", "a/b/c", "qwen", "../x", "Qwen/", ""):
        assert download_advice(path) == "", path
