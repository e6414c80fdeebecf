"""--cache-dir: tokens that are kept give what fresh ones give, and are never used for anything but what they fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from preprocess_command import Command, rows
from small_tokenizers import byte_level_folder

from mindspeed_llm.chat import jinja_template
from mindspeed_llm.preprocessing import pipeline as preprocessing_run
from mindspeed_llm.preprocessing.temp_dirs import temp_dir_in

BAD = [{"instruction": "", "input": "", "output": "x"}, {"instruction": "y", "input": "", "output": 3}]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), [*rows(40), *BAD, *rows(5)])


class Reads:
    """Counts how often rows are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, real = 0, preprocessing_run.read_samples

        def counted(*given: object) -> None:
            self.count += 1
            real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(preprocessing_run, "read_samples", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def cache(command: Command) -> Path:
    return command.folder / "cache"


def test_cached_tokens_can_be_packed_differently(
    command: Command, reads: Reads, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("--cache-dir", str(cache(command)))
    command.run(*kept)
    ways: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("--seed", "7"), ()),
        (("--pad-to-multiple-of", "8"), ()),
        ((), ("--neat-pack",)),
        ((), ("--pack", "--neat-pack")),
        ((), ()),
    ]
    for more, without in ways:
        capsys.readouterr()
        command.run(*more, *kept, without=without)
        said = capsys.readouterr()
        again = command.written()
        assert reads.count == 1, "no row is read a second time"
        assert f"using the cached tokens in {cache(command)}" in said.err
        command.run(*more, without=without)
        assert command.written() == again and "set_rejected.jsonl" in again
        table = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("seconds")]
        assert [line for line in said.out.splitlines() if not line.startswith("seconds")] == table
        reads.count = 1
    assert len(list(cache(command).iterdir())) == 1


def touched(command: Command) -> None:
    os.utime(command.input, ns=(1, 1))


def another_row(command: Command) -> None:
    command.input.write_text(json.dumps(rows(3)))


def another_description(command: Command) -> None:
    path = command.folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}))


def another_file_of_the_same_size_and_time(command: Command) -> None:
    other = command.folder / "other.json"
    other.write_text(command.input.read_text().replace("e", "a"))
    was = command.input.stat()
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    other.replace(command.input)


@pytest.mark.parametrize("change", [touched, another_row, another_description, another_file_of_the_same_size_and_time])
def test_changed_inputs_invalidate_the_cache(command: Command, reads: Reads, change: Callable[[Command], None]) -> None:
    command.run("--cache-dir", str(cache(command)))
    change(command)
    command.run("--cache-dir", str(cache(command)))
    assert reads.count == 2
    written = command.written()
    command.run()
    assert command.written() == written


def test_a_changed_template_invalidates_the_cache(command: Command, reads: Reads) -> None:
    path = command.folder / "own.json"
    flags = ("--prompt-type", "own", "--prompt-type-path", str(path), "--cache-dir", str(cache(command)))
    for user in ("<{{content}}>", "[{{content}}]"):
        path.write_text(json.dumps({"name": "own", "user": [user]}))
        command.run(*flags)
    assert reads.count == 2


@pytest.mark.parametrize(
    "flags",
    [
        ("--seq-length", "128"), ("--append-eod",), ("--mask-history",), ("--train-on-prompt",), ("--max-samples", "9"),
        ("--prompt-type", "chatml"), ("--map-keys", '{"system": "input"}'), ("--overlong", "drop"),
        ("--tool-format", "glm4"), ("--max-bad-rows", "5"), ("--control-tokens-in-text", "plain"),
    ],
)  # fmt: skip
def test_flags_that_affect_tokens_use_separate_cache_entries(
    command: Command, reads: Reads, flags: tuple[str, ...]
) -> None:
    command.run("--cache-dir", str(cache(command)))
    command.run(*flags, "--cache-dir", str(cache(command)))
    assert reads.count == 2 and len(list(cache(command).iterdir())) == 2


