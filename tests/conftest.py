"""What several test files need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the repository."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which is not here")
    return folder


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A job of one process on the CPU: patches, process group and megatron-core's groups, as an entry point sets up."""
    from mindspeed_llm.devices import apply_patches, choose_device

    apply_patches("cpu")
    from tiny import tiny_arguments

    from mindspeed_llm.training import join_layout, leave_layout

    join_layout(tiny_arguments(), choose_device("cpu"))
    yield
    leave_layout()
