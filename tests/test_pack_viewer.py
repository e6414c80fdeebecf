"""`preprocess_data.py inspect`: what it says of a pack, on the terminal and as a page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.arguments.inspect_arguments import parse_inspect_arguments
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import IndexedWriter, PackedFiles
from mindspeed_llm.manifest import COLUMNS, column_prefix
from mindspeed_llm.pack_viewer import inspect_pack
from mindspeed_llm.pack_viewer.pack_view import view_pack
from mindspeed_llm.pack_viewer.terminal_view import render_pack, show_control_characters, use_colour
from mindspeed_llm.preprocessing import preprocess
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b[2J<script>alert('&')</script>\x07 三🙂"
ROWS = [{"instruction": f"Ask {n} {HOSTILE}", "output": f"Tell {n}.\n" * (n + 1)} for n in range(6)]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer("PretrainedFromHF", str(folder))


@pytest.fixture
def make(tmp_path: Path, folder: Path) -> Make:
    def made(*flags: str) -> Path:
        (tmp_path / "rows.json").write_text(json.dumps(ROWS))
        words = ["--input", str(tmp_path / "rows.json"), "--tokenizer-name-or-path", str(folder)]
        words += ["--handler-name", "AlpacaStyleInstructionHandler", "--output-prefix", str(tmp_path / "set"), *flags]
        preprocess(parse_preprocess_arguments(words))
        return tmp_path / "set"

    return made


NEAT = ("--prompt-type", "qwen", "--pack", "--neat-pack", "--seq-length", "512")
PADDED = (*NEAT, "--pad-to-multiple-of", "16")
PLAIN = ("--prompt-type", "default", "--append-eod", "--pack", "--seq-length", "512")


@pytest.mark.parametrize("flags", [NEAT, PADDED, PLAIN, ("--prompt-type", "qwen")])
def test_every_sample_is_shown_once_with_its_own_answer_trained(
    make: Make, tokenizer: Tokenizer, flags: tuple[str, ...]
) -> None:
    files = PackedFiles.open(make(*flags))
    views = [view_pack(files, number, tokenizer) for number in range(len(files))]
    found = {}
    for view in views:
        assert view.tokens + view.padding == len(files.input_ids[view.number])
        place = 0
        for sample in view.samples:
            gap = -place % 16 if flags == PADDED else 0
            assert sample.start == place + gap
            place += gap + sample.tokens
            trained = "".join(stretch.text for stretch in sample.spans if stretch.trained)
            number = int(re.search(r"Tell (\d)", trained)[1])  # type: ignore[index]
            found[number] = trained
            assert f"Ask {number} {HOSTILE}" in "".join(s.text for s in sample.spans if not s.trained)
    end = "<|im_end|>" if "qwen" in flags else "<|endoftext|>"
    assert {n: text.rstrip("\n") for n, text in found.items()} == {n: ROWS[n]["output"] + end for n in range(6)}
    assert sum(view.trained for view in views) == files.manifest.trained_tokens  # type: ignore[union-attr]
    assert sum(view.tokens for view in views) == files.manifest.tokens, "a token is not padding"  # type: ignore[union-attr]


def test_a_note_reports_that_plain_packs_do_not_define_sample_ends(make: Make, tokenizer: Tokenizer) -> None:
    prefix = make("--prompt-type", "qwen", "--pack", "--seq-length", "512")
    view = view_pack(PackedFiles.open(prefix), 0, tokenizer)
    assert len(view.samples) == 1 and "do not define where a sample ends" in view.note


def test_files_without_a_manifest(tmp_path: Path, tokenizer: Tokenizer) -> None:
    end, other = tokenizer.eos_id, 40
    pad = tokenizer.pad_id
    columns = ([other, end, other, end, pad, pad], [1] * 6, [-100, end, -100, end, -100, -100])
    for column, tokens in zip(COLUMNS, columns, strict=True):
        with IndexedWriter(column_prefix(tmp_path / "set", column)) as out:
            out.add(np.array(tokens, np.int32))
    with pytest.warns(UserWarning, match="no set_packed_manifest.json"):
        files = PackedFiles.open(tmp_path / "set")
    view = view_pack(files, 0, tokenizer)
    assert [sample.tokens for sample in view.samples] == [2, 2] and view.padding == 2 and view.trained == 2
    assert view_pack(files, 0, None).padding == 0, "without a tokenizer nothing says which id is padding"


def test_control_characters_of_the_data_are_escaped_on_the_terminal(make: Make, tokenizer: Tokenizer) -> None:
    view = view_pack(PackedFiles.open(make(*NEAT)), 0, tokenizer)
    plain, coloured = render_pack(view, [("name", "a\x1b[31m")], False), render_pack(view, [], True)
    assert "\x1b" not in plain and "\x07" not in plain and "␛[2J<script>" in plain
    assert "⟦Tell" in plain and "⟦" not in coloured
    assert set(re.findall(r"\x1b\[[\d;]*[A-Za-z]", coloured)) <= {
        "\x1b[0m", "\x1b[1m", "\x1b[2m", *(f"\x1b[38;5;{n}m" for n in range(256))
    }  # fmt: skip
    assert show_control_characters("a\r\nb\x7f\u202e\ttab") == "a\nb␡<202E>\ttab"


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_colour(Terminal(), "auto") and not use_colour(Terminal(), "never")  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour(Terminal(), "auto") and use_colour(Terminal(), "always")  # type: ignore[arg-type]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not use_colour(Terminal(), "auto")  # type: ignore[arg-type]


class Page(HTMLParser):
    """Tags, and the text inside <mark> of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.marked: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "mark":
            self.marked.append(data)