@pytest.mark.parametrize("name", ["tokens", "lengths.npy", "rejected.jsonl", "kept.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "null"])
def test_damaged_cache_entries_are_recreated(
    command: Command, reads: Reads, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    command.run("--cache-dir", str(cache(command)))
    written = command.written()
    (folder,) = cache(command).iterdir()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    if how == "null":
        data = bytearray(b"null\n")
    (folder / name).write_bytes(bytes(data) if how == "flipped" else data[:-1])
    if how == "gone":
        (folder / name).unlink()
    capsys.readouterr()
    command.run("--cache-dir", str(cache(command)))
    assert command.written() == written
    assert reads.count == 2
    assert ("are damaged" in capsys.readouterr().err) == ((name, how) != ("kept.json", "gone"))
    command.run("--cache-dir", str(cache(command)))
    assert reads.count == 2 and command.written() == written


def test_overwrite_cache_recreates_entries(command: Command, reads: Reads) -> None:
    command.run("--cache-dir", str(cache(command)))
    command.run("--cache-dir", str(cache(command)), "--overwrite-cache")
    assert reads.count == 2 and len(list(cache(command).iterdir())) == 1
    command.run("--cache-dir", str(cache(command)))
    assert reads.count == 2


def test_a_failed_run_caches_nothing_and_an_unwritable_cache_is_no_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.status("--strict", "--cache-dir", str(cache(command))) == 2
    assert not cache(command).exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mindspeed_llm.preprocessing.token_cache.np.save", full)
    command.run("--cache-dir", str(cache(command)))
    assert "cannot be cached" in capsys.readouterr().err and list(cache(command).iterdir()) == []
    written = command.written()
    command.run()
    assert command.written() == written


def test_inputs_that_change_while_being_read_are_not_cached(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = preprocessing_run.read_samples

    def meanwhile(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        touched(command)

    monkeypatch.setattr(preprocessing_run, "read_samples", meanwhile)
    command.run("--cache-dir", str(cache(command)))
    assert "changed while they were read" in capsys.readouterr().err and list(cache(command).iterdir()) == []


def test_the_tokens_of_templates_that_write_the_date_depend_on_it(
    command: Command, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    (command.folder / "tokenizer" / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + answers)
    for year in (2031, 2031, 2032):
        day = SimpleNamespace(today=lambda year=year: date(year, 5, 6))
        monkeypatch.setattr(jinja_template, "date", day)
        command.run("--prompt-type", "hf", "--cache-dir", str(cache(command)))
    assert reads.count == 2 and len(list(cache(command).iterdir())) == 2


def test_irregular_files_in_a_tokenizer_folder(command: Command) -> None:
    (command.folder / "tokenizer" / "gone.json").symlink_to(command.folder / "nowhere")
    (command.folder / "tokenizer" / "folder.json").mkdir()
    command.run("--cache-dir", str(cache(command)))
    assert len(list(cache(command).iterdir())) == 1


def test_files_of_killed_runs_are_removed_and_those_of_live_runs_kept(command: Command) -> None:
    with temp_dir_in(cache(command)) as living:
        killed = cache(command) / ".making-killed"
        killed.mkdir()
        (killed / "tokens").write_bytes(b"1234")
        killed.with_name(".making-killed.lock").touch()
        with temp_dir_in(cache(command)) as another:
            assert another != living and living.is_dir() and another.is_dir() and not killed.exists()
        command.run("--cache-dir", str(cache(command)))
        assert living.is_dir() and not another.exists()
    assert [path.name[:7] for path in cache(command).iterdir()] == ["tokens-"]


def test_a_library_imported_during_a_run_does_not_change_the_cache_key(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = preprocessing_run.read_samples

    def meanwhile(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        monkeypatch.setattr("mindspeed_llm.preprocessing.token_cache.LIBRARIES", ("tokenizers", "numpy"))

    monkeypatch.setattr(preprocessing_run, "read_samples", meanwhile)
    command.run("--cache-dir", str(cache(command)))
    assert len(list(cache(command).iterdir())) == 1
