"""What the ranks of a job tell each other before they start, and the table that comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS
from tiny_runs import write_files

from mindspeed_llm.devices import select_device
from mindspeed_llm.devices.rendezvous import (
    RankInfo,
    RendezvousError,
    exchange_rank_info,
    format_ranks,
    group_by_machine,
    report_startup_errors,
)
from mindspeed_llm.devices.versions import MISSING, cann_version, describe_device, library_versions
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import manifest_path

# Two machines of two ranks.
FACTS = [
    RankInfo(
        rank, "node-a" if rank < 2 else "node-b", "npu A (hccl)", {"torch": "2.13.0"}, {"m": ("/d/m", "1" * 64)}, "x"
    )
    for rank in range(4)
]


def test_ranks_are_formatted_as_ranges() -> None:
    assert format_ranks([3]) == "rank 3"
    assert format_ranks([2, 0, 1, 3]) == "ranks 0–3"
    assert format_ranks([0, 1, 4, 6, 7]) == "ranks 0–1, 4, 6–7"


def test_values_by_machine() -> None:
    assert group_by_machine(FACTS, dict.fromkeys(range(4), "same")) == [("every machine", "same")]
    assert group_by_machine(FACTS, {0: "a", 1: "a", 2: "a", 3: "b"}) == [
        ("node-a (ranks 0–1), node-b (rank 2)", "a"),
        ("node-b (rank 3)", "b"),
    ]
    assert group_by_machine(FACTS, {3: "b"}) == [("node-b (rank 3)", "b")], "one machine's word is not everyone's"


def test_the_same_data_under_other_paths_is_the_same() -> None:
    from mindspeed_llm.training.startup_checks import check_same_data

    check_same_data([*FACTS[:3], replace(FACTS[3], data={"m": ("/elsewhere/m", "1" * 64)})])
    with pytest.raises(
        DataError, match=r"(?s)node-a \(ranks 0–1\), node-b \(rank 2\) has /d/m: 1{12}.*rank 3\).*2{12}"
    ):
        check_same_data([*FACTS[:3], replace(FACTS[3], data={"m": ("/elsewhere/m", "2" * 64)})])
    with pytest.raises(DataError, match=r"rank 3\) has m: no such file"):
        check_same_data([*FACTS[:3], replace(FACTS[3], data={})])


def test_fingerprints_distinguish_copies(tmp_path: Path) -> None:
    def digests(prefix: Path) -> list[str]:
        return list(PackedFiles.open(prefix).fingerprint().values())

    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    one, two = (write_files(tmp_path / name / "data") for name in ("one", "two"))
    other = write_files(tmp_path / "other" / "data", seed=1)
    assert digests(one) == digests(two) != digests(other)
    for prefix in (one, two):
        manifest_path(prefix).unlink()
    shorter = write_files(tmp_path / "other" / "short", count=19)
    manifest_path(shorter).unlink()
    with pytest.warns(UserWarning, match="no data_packed_manifest"):
        assert digests(one) == digests(two)
    with pytest.warns(UserWarning, match="packed_manifest"):
        assert digests(one) != digests(shorter)


def test_startup_checks_work_with_one_process() -> None:
    assert exchange_rank_info(FACTS[0]) == [FACTS[0]]
    with pytest.raises(DataError, match=r"^no file$"), report_startup_errors(1):
        raise DataError("no file")
    with pytest.raises(RendezvousError, match="broken"):
        exchange_rank_info(replace(FACTS[0], failed="broken"))


# Four ranks on one machine; what each does when it is ready is argv[1]'s entry for it.
MEET = """
import json, os, sys, datetime
from mindspeed_llm.devices.rendezvous import RankInfo, report_startup_errors, exchange_rank_info, current_rank
from mindspeed_llm.errors import DataError
from mindspeed_llm.entry_point import run_program
plans = json.loads(sys.argv[1])
plan = plans[current_rank()]
PATIENCE = 10 if "absent" in plans else 900
def main():
    with report_startup_errors(minutes=15):
        if plan == "data": raise DataError("no data")
        if plan == "crash": raise KeyError("defect")
    if plan == "absent": return 0
    rank = current_rank()
    own = RankInfo(rank, f"host-{rank}", data={"m": ("p", "h")})
    every = exchange_rank_info(own, datetime.timedelta(seconds=PATIENCE))
    print("met", [one.host for one in every] == [f"host-{n}" for n in range(3)] and every[1].data == {"m": ("p", "h")})
sys.exit(run_program(main, "program"))
"""


@pytest.mark.parametrize(
    ("plan", "status", "expected"),
    [
        (["", "", ""], 0, ["met True"]),
        pytest.param(["data", "data", "data"], 1, ["program: error: no data"], marks=pytest.mark.long),
        (["", "", "data"], 1, [" (rank 2): no data"]),
        (["", "crash", ""], 1, [" (rank 1): KeyError: 'defect'"]),
        (["", "absent", ""], 1, ["rank 1 of 3 did not get ready within 0:00:10"]),
    ],
)
def test_errors_of_one_rank_reach_every_rank(plan: list[str], status: int, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "meet.py").write_text(MEET, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "meet.py"]
    done = subprocess.run(
        [*command, json.dumps(plan)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    for line in expected:
        assert line in said, said
    assert said.count("program: error: ") == (1 if status else 0), "one rank speaks for the machine"


def test_the_start_table() -> None:
    from mindspeed_llm.console.text_tables import key_value_table
    from mindspeed_llm.training.banner import machine_lines, version_lines

    assert machine_lines(FACTS) == [
        "node-a  ranks 0–1  2 × npu A (hccl)",
        "node-b  ranks 2–3  2 × npu A (hccl)",
    ]
    assert version_lines(FACTS) == ["torch 2.13.0"]
    newer = [*FACTS[:3], replace(FACTS[3], versions={"torch": "2.14.0"})]
    assert (
        version_lines(newer)[0].startswith("DIFFERENT") and version_lines(newer)[2] == "node-b (rank 3): torch 2.14.0"
    )
    table = key_value_table([("start", "fresh"), ("machines", ["one", "two"]), ("data", "much")])
    assert table.splitlines() == ["start     fresh", "machines  one", "          two", "data      much"]


def test_versions_of_installed_and_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = library_versions()
    assert found["megatron-core"].startswith("0.16") and found["torch"][0] == "2"
    assert describe_device(select_device("cpu")) == "cpu (gloo)"
    for home in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(home, raising=False)
    assert cann_version() == MISSING
    info = tmp_path / "aarch64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir()
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.2.RC1\ninnerversion=V100R001\n", "utf-8")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert cann_version() == "8.2.RC1"
