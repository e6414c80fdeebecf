"""A run compares its packed files with the hashes of their manifest; the ranks of a machine share the files."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import RUN, pretrain, train_records, write_files

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.devices import rendezvous
from mindspeed_llm.devices.rendezvous import RankInfo
from mindspeed_llm.devices.shared_work import SharedWork
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import column_prefix, manifest_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def change_a_label(prefix: Path, keep_time: bool = False) -> Path:
    """Change one label; with the modification time set back if asked for."""
    path = Path(f"{column_prefix(prefix, 'labels')}.bin")
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[4 * 40] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


def test_one_changed_label_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = write_files(tmp_path / "data"), tmp_path / "run"
    changed = change_a_label(data)
    flags = ("--data-path", str(data), "--run-dir", str(run), "--eval-iters", "0", "--train-iters", "1")
    with pytest.raises(DataError, match=rf"{changed}: its bytes differ from those that were written"):
        pretrain(monkeypatch, *flags)
    assert not run.exists()
    pretrain(monkeypatch, *flags, "--verify-data-seconds", "0")
    assert list(train_records(run)) == [1]


def test_verified_files_are_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What keeps size and time is seen by -1 alone; from then on by every start."""
    from mindspeed_llm.training.data_verification import check_data_hashes  # imports megatron.core, see conftest.py

    files = [PackedFiles.open(write_files(tmp_path / "data"))]

    def check(seconds: str) -> str:
        arguments = parse_pretrain_arguments([*RUN.split(), "--data-path", "x", "--verify-data-seconds", seconds], 1)
        check_data_hashes(files, arguments.data.verify_data_seconds, arguments.parallel.distributed_timeout_minutes)
        return capsys.readouterr().err

    said = check("1e-9")
    assert said.count("\n") == 1 and said.startswith("notice: not compared with their hashes within"), said
    assert all(str(file.path) in said for file in files[0].hashed_files())
    assert check("60") == check("1e-9") == "", "nothing is left to check"
    change_a_label(files[0].prefix, keep_time=True)
    check("60")
    for seconds in ("-1", "60"):
        with pytest.raises(DataError, match=r"labels_document\.bin: its bytes differ"):
            check(seconds)
    check("0")


def test_a_dry_run_checks_only_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.dry_run.data_summary import DataSummary, summarize_data

    def plan() -> DataSummary:
        arguments = parse_pretrain_arguments([*RUN.split(), "--data-path", str(data), "--dry-run"], 1)
        return summarize_data(arguments.data, arguments.tokenizer, arguments.training)

    data = write_files(tmp_path / "data")
    path = change_a_label(data)
    assert plan().kind == "neat packs"
    assert not (tmp_path / "cache").exists()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"labels_document\.bin: \d+ bytes, but"):
        plan()
    with pytest.raises(DataError, match=r"labels_document\.bin: \d+ bytes, but"):
        pretrain(monkeypatch, "--data-path", str(data), "--verify-data-seconds", "0")


def test_files_without_a_manifest_are_not_checked(tmp_path: Path) -> None:
    data = write_files(tmp_path / "data")
    manifest_path(data).unlink()
    with pytest.warns(UserWarning, match="no data_packed_manifest"):
        assert PackedFiles.open(data).hashed_files() == []


@pytest.mark.parametrize("value", ["-2", "-0.5", "nan", "soon"])
def test_an_invalid_time_limit_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=f"--verify-data-seconds {value}"):
        parse_pretrain_arguments([*RUN.split(), "--data-path", "x", "--verify-data-seconds", value], 1)


# --- Ranks and machines -----------------------------------------------------------------------------------------------

