import json

import pytest
import timm
import torch

from tests.support.latency import GRIDS, made_up
from tests.support.small_run import small_home
from tests.support.tiny import images
from tests.support.verbs import call
from upvit_core.api import slice_model
from upvit_core.errors import CalibrationError, PlanError
from upvit_core.models.checkpoint import load_model
from upvit_core.profiling.latency import estimate_latency
from upvit_core.profiling.macs import count_macs
from upvit_core.pruning.elastic import prefix_plan
from upvit_core.pruning.prune import cut
from upvit_core.records.plan import Kept, PruningPlan
from upvit_core.records.scores import ImportanceScores


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = small_home(tmp_path_factory.mktemp("elastic"))
    made = call("elastic", home / "teacher", "--data", home / "images", "--images", 20, "--out", home / "elastic")
    assert made["stock_timm"]
    return home


def test_a_slice_of_the_folder_opens_in_stock_timm_at_the_size_asked_for(home, tmp_path):
    shares = ("--residual", 0.5, "--attention", 0.5, "--ffn", 0.5)
    made = call("slice", home / "elastic", *shares, "--out", tmp_path / "half")
    stock = timm.create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True).eval()
    assert stock.embed_dim == 8
    assert sum(p.numel() for p in stock.parameters()) == made["params"]
    x = images(4, torch.float32)
    with torch.no_grad():
        expected = slice_model(home / "elastic", residual=0.5, attention=0.5, ffn=0.5).model(x)
        assert torch.equal(stock(x), expected)
    assert PruningPlan.load(tmp_path / "half" / "plan.json").is_repaired
    call("slice", home / "elastic", *shares, "--no-repair", "--out", tmp_path / "bare")
    assert not PruningPlan.load(tmp_path / "bare" / "plan.json").is_repaired


def test_a_budget_is_kept_and_a_latency_needs_a_calibration(home, tmp_path):
    limit = 0.5 * count_macs(load_model(home / "teacher").shape)
    made = call("slice", home / "elastic", "--budget", f"macs={limit}", "--out", tmp_path / "small")
    assert 0.25 * limit < made["macs"] <= limit
    best = call("slice", home / "elastic", "--budget", f"macs={limit}", "--allocation", "best", "--out", tmp_path / "b")
    assert made["macs"] <= best["macs"] <= limit
    with pytest.raises(PlanError, match="one of the three"):
        call("slice", home / "elastic", "--budget", "params=4k", "--ffn", 0.5, "--out", tmp_path / "x")
    with pytest.raises(PlanError, match="Allocation best is for a budget"):
        call("slice", home / "elastic", "--ffn", 0.5, "--allocation", "best", "--out", tmp_path / "x")
    with pytest.raises(PlanError, match="holds an elastic model"):
        call("slice", home / "elastic", "--ffn", 0.5, "--out", home / "elastic")
    shape, missing = load_model(home / "teacher").shape, ("--calibration", tmp_path / "missing.json")
    with pytest.raises(CalibrationError, match="calibrate"):
        call("slice", home / "elastic", "--budget", "latency_ms=4", *missing, "--out", tmp_path / "x")
    made_up(GRIDS, shape).save(tmp_path / "device.json")
    timing = ("--calibration", tmp_path / "device.json", "--batch-size", 8)

    def milliseconds(own):
        return estimate_latency(own, 8, made_up(GRIDS, shape))

    for share in (0.8, 0.6, 0.45):
        limit = share * milliseconds(shape)
        budget = ("--budget", f"latency_ms={limit}", *timing)
        made = call("slice", home / "elastic", *budget, "--out", tmp_path / "stock")
        stock = load_model(tmp_path / "stock").shape
        assert made["stock_timm"]
        assert milliseconds(stock) <= limit < milliseconds(shape)
        wide = stock.embed_dim + stock.num_heads
        wider = {"residual": wide} | {f"attention.{b}": wide for b in range(stock.depth)}
        assert milliseconds(stock.with_widths(wider)) > limit
        call("slice", home / "elastic", *budget, "--allocation", "best", "--out", tmp_path / "best")
        assert milliseconds(load_model(tmp_path / "best").shape) <= limit


def test_prune_of_an_elastic_folder_by_a_plan_of_its_scores_is_a_slice(home, tmp_path):
    plan = tmp_path / "plan.json"
    scores = home / "elastic" / "scores.safetensors"
    call("plan", scores, "--residual", 0.25, "--attention", 0.25, "--ffn", 0.5, "--out", plan)
    call("prune", home / "elastic", plan, "--out", tmp_path / "cut")
    assert PruningPlan.load(tmp_path / "cut" / "plan.json").is_repaired
    x, expected = images(4, torch.float32), slice_model(home / "elastic", residual=0.25, attention=0.25, ffn=0.5)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "cut").model(x), expected.model(x))
    kept = json.loads(plan.read_text())
    assert kept["model_digest"] == ImportanceScores.load(scores).model_digest == load_model(home / "elastic").digest


def test_other_plans_of_an_elastic_folder_are_cut_by_channels(home):
    elastic = load_model(home / "elastic")
    after = elastic.shape.with_widths({"ffn.0": 32})
    plan = prefix_plan(elastic.shape, after)
    last = plan.blocks[0].model_copy(update={"ffn": Kept(keep=tuple(range(32, 64)))})
    thin = cut(elastic, plan.model_copy(update={"blocks": (last, *plan.blocks[1:])}))
    assert torch.equal(thin.blocks[0].mlp.fc1.weight, elastic.model.blocks[0].mlp.fc1.weight[32:])
