"""Fixtures and settings shared by the test files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mindspeed_llm.console.logging_config import configure_logging

# No time limit per example: a busy machine must not make a test fail.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Apply the patches before any test imports megatron-core, because they have no effect afterwards."""
    files = {item.path for item in session.items}
    if any("megatron.core" in path.read_text("utf-8") or "one_rank" in path.read_text("utf-8") for path in files):
        from mindspeed_llm.devices import apply_patches

        apply_patches("cpu")


@pytest.fixture(autouse=True)
def _console_logging() -> None:
    """Log to stderr as `preprocess_data.py` does; a test that runs `pretrain_gpt.main` changes that for itself."""
    configure_logging()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide even a small input among the processes of --workers."""
    from mindspeed_llm.preprocessing import local_executor

    monkeypatch.setattr(local_executor, "BLOCK_BYTES", 1024)


# The slowest test files in order. They start first, so that no slow file runs alone at the end of the suite.
LONGEST_FIRST = (
    "test_training_layouts.py",
    "test_training_faults.py",
    "test_generation.py",
    "test_training_resume.py",
    "test_tuning_layouts.py",
    "test_lora_layouts.py",
    "test_checkpoints.py",
    "test_dry_run.py",
    "test_pretrain.py",
    "test_lora_runs.py",
    "test_conversion_parity.py",
    "test_megatron_lm.py",
    "test_run_outputs.py",
    "test_verify_families.py",
    "test_tuning_runs.py",
    "test_training_startup_checks.py",
    "test_resume_identity.py",
    "test_several_machines.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the test files by `LONGEST_FIRST`; the order inside each file stays."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


FILES_SHOWN = 15


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show which test files took the most time: each new feature adds at most 45 s to the suite on an idle machine."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    if sum(seconds.values()) < 60:
        return
    terminalreporter.section("seconds by test file")
    for name, taken in seconds.most_common(FILES_SHOWN):
        terminalreporter.line(f"{taken:8.1f}  {name}")
    terminalreporter.line(f"{sum(seconds.values()):8.1f}  all {len(seconds)} files together")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a separate cache directory for this package and links to the user's cache for all other programs."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = tmp_path_factory.mktemp("cache")
    for entry in usual.iterdir() if usual.is_dir() else ():
        if entry.name != "mindspeed_llm":
            (folder / entry.name).symlink_to(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the directory of reference material next to the repository, or skip the test."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which is not here")
    return folder


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """Set up a job of one process on the CPU as an entry point does: patches and process groups."""
    from mindspeed_llm.devices import apply_patches, select_device

    apply_patches("cpu")
    from tiny import tiny_arguments

    from mindspeed_llm.training import destroy_process_groups, init_distributed

    init_distributed(tiny_arguments(), select_device("cpu"))
    yield
    destroy_process_groups()
