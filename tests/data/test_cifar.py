"""The whole path on real colour photographs: CIFAR-10 as an ImageFolder, with a small ViT trained here."""

import tarfile
from pathlib import Path

import pytest
import timm
import torch

from tests.support.verbs import call
from upvit_core.data import open_images
from upvit_core.models.checkpoint import build_model, save_model
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.runs.store import RunStore

PER_CLASS = {"train": 150, "test": 40}


@pytest.fixture(scope="module")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder train/<class>/*, test/<class>/* with the first images of each class."""
    root = tmp_path_factory.mktemp("cifar")
    taken: dict[str, int] = {}
    with tarfile.open(shared_data / "cifar10.tar.gz") as archive:
        for member in archive:
            split, folder = Path(member.name).parts[-3:-1] if member.isfile() else ("", "")
            if split in PER_CLASS and taken.setdefault(f"{split}/{folder}", 0) < PER_CLASS[split]:
                taken[f"{split}/{folder}"] += 1
                target = root / split / folder / Path(member.name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())
    assert len(taken) == 20
    return root


@pytest.fixture(scope="module")
def teacher(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT, trained for some seconds: well above chance, far from good."""
    shape = ModelShape("small", 48, (BlockShape(4, 48, 96),) * 3, (32, 32), (8, 8), 3, 10)
    cfg = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26), "crop_pct": 1.0, "interpolation": "bilinear"}
    train = open_images(str(photographs), "train", pretrained_cfg={**cfg, "input_size": (3, 32, 32)}, num_classes=10)
    model = build_model(shape, seed=0, weight_init="jax")
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(12):
        for x, y in train.batches(
            50, indices=torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy()
        ):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("teacher")
    save_model(model.eval(), folder, shape=shape, pretrained_cfg=cfg, name="small", class_names=train.class_names)
    return folder


def test_score_plan_prune_distil(photographs: Path, teacher: Path, tmp_path: Path) -> None:
    before = call("evaluate", teacher, "--data", photographs)
    assert before["images"] == 400
    assert before["top1"] > 20, "the teacher is no better than chance"
    scores, plan, thin = tmp_path / "s.safetensors", tmp_path / "plan.json", tmp_path / "thin"
    said = call("score", teacher, "--data", photographs, "--criterion", "kl", "--images", 20, "--out", scores)
    assert (said["images"], said["skipped"]) == (20, 0)
    call("plan", scores, "--residual", 0.5, "--attention", 0.5, "--ffn", 0.5, "--heads", 2, "--out", plan)
    call("prune", teacher, plan, "--out", thin)
    after_surgery = call("evaluate", thin, "--data", photographs, "--teacher", teacher)
    done = call(
        "distill", "--teacher", teacher, "--student", thin, "--data", photographs, "--epochs", 4, "--preset", "demo",
        "--out", tmp_path / "runs", "--device", "cpu",
    )  # fmt: skip
    assert done["state"] == "done"
    model = Path(done["run"]) / "model"
    learnt = call("evaluate", model, "--data", photographs, "--teacher", teacher)
    assert learnt["kl"] < after_surgery["kl"]
    assert learnt["top1"] == pytest.approx(done["top1"])
    rows, _ = RunStore(tmp_path / "runs").read_metrics(Path(done["run"]).name, 0)
    assert {"teacher", "surgery", "final"} <= {row["phase"] for row in rows}
    assert timm.create_model(f"local-dir:{model}", pretrained=True).num_classes == 10
