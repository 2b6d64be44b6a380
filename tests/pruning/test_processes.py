"""Two processes find what one finds, and each reads half the images."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support import ROOT
from tests.support.shared_work import work
from tests.support.small_run import write_images, write_teacher


def test_two_processes_equal_one_and_share_the_images(tmp_path: Path) -> None:
    """Statistics, directions, repair and depth, by gloo."""
    write_teacher(tmp_path / "model")
    data = write_images(tmp_path / "images", train=16)
    places = [str(tmp_path / "model"), str(data), str(tmp_path)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "tests.support.shared_work", *places], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = work(tmp_path / "model", data)
    for rank in range(2):
        got = np.load(tmp_path / f"{rank}.npz")
        for name, values in expected.items():
            if name.startswith("images of"):
                assert 2 * got[name] == values, name
            else:
                assert np.linalg.norm(got[name] - values) <= 1e-6 * np.linalg.norm(values), (rank, name)