def test_the_page_is_self_contained_and_escaped(
    make: Make, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = make(*NEAT)
    page = tmp_path / "page.html"
    capsys.readouterr()
    inspect_pack(*parse_inspect_arguments([str(prefix), "--tokenizer-name-or-path", str(folder), "--html", str(page)]))
    out = capsys.readouterr().out
    assert "rows read" in out and "trained" in out and "sample 1 · slots 0 to" in out
    text = page.read_text(encoding="utf-8")
    read = Page()
    read.feed(text)
    assert not {"script", "link", "img", "iframe"} & set(read.tags) and "url(" not in text and "://" not in text
    samples = len(view_pack(PackedFiles.open(prefix), 0, None).samples)
    assert read.sources == [f"#s{number}" for number in range(1, samples + 1)]
    assert sum("Tell" in one for one in read.marked) == samples
    with pytest.raises(DataError, match=r"--html .*none/page.html: cannot be written"):
        inspect_pack(*parse_inspect_arguments([str(prefix), "--html", str(tmp_path / "none" / "page.html")]))


def test_faults_are_named(make: Make, tmp_path: Path, folder: Path) -> None:
    prefix = str(make(*NEAT))
    other = byte_level_folder(tmp_path / "other", markers=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|more|>"])
    for words, message in (
        ([prefix, "--pack", "99"], "--pack 99: there is no such pack; the last pack is"),
        ([prefix, "--tokenizer-name-or-path", str(other)], "made with another tokenizer"),
        ([prefix, "--tokenizer-name-or-path", "none"], "no such directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            inspect_pack(*parse_inspect_arguments(words))
    with pytest.raises(DataError, match="no such file"):
        inspect_pack(*parse_inspect_arguments([str(tmp_path / "nothing")]))
    with pytest.raises(ConfigError) as caught:
        parse_inspect_arguments(
            ["--pack", "-1", "--htlm", "x", "--tokenizer-model", "a", "--tokenizer-name-or-path", "b"]
        )
    assert len(caught.value.problems) == 4, caught.value.problems


def test_sentence_piece_text_comes_back(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("PretrainedFromHF", str(sentence_piece_folder(tmp_path)))
    ids = [tokenizer.bos_id, *tokenizer.encode_batch(["Name 三🙂\n rivers."])[0].tolist(), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "<s> Name 三🙂\n rivers.</s>"


def test_the_program_prints_plain_text_into_a_pipe_and_draws_the_picture(tmp_path: Path, folder: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "preprocess_data.py"), *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    named = ["--tokenizer-name-or-path", str(folder)]
    made = run("--input", str(tmp_path / "rows.json"), "--handler-name", "AlpacaStyleInstructionHandler", *named,
               "--output-prefix", str(tmp_path / "set"), *NEAT)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "set_packing.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    shown = run("inspect", str(tmp_path / "set"), *named)
    assert shown.returncode == 0 and "\x1b" not in shown.stdout and "⟦Tell" in shown.stdout, shown.stderr
    refused = run("inspect", str(tmp_path / "set"), "--pack", "99")
    assert refused.returncode == 2 and refused.stderr.startswith("preprocess_data.py inspect: error: --pack 99")


def test_files_are_compared_with_their_hashes_if_asked_for(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = make(*NEAT)
    inspect_pack(*parse_inspect_arguments([str(prefix), "--verify"]))
    assert "verified: " in capsys.readouterr().err
    labels = Path(f"{column_prefix(prefix, 'labels')}.bin")
    data = labels.read_bytes()
    labels.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    inspect_pack(*parse_inspect_arguments([str(prefix)]))
    with pytest.raises(DataError, match=r"labels_document\.bin: its bytes differ"):
        inspect_pack(*parse_inspect_arguments([str(prefix), "--verify"]))
