"""`--executor ray` writes, byte for byte, what the local run writes; also when a worker dies on the way."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from late_ray import LateRay
from small_tokenizers import byte_level_folder
from time_limits import HANG_SECONDS

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.preprocessing import preprocess, ray_executor, row_blocks, sample_reader
from mindspeed_llm.rawdata import file_blocks

ROOT = Path(__file__).parents[1]
RAY = importlib.util.find_spec("ray") is not None
Run = Callable[..., dict[str, bytes]]


def rows(count: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"instruction": f"Ask {n}", "output": f"Tell {n}. " * (1 + n * n % 60), "system": ""} for n in range(count)
    ]
    for bad in range(5, count, 37):
        made[bad] = {"instruction": "", "output": "x", "system": None}
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same rows in several formats, in `data`, and a tokenizer."""
    byte_level_folder(tmp_path / "tokenizer")
    data = tmp_path / "data"
    data.mkdir()
    made = rows(200)
    lines = [json.dumps(row) + "\n" for row in made]
    (data / "rows.json").write_text("[\n" + ",\n".join(map(str.strip, lines)) + "\n]\n")
    (data / "rows.jsonl").write_text("\n".join(lines))  # with blank lines between
    (data / "rows.csv").write_text("instruction,output\n" + "".join(f"a {n},{'b ' * n}\n" for n in range(200)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), data / "rows.parquet", row_group_size=16)
    return tmp_path


def words(folder: Path, out: str, *more: str) -> list[str]:
    return [
        "--handler-name", "AlpacaStyleInstructionHandler", "--tokenizer-name-or-path", str(folder / "tokenizer"),
        "--prompt-type", "qwen", "--pack", "--neat-pack", "--seq-length", "256", "--map-keys", '{"system": "system"}',
        "--output-prefix", str(folder / out / "set"), *more,
    ]  # fmt: skip


def written(folder: Path, out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / out).iterdir())}