As = Callable[[int, int], None]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> As:
    """Take the place of one rank after the other of two machines with two ranks, which share a store."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(rendezvous, "launcher_store", lambda: store)

    def become(machine: int, local: int) -> None:
        place = {"RANK": 2 * machine + local, "WORLD_SIZE": 4, "GROUP_RANK": machine, "LOCAL_RANK": local}
        for name, value in {**place, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "test"}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("mindspeed_llm.devices.shared_work._lists", iter([0]))  # each is a process of its own

    return become


def test_each_file_is_given_to_one_rank_of_each_machine(as_rank: As) -> None:
    patience = datetime.timedelta(seconds=0.2)
    works = {}
    for machine in range(2):
        for local in range(2):
            as_rank(machine, local)
            order = [number + 10 * machine for number in (5, 3, 8, 1)] if local == 0 else []  # the first rank's counts
            works[machine, local] = SharedWork(order.copy, patience)
    takes = [(0, 0), (0, 1), (1, 1), (0, 1), (0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (1, 1)]
    assert [works[rank].take() for rank in takes] == [5, 3, 15, 8, 1, None, None, 13, 18, 11, None]
    assert not any(work.halted() for work in works.values())
    works[1, 0].halt()
    assert all(work.halted() for work in works.values())


def test_a_machine_whose_first_rank_does_not_come_checks_nothing(as_rank: As) -> None:
    as_rank(0, 1)
    assert SharedWork(lambda: [1], datetime.timedelta(seconds=0.1)).take() is None


def test_files_not_checked_in_time_are_reported_by_machine() -> None:
    from mindspeed_llm.training.data_verification import notice_of_unchecked

    def said(*unchecked: str) -> str | None:
        ranks = [
            RankInfo(number, f"node-{'ab'[number // 2]}", unchecked=one.split()) for number, one in enumerate(unchecked)
        ]
        return notice_of_unchecked(ranks, 60)

    assert said("", "", "", "") is None
    assert "60: node-b: /d/x, /d/y. The next start" in (said("", "", "/d/y", "/d/x") or "")
    assert "60: every machine: /d/x, /d/y. The" in (said("/d/x", "/d/y", "/d/y /d/x", "") or "")
    assert "60: node-a: /d/x; node-b: /d/y. The" in (said("/d/x", "", "/d/y", "") or "")
    assert "/d/11 and 3 more" in (said(" ".join(f"/d/{n:02}" for n in range(15)), "", "", "") or "").replace("  ", " ")


def run_ranks(machines: int, data: list[Path], *flags: str) -> list[tuple[int, str]]:
    """What torchrun does on each machine, here for two ranks of each: status and output of every rank."""
    environment = os.environ | {
        "WORLD_SIZE": str(2 * machines),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29543",
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "test",
    }
    program = [sys.executable, str(Path(__file__).parents[1] / "pretrain_gpt.py"), *RUN.split(), *flags]
    ranks = [
        subprocess.Popen(
            [*program, "--data-path", str(data[rank // 2])],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank % 2), "GROUP_RANK": str(rank // 2)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2 * machines)
    ]
    said = [rank.communicate(timeout=600)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


@pytest.mark.long
@pytest.mark.parametrize("scrambled", [False, True])
def test_one_machine_with_scrambled_data_ends_every_rank(tmp_path: Path, scrambled: bool) -> None:
    """Two copies under the same manifest. Without damage every file of each is checked."""
    write_files(tmp_path / "a" / "data")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    if scrambled:
        changed = change_a_label(tmp_path / "b" / "data")
    flags = ("--run-dir", str(tmp_path / "run"), "--train-iters", "1", "--eval-iters", "0", "--global-batch-size", "8")
    results = run_ranks(2, [tmp_path / "a" / "data", tmp_path / "b" / "data"], *flags)
    assert [status for status, _ in results] == [2 if scrambled else 0] * 4, results
    if scrambled:
        for _, said in results[::2]:  # the first rank of each machine speaks for it
            assert f"{changed}: its bytes differ" in said and "(rank " in said, said
        assert not (tmp_path / "run").exists()
    else:
        entries = [json.loads(entry.read_text()) for entry in (tmp_path / "cache" / "mindspeed_llm").rglob("*.json")]
        assert len(entries) == 12 and all(entry["verified"] for entry in entries)
