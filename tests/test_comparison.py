"""Criteria side by side: the row of one criterion equals doing it by hand."""

import torch

from upvit_core.comparison import compare_criteria
from upvit_core.data import open_images
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.surgery import prune


def plan(record):
    return plan_uniform(record, Ratios(0.25, 0.25, 0.5), snap=True)


def test_rows_equal_doing_it_by_hand() -> None:
    loaded = load_model("demo")
    train, test = (
        open_images("demo", s, pretrained_cfg=loaded.pretrained_cfg, num_classes=10) for s in ("train", "val")
    )
    first, other = compare_criteria(
        loaded, train, test, ["fisher", "random"], plan, score_images=32, test_images=len(test)
    )
    assert first.overlap == {"residual": 1.0, "attention": 1.0, "ffn": 1.0}
    assert 0.2 < other.overlap["ffn"] < 0.8
    assert first.value > other.value
    student = prune(loaded.model, loaded.shape, plan(score(loaded, train, "fisher", n=32)))
    right, total_kl = 0, 0.0
    with torch.no_grad():
        for x, y in test.batches(250):
            p, q = student(x).double().softmax(-1), loaded.model(x).double().softmax(-1)
            right += int((p.argmax(-1) == y).sum())
            total_kl += float((q * (q / p).log()).sum())
    assert abs(first.value - 100 * right / len(test)) < 1e-9
    assert abs(first.kl - total_kl / len(test)) < 1e-6 * first.kl + 1e-9
