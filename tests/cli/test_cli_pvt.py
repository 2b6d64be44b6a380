"""The verbs on a staged model, as the README gives them."""

from pathlib import Path

import timm

from tests.support.verbs import call
from upvit_core.models.checkpoint import load_model
from upvit_core.records.plan import PruningPlan


def test_half_of_b1_is_b0(tmp_path: Path) -> None:
    scores, plan = str(tmp_path / "s.safetensors"), str(tmp_path / "plan.json")
    call("score", "pvt_v2_b1", "--no-pretrained", "--criterion", "l2", "--out", scores)
    made = call("plan", scores, "--residual", "0.5", "--attention", "0.5", "--ffn", "0.5", "--out", plan)
    assert (made["params"], made["params_before"], made["stock_timm"]) == (3_666_760, 14_009_000, True)
    same = call("plan", scores, "--preset", "pvt_v2_b0", "--out", str(tmp_path / "preset.json"))
    assert same["digest"] == made["digest"]
    costs = call("profile", "pvt_v2_b1", "--no-pretrained", "--plan", plan)
    assert costs["params_pruned"] == 3_666_760
    narrow = call("plan", scores, "--reduction", "0.5", "--out", str(tmp_path / "r.json"))
    assert not narrow["stock_timm"]
    keep = PruningPlan.load(tmp_path / "r.json").blocks[0].reduction
    assert keep is not None
    assert len(keep.keep) == 32


def test_prune_evaluate_and_export_a_small_one(tmp_path: Path) -> None:
    small = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 10, 16), "num_classes": 10, "in_chans": 1}
    model = timm.create_model("pvt_v2_b0", **small)
    from upvit_core.models.checkpoint import save_model, shape_of

    model.pretrained_cfg["input_size"] = (1, 32, 32)  # type: ignore[index]
    source, thin = str(tmp_path / "small"), str(tmp_path / "thin")
    save_model(model, source, shape=shape_of(model, "small"), pretrained_cfg=model.pretrained_cfg, name="small")  # type: ignore[arg-type]
    scores, plan = str(tmp_path / "s.safetensors"), str(tmp_path / "plan.json")
    call("score", source, "--data", "demo", "--criterion", "fisher", "--images", "16", "--out", scores)
    call("plan", scores, "--residual", "0.5", "--attention", "0.5", "--ffn", "0.5", "--out", plan)
    call("prune", source, plan, "--out", thin)
    result = call("evaluate", thin, "--data", "demo", "--teacher", source, "--images", "32")
    assert result["images"] == 32
    exported = call("export", thin, "--out", str(tmp_path / "thin.onnx"))
    assert exported["max_abs_difference"] < 1e-3  # type: ignore[operator]
    assert load_model(thin).shape.embed_dims == (4, 4, 5, 8)
