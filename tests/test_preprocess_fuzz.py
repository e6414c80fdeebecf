"""Rows of any shape give samples or are counted, never a traceback; and the files do not depend on the workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.preprocessing import preprocess
from mindspeed_llm.rawdata import content_problem, find_input_files

HANDLERS = ("AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("byte-level"))


def command(folder: Path, tokenizer: Path, handler: str, *more: str) -> list[str]:
    return [
        "--input", str(folder / "rows.jsonl"), "--handler-name", handler, "--tokenizer-name-or-path", str(tokenizer),
        "--output-prefix", str(folder / "out" / "set"), "--prompt-type", "qwen", "--pack", "--neat-pack",
        "--seq-length", "64", *more,
    ]  # fmt: skip


TEXT = st.text(max_size=30) | st.sampled_from(["<|im_end|>", "<|endoftext|>", "\ud800", " ", "\x00", "x" * 300])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
ALPACA = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("instruction", "input", "output", "system", "history"), TEXT | ANYTHING)
)
ROLES = st.sampled_from(["human", "gpt", "observation", "function_call", "system", "other", 3, None])
MESSAGE = st.fixed_dictionaries({}, optional={"from": ROLES, "value": TEXT | ANYTHING})
SHAREGPT = st.fixed_dictionaries(
    {}, optional={"conversations": st.lists(MESSAGE | ANYTHING, max_size=5), "system": ANYTHING, "tools": ANYTHING}
)


@given(rows=st.lists(ALPACA | SHAREGPT | ANYTHING, min_size=1, max_size=12), handler=st.sampled_from(HANDLERS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_rows_are_kept_or_counted(tmp_path: Path, tokenizer: Path, rows: list[Any], handler: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (file,), *_ = find_input_files([str(tmp_path / "rows.jsonl")])
    if content_problem(file) is not None:  # such as an array of objects as the only row
        return
    try:
        manifest = preprocess(parse_preprocess_arguments(command(tmp_path, tokenizer, handler)))
    except DataError as error:
        assert f"none of {len(rows)} rows gives a sample" in str(error)
        return
    counts = manifest.counts
    assert counts.rows_read == len(rows) == counts.kept + sum(counts.skipped.values())
    files = PackedFiles.open(tmp_path / "out" / "set")
    files.verify_hashes()
    assert sum(int(files.attention_mask[pack].max()) for pack in range(len(files))) == manifest.samples == counts.kept
    listed = tmp_path / "out" / "set_rejected.jsonl"
    rejected = (
        [json.loads(line) for line in listed.read_text(encoding="utf-8").split("\n")[:-1]] if counts.skipped else []
    )
    assert len(rejected) == sum(counts.skipped.values()) and all(1 <= row["line"] <= len(rows) for row in rejected)


BYTES = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b""))
BROKEN = st.builds(lambda row, at: json.dumps(row).encode()[:at], ALPACA, st.integers(0, 60))
SOUND = st.just(b'{"instruction": "Ask", "output": "Tell"}')


@given(lines=st.lists(BYTES | BROKEN | SOUND, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_lines_are_rows_that_are_kept_or_counted(tmp_path: Path, tokenizer: Path, lines: list[bytes]) -> None:
    """Whatever bytes a line has, it spoils no other; the rejected ones are listed under their own numbers."""
    sound = json.dumps({"instruction": "Last", "output": "Told"}).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*lines, sound]))
    first = lines[0].removeprefix(b"\xef\xbb\xbf") if lines else sound  # a byte order mark is no text
    written = [number for number, line in enumerate([first, *lines[1:], sound][: len(lines) + 1], 1) if line.strip()]
    (file,), *_ = find_input_files([str(tmp_path / "rows.jsonl")])
    if content_problem(file) is not None:  # such as "[" in the first line, or the first bytes of another format
        return
    manifest = preprocess(parse_preprocess_arguments(command(tmp_path, tokenizer, HANDLERS[0])))
    counts = manifest.counts
    assert counts.rows_read == len(written) == counts.kept + sum(counts.skipped.values())
    assert counts.kept >= 1 + sum(line == b'{"instruction": "Ask", "output": "Tell"}' for line in lines)
    listed = tmp_path / "out" / "set_rejected.jsonl"
    rejected = (
        [json.loads(line) for line in listed.read_text(encoding="utf-8").split("\n")[:-1]] if counts.skipped else []
    )
    assert len(rejected) == sum(counts.skipped.values()) and {row["line"] for row in rejected} <= set(written)


def test_an_array_without_rows_is_named(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    words = command(tmp_path, tokenizer, HANDLERS[0])
    words[1] = str(tmp_path / "rows.json")
    with pytest.raises(DataError, match="no row in the file"):
        preprocess(parse_preprocess_arguments(words))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["byte-level", "sentence piece"])
def test_files_do_not_depend_on_the_workers(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    folder = tokenizer if kind == "byte-level" else sentence_piece_folder(tmp_path / "tokenizer")
    template = [] if kind == "byte-level" else ["--prompt-type", "llama2"]
    rows = [{"instruction": f"Ask {n}", "output": "Tell. " * (n * n % 23)} for n in range(2_500)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = []
    for workers in ("1", "2", "4"):
        preprocess(parse_preprocess_arguments(command(tmp_path, folder, HANDLERS[0], *template, "--workers", workers)))
        written.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert written[0] == written[1] == written[2] and len(written[0]) == 8
