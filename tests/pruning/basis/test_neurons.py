"""Elimination of FFN channels, against refits by hand."""

import numpy as np
import torch

from tests.support.basis import statistics_of
from upvit_core.pruning.basis import neurons
from upvit_core.pruning.basis.neurons import elimination_scores


def test_elimination_equals_refitting_by_hand():
    stats = statistics_of(count=40)
    block, H = 1, stats.shape.blocks[1].ffn
    K = stats.mean(f"hidden.{block}")
    W = torch.cat([stats.state[f"blocks.{block}.mlp.fc2.weight"], torch.zeros(16, 1).double()], 1)
    gradient = stats.grams[f"written_gradient.{block}"]
    M = (gradient + torch.eye(16).double() * gradient.trace() / 16) / 2

    def error(kept):
        index = [*kept, H]
        fitted = torch.linalg.lstsq(K[index][:, index], K[index] @ W.T).solution.T  # (D, kept)
        rest = W.clone()
        rest[:, index] -= fitted
        return float(torch.trace(M @ rest @ K @ rest.T)) / 2

    scores = elimination_scores(stats, block)
    order = scores.argsort(stable=True).tolist()
    kept, spent, passed = list(range(H)), 0.0, []
    for c in order[:12]:
        others = {j: error([i for i in kept if i != j]) for j in kept}
        assert others[c] <= min(others.values()) * 1.02 + 1e-9
        passed.append(others[c] - spent)
        kept.remove(c)
        spent = others[c]
    assert np.allclose(np.maximum.accumulate(passed), scores[order[:12]].numpy(), rtol=0.02, atol=1e-9)
    assert scores.unique().numel() == H


def test_elimination_in_groups_is_close_to_one_by_one():
    stats = statistics_of(count=40)
    one, some = (elimination_scores(stats, 0, at_once=n) for n in (1, 4))
    half = len(one) // 2
    assert len(set(one.topk(half).indices.tolist()) & set(some.topk(half).indices.tolist())) > 0.8 * half


def test_copies_without_what_is_gone_change_no_score(monkeypatch):
    stats = statistics_of(count=60)
    expected = elimination_scores(stats, 1, at_once=2)
    for share in (0.0, 1.0):
        monkeypatch.setattr(neurons, "STALE", share)
        torch.testing.assert_close(elimination_scores(stats, 1, at_once=2), expected, rtol=1e-11, atol=0)
