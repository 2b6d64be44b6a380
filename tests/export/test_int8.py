from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.numpy_helper import to_array

from tests.support.verbs import call
from upvit_core.errors import ExportError
from upvit_core.models.checkpoint import load_model
from upvit_core.models.images import images_for

IMAGES = 200


@pytest.fixture(scope="module", params=["dynamic", "static"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    path = tmp_path_factory.mktemp("int8") / "demo.onnx"
    return path, call("export", "demo", "--int8", request.param, "--data", "demo", "--images", IMAGES, "--out", path)


def test_accuracy_and_kl_are_those_of_the_file(exported: tuple[Path, dict]) -> None:
    path, told = exported
    model = load_model("demo")
    x, y = next(images_for(model, "demo", "val").batches(IMAGES))
    session = onnxruntime.InferenceSession(str(path))
    given = np.concatenate(
        [session.run(["logits"], {"images": part.numpy()})[0] for part in x.split(told["batch_size"])]
    )
    with torch.no_grad():
        p = torch.softmax(model.model.eval()(x).double(), dim=1).numpy()
    q = np.exp(given.astype(np.float64))
    q /= q.sum(1, keepdims=True)
    assert told["top1"] == pytest.approx(100 * np.mean(given.argmax(1) == y.numpy()))
    assert told["top1_float32"] == pytest.approx(100 * np.mean(p.argmax(1) == y.numpy()))
    assert told["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=0.02)
    assert abs(told["top1"] - told["top1_float32"]) < 2


def test_weights_are_rounded_to_the_nearest_of_255_steps_a_channel(exported: tuple[Path, dict]) -> None:
    path, told = exported
    tensors = [to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    whole = load_model("demo").model.blocks[0].mlp.fc1.weight.detach().numpy().T  # (D, hidden)
    step = np.abs(whole).max(0) / 127
    candidates = [t for t in tensors if t.dtype == np.int8 and t.shape == whole.shape]
    nearest = min(np.abs(t * step - whole).max() / step.max() for t in candidates)
    assert nearest <= 0.51
    assert told["bytes"] == path.stat().st_size < told["bytes_float32"] / 3


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported: tuple[Path, dict]) -> None:
    held = exported[0].read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in held
    assert b"stack_trace" not in held


@pytest.mark.parametrize(
    ("more", "sentence"), [(["dynamic"], "give --data"), (["static", "--backbone"], "leave out .*--backbone")]
)
def test_what_int8_needs_is_said(more: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=sentence):
        call("export", "demo", "--out", tmp_path / "x.onnx", "--int8", *more)
    assert list(tmp_path.iterdir()) == []
