"""Previews against an evaluation written out, on the demo."""

import numpy as np
import pytest
import torch

from upvit_core.data import open_images, proxy_indices
from upvit_core.errors import Cancelled, PlanError
from upvit_core.evaluation import wilson_interval
from upvit_core.importance.scores import ImportanceScores, expected_widths
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.select import plan_uniform
from upvit_core.preview import Previewer, preview
from upvit_core.surgery import prune


@pytest.fixture(scope="module")
def demo():
    loaded = load_model("demo")
    images = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    rng = np.random.default_rng(0)
    values = {key: rng.random(width) for key, width in expected_widths(loaded.shape).items()}
    return loaded, images, ImportanceScores(values=values, criterion="random", unit="none", shape=loaded.shape)


def test_a_preview_is_an_evaluation_of_the_student(demo) -> None:
    loaded, images, scores = demo
    plan = plan_uniform(scores, ffn=0.3, attention=0.25, heads=3)
    chosen = proxy_indices(images, 60, 5)
    student, right, kl, teacher_right = prune(loaded.model, loaded.shape, plan), 0, 0.0, 0
    with torch.no_grad():
        for x, y in images.batches(1, indices=chosen):
            q, p = loaded.model(x).double().softmax(1)[0], student(x).double().softmax(1)[0]
            right, teacher_right = right + int(p.argmax() == y), teacher_right + int(q.argmax() == y)
            kl += float((q * (q / p).log()).sum())
    (found,) = preview(loaded, [plan], images, count=60, seed=5)
    assert found.images == 60
    assert found.top1 == pytest.approx(100 * right / 60)
    assert found.teacher_top1 == pytest.approx(100 * teacher_right / 60)
    assert found.kl == pytest.approx(kl / 60, rel=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(100 * v for v in wilson_interval(right, 60)))


def test_a_plan_is_evaluated_once(demo) -> None:
    loaded, images, scores = demo
    previewer = Previewer(loaded, images, count=20)
    plan, other = plan_uniform(scores, ffn=0.5), plan_uniform(scores, ffn=0.6)
    assert previewer.known(plan) is None
    first = previewer(plan)
    assert previewer(plan) is first is previewer.known(plan)
    assert previewer(other) is not first


def test_a_preview_can_be_cancelled_and_leaves_nothing(demo) -> None:
    loaded, images, scores = demo
    previewer = Previewer(loaded, images, count=40, batch_size=20)
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise Cancelled("enough")

    plan = plan_uniform(scores, ffn=0.5)
    with pytest.raises(Cancelled):
        previewer(plan, progress=stop)
    assert seen == [(20, 40)]
    assert previewer.known(plan) is None


def test_plans_of_directions_are_refused(demo) -> None:
    loaded, images, scores = demo
    with pytest.raises(PlanError, match="directions"):
        Previewer(loaded, images, count=10)(plan_uniform(scores, residual=0.5, basis="directions"))
