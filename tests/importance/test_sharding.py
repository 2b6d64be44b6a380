"""Two processes give the scores of one."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.errors import ScoresError
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.magnitude import Magnitude
from upvit_core.importance.sharding import add
from upvit_core.models.build import adapt
from upvit_core.records.scores import ImportanceScores


@pytest.mark.parametrize("criterion", [KL(), Fisher()])
def test_records_of_parts_add_up(criterion) -> None:
    model, shape = tiny()
    x = images(9)
    whole = criterion.attribute(adapt(model, shape), TensorProxy(x))
    parts = [criterion.attribute(adapt(model, shape), TensorProxy(part)) for part in x.split([4, 3, 2])]
    got = add(parts)
    assert got.images == 9
    for key in whole.values:
        np.testing.assert_allclose(got.values[key], whole.values[key], rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(got.stderr[key], whole.stderr[key], rtol=1e-7, atol=1e-12)


def test_scores_that_are_no_sums_are_refused() -> None:
    model, shape = tiny()
    record = Magnitude().attribute(adapt(model, shape))
    with pytest.raises(ScoresError, match="no sums over images"):
        add([record, replace(record)])


def test_two_processes_equal_one(tmp_path: Path) -> None:
    arguments = ["-m", "upvit_core", "score", "demo", "--data", "demo", "--images", "24", "--device", "cpu", "--out"]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    subprocess.run([sys.executable, *arguments, str(one)], cwd=ROOT, check=True, capture_output=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*launcher, *arguments, str(two)], cwd=ROOT, check=True, capture_output=True)
    a, b = ImportanceScores.load(one), ImportanceScores.load(two)
    assert b.images == 24
    assert a.data_digest == b.data_digest
    for key in a.values:
        assert np.linalg.norm(b.values[key] - a.values[key]) <= 1e-6 * np.linalg.norm(a.values[key]), key
        np.testing.assert_allclose(b.values[key], a.values[key], rtol=5e-6)  # each: float32, batches of other sizes
