"""Faster steps on a GPU compute the same numbers; stops that are agreed on a step late reach every process."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.rehearsal import rehearsal
from tests.support.small_job import make_job, nothing
from tests.support.small_run import CFG, run_to_end, small_home, spec_for, weights_of, write_images
from tests.support.tiny import tiny
from tests.support.tiny_pvt import tiny_pvt
from upvit_core.data import ImageSet, open_images
from upvit_core.errors import RunError
from upvit_core.runs import RunStore
from upvit_core.runs.distributed import LateVote, Team
from upvit_core.training.distillation import Row, distill, isolated_rng, with_half_weights


@pytest.fixture(scope="module")
def train_images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = write_images(tmp_path_factory.mktemp("data") / "images")
    return open_images(str(root), "train", pretrained_cfg=CFG)


@pytest.mark.parametrize("family", ["vit", "pvt"])
def test_half_weights_give_autocast_s_results_and_leave_the_model_alone(family: str) -> None:
    model = tiny("class token", torch.float32)[0] if family == "vit" else tiny_pvt(torch.float32)[0]
    copied = with_half_weights(model, torch.bfloat16)
    side = 16 if family == "vit" else 64
    x = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copied(x), model(x))
    kinds = {parameter.dtype for parameter in copied.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_run_in_bf16_ends_at_the_same_weights_with_and_without(tmp_path: Path) -> None:
    home, found = small_home(tmp_path), []
    for plain in (False, True):
        store = RunStore(tmp_path / f"runs{plain}")
        run = store.create(spec_for(home, epochs=1, amp="bf16", plain=plain))
        run_to_end(store, run)
        found.append(weights_of(run))
    assert found[0] == found[1]


def test_one_kernel_of_adamw_takes_the_same_steps(train_images: ImageSet) -> None:
    results = []
    for plain in (False, True):
        with rehearsal():
            job = make_job(train_images, device=torch.device("cuda:0"), plain=plain, clip_grad=1.0)
            assert [bool(group.get("fused")) for group in job.optimizer.param_groups] == [not plain] * 2
            with isolated_rng():
                for batch in job.batches.steps(0, 4):
                    job.train_step(*batch)
            results.append({name: value.cpu() for name, value in job.student.state_dict().items()})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-6)


def test_compiled_steps_are_the_same(train_images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses = []
    for compiled in (False, True):
        rows: list[Row] = []
        job = make_job(train_images, epochs=1, compile=compiled, drop_path=0.0)
        assert (job.forward is job.model) is not compiled
        result = distill(job, report=rows.append, after_step=nothing)
        assert not any(name.startswith("_orig_mod") for name in result.state_dict())
        losses.append([row["loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(RunError, match="leave out compile"):
        make_job(train_images, compile=True, feature_weight=1.0)


class Two:
    """An accelerator of two processes, the other of which says what `others` holds, one after the other."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, *others: tuple[int, int]):
        self.others = list(others)

    def reduce(self, votes: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return votes + torch.tensor(self.others.pop(0))


def test_a_late_vote_answers_what_any_process_asked_a_step_before() -> None:
    vote = LateVote(Team(Two((0, 0), (0, 1), (0, 1), (0, 0), (1, 0), (0, 0))))  # type: ignore[arg-type]
    assert vote(False, False) == (False, False)
    assert vote(False, False) == (False, False)
    assert vote(False, False) == (False, True)
    assert vote(False, False) == (False, False), "what was asked again meanwhile counts once"
    assert vote(False, False) == (False, False)
    assert vote(False, False) == (True, False)


def test_a_late_vote_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    event: Any = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    with rehearsal() as counted:
        alone = SimpleNamespace(num_processes=2, device=torch.device("cuda:0"), reduce=lambda votes, reduction: votes)
        vote = LateVote(Team(alone))  # type: ignore[arg-type]
        assert [vote(True, False), vote(True, False)] == [(False, False), (True, False)]
        assert not counted.waits
        assert sum(counted.copies.values()) == 2
