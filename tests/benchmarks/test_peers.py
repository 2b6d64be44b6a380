from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.benchmarks.peers import Remembered, Way, with_ffn_of
from tests.benchmarks.torch_pruning_peer import CRITERIA, cut_to
from upvit_core.models.checkpoint import load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.profiling.macs import count_macs
from upvit_core.records.scores import ImportanceScores


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_peers_cut_has_our_widths_and_computes_what_it_cut(criterion: str) -> None:
    loaded = load_model("demo")
    loaded.model.requires_grad_(False)  # as training leaves a teacher
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    batches = [(x, torch.tensor([0, 1, 2, 3]))]
    whole = cut_to(loaded.model, loaded.shape, criterion, batches, ratio=0.0)
    torch.testing.assert_close(whole.model(x), loaded.model(x), rtol=1e-4, atol=1e-4)
    half = cut_to(loaded.model, loaded.shape, criterion, batches, ratio=0.5)
    assert half.shape.embed_dim == 48
    assert {(b.num_heads, b.attention, b.ffn) for b in half.shape.blocks} == {(6, 48, 192)}
    assert half.model(x).shape == (4, 10)


def test_isomorphic_meets_the_macs() -> None:
    loaded = load_model("demo")
    macs = 0.4 * count_macs(loaded.shape)
    thin = cut_to(loaded.model, loaded.shape, "l2", [], ratio=0.4, isomorphic=True, macs=macs, tolerance=0.02)
    assert abs(count_macs(thin.shape) / macs - 1) <= 0.02
    assert len({block.ffn for block in thin.shape.blocks}) > 1


def test_students_share_the_teachers_answers_and_only_to_the_same_images() -> None:
    teacher, kept = nn.Linear(3, 2), []
    x = torch.randn(5, 3)
    first = Remembered(teacher, kept)(x)
    assert torch.equal(Remembered(teacher, kept)(x), first)
    with pytest.raises(AssertionError, match="other images"):
        Remembered(teacher, kept)(x + 1)


def test_names_of_ways_are_their_own() -> None:
    from tests.benchmarks.peers import TRAINED_FIRST, WAYS

    assert len({way.name for way in WAYS}) == len(WAYS)
    assert set(TRAINED_FIRST) <= set(WAYS)
    assert Way("peer", "l1").name == "Torch-Pruning l1, uniform"


def test_ffn_scores_of_another_criterion_count_as_many_images() -> None:
    kl = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    mixed = with_ffn_of(kl.with_values({}, images=500), kl)
    assert mixed.ffn(0) == pytest.approx(kl.ffn(0) / 2)
    assert mixed.residual == pytest.approx(kl.residual)


def test_a_report_keeps_recipes_apart_and_gives_each_its_better_one() -> None:
    from tests.benchmarks.peers_report import by_way, verdict

    def row(way: str, kind: str, epoch: int, top1: float, recipe: str = "demo") -> dict[str, object]:
        return {"way": way, "kind": kind, "ratio": 0.5, "seed": 0, "epoch": epoch, "top1": top1, "recipe": recipe}

    rows = [
        row("a", "ours", 0, 90),
        row("a", "ours", 1, 80),
        row("a", "ours", 1, 91, "repaired"),
        row("b", "peer", 0, 20),
        row("b", "peer", 1, 85),
        row("b", "peer", 1, 70, "repaired"),
    ]
    assert [r["top1"] for r in by_way(rows)["a", 0.5][1]] == [80]
    assert [r["top1"] for r in by_way(rows, "repaired")["a", 0.5][0]] == [90]
    text = verdict(rows)
    assert "ours 91.00" in text
    assert "others 85.00" in text
    assert "ahead by +6.00" in text


def test_the_short_table_lists_every_way_the_drawn_ones_first() -> None:
    from tests.benchmarks.peers_report import by_way, in_short

    def row(way: str, epoch: int, top1: float, recipe: str = "demo") -> dict[str, object]:
        return {
            "way": way,
            "ratio": 0.5,
            "seed": 0,
            "epoch": epoch,
            "top1": top1,
            "recipe": recipe,
            "kl": 0.25,
            "score_seconds": 3.0,
            "images_per_s": 900.0,
            "speed_up": 2.0,
        }

    rows = [row("refine, uniform, channels", 0, 30), row("Torch-Pruning l1, uniform", 0, 50)]
    rows += [row("random channels", 0, 10), row("random channels", 1, 80), row("random channels", 1, 70, "repaired")]
    short = in_short(by_way(rows), by_way(rows, "repaired"), 1)
    assert [line["way"] for line in short] == [
        "random channels",
        "Torch-Pruning L1, equal ratios",
        "`refine`, equal ratios, channels",
    ]
    assert (short[0]["1 epoch"], short[0]["1 epochs, gently"], short[1]["1 epoch"]) == ("80.0", "70.0", "–")
    assert (short[0]["images/s"], short[0]["speed-up"], short[0]["KL at 50 %"]) == ("900", "2.00", "0.250")
