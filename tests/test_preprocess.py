"""preprocess_data.py from end to end: what it writes, what it counts, what it refuses and what it then leaves."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preprocess_command import ALPACA, ROOT, Command, rows
from small_tokenizers import byte_level_folder, sentence_piece_folder

from mindspeed_llm.console import progress
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import Manifest, manifest_path
from mindspeed_llm.preprocessing import sample_reader


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture
def command(tmp_path: Path, tokenizer: Path) -> Command:
    return Command(tmp_path, tokenizer, rows(60))


def golden(shared: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """segments.py of the golden folder as a module, and one case."""
    described = importlib.util.spec_from_file_location("golden_segments", shared / "golden" / "segments.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module, json.loads((shared / "golden" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "data", "tokenizer_name", "flags", "packs", "fill", "differing"),
    [
        ("en_qwen_neat_4096", "alpaca_en", "qwen25-tokenizer", ["--prompt-type", "qwen", "--neat-pack"], 45, 99.40, 0),
        (
            "en_qwen_neat_4096",
            "alpaca_en",
            "qwen25-tokenizer",
            ["--prompt-type", "qwen", "--neat-pack", "--append-eod"],
            45,
            99.40,
            0,
        ),
        (
            "en_llama2_pack_eod_4096",
            "alpaca_en",
            "llama2-tokenizer",
            ["--prompt-type", "llama2", "--append-eod"],
            49,
            99.00,
            0,
        ),
        (
            "sg_qwen_neat_4096",
            "sharegpt_en",
            "qwen25-tokenizer",
            ["--prompt-type", "qwen", "--neat-pack", "--handler-name", "SharegptStyleInstructionHandler"],
            28,
            97.25,
            1,  # the over-long one, cut by another rule
        ),
    ],
)
def test_samples_are_those_that_mindspeed_wrote(
    shared: Path,
    tmp_path: Path,
    name: str,
    data: str,
    tokenizer_name: str,
    flags: list[str],
    packs: int,
    fill: float,
    differing: int,
) -> None:
    command = Command(tmp_path, shared / "assets" / tokenizer_name)
    words = [
        "--input",
        str(shared / "data" / f"{data}.json"),
        "--pack",
        "--seq-length",
        "4096",
        "--workers",
        "2",
        *flags,
    ]
    without = ("--neat-pack",)
    manifest = command.run(*words, without=without)
    segments, case = golden(shared, name)
    found = segments.digests(str(command.prefix), case["split"], 1, case["eos"])
    expected = Counter(case["samples"])
    assert sum(found.values()) == sum(expected.values()) == manifest.samples
    assert sum((expected - found).values()) == sum((found - expected).values()) == differing
    assert manifest.packs == packs == -(-manifest.tokens // 4096) and round(100 * manifest.fill, 2) == fill


def test_packs_as_the_contract_has_them(command: Command) -> None:
    manifest = command.run()
    files = PackedFiles.open(command.prefix)
    files.verify_hashes()
    assert len(files) == manifest.packs and manifest.samples == 60
    ids, mask, labels = (
        np.stack([column[n] for n in range(len(files))])
        for column in (files.input_ids, files.attention_mask, files.labels)
    )
    assert ids.shape == (manifest.packs, 256)
    padding = mask == 0
    assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding stands at the end"
    assert (ids[padding] == manifest.tokenizer.pad_id).all() and (labels[padding] == -100).all()
    assert (np.diff(np.where(padding, 10**6, mask), axis=1) >= 0).all() and (mask[:, 0] == 1).all()
    assert int((~padding).sum()) == manifest.tokens and int((labels != -100).sum()) == manifest.trained_tokens
    assert manifest.fill == manifest.tokens / ids.size
    assert manifest.eod_inside_sample and manifest.tokenizer.eod_id != manifest.tokenizer.pad_id
    lengths = Counter(len(sample) for sample, _ in command.samples())
    assert manifest.histograms.sample_length == [list(pair) for pair in sorted(lengths.items())]
    assert sum(count * packs for count, packs in manifest.histograms.samples_per_pack) == 60
    assert not command.prefix.parent.joinpath("set_rejected.jsonl").exists()
    assert len(command.written()) == 7, "no temporary file is left"


def test_plain_packs_have_a_mask_of_ones_on_tokens(command: Command) -> None:
    command.run()
    neat = command.written()
    manifest = command.run(without=("--neat-pack",))
    files = PackedFiles.open(command.prefix)
    masks = np.stack([files.attention_mask[n] for n in range(len(files))])
    assert set(np.unique(masks)) <= {0, 1} and int(masks.sum()) == manifest.tokens and not manifest.neat
    different = {name for name, content in command.written().items() if content != neat[name]}
    assert different == {"set_packed_attention_mask_document.bin", "set_packed_manifest.json"}


def test_without_pack_each_sample_is_a_document(command: Command) -> None:
    command.run()
    packed = Counter(command.samples())
    manifest = command.run(without=("--pack", "--neat-pack", "--seq-length"))
    assert not manifest.packed and manifest.packing is None and manifest.packs == manifest.samples == 60
    samples = command.samples()
    assert Counter(samples) == packed and manifest.seq_length == max(len(ids) for ids, _ in samples)
    command.input.write_text(json.dumps(rows(60)[::-1]))
    command.run(without=("--pack", "--neat-pack", "--seq-length"))
    assert command.samples() == samples[::-1], "documents stand in the order of the rows"


@pytest.mark.usefixtures("small_blocks")
def test_the_output_is_the_same_whatever_the_workers_format_or_batch(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.run()
    first = command.written()
    first.pop("set_packed_manifest.json")
    monkeypatch.setattr(sample_reader, "ROWS_AT_ONCE", 7)
    lines = command.folder / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(60)), command.folder / "rows.parquet")
    for more in (["--workers", "3"], ["--input", str(lines)], ["--input", str(command.folder / "*.parquet")]):
        command.run(*more, "--cache-dir", str(command.folder / "cache"))
        again = command.written()
        again.pop("set_packed_manifest.json")
        assert again == first, more
    command.run("--seed", "7")
    assert command.written()["set_packed_input_ids_document.bin"] != first["set_packed_input_ids_document.bin"]


@pytest.mark.usefixtures("small_blocks")
def test_sentence_piece_output_does_not_depend_on_workers(tmp_path: Path) -> None:
    command = Command(tmp_path, sentence_piece_folder(tmp_path / "tokenizer"), rows(40))
    flags = ("--prompt-type", "llama2", "--append-eod")
    command.run(*flags)
    first = command.written()
    command.run(*flags, "--workers", "3")
    assert command.written() == first


def test_rows_are_kept_or_skipped_and_counted(command: Command) -> None:
    bad = [7, {"instruction": "", "output": "x"}, {"instruction": "x"}, {"instruction": "x", "output": 3}]
    data = rows(5) + bad + rows(3) + [{"instruction": "x" * 50, "output": "y", "system": "s" * 600}]
    command.input.write_text("[\n" + ",\n".join(json.dumps(row) for row in data) + "\n]\n")
    counts = command.run("--map-keys", '{"system": "system"}').counts
    assert counts.rows_read == 13 == counts.kept + sum(counts.skipped.values())
    assert counts.skipped == {
        "row is not an object": 1,
        "instruction is empty": 1,
        "answer is missing": 1,
        "answer is not text": 1,
        "prefix, system and markers exceed seq_length": 1,
    }
    rejected = command.rejected()
    assert [entry["line"] for entry in rejected] == [7, 8, 9, 10, 14]
    assert rejected[0] == {"file": str(command.input), "line": 7, "reason": "row is not an object", "row": 7}
    command.input.write_text(json.dumps(rows(3)))
    command.run()
    assert not (command.prefix.parent / "set_rejected.jsonl").exists(), "that of an earlier run is gone"


def test_too_long_samples(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(6)
    data[2]["output"] = "word " * 400
    data[4]["instruction"] = "三🙂 " * 400
    command.input.write_text("\n".join(json.dumps(row) for row in data))
    manifest = command.run()
    assert manifest.counts.truncated == 2 and manifest.counts.kept == 6
    assert manifest.counts.cuts == {"answers cut": 1, "user texts shortened": 1}
    assert sorted(len(ids) for ids, _ in command.samples())[-2:] == [256, 256]
    assert "truncated         2 (answers cut: 1, user texts shortened: 1)" in capsys.readouterr().out
    manifest = command.run("--overlong", "drop")
    assert manifest.counts.skipped == {"longer than seq_length": 2} and manifest.counts.dropped == 2
    before = command.written()
    with pytest.raises(DataError, match=r"rows\.json:3: the sample is longer than --seq-length 256"):
        command.run("--overlong", "error")
    assert command.written() == before


def test_all_samples_too_long_and_one_of_exactly_seq_length(command: Command) -> None:
    command.input.write_text(json.dumps([{"instruction": "a", "output": "b " * 999}] * 3))
    manifest = command.run()
    assert manifest.packs == 3 and manifest.fill == 1.0
    command.input.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    length = command.run(without=("--pack", "--neat-pack")).tokens
    manifest = command.run("--seq-length", str(length), "--append-eod")
    assert manifest.packs == 1 and manifest.fill == 1.0 and manifest.counts.truncated == 0


def test_max_samples(command: Command) -> None:
    assert command.run("--max-samples", "7").counts.rows_read == 7


def test_the_manifest_says_where_it_came_from(command: Command) -> None:
    manifest = command.run()
    assert manifest == Manifest.read(manifest_path(command.prefix))
    assert manifest.sources[0].name == "rows.json" and manifest.sources[0].size == command.input.stat().st_size
    assert manifest.handler == ALPACA and manifest.template is not None and manifest.template.name == "qwen"
    assert manifest.packing is not None and manifest.packing.seed == 1234


REFUSED = {
    "missing file": (["--input", "{folder}/none.json"], (), "no such file or directory"),
    "empty file": (["--input", "{folder}/empty.json"], (), "the file is empty"),
    "bad JSON": (["--input", "{folder}/bad.json"], (), "bad.json:2: bad JSON"),
    "mixed directory": (["--input", "{folder}/mixed"], (), "several formats (1 .json, 1 .jsonl)"),
    "no column": (["--map-keys", '{"query":"quarry"}'], (), "no row has the column 'quarry'; they have instruction"),
    "no such prompt": (["--map-keys", '{"prompt":"question"}'], (), "no row has the column 'question'"),
    "malformed map": (["--map-keys", "{prompt}"], (), "--map-keys: not JSON"),
    "unknown key": (["--map-keys", '{"promt":"x"}'], (), "unknown key 'promt'"),
    "neat without pack": ([], ("--pack",), "--neat-pack needs --pack"),
    "pack without length": ([], ("--seq-length",), "--pack needs --seq-length"),
    "no tokenizer": (["--tokenizer-name-or-path", "{folder}/none"], (), "no such directory"),
    "code": (
        ["--tokenizer-name-or-path", "{folder}/code", "--trust-remote-code"],
        (),
        "code of a tokenizer's folder is",
    ),
    "code, not trusted": (
        ["--tokenizer-name-or-path", "{folder}/code"],
        (),
        "defined by its own Python code, which is not run",
    ),
    "no end token": (["--tokenizer-name-or-path", "{folder}/endless", "--prompt-type", "default"], (), "no end token"),
    "lacking marker": (["--prompt-type", "llama3"], (), "the tokenizer lacks <|eot_id|>"),
    "unknown template": (["--prompt-type", "qwn"], (), "--prompt-type qwn: no such template"),
    "unknown handler": (["--handler-name", "Alpaca"], (), "--handler-name Alpaca: no such handler"),
    "nothing kept": (
        ["--input", "{folder}/useless.json"],
        (),
        "none of 2 rows gives a sample (instruction is missing: 2)",
    ),
    "no room": (["--seq-length", "8"], (), "markers exceed seq_length: 60); raise --seq-length 8"),
    "all dropped": (["--seq-length", "24", "--overlong", "drop"], (), "); raise --seq-length 24"),
    "no handler": (["--input", "{folder}/useless.json"], ("--handler-name",), "--handler-name is required"),
    "no template": ([], ("--prompt-type",), "--prompt-type is required"),
    "template for plain text": (
        ["--handler-name", "GeneralPretrainHandler"],
        (),
        "--prompt-type: GeneralPretrainHandler",
    ),
    "shares without mixing": (["--interleave-probs", "1"], (), "--interleave-probs needs --mix-strategy"),
    "shares that are none": (
        ["--mix-strategy", "interleave_over", "--interleave-probs", "a"],
        (),
        "--interleave-probs a: not a comma-separated list",
    ),
    "too many shares": (
        ["--mix-strategy", "interleave_over", "--interleave-probs", ".5,.5"],
        (),
        "2 probabilities for 1 --input",
    ),
    "shares above 1": (["--mix-strategy", "interleave_over", "--interleave-probs", "2"], (), "their sum must be 1"),
    "odd multiple": (["--pad-to-multiple-of", "6"], (), "--seq-length 256 is not a multiple of it"),
    "multiple without neat": (["--pad-to-multiple-of", "8"], ("--neat-pack",), "needs --pack --neat-pack"),
    "virtual tokens without neat": (["--virtual-tokens", "8"], ("--neat-pack",), "needs --pack --neat-pack"),
    "virtual tokens alone": (["--virtual-tokens", "256"], (), "leaves no slot for a token in --seq-length 256"),
    "strict and a bound": (["--strict", "--max-bad-rows", "3"], (), "--strict allows no bad row"),
    "both masks": (["--train-on-prompt", "--mask-history"], (), "leave one of them out"),
    "no thoughts": (["--enable-thinking", "true"], (), "--enable-thinking: the template qwen has no reasoning"),
    "no thoughts to keep": (["--reasoning-history", "drop"], (), "--reasoning-history: the template qwen has no"),
    "no empty thoughts": (["--train-empty-reasoning"], (), "--train-empty-reasoning: the template qwen has no"),
    "kept and removed": (
        ["--prompt-type", "qwen3", "--reasoning-history", "keep", "--enable-thinking", "false"],
        (),
        "--reasoning-history keep keeps the reasoning of earlier answers, --enable-thinking false removes all",
    ),
    "tools of hf": (["--prompt-type", "hf", "--tool-format", "qwen"], (), "--tool-format: --prompt-type hf"),
    "no chat template": (["--prompt-type", "hf"], (), "contains no chat template"),
    "misspelt flag": (["--seq-lenght", "64"], (), "did you mean --seq-length?"),
    "negative seed": (["--seed", "-1"], (), "--seed -1: must be at least 0"),
    "directory as prefix": (["--output-prefix", "{folder}/made/"], (), "a directory"),
    "place taken by a file": (["--output-prefix", "{folder}/rows.json/set"], (), "--output-prefix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_users_error_is_one_line_and_leaves_nothing(
    command: Command, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    folder = command.folder
    (folder / "empty.json").touch()
    (folder / "bad.json").write_text('[{"instruction": "a", "output": "b"},\n{"instruction" "a"}]')
    (folder / "useless.json").write_text('[{"a": 1}, {"a": 2}]')
    (folder / "mixed").mkdir()
    for name in ("a.json", "b.jsonl"):
        (folder / "mixed" / name).write_text("{}")
    byte_level_folder(folder / "endless", eos=None)
    (folder / "code").mkdir()
    (folder / "code" / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    before = sorted(folder.rglob("*"))
    more, without, message = REFUSED[case]
    assert command.status(*(word.replace("{folder}", str(folder)) for word in more), without=without) == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(printed) == 1 and message in printed[0], printed
    assert sorted(folder.rglob("*")) == before


def test_faults_of_flags_come_together(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.status("--workers", "no", "--mix-strategy", "in_turn", "--bogus", without=("--pack",)) == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 4
    assert (
        command.status("--handler-name", "x", "--prompt-type", "y", "--input", "z", "--tokenizer-name-or-path", "w")
        == 2
    )
    assert capsys.readouterr().err.count("error:") == 4


def test_a_failed_run_leaves_the_old_output(command: Command) -> None:
    command.run()
    before = command.written()
    command.input.write_text('[{"instruction": "a", "output": "b"},\n{')
    assert command.status() == 2
    assert command.written() == before
    PackedFiles.open(command.prefix).verify_hashes()


def test_files_of_a_killed_run_are_removed(command: Command) -> None:
    leftover = command.prefix.parent / ".set_packed.tokens"
    leftover.mkdir(parents=True)
    (leftover / "ids").write_bytes(b"x" * 100)
    command.run()
    assert len(command.written()) == 7 and not leftover.exists()


def test_progress_is_logged(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_reader, "ROWS_AT_ONCE", 10)
    command.run("--log-interval", "20")
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("reading 1 file")
    assert shown[1].startswith("tokenizer library: ")
    assert shown[2:] == ["notice: --log-interval has no effect: progress is shown by time"], "no line in a short run"
    monkeypatch.setattr(progress, "READING_SECONDS", 0)
    command.run()
    read = capsys.readouterr()
    lines = [line for line in read.err.splitlines() if "rows/s" in line]
    assert [line.split(" rows,")[0] for line in lines] == ["10", "20", "30", "40", "50", "60"]
    table = read.out
    for word in (
        "rows read",
        "kept",
        "skipped",
        "truncated",
        "tokens",
        "trained",
        "packs",
        "% filled",
        "median",
        "seconds",
    ):
        assert word in table


def test_progress_is_a_bar_in_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    command.run()
    assert "60 rows" in terminal.getvalue() and "100%" in terminal.getvalue()


@pytest.mark.parametrize(
    ("flags", "without", "said"),
    [
        (["--prompt-type", "qwen"], (), None),
        (["--prompt-type", "qwen"], ("--neat-pack",), "add --neat-pack if"),
        (["--prompt-type", "empty"], ("--neat-pack",), "60 samples do not end with an end token"),
        (["--prompt-type", "empty", "--append-eod"], ("--neat-pack",), None),
        (["--prompt-type", "empty"], ("--pack", "--neat-pack"), None),
        (["--prompt-type", "mistral"], (), "the tokenizer has none"),
        (["--tokenizer-not-use-fast"], (), "tokenizer.json is used"),
        (["--trust-remote-code"], (), "--trust-remote-code has no effect"),
    ],
)
def test_notices(
    command: Command, capsys: pytest.CaptureFixture[str], flags: list[str], without: tuple[str, ...], said: str | None
) -> None:
    command.run(*flags, without=without)
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notice:")]
    assert len(notices) == (said is not None) and (said is None or said in notices[0])


def test_replaced_files_are_a_notice(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.run("--prompt-type", "qwen")
    assert "notice:" not in capsys.readouterr().err
    command.run("--prompt-type", "qwen")
    assert "the packed files there are replaced" in capsys.readouterr().err


def test_help_is_quick_and_imports_little() -> None:
    program = (
        "import runpy, sys; sys.argv = ['preprocess_data.py', '--help']\n"
        "try: runpy.run_path('preprocess_data.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'megatron', 'transformers', 'numba', 'pyarrow', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--neat-pack" in done.stdout and "--handler-name" in done.stdout


def test_the_program_itself(command: Command) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(ROOT / "preprocess_data.py"), *command.words(*more)]
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    done = run()
    assert done.returncode == 0 and "packs" in done.stdout, done.stderr
    refused = run("--input", "none.json")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr == "preprocess_data.py: error: --input none.json: no such file or directory; check the path\n"
    light = "import sys, mindspeed_llm.preprocessing; assert not {'torch', 'megatron', 'numba'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], cwd=ROOT, check=False).returncode == 0


def test_directories_inside_a_directory_are_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder = command.folder / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "rows.json").write_text(command.input.read_text())
    (folder / "more" / "rows.json").write_text(command.input.read_text())
    once = command.run("--input", str(folder)).counts.rows_read
    assert f"--input {folder}: the directories in it are not read (more)" in capsys.readouterr().err
    assert command.run("--input", f"{folder}/**/*").counts.rows_read == 2 * once
