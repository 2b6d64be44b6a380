from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from upvit_core.runs.store import RunStore

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["UPVIT_LEASES"] = LEASES = tempfile.mkdtemp(prefix="leases-")  # tests wait for no run of this machine
atexit.register(shutil.rmtree, LEASES, ignore_errors=True)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CIFAR-10 and the published scores, where this machine has it."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI must have ../shared/data beside the clone")
        pytest.skip("../shared/data (CIFAR-10, published scores) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny teacher and images."""
    from tests.support.small_run import small_home  # after HF_HUB_OFFLINE is set

    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """An empty store, where the pages under test look for runs too."""
    from upvit_core.runs.store import RunStore

    return RunStore(tmp_path / "runs")
