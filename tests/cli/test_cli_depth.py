"""Depth on the command line: score-blocks, plan --depth, in all three orders, on the demo."""

import json
from pathlib import Path

import pytest
import timm

from tests.support.verbs import call
from upvit_core.errors import PlanError
from upvit_core.models.checkpoint import load_model
from upvit_core.records.block_removals import BlockRemovals, pair_name
from upvit_core.records.plan import PruningPlan

DEPTH = 4
RATIOS = ("--residual", 0.25, "--attention", 0.25, "--ffn", 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channel scores and depth scores of the demo."""
    out = tmp_path_factory.mktemp("depth")
    call("score", "demo", "--data", "demo", "--images", 20, "--out", out / "s.safetensors")
    said = call("score-blocks", "demo", "--data", "demo", "--depth", DEPTH, "--images", 20, "--out", out / "f.json")
    record = BlockRemovals.load(out / "f.json")
    assert said["removed"] == [pair_name(step.removed) for step in record.steps]
    assert said["kl"] == [step.kl / 20 for step in record.steps]
    assert record.model_digest == load_model("demo").digest
    assert not list(out.glob("*.jsonl"))
    return out


def planned(scores: Path, removals: Path, out: Path) -> PruningPlan:
    said = call("plan", scores, *RATIOS, "--depth", DEPTH, "--depth-scores", removals, "--out", out)
    assert said["depth"] == DEPTH
    assert said["stock_timm"]
    return PruningPlan.load(out)


def test_depth_together_with_width_loads_into_stock_timm(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder / "s.safetensors", folder / "f.json", tmp_path / "p.json")
    assert plan.requested["order"] == "together"
    call("prune", "demo", tmp_path / "p.json", "--out", tmp_path / "thin")
    assert json.loads((tmp_path / "thin" / "config.json").read_text())["model_args"]["depth"] == DEPTH
    stock = timm.create_model(f"local-dir:{tmp_path / 'thin'}", pretrained=True)
    assert (len(stock.blocks), stock.embed_dim) == (DEPTH, 72)


def test_depth_first(folder: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow.safetensors"
    depth = ("--depth", DEPTH, "--depth-scores", folder / "f.json")
    call("score", "demo", "--data", "demo", "--images", 20, *depth, "--out", shallow)
    plan = planned(shallow, folder / "f.json", tmp_path / "p.json")
    assert plan.requested["order"] == "depth first"
    assert plan.shape_before.depth == 6
    assert call("prune", "demo", tmp_path / "p.json", "--out", tmp_path / "thin")["stock_timm"]


def test_width_first(folder: Path, tmp_path: Path) -> None:
    call("plan", folder / "s.safetensors", *RATIOS, "--out", tmp_path / "w.json")
    after = ("--after", tmp_path / "w.json", "--images", 20)
    call("score-blocks", "demo", "--data", "demo", "--depth", DEPTH, *after, "--out", tmp_path / "f.json")
    plan = planned(folder / "s.safetensors", tmp_path / "f.json", tmp_path / "p.json")
    assert plan.requested["order"] == "width first"
    assert call("prune", "demo", tmp_path / "p.json", "--out", tmp_path / "thin")["stock_timm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "4"], "--depth was given without --depth-scores"),
        (["--depth-scores", "f.json"], "--depth-scores was given without --depth"),
        (["--depth", "2", "--depth-scores", "f.json"], "from 6 to 4 blocks, not to 2"),
    ],
)
def test_half_a_wish_is_refused(folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    given = [folder / option if option == "f.json" else option for option in options]
    with pytest.raises(PlanError, match=message):
        call("plan", folder / "s.safetensors", *given, "--out", tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()