@pytest.fixture
def late_ray(monkeypatch: pytest.MonkeyPatch) -> LateRay:
    stand_in = LateRay()
    monkeypatch.setattr(ray_executor, "_connected", lambda arguments: stand_in)
    monkeypatch.setattr(ray_executor, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(file_blocks, "PIECE", 1000)
    monkeypatch.setattr(row_blocks, "ROWS_AT_ONCE", 33)
    monkeypatch.setattr(sample_reader, "ROWS_AT_ONCE", 13)
    row_blocks._prepared.clear()
    return stand_in


INPUTS = {
    "lines": (["rows.jsonl"], [], 6),
    "row groups": (["rows.parquet"], [], 2),
    "a JSON array, read here": (["rows.json"], [], 7),
    "CSV, read here": (["rows.csv"], ["--map-keys", "{}"], 2),
    "several data sets": (["rows.jsonl", "rows.json"], [], 13),
    "mixed data sets": (["rows.jsonl", "rows.parquet"], ["--mix-strategy", "interleave_over"], 13),
    "some rows of each": (["rows.jsonl", "rows.parquet"], ["--max-samples", "70"], 5),
}


@pytest.mark.parametrize("case", INPUTS)
def test_the_files_are_those_of_the_local_run(folder: Path, late_ray: LateRay, case: str) -> None:
    names, more, least = INPUTS[case]
    inputs = [word for name in names for word in ("--input", str(folder / "data" / name))]
    local = words(folder, "local", *inputs, *more)
    preprocess(parse_preprocess_arguments(local))
    preprocess(parse_preprocess_arguments(words(folder, "ray", *inputs, *more, "--executor", "ray")))
    assert written(folder, "ray") == written(folder, "local") and late_ray.tasks >= least
    assert late_ray.most_waiting <= 4, "no more results wait than memory allows"


def test_documents_are_those_of_the_local_run(folder: Path, late_ray: LateRay) -> None:
    given = [
        "--input", str(folder / "data" / "rows.jsonl"), "--handler-name", "AlpacaPretrainHandler", "--output-format",
        "document", "--tokenizer-name-or-path", str(folder / "tokenizer"), "--max-samples", "150",
    ]  # fmt: skip
    for executor in ("local", "ray"):
        out = ["--output-prefix", str(folder / f"documents {executor}" / "set"), "--executor", executor]
        preprocess(parse_preprocess_arguments([*given, *out]))
    files = written(folder, "documents local")
    assert "set_text_document.bin" in files and written(folder, "documents ray") == files and late_ray.tasks > 2


def test_faults_of_rows_and_columns_are_those_of_the_local_run(folder: Path, late_ray: LateRay) -> None:
    given = ["--input", str(folder / "data" / "rows.jsonl")]
    for more in (
        ["--strict"],
        ["--map-keys", '{"query": "quarry"}'],
        ["--max-bad-rows", "3"],
        ["--prompt-type", "llama3"],
    ):
        said = []
        for executor in ("local", "ray"):
            with pytest.raises((DataError, ConfigError)) as caught:
                preprocess(parse_preprocess_arguments(words(folder, "out", *given, *more, "--executor", executor)))
            said.append(str(caught.value))
        assert said[0] == said[1], more
    (folder / "data" / "bad.jsonl").write_text("{}\n" * 3000 + "{\n")
    bad = ["--input", str(folder / "data" / "bad.jsonl"), "--map-keys", "{}", "--executor", "ray"]
    with pytest.raises(DataError, match=r"none of 3,001 rows gives a sample \(instruction is missing: 3,000, broken J"):
        preprocess(parse_preprocess_arguments(words(folder, "out", *bad)))
    (folder / "data" / "blank.jsonl").write_text("\n" * 9000)
    with pytest.raises(DataError, match="no row in the file"):
        preprocess(
            parse_preprocess_arguments(
                words(folder, "out", "--input", str(folder / "data" / "blank.jsonl"), "--executor", "ray")
            )
        )


def test_another_tokenizer_on_a_node_is_refused(
    folder: Path, late_ray: LateRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ray_executor.tokenise_block
    monkeypatch.setattr(
        ray_executor, "tokenise_block", lambda command, tokenizer, block: task(command, "0" * 64, block)
    )
    with pytest.raises(DataError, match="a different tokenizer"):
        preprocess(
            parse_preprocess_arguments(
                words(folder, "out", "--input", str(folder / "data" / "rows.jsonl"), "--executor", "ray")
            )
        )


@pytest.mark.skipif(RAY, reason="ray is installed here")
def test_without_ray_the_error_names_the_package(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[ray\]'"):
        preprocess(
            parse_preprocess_arguments(
                words(folder, "out", "--input", str(folder / "data" / "rows.jsonl"), "--executor", "ray")
            )
        )
    assert not (folder / "out").exists()


def test_an_address_needs_the_executor(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--ray-address needs --executor ray"):
        parse_preprocess_arguments(words(folder, "out", "--input", "x", "--ray-address", "auto"))


# The program with small blocks, so that there are many.
SMALL_BLOCKS = """
import sys
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.preprocessing import preprocess
from mindspeed_llm.preprocessing import ray_executor
ray_executor.BLOCK_BYTES = 1 << 18
preprocess(parse_preprocess_arguments(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.skipif(not RAY, reason="ray is not installed")
def test_a_cluster_of_two_workers_one_of_which_dies(folder: Path) -> None:
    """A worker is killed while it tokenises; the files are those of the local run all the same."""
    big = folder / "big.jsonl"
    row = {"instruction": "Ask", "output": ""}
    big.write_text("".join(json.dumps({**row, "output": f"Tell {n * n} " * 60}) + "\n" for n in range(6_000)))
    given = ["--input", str(big), "--map-keys", "{}"]
    preprocess(parse_preprocess_arguments(words(folder, "local", *given)))
    command = [sys.executable, "-c", SMALL_BLOCKS, *words(folder, "ray", *given, "--executor", "ray", "--workers", "2")]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        killed = 0
        while run.poll() is None and not killed:
            killed = kill_a_working_child(run.pid)
            time.sleep(0.02)
        _, said = run.communicate(timeout=HANG_SECONDS)
    assert run.returncode == 0, said
    assert killed == 1, "no worker was seen at work"
    assert written(folder, "ray") == written(folder, "local")


def kill_a_working_child(parent: int) -> int:
    """1 if there was one."""
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if any("ray::tokenise_block" in word for word in process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return 1
    return 0
