from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.support.tiny import tiny
from upvit_core.errors import ExportError
from upvit_core.export import export_onnx
from upvit_core.export import onnx as exporting


@pytest.mark.parametrize(
    "variant",
    ["class token", *(pytest.param(v, marks=pytest.mark.slow) for v in ("distilled", "average pool", "registers"))],
)
def test_the_file_gives_the_models_logits(variant: str, tmp_path: Path) -> None:
    model, shape = tiny(variant, torch.float32)
    report = export_onnx(model, shape, tmp_path / "model.onnx")
    assert report["max_abs_difference"] < 1e-4
    assert report["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    x = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    (given,) = session.run(["logits"], {"images": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(given, model(x).numpy(), atol=1e-4)


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_difference_is_refused_and_leaves_nothing(
    difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape = tiny("class token", torch.float32)
    monkeypatch.setattr(exporting, "_write", lambda model, example, path, outputs: path.write_bytes(b""))
    monkeypatch.setattr(exporting, "_check", lambda model, shape, path, outputs: (difference, 2.0, "1"))
    with pytest.raises(ExportError, match=rf"up to {difference:g} in its logits, more than 0\.002"):
        export_onnx(model, shape, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_sentence(tmp_path: Path) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(str(x.sum().item()))

    _, shape = tiny("class token", torch.float32)
    model = Stubborn().train()
    with pytest.raises(ExportError) as caught:
        export_onnx(model, shape, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert model.training
    assert list(tmp_path.iterdir()) == []
