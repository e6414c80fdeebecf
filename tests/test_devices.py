"""Which device a command gets, what is said where one is missing, and MindSpeed only on request."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny import RUN, SHAPE

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.attention.kernel_selection import KERNELS
from mindspeed_llm.devices import DEVICES, Device, select_device, traits_of
from mindspeed_llm.devices import device as devices
from mindspeed_llm.devices.mindspeed import load_mindspeed
from mindspeed_llm.errors import DeviceError

ROOT = Path(__file__).parents[1]


def test_each_device_has_a_record_a_choice_and_kernels() -> None:
    assert {*DEVICES, "meta"} == set(KERNELS)
    for kind in DEVICES:
        assert Device(kind).backend == traits_of(kind).backend
        assert parse_pretrain_arguments(f"{SHAPE} {RUN} --device {kind}".split(), 1).device.device == kind
    assert [kind for kind in KERNELS if traits_of(kind).is_host] == ["cpu"]
    assert [kind for kind in KERNELS if not traits_of(kind).has_data] == ["meta"]


def run_python(program: str, *folders: Path, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(folder) for folder in folders] + [str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    variables = {name: value for name, value in variables.items() if value != ""}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def broken_torch_npu(tmp_path):
    """A torch_npu as it is without CANN: installed, an entry point of torch, and not to be imported."""
    package = tmp_path / "torch_npu"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')\n")
    info = tmp_path / "torch_npu-0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 0.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return tmp_path


CHOOSE = """
from mindspeed_llm.devices import select_device
from mindspeed_llm.errors import DeviceError
try:
    print(select_device({name!r}).label)
except DeviceError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize(
    ("name", "autoload", "said"),
    [
        ("cpu", "", "cpu (gloo)"),
        ("auto", "", "refused: torch cannot be imported with the torch_npu installed here"),
        ("npu", "", "refused: torch cannot be imported with the torch_npu installed here"),
        ("npu", "0", "refused: --device npu: torch_npu does not load (libhccl.so"),
    ],
)
def test_a_torch_npu_without_cann(broken_torch_npu, name, autoload, said):
    done = run_python(CHOOSE.format(name=name), broken_torch_npu, TORCH_DEVICE_BACKEND_AUTOLOAD=autoload)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said)
    if said.startswith("refused"):
        assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stdout and "set_env.sh" in done.stdout


def test_no_npu_and_no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "_npu_count", lambda: 0)
    with pytest.raises(DeviceError, match="torch_npu sees no NPU"):
        select_device("npu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="sees no CUDA GPU"):
        select_device("cuda")


def test_more_processes_than_devices(monkeypatch):
    asked = []
    module = types.SimpleNamespace(device_count=lambda: 2, set_device=asked.append)
    monkeypatch.setattr(Device, "_module", lambda self: module)
    Device("npu", 1).activate()
    assert asked == [1]
    with pytest.raises(DeviceError, match="process 2 of this machine has no npu device: there are 2"):
        Device("npu", 2).activate()


def test_memory_is_that_of_the_device(monkeypatch):
    module = types.SimpleNamespace(max_memory_allocated=lambda: 12345, synchronize=lambda: None)
    monkeypatch.setattr(Device, "_module", lambda self: module)
    assert Device("npu").peak_memory_bytes() == Device("cuda").peak_memory_bytes() == 12345
    assert Device("cpu").peak_memory_bytes() > 50e6, "bytes of the resident set, torch is loaded"


def test_deterministic_mode(monkeypatch):
    for name in ("HCCL_DETERMINISTIC", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.delenv(name, raising=False)
    try:
        Device("npu").make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["HCCL_DETERMINISTIC"] == "true"
    finally:
        torch.use_deterministic_algorithms(False)
        for name in ("HCCL_DETERMINISTIC", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
            os.environ.pop(name, None)


@pytest.fixture
def fake_mindspeed(tmp_path, monkeypatch):
    """Writes a package mindspeed whose adaptor is the given program; gone again afterwards."""

    def write(program: str) -> None:
        package = tmp_path / "mindspeed"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "megatron_adaptor.py").write_text(program)
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "mindspeed"]:
        del sys.modules[name]


def test_mindspeed_is_refused_if_it_is_not_installed():
    with pytest.raises(DeviceError, match="MindSpeed is for NPUs, this run is on cpu"):
        load_mindspeed("cpu")
    with pytest.raises(DeviceError, match=r"not installed; install its branch core_r0\.16\.0"):
        load_mindspeed("npu")


def test_mindspeed_sees_no_command_line(fake_mindspeed, monkeypatch):
    fake_mindspeed("import sys\nassert sys.argv == ['pretrain_gpt.py']\n")
    monkeypatch.setattr(sys, "argv", ["pretrain_gpt.py", "--neat-pack"])
    assert "MindSpeed of unknown version patched megatron-core first" in load_mindspeed("npu")
    assert sys.argv == ["pretrain_gpt.py", "--neat-pack"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_mindspeed_is_imported_before_megatron_core_and_reported_once(fake_mindspeed, tmp_path, rank):
    """The entry point's own call, in a process of its own; the line of versions names it too."""
    fake_mindspeed("import sys\nassert 'megatron.core' not in sys.modules\nprint('adaptor')\n")
    for name in ("torch_npu", "torch_npu/contrib", "torch_npu/contrib/transfer_to_npu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    program = (
        "import os\n"
        "from mindspeed_llm.console.logging_config import configure_logging\n"
        "from mindspeed_llm.devices import apply_patches\n"
        "configure_logging(int(os.environ['RANK']), info_stream='stdout')\n"
        "from mindspeed_llm.devices.versions import library_versions\n"
        "apply_patches('npu', mindspeed=True)\n"
        "print(library_versions()['MindSpeed'])\n"
    )
    done = run_python(program, tmp_path, RANK=rank)
    assert done.returncode == 0, done.stderr
    adaptor, *said, version = done.stdout.splitlines()
    assert (adaptor, len(said), version) == ("adaptor", 1 if rank == "0" else 0, "not here")
    assert all(line.startswith("MindSpeed of unknown version patched megatron-core first") for line in said)


def test_a_mindspeed_that_does_not_load(fake_mindspeed):
    fake_mindspeed("raise KeyError('megatron.training')\n")
    with pytest.raises(DeviceError, match=r"does not load here \(KeyError"):
        load_mindspeed("npu")


FAULTS = """
import resource, sys
from mindspeed_llm.devices import Device

Device("cpu").activate()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(20):  # malloc splits blocks and joins them again until one of the right size has come about
    torch.ones(2**24)  # 64 MiB, above any threshold that glibc would come to by itself
before = faults()
for _ in range(5):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(("told", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False)])
def test_memory_of_the_cpu_is_kept_from_step_to_step(told, kept):
    """Five tensors of 64 MiB one after the other: no new page, unless the environment tells malloc something else."""
    ignored = ("LD_PRELOAD", "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ignored}
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**environment, **told}, capture_output=True, text=True, check=True
    )
    faults = int(ran.stdout)
    assert faults < 1000 if kept else faults > 5 * 2**26 // 4096 // 2
