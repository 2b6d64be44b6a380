"""The teacher's answers, kept: what comes back, what a run makes of them, what a torn file does."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.small_run import fork_worker, run_to_end, small_home, spec_for, wait_until, weights_of
from upvit_core.runs import Run, RunStore
from upvit_core.runs.shared_answers import FOLDER
from upvit_core.training.teacher_cache import TeacherLogits, TeacherStore


def store_at(tmp_path: Path, k: int, classes: int = 7, images: int = 4) -> TeacherStore:
    return TeacherStore(tmp_path / "answers.bin", images=images, classes=classes, k=k)


def test_all_classes_come_back_bit_for_bit(tmp_path: Path) -> None:
    logits = torch.randn(4, 7)
    store = store_at(tmp_path, 7)
    store.write(3, store.encode(logits))
    again = store_at(tmp_path, 100)
    rows = again.read(3)
    assert rows is not None
    assert torch.equal(again.decode(rows), logits)
    assert store.read(2) is None
    assert store.read(4) is None


@pytest.mark.parametrize(("classes", "k"), [(7, 1), (7, 3), (1000, 10), (70_000, 2)])
def test_the_largest_probabilities_come_back_and_the_rest_is_shared(tmp_path: Path, classes: int, k: int) -> None:
    logits = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
    store = store_at(tmp_path, k, classes)
    q, p = (x.double().softmax(-1) for x in (logits, store.decode(store.encode(logits))))
    for ours, theirs in zip(p, q, strict=True):
        order = np.argsort(-theirs.numpy(), kind="stable")
        assert ours[order[:k]].tolist() == pytest.approx(theirs[order[:k]].tolist(), rel=1e-5)
        left = (1 - theirs[order[:k]].sum()).item() / (classes - k)
        np.testing.assert_allclose(ours[order[k:]].numpy(), left, rtol=1e-3)


def test_a_spoilt_record_is_absent_and_its_neighbours_are_not(tmp_path: Path) -> None:
    store = store_at(tmp_path, 2)
    rows = [store.encode(torch.randn(4, 7)) for _ in range(3)]
    for step, row in enumerate(rows):
        store.write(step, row)
    content = bytearray(store.path.read_bytes())
    size = store.step_bytes
    for place in range(size, 2 * size):
        spoilt = content.copy()
        spoilt[place] ^= 0x40
        store.path.write_bytes(spoilt)
        assert store_at(tmp_path, 2).read(1) is None
    store.path.write_bytes(content[: 2 * size - 1])
    torn = store_at(tmp_path, 2)
    assert torn.read(1) is None
    assert np.array_equal(torn.read(0), rows[0])
    torn.path.write_bytes(content[:size] + content[2 * size :] + content[size : 2 * size])  # steps changed places
    assert torn.read(1) is None


def test_the_teacher_is_asked_once_for_every_image(tmp_path: Path) -> None:
    class Teacher(nn.Module):
        asked = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Teacher.asked += len(x)
            return x[:, :7]

    images = torch.randn(4, 9)
    for expected in (4, 4):
        answers = TeacherLogits(store_at(tmp_path, 7), 5, 4)
        parts = [answers.to(images[i : i + 2], i, Teacher()) for i in (0, 2)]
        answers.keep()
        assert torch.equal(torch.cat(parts), images[:, :7])
        assert Teacher.asked == expected


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return small_home(tmp_path / "home")


def done(store: RunStore, home: Path, **settings: object) -> Run:
    run = store.create(spec_for(home, drop_path=0.1, mixup=0.2, **settings))
    run_to_end(store, run)
    return run


def test_runs_that_share_answers_are_the_runs_that_ask(home: Path, tmp_path: Path) -> None:
    """All five classes kept: the same weights bit for bit, whether answers are written, read, or read in part."""
    plain = weights_of(done(RunStore(tmp_path / "plain"), home))
    store = RunStore(tmp_path / "runs")
    waiting = store.create(spec_for(home, drop_path=0.1, mixup=0.2, teacher_top_k=5))
    assert weights_of(done(store, home, teacher_top_k=5)) == plain
    (answers,) = (store.root / FOLDER).iterdir()
    content = bytearray(answers.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    answers.write_bytes(content)
    before = answers.stat().st_mtime_ns
    assert weights_of(done(store, home, teacher_top_k=5, lr=1e-3)) == plain
    assert answers.stat().st_mtime_ns > before
    filled = answers.stat().st_mtime_ns
    other = store.create(spec_for(home, drop_path=0.1, mixup=0.2, teacher_top_k=5, lr=5e-4))
    run_to_end(store, other)
    assert answers.stat().st_mtime_ns == filled  # nothing was asked
    assert weights_of(other) != plain
    run_to_end(store, waiting)
    assert weights_of(waiting) == plain
    assert not list((store.root / FOLDER).iterdir())  # the last one that wanted them is done


def test_a_killed_run_with_few_answers_goes_on_as_if_never_killed(home: Path, tmp_path: Path) -> None:
    settings = {"teacher_top_k": 2, "checkpoint_minutes": 1e-6}
    whole = done(RunStore(tmp_path / "whole"), home, **settings)
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(home, drop_path=0.1, mixup=0.2, **settings))
    pid = fork_worker(run)
    wait_until(lambda: store.state(run.id).step >= 4)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    store.resume(run.id)
    run_to_end(store, run)
    assert weights_of(run) == weights_of(whole)
    assert weights_of(run) != weights_of(done(RunStore(tmp_path / "plain"), home))


def test_features_cannot_be_kept(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(home, teacher_top_k=2, feature_weight=1.0))
    with pytest.raises(AssertionError, match="feature_weight needs the teacher itself"):
        run_to_end(store, run)
