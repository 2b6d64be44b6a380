"""The command line end to end on the demo; errors are one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from tests.support import ROOT
from tests.support.pictures import fashion
from tests.support.verbs import call
from upvit_core.cli import main
from upvit_core.data import open_images
from upvit_core.errors import RunError, UPViTError
from upvit_core.importance.score import score
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "scores.safetensors"
    said = call("score", "demo", "--data", "demo", "--criterion", "fisher", "--images", 40, "--seed", 3, "--out", out)
    assert said["images"] == 40
    return out


def test_score_equals_the_library(scored: Path) -> None:
    loaded = load_model("demo")
    images = open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    assert ImportanceScores.load(scored).digest == score(loaded, images, "fisher", n=40, seed=3).digest
    assert list(scored.parent.glob("*.jsonl")) == []


def test_plan_prune_evaluate_profile_export(scored: Path, tmp_path: Path) -> None:
    plan, folder = tmp_path / "plan.json", tmp_path / "thin"
    said = call("plan", scored, "--residual", 0.5, "--attention", 0.5, "--ffn", 0.5, "--heads", 3, "--out", plan)
    assert PruningPlan.load(plan).shape_after.num_heads == 3
    pruned = call("prune", "demo", plan, "--out", folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert pruned["params"] == said["params"] == sum(p.numel() for p in model.parameters())
    assert (folder / "plan.json").read_text() == plan.read_text()
    measured = call("evaluate", folder, "--data", "demo", "--images", 200, "--teacher", "demo")
    assert measured["images"] == 200
    assert measured["kl"] > 0
    assert measured["top1_low"] < measured["top1"] + 1e-9 < measured["top1_high"] + 1e-6
    profile = call("profile", "demo", "--plan", plan, "--measure", "--batch-size", 8)
    assert profile["params_pruned"] == said["params"]
    assert profile["macs_pruned"] == said["macs"] < profile["macs"]
    assert profile["images_per_s_pruned"] > 0
    exported = call("export", folder, "--format", "onnx", "--out", tmp_path / "thin.onnx")
    assert Path(exported["out"]).stat().st_size > 100_000


def test_speed_in_half_precision_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    said = call("profile", "demo", "--measure", "--batch-size", 2, "--dtype", "bfloat16", "--compile")
    assert (said["dtype"], said["compiled"], len(compiled)) == ("bfloat16", True, 1)
    assert said["images_per_s"] > 0


def test_evaluate_equals_a_loop_of_our_own() -> None:
    loaded = load_model("demo")
    images = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    right = 0
    with torch.no_grad():
        for x, y in images.batches(7, indices=range(70)):
            right += sum(int(loaded.model(one[None]).argmax() == label) for one, label in zip(x, y, strict=True))
    assert right > 40
    whole = call("evaluate", "demo", "--data", "demo")
    assert whole["images"] == len(images)
    assert whole["top1"] >= 89.0


def test_labels_go_by_name_and_a_model_near_chance_is_doubted(tmp_path: Path) -> None:
    named = fashion(tmp_path / "named", lambda index, name: name.upper().replace("/", "-").replace(" ", "_"))
    measured = call("evaluate", "demo", "--data", named)
    assert measured["top1"] > 80
    assert "10 of 10 folders are named as classes of the model" in measured["data"]
    assert "doubt" not in measured
    shuffled = fashion(tmp_path / "shuffled", lambda index, name: f"c{9 - index}")
    measured = call("evaluate", "demo", "--data", shuffled)
    assert measured["top1"] < 30
    assert "natural order of the folders (c0, c1, c2 … c9)" in measured["data"]
    assert "labels in another order" in measured["doubt"]


def test_a_teacher_of_another_size_or_classes_is_a_sentence(tmp_path: Path) -> None:
    loaded = load_model("demo", img_size=32)
    save_model(loaded.model, tmp_path, shape=loaded.shape, pretrained_cfg=loaded.pretrained_cfg, name="32")
    with pytest.raises(RunError, match="images of 32 x 32 x 1, the teacher 10 classes and images of 28 x 28 x 1"):
        call("evaluate", tmp_path, "--data", "demo", "--teacher", "demo")
    assert call("evaluate", tmp_path, "--data", "demo", "--teacher", "demo", "--img-size", 28, "--images", 4)["kl"] < 1


def test_preset_without_weights(tmp_path: Path) -> None:
    scores, plan = tmp_path / "s.safetensors", tmp_path / "p.json"
    data = ("--data", "demo", "--images", 2, "--criterion", "taylor")
    assert call("profile", "deit_base_patch16_224", "--no-pretrained")["params"] == 86_567_656
    with pytest.raises(UPViTError, match=r"1,?000"):  # ten classes do not fit a head of 1,000
        call("score", "deit_tiny_patch16_224", "--no-pretrained", *data, "--out", scores)
    assert not plan.exists()


def test_import_scores(shared_data: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "b.safetensors", tmp_path / "p.json"
    said = call("import-scores", shared_data / "up-vit-scores-2k", "--out", out)
    assert said["listed_but_not_chosen"]["ffn.0"] == 670
    small = call("plan", out, "--preset", "deit_small", "--out", plan)
    assert (small["params"], small["stock_timm"]) == (22_050_664, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "no/such/file.pth", "--data", "demo"], "no/such/file.pth"),
        (["plan", "no.safetensors", "--out", "p.json"], "no scores file at no.safetensors"),
        (["prune", "demo", "none.json", "--out", "d"], "no readable plan at none.json"),
        (["evaluate", "demo", "--data", "no/such/folder"], "no/such/folder"),
        (["score", "demo", "--data", "demo", "--images", "999999", "--out", "s"], "999999 images"),
        (["export", "demo", "--format", "timm", "--out", "README.md"], "README.md cannot be used (File exists)"),
        (["elastic", "demo", "--data", "demo", "--out", "README.md"], "README.md cannot be used (File exists)"),
        (["score", "demo", "--data", "demo", "--out", "upvit_core"], "upvit_core cannot be used (Is a directory)"),
        (["map", "demo", "--scores", "s", "--data", "demo", "--out", "README.md/m"], "README.md/m cannot be used"),
        (["plan", "assets/demo/scores.safetensors", "--round-to", "1000", "--out", "p"], "round to at most that"),
        (["distill", "--order", "tests", "--out", "d"], "tests holds no order"),
        (["profile", "eva02_tiny_patch14_224", "--no-pretrained", "--head-dim", "32"], "heads of 64 channels"),
    ],
)
def test_errors_are_one_sentence_without_traceback(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["upvit_core", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_an_error_of_the_program_itself() -> None:
    command = [sys.executable, "-m", "upvit_core", "plan", "no.safetensors", "--out", "p.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: ")
