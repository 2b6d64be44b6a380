"""A model at another image size: positions resampled as timm does, plans and surgery unaffected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.support.tiny import VARIANTS, tiny
from tests.support.verbs import call
from upvit_core.errors import CheckpointError
from upvit_core.importance.magnitude import Magnitude
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.planning.ratios import Ratios, plan_uniform


def saved(folder: Path, variant: str) -> Path:
    model, shape = tiny(variant, torch.float32)
    save_model(model, folder, shape=shape, pretrained_cfg={}, name=variant)
    return folder


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "3 heads, 5 blocks"])
def test_positions_are_resampled_as_timm_does(tmp_path: Path, variant: str) -> None:
    folder = saved(tmp_path, variant)
    ours = load_model(folder, img_size=(32, 40))
    assert (ours.shape.img_size, ours.pretrained_cfg["input_size"]) == ((32, 40), (3, 32, 40))
    theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(32, 40)).eval()
    x = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.model(x), theirs(x), rtol=1e-5, atol=1e-5)
    same = load_model(folder, img_size=16)
    assert torch.equal(same.model.pos_embed, load_model(folder).model.pos_embed)  # type: ignore[arg-type]


def test_a_size_that_patches_do_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="patches of 8 by 8"):
        load_model(saved(tmp_path, "class token"), img_size=20)


def test_a_plan_made_at_one_size_cuts_the_model_at_another(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "class token")
    loaded = load_model(folder)
    plan = plan_uniform(Magnitude(1).attribute(adapt(loaded.model, loaded.shape)), Ratios(residual=0.5, ffn=0.5))
    plan.save(tmp_path / "plan.json")
    call("prune", folder, tmp_path / "plan.json", "--img-size", 24, "--out", tmp_path / "thin")
    opened = load_model(tmp_path / "thin")
    assert (opened.shape.img_size, opened.shape.embed_dim) == ((24, 24), 8)
    kept = torch.tensor(plan.residual.keep)
    whole = load_model(folder, img_size=24).model.pos_embed
    assert torch.equal(opened.model.pos_embed, whole[..., kept])  # type: ignore[index]
