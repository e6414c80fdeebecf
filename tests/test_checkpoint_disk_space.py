"""The message of a full disk is not contradictory: what is needed is rounded up, what is free is rounded down."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindspeed_llm.storage.disk_errors import check_free_space


@pytest.mark.parametrize("free", [(3 << 20) + 700_000, (3 << 20) - 1, 0])
def test_too_little_free_disk_space_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(OSError, match="MiB are needed") as caught:
        check_free_space(tmp_path, free + 1)
    needed, left = (int(word) for word in str(caught.value).replace(",", "").split() if word.isdigit())
    assert needed > left and left == free >> 20
